"""Data sets of the Hugging Face Hub, and local Parquet and Arrow files, through `datasets`."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.data import download
from pipeline.data.raw import RawDataset, RawSplit, Source
from pipeline.errors import DataError
from pipeline.runtime import files
from pipeline.runtime.console import say, show_progress

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import RepoFile


FORMATS = ("parquet", "arrow")
T = TypeVar("T")


def source(path: str, revision: str, splits: tuple[str, str], image: str, label: str) -> Source:
    """What `path` is, and a function that reads it: local files if it is a folder, else a name on the Hub."""
    local = Path(path)
    found = sorted(p for f in FORMATS for p in local.rglob(f"*.{f}")) if local.is_dir() else []
    identity = [[str(p.relative_to(local)), p.stat().st_size, p.stat().st_mtime_ns] for p in found] or [[path, revision]]

    def load() -> RawDataset:
        if not found and (local.is_dir() or local.is_absolute()):
            raise DataError(f"no Parquet or Arrow files in {path}; set data.root, or data.source.path to their folder or a name on the Hub")
        parts = [_open(path, found, name) for name in splits] if found else _from_hub(path, revision, splits)
        columns = _columns(parts[0], image, label)
        classes = _classes(parts[0], columns[1])
        train, test = (RawSplit(_Images(part, columns[0], local if found else None), _labels(part, columns[1], classes)) for part in parts)
        return RawDataset(train, test, classes)

    gone = f"no Parquet or Arrow files in {path}" if local.is_dir() or local.is_absolute() else f"{path} is to be downloaded from the Hub"
    return Source(identity, load, "" if found else gone)


def _from_hub(path: str, revision: str, splits: Sequence[str]) -> "list[Dataset]":
    """The splits of a data set of the Hub, by way of the library's cache; nothing in its repository is executed."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.disable_progress_bars()
    disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each of its tries; what came of them is told below
    try:
        builder = _patiently(lambda: datasets.load_dataset_builder(path, revision=revision))
        if not Path(builder.cache_dir).exists():  # where what has been read before is kept
            _fetch(path, [url for urls in builder.config.data_files.values() for url in urls])
            builder.download_and_prepare()
        return [builder.as_dataset(split=split) for split in splits]
    except DataError:
        raise
    except Exception as error:  # the library raises whatever its transport does
        if isinstance(error, OSError) and error.errno in files.TROUBLES:  # of our disk
            raise
        raise DataError(
            f"cannot load {path!r} from the Hub, splits {' and '.join(splits)}: {' '.join(str(error).split())}; where it can be reached, "
            f"`hf download {path} --repo-type dataset --local-dir FOLDER` fetches the files: set data.source.path to their folder"
        ) from None


def _fetch(path: str, urls: Sequence[str]) -> None:
    """Have all files of the repository that are to be read in the library's cache, each as the Hub says it is.

    `hf_hub_download` resumes, and looks at sizes; at what is in a file it does not look (huggingface_hub 2.4).
    """
    from huggingface_hub import HfApi, RepoFile, hf_hub_download

    prefix = f"hf://datasets/{path}@"
    if strange := [url for url in urls if not url.startswith(prefix)]:
        raise DataError(f"{path!r} has data outside of its repository, {strange[0]}; such are not read")
    commit = urls[0].removeprefix(prefix).partition("/")[0]
    names = [url.removeprefix(f"{prefix}{commit}/") for url in urls]
    asked = _patiently(lambda: HfApi().get_paths_info(path, names, repo_type="dataset", revision=commit))
    listed = [file for file in asked if isinstance(file, RepoFile)]
    if absent := set(names) - {file.path for file in listed}:
        raise DataError(f"the Hub does not list {', '.join(sorted(absent))} of {path!r}")
    total = sum(file.size for file in listed)
    say(f"downloading {path} at {commit[:12]}: {len(listed)} files, {total:,} bytes")
    progress = show_progress(path, total=total, units="bytes")
    for file in listed:
        got = _patiently(lambda name=file.path: hf_hub_download(path, name, repo_type="dataset", revision=commit))  # type: ignore[misc]
        if not _is_as_listed(Path(got), file):
            place = Path(got).resolve()
            raise DataError(f"{file.path} of {path!r} is not what the Hub says it is, by its digest; delete {place} and run again")
        progress.step(file.size)
    progress.close()


def _is_as_listed(file: Path, listed: "RepoFile") -> bool:
    """By sha256 if it is a large file of git's, else by git's own digest of a file."""
    with file.open("rb") as f:
        if listed.lfs is not None:
            return hashlib.file_digest(f, "sha256").hexdigest() == listed.lfs.sha256
        content = f.read()
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content), usedforsecurity=False).hexdigest() == listed.blob_id


def _patiently(ask: Callable[[], T]) -> T:
    """Ask again, twice, where the Hub has a trouble that may pass."""
    for pause in download.PAUSES:
        try:
            return ask()
        except Exception as error:
            if getattr(getattr(error, "response", None), "status_code", 0) not in download.PASSING:
                raise
        time.sleep(pause)
    return ask()


def _open(path: str, found: Sequence[Path], split: str) -> "Dataset":
    import datasets

    datasets.disable_progress_bars()
    paths = [str(p) for p in found if p.stem.split("-")[0] == split or p.parent.name == split]
    if not paths:
        raise DataError(f"no files for the split {split!r} in {path}: expected {split}-*.parquet, {split}.arrow or {split}/*")
    try:
        if Path(paths[0]).suffix == ".arrow":
            return datasets.concatenate_datasets([datasets.Dataset.from_file(p) for p in paths])
        return datasets.Dataset.from_parquet(paths, keep_in_memory=True)
    except Exception as error:  # as above
        why = " ".join(str(error.__cause__ or error).split())[:200]
        raise DataError(f"cannot read {', '.join(paths[:3])}: {why}; is it whole?") from None


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

    def __init__(self, part: "Dataset", column: str, folder: Path | None) -> None:
        import datasets

        self._encoded = isinstance(part.features[column], datasets.Image)
        self._part = part.cast_column(column, datasets.Image(decode=False)) if self._encoded else part
        self._column, self._folder = column, folder

    def __len__(self) -> int:
        return len(self._part)

    def __getitem__(self, index: Any) -> Any:
        value = self._part[int(index)][self._column]
        if self._encoded:
            return value["bytes"] or self._beside(str(value["path"]))
        return self._array(value)

    def _beside(self, path: str) -> Path:
        """The file of an image; of data from elsewhere, only one below their own folder."""
        if self._folder is not None and not Path(path).resolve().is_relative_to(self._folder.resolve()):
            raise DataError(f"column {self._column!r} names the file {path}, which is not in {self._folder}; put the images into the data")
        return Path(path)

    def _array(self, value: Any) -> NDArray[np.uint8]:
        array = np.asarray(value)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[0] not in (1, 3) or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
            raise DataError(f"column {self._column!r} holds neither images nor whole numbers in 0..255, [H, W] or [1 or 3, H, W]")
        return array.astype(np.uint8)
