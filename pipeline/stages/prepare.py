"""Stage 1: raw images -> splits of equal uint8 images in shards, with their statistics."""

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.data import shards
from pipeline.data.cores import cores
from pipeline.data.datasets import RawData
from pipeline.data.images import grid, pixels
from pipeline.data.raw import RawDataset, RawSplit
from pipeline.errors import DataError, PipelineError
from pipeline.runtime.console import say, show_progress
from pipeline.runtime.launch import StopFlag
from pipeline.runtime.runner import Workspace
from pipeline.stages.artifacts import PreparedData

BLOCK = 1024  # images decoded at a time
CHUNK = 32  # of them by one process


def prepare(config: DataConfig, files: RawData, space: Workspace) -> PreparedData:
    space.stop.waits = True  # for a server, perhaps, or for another process that downloads; a part that is there already is kept
    raw = files.source.load()
    space.stop.waits = False
    _check(raw)
    chosen = stratified(raw.train.labels, config.validation, config.seed)
    splits = {
        "train": (raw.train, np.flatnonzero(~chosen)),
        "validation": (raw.train, np.flatnonzero(chosen)),
        "test": (raw.test, np.arange(len(raw.test.labels))),
    }
    if not len(splits["train"][1]):
        raise DataError(f"data.validation={config.validation} of {len(raw.train.labels)} images leaves none to train on")
    size = None if config.size is None else (config.size, config.size)
    shape = pixels(raw.train.images[0], config.channels, size).shape
    seen = {name: _Seen(shape[0]) for name in splits}
    written: dict[str, list[str]] = {}
    progress = show_progress("prepare", total=sum(len(index) for _, index in splits.values()), units="images")
    for name, (split, index) in splits.items():
        written[name] = []
        for k, start in enumerate(range(0, len(index), shards.rows_a_shard(shape))):
            rows = index[start : start + shards.rows_a_shard(shape)]
            images = np.empty((len(rows), *shape), np.uint8)
            for at, block in _decoded(split, rows, config.channels, size, shape, space.stop):
                images[at : at + len(block)] = block
                seen[name].add(block)
                progress.step(len(block))
                if space.stop:
                    raise space.stop.interrupted("while preparing")
            written[name].append(f"{name}-{k:05d}.arrow")
            shards.write(space.dir / written[name][-1], images, split.labels[rows], raw.classes)
            if name == "train" and k == 0:
                grid(images, split.labels[rows], raw.classes).save(space.dir / "samples.png")
    progress.close()
    shards.introduce(space.dir, written, shape, raw.classes)
    mean, std = seen["train"].statistics()
    prepared = PreparedData(
        dir=space.dir,
        shards=written,
        counts={name: len(index) for name, (_, index) in splits.items()},
        classes=raw.classes,
        shape=shape,
        mean=mean,
        std=std,
        histogram={n: np.bincount(s.labels[i], minlength=len(raw.classes)).tolist() for n, (s, i) in splits.items()},
        duplicates=_duplicates({name: s.digests for name, s in seen.items()}),
        notes=raw.notes,
    )
    _say(prepared)
    return prepared


def stratified(labels: NDArray[np.int64], fraction: float, seed: int) -> NDArray[np.bool_]:
    """Bool [N]: `fraction` of each class, to the nearest image, drawn by (seed, class)."""
    chosen = np.zeros(len(labels), bool)
    by_class = np.argsort(labels, kind="stable")  # once: a search for each class would take as long as images times classes
    found, starts = np.unique(labels[by_class], return_index=True)
    for k, members in zip(found, np.split(by_class, starts[1:]), strict=True):
        rng = np.random.Generator(np.random.Philox(key=[seed, k]))
        chosen[rng.permutation(members)[: round(fraction * len(members))]] = True
    return chosen


