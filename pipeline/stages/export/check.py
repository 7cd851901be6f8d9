"""Every file is used by a process without this package, on every test image, beside the trained model."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn

from pipeline.config import ExportConfig
from pipeline.errors import GateError, PipelineError
from pipeline.runtime.runner import Workspace
from pipeline.runtime.signals import STOP_SIGNALS
from pipeline.stages.artifacts import Ran, Report
from pipeline.stages.export import stop, stranger
from pipeline.stages.export.formats import FILES, Source

BLOCK = 200  # images
TIMED = (1, 64)  # batches that are timed
ROUNDING = 1e-5  # of probabilities

Floats = NDArray[np.float32]


class Stranger:
    """The process of `stranger`, in the folder of an export. It computes on as many threads as this one, and never on a GPU."""

    def __init__(self, folder: Path) -> None:
        """Start it, with signals blocked: they are for this process, at whose end it reads no more and ends as well."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._scratch = tempfile.TemporaryDirectory(dir=folder.absolute())  # AOTInductor unpacks there, and is killed before it tidies up
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-P", stranger.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=folder,
                env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TMPDIR": self._scratch.name},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def open(self, name: str) -> None:
        self._ask(FILES[name], {"open": name, "file": FILES[name], "threads": torch.get_num_threads()})

    def run(self, name: str, images: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """Logits and probabilities, each [B, K]."""
        found = self._ask(FILES[name], {"run": name}, images)
        content = np.frombuffer(self._pipe(self._process.stdout).read(4 * math.prod(found["shape"])), np.float32)
        logits, probabilities = content.reshape(found["shape"])
        return logits, probabilities

    def time(self, name: str, images: NDArray[np.uint8]) -> tuple[float, int]:
        """Milliseconds of a run, and how many were made."""
        found = self._ask(FILES[name], {"time": name}, images)
        return found["ms"], found["runs"]

    def weights(self, name: str) -> dict[str, Any]:
        return dict(self._ask(FILES[name], {"weights": FILES[name]})["weights"])

    def imported(self) -> list[str]:
        """What it has of this package, which is to be nothing."""
        return list(self._ask("all", {"imported": stranger.PACKAGE})["imported"])

    def end(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            with contextlib.suppress(OSError):  # what has not been sent
                self._pipe(pipe).close()
        self._process.wait()
        self._scratch.cleanup()

    def _ask(self, file: str, question: Mapping[str, Any], images: NDArray[np.uint8] | None = None) -> dict[str, Any]:
        """Raises GateError if it cannot do what it is asked, or has ended over it; PipelineError if it was killed."""
        also = {} if images is None else {"shape": images.shape}
        line = b""
        with contextlib.suppress(BrokenPipeError):
            told = self._pipe(self._process.stdin)
            told.write(json.dumps({**question, **also}).encode() + b"\n")
            told.write(b"" if images is None else np.ascontiguousarray(images).data)
            told.flush()
            line = self._pipe(self._process.stdout).readline()
        if not line and (code := self._process.wait()) < 0:  # for its memory, perhaps, by the kernel
            raise PipelineError(f"the process that tried {file} was ended by signal {-code}; the same command tries again")
        found: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in found:
            raise GateError(f"{file} cannot be used by a process without this package: {' '.join(found['error'].split())}")
        return found

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return f"it ended with code {self._process.wait()}; {next(filter(None, reversed(lines)), 'it has said nothing')}"

    @staticmethod
    def _pipe(found: IO[bytes] | None) -> IO[bytes]:
        assert found is not None
        return found


@contextlib.contextmanager
def a_stranger(folder: Path) -> Iterator[Stranger]:
    started = Stranger(folder)
    try:
        yield started
        assert not started.imported()
    finally:
        started.end()


@dataclass
class Tally:
    """What one file has made of the images so far, beside the trained model."""

    images: int = 0
    right: int = 0
    same: int = 0  # given the class of the trained model
    decided: int = 0  # these, or a draw
    difference: float = 0.0  # of a logit, at most
    largest: float = 0.0  # logit of the trained model
    rounding: float = 0.0  # difference of a probability from the softmax of its own logits, at most

    def add(self, eager: Floats, logits: Floats, probabilities: Floats, labels: NDArray[np.int64], tolerance: float) -> None:
        """All [B, K] but `labels` [B]. Two classes whose eager logits differ by less than is tolerated are a draw, which either may win."""
        self.images += len(labels)
        self.largest = max(self.largest, float(np.abs(eager).max()))
        self.difference = float(np.maximum(self.difference, np.abs(eager - logits).max()))  # not a number stays one
        shares = np.exp(logits - logits.max(1, keepdims=True))
        self.rounding = float(np.maximum(self.rounding, np.abs(probabilities - shares / shares.sum(1, keepdims=True)).max()))
        same = eager.argmax(1) == logits.argmax(1)
        first_two = np.sort(eager, 1)[:, -2:]
        self.same += int(same.sum())
        self.decided += int((same | (first_two[:, 1] - first_two[:, 0] <= tolerance * self.largest)).sum())
        self.right += int((logits.argmax(1) == labels).sum())


def compare(
    asked: Stranger, source: Source, names: Sequence[str], labels: NDArray[np.int64], config: ExportConfig, space: Workspace
) -> dict[str, Tally]:
    """Each of the formats `names`, and the trained model itself as "", on every test image.

    Raises:
        GateError: one cannot be used, or departs from the trained model by more than `config` allows.
        Stopped: this process was told to stop.
    """
    tallies = {name: Tally() for name in ("", *names)}
    for name in names:
        asked.open(name)
    at = 0
    for part in source.data.open("test").images:
        for first in range(0, len(part), BLOCK):
            stop.look(space.stop)
            block = np.array(part[first : first + BLOCK])
            eager = _eager(source.model, block)
            answers = {name: asked.run(name, block) if name else eager for name in tallies}
            for name, tally in tallies.items():
                tally.add(eager[0], *answers[name], labels[at : at + len(block)], config.tolerance)
            at += len(block)
    for name in names:
        judge(name, tallies[name], tallies[""], config)
    return tallies


def _eager(model: nn.Module, images: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    with torch.no_grad():
        logits, probabilities = model(torch.from_numpy(images))
    return logits.numpy(), probabilities.numpy()


def judge(name: str, found: Tally, trained: Tally, config: ExportConfig) -> None:
    """Raises GateError if one format departs too far from the trained model, by how much."""
    if not found.rounding <= ROUNDING:
        raise GateError(f"{FILES[name]}: its probabilities are not the softmax of its logits, by {found.rounding:.3g}")
    if name == "int8":
        if (lost := (trained.right - found.right) / found.images) > config.int8_loss:
            allowed = math.ceil(lost * 1e4) / 1e4
            raise GateError(
                f"{FILES[name]} is right on {found.right} of {found.images} test images, the trained model on {trained.right}: "
                f"more is lost than export.int8_loss={config.int8_loss:g} allows; leave int8 out of export.formats, or allow {allowed}"
            )
    elif found.decided < found.images or not found.difference <= config.tolerance * found.largest:
        raise GateError(
            f"{FILES[name]} differs from the trained model: {found.images - found.same} of {found.images} classes, "
            f"logits by {found.difference:.3g} where export.tolerance allows {config.tolerance * found.largest:.3g}"
        )


def check_weights(asked: Stranger, source: Source) -> None:
    """Raises GateError unless a stranger finds in the file, name by name and bit for bit, the weights that were trained."""
    trained, found = stranger.weights(str(source.trained.dir / "weights.safetensors")), asked.weights("safetensors")
    if others := sorted(name for name in trained.keys() | found.keys() if trained.get(name) != found.get(name)):
        raise GateError(
            f"{FILES['safetensors']}: {len(others)} of {len(trained)} tensors are not those that were trained, {others[0]} first"
        )


def ran(asked: Stranger, source: Source, name: str, tally: Tally) -> Ran:
    """What was found of a format, and how fast it is."""
    image = np.array(source.data.open("test").images[0][:1])
    timed = {batch: asked.time(name, np.repeat(image, batch, 0)) for batch in TIMED}
    return Ran(
        difference=tally.difference,
        agreement=tally.same / tally.images,
        accuracy=tally.right / tally.images,
        latency={batch: ms for batch, (ms, _) in timed.items()},
        runs={batch: runs for batch, (_, runs) in timed.items()},
        images_per_second=1000 * TIMED[-1] / timed[TIMED[-1]][0],
    )


def labels(report: Report) -> NDArray[np.int64]:
    """[N], in the order of the split, as the evaluation has kept them: it alone reads those of the test split."""
    return np.asarray(load_file(report.dir / "predictions.safetensors")["test.labels"])
