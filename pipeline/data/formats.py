"""Readers of the classic files, that execute nothing from them: IDX, CIFAR-10's pickles and binaries."""

import gzip
import io
import math
import pickle
import struct
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError


def read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes, gzipped or not. The shape is in its head.

    Format: http://yann.lecun.com/exdb/mnist, "THE IDX FILE FORMAT".
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} is not a whole gzip file ({error}); delete it and run again") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise DataError(f"{path} is not an IDX file of bytes; delete it and run again")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:start].ljust(4 * dimensions, b"\0"))
    if len(content) - start != math.prod(shape):
        raise DataError(f"{path} holds {len(content) - start} bytes, but its head says {shape}; delete it and run again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_cifar_pickle(content: bytes, name: str) -> dict[str, Any]:
    """One of CIFAR-10's python batches: {"data": uint8 [N, 3072], "labels": [N], ...}.

    Raises:
        DataError: it is not such a file, or it asks for anything but numpy arrays.
    """
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    except Exception as error:  # a pickle can fail in any way at all
        raise DataError(f"{name} is not a CIFAR-10 batch ({type(error).__name__}: {error})") from None
    if not isinstance(batch, dict):
        raise DataError(f"{name} is not a CIFAR-10 batch: a {type(batch).__name__} instead of a dict")
    return batch


def _latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes the bytes of an array into a pickle that Python 2 can read."""
    if encoding != "latin1":
        raise DataError(f"asks for the encoding {encoding!r}, which no CIFAR-10 batch needs")
    return text.encode("latin1")


class _ArraysOnly(pickle.Unpickler):
    """Unpickles builtin values and numpy arrays, and looks up nothing else."""

    _allowed: Mapping[tuple[str, str], Any] = {
        ("_codecs", "encode"): _latin1,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
        ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise DataError(f"asks for {module}.{name}, which no CIFAR-10 batch needs; it was not executed")
        return self._allowed[module, name]


def read_cifar_binary(content: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """One of CIFAR-10's binary batches: records of a label byte and 3,072 pixel bytes."""
    if not content or len(content) % 3073:
        raise DataError(f"{name} holds {len(content)} bytes, not records of 3073")
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def read_members(archive: Path, names: list[str]) -> dict[str, bytes]:
    """The regular files called `names` (without their folders) in a tar file, read into memory."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                if name in names and member.isreg() and member.size <= 64 << 20:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    found[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{archive} is not a whole tar file ({error}); delete it and run again") from None
    return found