class _Seen:
    """What is counted of a split while it is written: pixel values, and digests of images."""

    def __init__(self, channels: int) -> None:
        self.values = np.zeros((channels, 256), np.int64)
        self._digests = bytearray()

    def add(self, images: NDArray[np.uint8]) -> None:
        for channel in range(len(self.values)):
            self.values[channel] += np.bincount(images[:, channel].reshape(-1), minlength=256)
        self._digests += b"".join(hashlib.blake2b(image, digest_size=8).digest() for image in np.ascontiguousarray(images))

    @property
    def digests(self) -> NDArray[np.uint64]:
        """One an image; of ten million different images two have the same once in 300,000 times."""
        return np.frombuffer(self._digests, np.uint64)

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation a channel, of pixels in [0, 1]; exact, from counts of values."""
        level = np.arange(256) / 255
        share = self.values / self.values.sum(1, keepdims=True)
        mean = share @ level
        std = np.sqrt((share * (level - mean[:, None]) ** 2).sum(1))
        return tuple(mean.tolist()), tuple(np.maximum(std, 1 / 255).tolist())


def _decoded(
    split: RawSplit, rows: NDArray[np.int64], channels: int | None, size: tuple[int, int] | None, shape: tuple[int, ...], stop: StopFlag
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """(place, images [B, C, H, W]) block by block, of which the next is decoded meanwhile."""
    one = functools.partial(_image, channels=channels, size=size, shape=shape)
    with _cores(1 if isinstance(split.images, np.ndarray) else len(os.sched_getaffinity(0)), stop) as each:
        ahead: Iterator[NDArray[np.uint8]] = iter(())
        for at in range(0, len(rows) + BLOCK, BLOCK):
            block = rows[at : at + BLOCK].tolist()
            ready, ahead = ahead, each(one, [split.images[row] for row in block], block)
            if at:
                yield at - BLOCK, np.stack(list(ready))


def _image(
    image: NDArray[np.uint8] | Path | bytes, row: int, *, channels: int | None, size: tuple[int, int] | None, shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    found = pixels(image, channels, size, f"number {row}")
    if found.shape != shape:
        sizes = " and ".join("x".join(map(str, s)) for s in (shape, found.shape))
        which = str(image) if isinstance(image, Path) else f"number {row}"
        raise DataError(f"images differ, {sizes} (the second is {which}); set data.size, or data.channels to 1 or 3")
    return found


@contextlib.contextmanager
def _cores(count: int, stop: StopFlag) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map` over so many processes.

    Raises:
        PipelineError: one of them was killed.
    """
    try:
        with cores(count, CHUNK) as each:
            yield each
    except BrokenExecutor:
        if stop:  # all processes were told to
            raise stop.interrupted("while preparing") from None
        raise PipelineError("a process that decodes images was killed, for want of memory perhaps; the same command begins again") from None


def _check(raw: RawDataset) -> None:
    for name, split in (("training", raw.train), ("test", raw.test)):
        if len(split.labels) == 0:
            raise DataError(f"the {name} split has no images")
        if split.labels.min() < 0 or split.labels.max() >= len(raw.classes):
            raise DataError(f"the {name} split has labels outside 0..{len(raw.classes) - 1}")
    if bad := [name for name in raw.classes if not _is_text(name)]:
        raise DataError(f"a class has a name that is not UTF-8: {bad[0]!r}; rename its folder")
    counts = np.bincount(raw.train.labels, minlength=len(raw.classes))
    if len(raw.classes) < 2 or (counts == 0).any():
        without = [raw.classes[k] for k in np.flatnonzero(counts == 0)]
        empty = ", ".join(without[:5]) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
        raise DataError(f"classes without training images: {empty}" if empty else "classification needs two classes or more")


def _is_text(name: str) -> bool:
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def _duplicates(digests: dict[str, NDArray[np.uint64]]) -> dict[str, int]:
    """Images that repeat an earlier one of their split, and images of one split that another has too."""
    distinct = {name: np.unique(d) for name, d in digests.items()}
    within = {name: len(d) - len(distinct[name]) for name, d in digests.items()}
    across = {f"{b} in {a}": int(np.isin(digests[b], distinct[a]).sum()) for a, b in itertools.combinations(digests, 2)}
    return within | across


def _say(data: PreparedData) -> None:
    sizes = ", ".join(f"{count} {name}" for name, count in data.counts.items())
    say(f"prepare: {sizes}; {len(data.classes)} classes; images {'x'.join(map(str, data.shape))}")
    if repeated := {name: n for name, n in data.duplicates.items() if n}:
        say(f"prepare: images with equal pixels: {', '.join(f'{n} {name}' for name, n in repeated.items())}")
    for note in data.notes:
        say(f"prepare: warning: {note}")
