"""Labelled images as their source has them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8] | Path | bytes]  # [N, C, H, W], or a sequence of [C, H, W] or encoded


@dataclass(frozen=True)
class RawSplit:
    images: Images
    labels: NDArray[np.int64]  # [N], in [0, classes)


@dataclass(frozen=True)
class RawDataset:
    train: RawSplit
    test: RawSplit
    classes: list[str]
    notes: list[str] = field(default_factory=list)  # what a reader of the report should know


@dataclass(frozen=True)
class Source:
    identity: Any  # plain data: equal for equal images
    load: Callable[[], RawDataset]
    absent: str = ""  # what is not there yet, or not at all; empty if nothing is known to be
    known: tuple[tuple[int, int, int], int] | None = None  # shape [C, H, W] and number of classes, where no image need be read for them
