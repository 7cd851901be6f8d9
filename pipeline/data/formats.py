"""Readers of the classic files, that execute nothing from them: IDX, CIFAR-10's pickles and binaries, tar files.

None takes more memory than its caller can foresee, whatever a file says of itself, or unpacks to.
"""

import gzip
import io
import math
import struct
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline import reading
from pipeline.errors import DataError
from pipeline.runtime import pickled
from pipeline.runtime.pickled import Made

LARGEST = 1 << 29  # bytes of a file, or unpacked of an array: eleven times MNIST
UNPACKED = 1 << 28  # of a tar file, all its members together: CIFAR-10's has 178 million
MEMBER = 1 << 26  # of a member, or a batch: CIFAR-10's has 31 million
AGAIN = "delete it and run again"
RECONSTRUCT = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
FROM_BUFFER = {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}


def bounded(path: Path, most: int = LARGEST) -> Path:
    """`path`.

    Raises:
        DataError: it has more than `most` bytes.
    """
    if (size := path.stat().st_size) > most:
        raise DataError(f"{path} has {size:,} bytes, which is more than {most:,}: it is not the file that it is named after; {AGAIN}")
    return path


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not. The shape is in its head, and no more is read than that says.

    Format: http://yann.lecun.com/exdb/mnist, "THE IDX FILE FORMAT".
    """
    try:
        with reading.opened(bounded(path)) as file:
            shape, content = _idx(_unpacked(file), str(path))
    except DataError:
        raise
    except Exception as error:  # zlib's own, EOFError, OSError
        raise DataError(f"{path} is not a whole gzip file ({error}); {AGAIN}") from None
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx(file: BinaryIO, name: str) -> tuple[tuple[int, ...], bytes]:
    start = file.read(4)
    if len(start) < 4 or start[:3] != b"\0\0\x08":
        raise DataError(f"{name} is not an IDX file of bytes; {AGAIN}")
    dimensions = start[3]
    sizes = file.read(4 * dimensions)
    if not 0 < dimensions <= 4 or len(sizes) < 4 * dimensions:
        raise DataError(f"{name} holds {len(sizes)} bytes, but its head says {dimensions} dimensions; {AGAIN}")
    shape = struct.unpack(f">{dimensions}I", sizes)
    size = math.prod(shape)
    if not 0 < size <= LARGEST:
        raise DataError(f"{name}: its head says {shape}, which is {'nothing' if size == 0 else f'more than {LARGEST:,} bytes'}; {AGAIN}")
    content = file.read(size + 1)
    if len(content) != size:
        raise DataError(f"{name} holds {'more' if len(content) > size else len(content)} bytes, but its head says {shape}; {AGAIN}")
    return shape, content


def _unpacked(file: io.BufferedReader) -> BinaryIO:
    """What is in `file`, which may be gzipped."""
    return gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == b"\x1f\x8b" else file  # type: ignore[return-value]


def read_cifar_pickle(content: bytes, name: str) -> dict[str, Any]:
    """One of CIFAR-10's python batches: {"data": uint8 [N, 3072], "labels": [N], ...}.

    Raises:
        DataError: it is not such a file, or it asks for anything but numpy arrays of bytes.
    """
    known = {*RECONSTRUCT, *FROM_BUFFER, "numpy.ndarray", "numpy.dtype"}
    try:
        batch = pickled.read(content, known.__contains__)
    except pickled.Refused as error:
        raise DataError(f"{name} is not a CIFAR-10 batch: it {error}, which no CIFAR-10 batch does; nothing of it was executed") from None
    if not isinstance(batch, dict):
        raise DataError(f"{name} is not a CIFAR-10 batch: a {type(batch).__name__} instead of a dict")
    return {key: _array(value) if isinstance(value, Made) else value for key, value in batch.items() if isinstance(key, str)}


def _array(made: Made) -> Any:
    """The array of bytes that `made` would be; None if it would be another, or none."""
    try:
        if made.by in RECONSTRUCT:
            _, shape, kind, by_columns, content = made.state
        else:
            content, kind, shape, order = made.of
            by_columns = order == "F"
        if kind.by != "numpy.dtype" or kind.of[0] not in ("u1", "|u1"):
            return None
        raw = content.encode("latin1") if isinstance(content, str) else content
        return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_columns else "C")
    except (TypeError, ValueError, LookupError, AttributeError):
        return None


def read_cifar_binary(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One of CIFAR-10's binary batches: records of a label byte and 3,072 pixel bytes."""
    if not content or len(content) % 3073:
        raise DataError(f"{name} holds {len(content)} bytes, not records of 3073")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def read_members(archive: Path, names: list[str]) -> dict[str, bytes]:
    """The regular files called `names` (without their folders) in a tar file, read into memory; nothing is extracted."""
    found: dict[str, bytes] = {}
    try:
        with (
            reading.opened(bounded(archive)) as file,
            tarfile.open(fileobj=_Capped(_unpacked(file), str(archive)), mode="r|") as tar,  # type: ignore[call-overload]
        ):
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in names and member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and member.size <= MEMBER:
                    if name in found:
                        raise DataError(f"{archive} has {name} twice; {AGAIN}")
                    stream = tar.extractfile(member)
                    assert stream is not None
                    found[name] = stream.read()
    except DataError:
        raise
    except Exception as error:  # tarfile trusts what it reads, and fails in any way at all
        raise DataError(f"{archive} is not a whole tar file ({' '.join(str(error).split())[:200]}); {AGAIN}") from None
    return found


class _Capped:
    """A file of which no more than `UNPACKED` bytes can be read."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name, self._left = file, name, UNPACKED

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise DataError(f"{self._name} unpacks to more than {UNPACKED:,} bytes; {AGAIN}")
        return self._file.read(size)
