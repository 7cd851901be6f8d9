"""MNIST and CIFAR-10 as their authors published them, or downloaded from there."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data import formats
from pipeline.data.download import Published, download, file_md5
from pipeline.data.raw import RawDataset, RawSplit, Source
from pipeline.errors import DataError

MNIST_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
MNIST_FILES = {  # name: md5 of the .gz, md5 of what is in it; as torchvision has them
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
MNIST_PUBLISHED = {
    "train-images-idx3-ubyte.gz": Published(9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    "train-labels-idx1-ubyte.gz": Published(28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    "t10k-images-idx3-ubyte.gz": Published(1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    "t10k-labels-idx1-ubyte.gz": Published(4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
}


def mnist(root: Path, *, mirrors: tuple[str, ...] = MNIST_MIRRORS) -> Source:
    """MNIST from the four official IDX files, gzipped or not, downloaded when absent."""
    folder = next((f for f in (root / "MNIST" / "raw", root / "raw", root) if _idx(f, "train-images-idx3-ubyte")), None)
    place = folder or root / "MNIST" / "raw"
    digests = {}
    for name, official in MNIST_FILES.items():
        path = _idx(place, name)
        digest = file_md5(formats.bounded(path)) if path else official[0]
        digests[name] = "official" if digest in official else digest

    def load() -> RawDataset:
        if lacking := [f"{name}.gz" for name in MNIST_FILES if not _idx(place, name)]:
            download(place, {name: MNIST_PUBLISHED[name] for name in lacking}, mirrors)
        arrays = {name: formats.read_idx(_idx(place, name) or place) for name in MNIST_FILES}
        return RawDataset(_mnist_split(arrays, "train"), _mnist_split(arrays, "t10k"), [str(k) for k in range(10)], _altered(digests))

    absent = [name for name in MNIST_FILES if not _idx(place, name)]
    lacks = f"{place} lacks {', '.join(absent)}, to be downloaded" if absent else ""
    return Source(digests, load, lacks, known=None if _altered(digests) else ((1, 28, 28), 10))


def _mnist_split(arrays: dict[str, NDArray[np.uint8]], part: str) -> RawSplit:
    images, labels = arrays[f"{part}-images-idx3-ubyte"], arrays[f"{part}-labels-idx1-ubyte"]
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        found = f"{part}-images-idx3-ubyte, {images.shape}, and {part}-labels-idx1-ubyte, {labels.shape}"
        raise DataError(f"{found}, do not belong together; {formats.AGAIN}")
    if labels.max() > 9:
        raise DataError(f"{part}-labels-idx1-ubyte has a label outside 0..9; {formats.AGAIN}")
    return RawSplit(images[:, None], labels.astype(np.int64))


def _idx(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


CIFAR10_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
CIFAR10_TARS = {  # name: md5; as the data set's page has them
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
}
CIFAR10_PUBLISHED = Published(170_498_071, "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce")  # the first, as Keras has it
CIFAR10_FILES = {  # name: md5; as torchvision has them
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
CIFAR10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar10(root: Path, *, mirrors: tuple[str, ...] = CIFAR10_MIRRORS) -> Source:
    """CIFAR-10 from the python batches, the binary ones, or the tar of either; downloaded when absent."""
    folders = [root / "cifar-10-batches-py", root / "cifar-10-batches-bin", root]
    tars = [root / name for name in CIFAR10_TARS]
    suffix, folder = next(((s, f) for f in folders for s in ("", ".bin") if (f / f"test_batch{s}").is_file()), ("", None))
    tar = next((t for t in tars if t.is_file()), tars[0]) if folder is None else None
    suffix = ".bin" if tar == tars[1] else suffix
    names = [name + suffix for name in CIFAR10_FILES]
    if folder is not None:
        digests = {n: file_md5(formats.bounded(folder / n, formats.MEMBER)) if (folder / n).is_file() else "absent" for n in names}
    else:
        digests = {tar.name: file_md5(formats.bounded(tar)) if tar.is_file() else CIFAR10_TARS[tar.name]} if tar else {}
    if digests == CIFAR10_FILES or any(CIFAR10_TARS.get(name) == digest for name, digest in digests.items()):
        digests = {"cifar-10-batches-py": "official"}

    def load() -> RawDataset:
        if tar is not None and not tar.is_file():
            download(tar.parent, {tar.name: CIFAR10_PUBLISHED}, mirrors)
        contents = formats.read_members(tar, names) if tar else _contents(folder or root, names)
        missing = [name for name in names if name not in contents]
        if missing:
            raise DataError(f"{tar or folder}: no {', '.join(missing)}; delete it and run again to download CIFAR-10")
        splits = [_cifar10_batch(contents[name], name) for name in names]
        train = RawSplit(np.concatenate([s[0] for s in splits[:5]]), np.concatenate([s[1] for s in splits[:5]]))
        return RawDataset(train, RawSplit(*splits[5]), CIFAR10_CLASSES, _altered(digests))

    lacks = f"{tar} is not there, to be downloaded" if tar and not tar.is_file() else ""
    return Source(digests, load, lacks, known=((3, 32, 32), len(CIFAR10_CLASSES)))


def _contents(folder: Path, names: list[str]) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _cifar10_batch(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    if name.endswith(".bin"):
        found = formats.read_cifar_binary(content, name)
        return found[0], _in_range(found[1].tolist(), name)
    batch = formats.read_cifar_pickle(content, name)
    images, labels = batch.get("data"), batch.get("labels")
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.shape[1:] != (3072,):
        raise DataError(f"{name}: no uint8 array [N, 3072] called 'data'")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(isinstance(k, int) for k in labels):
        raise DataError(f"{name}: no list of {len(images)} whole numbers called 'labels'")
    return images.reshape(-1, 3, 32, 32), _in_range(labels, name)


def _in_range(labels: list[int], name: str) -> NDArray[np.int64]:
    if not all(0 <= label < len(CIFAR10_CLASSES) for label in labels):
        raise DataError(f"{name} has a label outside 0..9; {formats.AGAIN}")
    return np.array(labels, np.int64)


def _altered(digests: dict[str, str]) -> list[str]:
    names = [name for name, digest in digests.items() if digest != "official" and CIFAR10_FILES.get(name) != digest]
    return [f"not the official files, by their checksums: {', '.join(names)}"] if names else []
