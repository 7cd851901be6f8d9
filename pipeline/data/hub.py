"""Data sets of the Hugging Face Hub, and local Parquet and Arrow files, through `datasets`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.raw import RawDataset, RawSplit, Source
from pipeline.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset


FORMATS = ("parquet", "arrow")


def source(path: str, revision: str, splits: tuple[str, str], image: str, label: str) -> Source:
    """What `path` is, and a function that reads it: local files if it is a folder, else a name on the Hub."""
    local = Path(path)
    found = sorted(p for f in FORMATS for p in local.rglob(f"*.{f}")) if local.is_dir() else []
    identity = [[str(p.relative_to(local)), p.stat().st_size, p.stat().st_mtime_ns] for p in found] or [[path, revision]]

    def load() -> RawDataset:
        if not found and (local.is_dir() or local.is_absolute()):
            raise DataError(f"no Parquet or Arrow files in {path}; set data.root or data.source.path")
        parts = [_open(path, revision, found, name) for name in splits]
        columns = _columns(parts[0], image, label)
        classes = _classes(parts[0], columns[1])
        train, test = (RawSplit(_Images(part, columns[0]), _labels(part, columns[1], classes)) for part in parts)
        return RawDataset(train, test, classes)

    gone = f"no Parquet or Arrow files in {path}" if local.is_dir() or local.is_absolute() else f"{path} is to be downloaded from the Hub"
    return Source(identity, load, "" if found else gone)


def _open(path: str, revision: str, found: Sequence[Path], split: str) -> "Dataset":
    import datasets

    datasets.disable_progress_bars()
    if not found:
        try:
            opened = datasets.load_dataset(path, split=split, revision=revision)
        except Exception as error:  # the library raises whatever its transport does
            raise DataError(f"cannot load {path!r} from the Hub, split {split!r}: {' '.join(str(error).split())}") from None
        return opened
    files = [str(p) for p in found if p.stem.split("-")[0] == split or p.parent.name == split]
    if not files:
        raise DataError(f"no files for the split {split!r} in {path}: expected {split}-*.parquet, {split}.arrow or {split}/*")
    suffix = Path(files[0]).suffix[1:]
    if suffix == "arrow":
        return datasets.concatenate_datasets([datasets.Dataset.from_file(f) for f in files])
    return datasets.Dataset.from_parquet(files, keep_in_memory=True)


def _columns(part: "Dataset", image: str, label: str) -> tuple[str, str]:
    kinds = {name: type(feature).__name__ for name, feature in part.features.items()}
    image = image or next((n for n, k in kinds.items() if k == "Image" or n in ("image", "img")), "")
    label = label or next((n for n, k in kinds.items() if k == "ClassLabel" or n in ("label", "labels", "fine_label")), "")
    for name, option in ((image, "image"), (label, "label")):
        if name not in kinds:
            raise DataError(f"no {option} column {name!r} among {', '.join(kinds)}; set data.source.{option}")
    return image, label


def _classes(part: "Dataset", label: str) -> list[str]:
    names = getattr(part.features[label], "names", None)
    return list(names) if names else [str(v) for v in sorted(set(part[label]))]


def _labels(part: "Dataset", column: str, classes: list[str]) -> NDArray[np.int64]:
    """A ClassLabel is stored as its number; any other label is looked up among the class names."""
    values = part[column]
    if names := getattr(part.features[column], "names", None):
        if list(names) != classes:
            raise DataError(f"the splits number their classes differently: {', '.join(classes)} and {', '.join(names)}")
        return np.array(values, np.int64)
    number = {name: k for k, name in enumerate(classes)}
    if strange := {str(v) for v in values} - set(classes):
        raise DataError(f"labels that the training split has not: {', '.join(sorted(strange))}")
    return np.array([number[str(v)] for v in values], np.int64)


class _Images(Sequence[Any]):
    """One column as encoded images or arrays [C, H, W], decoded when asked for."""

    def __init__(self, part: "Dataset", column: str) -> None:
        import datasets

        self._encoded = isinstance(part.features[column], datasets.Image)
        self._part = part.cast_column(column, datasets.Image(decode=False)) if self._encoded else part
        self._column = column

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: Any) -> Any:
        value = self._part[int(index)][self._column]
        if self._encoded:
            return value["bytes"] or Path(value["path"])
        array = np.asarray(value)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[0] not in (1, 3) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            raise DataError(f"column {self._column!r} holds neither images nor whole numbers in 0..255, [H, W] or [1 or 3, H, W]")
        return array.astype(np.uint8)
