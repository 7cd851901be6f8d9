"""Classes and probabilities of images, from an export alone: numpy, Pillow and onnxruntime, no torch.

Images are made as `prepare` makes them, by the same code. They go through batch by batch, each row is written when its batch is
done, and nothing of them is kept, however many there are; but for their names.
"""

import contextlib
import functools
import math
import os
import stat
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.cores import cores
from pipeline.data.images import pixels
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.predict.exported import Exported
from pipeline.predict.finding import find
from pipeline.predict.rows import FORMS, Prediction
from pipeline.runtime.console import put, show_progress, visible, warn, working
from pipeline.runtime.signals import interruptible

BATCH = 256  # images at most
VALUES = 4 << 20  # of a batch, at most: what is inside a net takes a hundred times as much
MANY = 64  # images, from which on several processes read them, and it is shown how far they are

Read = NDArray[np.uint8] | str  # an image [C, H, W], or why there is none


def predict(export: Path, given: Sequence[Path], *, form: str, top: int) -> int:
    """Print the `top` most probable classes of each image, and name on stderr what is none; 3 if there was such, else 0.

    Raises:
        ConfigError: there is no such export, or it has fewer classes.
        DataError: it is damaged; or there is no image.
    """
    exported = Exported.of(export)
    if top > (most := len(exported.about.classes)):
        raise ConfigError(f"predict: --top {top}: there are {most} classes; give {most} at most")
    found = find(given)
    for why in found.refused:
        warn(visible(why))
    if not found.names:
        raise DataError(f"no image in {' '.join(map(visible, map(str, given)))}")
    head, row = FORMS[form](found.names, exported.about.classes, top)
    refused = len(found.refused)
    answered = _answers(exported, found.names, top)
    quietly = contextlib.suppress(BrokenPipeError)  # who reads it may have enough, as `head` has
    with interruptible("stopped"), quietly, contextlib.closing(answered):
        for answers in answered:
            for why in (one for one in answers if isinstance(one, str)):
                refused += 1
                warn(visible(why))
            rows = "".join(row(one) for one in answers if not isinstance(one, str))
            put(head + rows if rows else "")
            head = "" if rows else head
    if found.passed_over:
        warn(f"passed over, by their names no images: {len(found.passed_over)}, the first {visible(found.passed_over[0])}")
    if refused and len(found.names) > 1:
        warn(f"{refused} of {len(found.names) + len(found.refused)} could not be read")
    return DataError.exit_code if refused else 0


def _answers(exported: Exported, names: Sequence[str], top: int) -> Generator[list[Prediction | str]]:
    """Batch by batch, while images of the next are read."""
    shape = exported.about.shape
    size = max(1, min(BATCH, VALUES // math.prod(shape)))
    count = 1 if len(names) < MANY else len(os.sched_getaffinity(0))
    read = functools.partial(_read, channels=shape[0], size=shape[1:])
    with contextlib.ExitStack() as stack:
        each = stack.enter_context(_readers(count, max(1, size // (2 * count))))  # forked before there are threads
        if len(names) >= MANY:
            stack.enter_context(working("predict"))
        progress = show_progress("predict", total=len(names), units="images")
        exported.probabilities(np.zeros((1, *shape), np.uint8))  # or all images would be read for nothing
        ahead: Iterator[Read] = each(read, names[:size])
        for at in range(0, len(names), size):
            ready, ahead = [*ahead], each(read, names[at + size : at + 2 * size])
            yield [*_of_batch(exported, names[at : at + size], ready, top)]
            progress.step(len(ready))


def _of_batch(exported: Exported, names: Sequence[str], ready: Sequence[Read], top: int) -> Iterator[Prediction | str]:
    images = [image for image in ready if not isinstance(image, str)]
    shares = iter(exported.probabilities(np.stack(images)) if images else ())
    for name, image in zip(names, ready, strict=True):
        yield image if isinstance(image, str) else Prediction.of(name, next(shares), exported.about.classes, top)


def _read(name: str, *, channels: int, size: tuple[int, int]) -> Read:
    """The image in the file `name`, or what is wrong with it."""
    warnings.filterwarnings("ignore", module="PIL")
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):  # noqa: PTH116 (of a pipe, say, there may be no end)
            return f"cannot read the image {name}: it is no regular file"
        return pixels(Path(name), channels, size)
    except DataError as error:
        return str(error)
    except OSError as error:
        return f"cannot read the image {name}: {error.strerror or error}"
    except Exception as error:  # a decoder that is given anything at all can fail in any way
        return f"cannot read the image {name}: {type(error).__name__}: {error}"


@contextlib.contextmanager
def _readers(count: int, chunk: int) -> Iterator[Callable[..., Iterator[Any]]]:
    from concurrent.futures import BrokenExecutor

    try:
        with cores(count, chunk) as each:
            yield each
    except BrokenExecutor:
        raise PipelineError("a process that reads images was killed, for want of memory perhaps; name fewer or smaller ones") from None
