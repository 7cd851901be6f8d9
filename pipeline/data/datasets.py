"""Sources of labelled images: each a function from the data folder to what is there.

A function here looks at names and digests only. Its result's `identity` says what the images
are, wherever they lie; `load` reads them, and downloads them first where that is offered.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.config import Spec
from pipeline.data import hub
from pipeline.data.classics import cifar10, mnist
from pipeline.data.raw import Images, RawDataset, RawSplit, Source
from pipeline.errors import DataError
from pipeline.runtime import fingerprint

Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class RawData:
    """The raw images that the configuration asks for; files are looked at when first asked about."""

    def __init__(self, spec: Spec, root: Path) -> None:
        self._spec, self._root = spec, root

    @functools.cached_property
    def source(self) -> Source:
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in self._spec.options.items()}
        return DATASETS[self._spec.name](self._root, **options)

    def reasons(self) -> dict[str, Any]:
        return {"data.files": fingerprint.of_value(self.source.identity)}


def digits(root: Path, *, size: Count = 28) -> Source:
    """The 1,797 handwritten digits inside scikit-learn, 8x8, enlarged to `size` pixels a side.

    They are the test part of E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits",
    UCI, 1998. They have no official split: every fifth image of each class is our test split.
    """

    def load() -> RawDataset:
        import PIL.Image
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        grey = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
        large = [PIL.Image.fromarray(image).resize((size, size), PIL.Image.Resampling.BICUBIC) for image in grey]
        images = np.stack([np.asarray(image) for image in large])[:, None]
        return _split(images, labels.astype(np.int64), [str(k) for k in range(10)], [])

    return Source(None, load, known=((1, size, size), 10))


def synthetic(
    root: Path, *, classes: Count = 4, size: Count = 12, channels: Literal[1, 3] = 3, train: Count = 256, test: Count = 64, seed: Seed = 0
) -> Source:
    """Noisy class templates, for tests: learnable, seeded, no files."""

    def load() -> RawDataset:
        rng = np.random.default_rng(seed)
        templates = rng.integers(0, 256, (classes, channels, size, size))

        def split(n: int) -> RawSplit:
            labels = rng.integers(0, classes, n)
            noise = rng.integers(-60, 61, (n, channels, size, size))
            return RawSplit(np.clip(templates[labels] + noise, 0, 255).astype(np.uint8), labels)

        return RawDataset(split(train), split(test), [f"class {k}" for k in range(classes)])

    return Source(None, load, known=((channels, size, size), classes))


def folder(root: Path) -> Source:
    """A folder of class folders of images: `train/<class>/*` and `test/<class>/*` (or `val`).

    Without `train`, the folder itself holds the class folders, and every fifth image of each
    class is the test split.
    """
    train = root / "train" if (root / "train").is_dir() else root
    test = next((root / name for name in ("test", "val") if (root / name).is_dir()), None) if train != root else None
    listed = {part: _images(path) for part, path in (("train", train), ("test", test)) if path is not None}
    identity = {part: [(c, p.name, *_stamp(p)) for c, p in pairs] for part, pairs in listed.items()}

    def load() -> RawDataset:
        if not listed["train"]:
            raise DataError(_without_images(root, train))
        classes = sorted({c for c, _ in listed["train"]})
        if strange := {c for c, _ in listed.get("test", [])} - set(classes):
            raise DataError(f"{test} has classes that {train} has not: {', '.join(sorted(strange))}")
        if test is None:
            note = ["no test folder: every fifth image of each class was set aside as the test split"]
            return _split(*_labelled(listed["train"], classes), classes, note)
        return RawDataset(RawSplit(*_labelled(listed["train"], classes)), RawSplit(*_labelled(listed["test"], classes)), classes)

    return Source(identity, load, "" if listed["train"] else f"no images in {root}")


def _without_images(root: Path, train: Path) -> str:
    if not root.is_dir():
        return f"{root} is not there; give the folder of the images, as --data-dir or data.root"
    from pipeline.data.images import suffixes

    if loose := sum(path.suffix.lower() in suffixes() for path in train.iterdir()):
        return f"{train} has images ({loose:,}), but none in a folder for its class; move each into {train}/<class>/"
    return f"no images in {root}; expected {root}/train/<class>/<image>, or {root}/<class>/<image>; is data.root right?"


def _images(root: Path) -> list[tuple[str, Path]]:
    """(class, file) of every image in the class folders of `root`, in order of their names."""
    from pipeline.data.images import suffixes  # Pillow has no hurry

    kept = (p for p in root.glob("*/*") if p.suffix.lower() in suffixes() and not p.name.startswith(".") and p.is_file())
    return sorted((p.parent.name, p) for p in kept if not p.parent.name.startswith("."))


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change stand for the content of a file among a million."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _labelled(pairs: list[tuple[str, Path]], classes: list[str]) -> tuple[list[Path], NDArray[np.int64]]:
    number = {name: k for k, name in enumerate(classes)}
    return [p for _, p in pairs], np.array([number[c] for c, _ in pairs], np.int64)


def huggingface(
    root: Path, *, path: str = "", revision: str = "main", train: str = "train", test: str = "test", image: str = "", label: str = ""
) -> Source:
    """A data set of the Hugging Face Hub by name, or local Parquet or Arrow files in `path` or the data folder.

    `train` and `test` name its splits; `image` and `label` its columns, found by type if not given.
    """
    return hub.source(path or str(root.absolute()), revision, (train, test), image, label)


def _split(images: Images, labels: NDArray[np.int64], classes: list[str], notes: list[str]) -> RawDataset:
    """Every fifth image of each class to test, the others to train, in their order."""
    rank = np.empty(len(labels), np.int64)
    for k in range(len(classes)):
        rank[labels == k] = np.arange((labels == k).sum())
    chosen = rank % 5 == 4
    parts = [RawSplit(_take(images, np.flatnonzero(mask)), labels[mask]) for mask in (~chosen, chosen)]
    return RawDataset(parts[0], parts[1], classes, notes)


def _take(images: Images, index: NDArray[np.int64]) -> Images:
    return images[index] if isinstance(images, np.ndarray) else [images[i] for i in index]


DATASETS: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "synthetic": synthetic,
    "mnist": mnist,
    "cifar10": cifar10,
    "folder": folder,
    "huggingface": huggingface,
}
