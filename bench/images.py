"""The data sets as files of the kinds that the others read."""

import gzip
import shutil
from pathlib import Path

import numpy as np


def unpacked_mnist(data: Path, place: Path) -> Path:
    """`place`, with the four IDX files of `data` in MNIST/raw, no longer gzipped."""
    raw = place / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (data / "MNIST" / "raw").iterdir():
        if path.suffix == ".gz":
            with gzip.open(path) as packed, (raw / path.stem).open("wb") as plain:
                shutil.copyfileobj(packed, plain)
        elif not path.with_name(f"{path.name}.gz").exists():
            shutil.copyfile(path, raw / path.name)
    return place


def write_class_folders(source: str, data: Path, place: Path, *, suffix: str = "png") -> None:
    """The images of `source` as `train/<class>/*` and `test/<class>/*` in `place`; not again if they are there."""
    from PIL import Image

    from pipeline.data.datasets import DATASETS

    if place.exists():
        return
    raw = DATASETS[source](data).load()
    aside = place.with_name(f"{place.name}.partial")
    for part, split in (("train", raw.train), ("test", raw.test)):
        for name in raw.classes:
            (aside / part / name).mkdir(parents=True, exist_ok=True)
        for k, (image, label) in enumerate(zip(np.asarray(split.images), split.labels, strict=True)):
            Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(
                aside / part / raw.classes[label] / f"{k:05}.{suffix}"
            )
    aside.rename(place)
