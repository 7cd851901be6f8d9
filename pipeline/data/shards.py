"""Prepared images on disk: Arrow streams that memory-map, and that `datasets` can read.

    <split>-00000.arrow                          one record batch; image: fixed-size list of uint8 [C * H * W], label: int64
    dataset_dict.json, <split>/state.json, ...   where `datasets` looks for them; nothing of ours reads these, and no manifest has them

`datasets.load_from_disk` opens the folder as it is, with the class names, `datasets.Dataset.from_file` a shard.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.runtime import files

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_BYTES = 1 << 28


def rows_a_shard(shape: tuple[int, ...]) -> int:
    return max(1, SHARD_BYTES // int(np.prod(shape)))


def write(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: list[str]) -> None:
    """One shard: images [N, C, H, W], labels [N] in [0, classes)."""
    import pyarrow as pa

    width = int(np.prod(images.shape[1:]))
    flat, numbers = (_array(values) for values in (images.reshape(-1), labels))
    columns = [pa.FixedSizeListArray.from_arrays(flat, width), numbers]
    schema = pa.schema([("image", pa.list_(pa.uint8(), width)), ("label", pa.int64())], metadata={"huggingface": _features(width, classes)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))


def _array(values: NDArray[Any]) -> "pa.Array":
    """The memory of `values` [N] as Arrow sees it; `pa.array` imports pandas first, for half a second."""
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])


def _features(width: int, classes: list[str]) -> str:
    """The columns in the words of `datasets`, so that it knows the names of the classes."""
    image = {"feature": {"dtype": "uint8", "_type": "Value"}, "length": width, "_type": "List"}
    return json.dumps({"info": {"features": {"image": image, "label": {"names": classes, "_type": "ClassLabel"}}}})


def introduce(folder: Path, shards: Mapping[str, Sequence[str]], shape: tuple[int, ...], classes: list[str]) -> None:
    """Let `datasets.load_from_disk` find `shards`, split -> files in `folder`."""
    info = json.loads(_features(int(np.prod(shape)), classes))["info"]
    plain: dict[str, Any] = {"_format_type": None, "_format_kwargs": {}, "_format_columns": None, "_output_all_columns": False}
    found = {split: [{"filename": f"../{name}"} for name in names] for split, names in shards.items() if names}
    for split, names in found.items():
        (folder / split).mkdir(exist_ok=True)
        files.write_json(folder / split / "dataset_info.json", info)
        files.write_json(folder / split / "state.json", {**plain, "_fingerprint": None, "_data_files": names, "_split": split})
    files.write_json(folder / "dataset_dict.json", {"splits": list(found)})


@dataclass(frozen=True)
class Shards:
    """One prepared split, as views of its memory-mapped shards: nothing is copied, nothing decoded."""

    images: list[NDArray[np.uint8]]  # each [n_k, C, H, W]; read-only
    labels: NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.labels)


def read(paths: Iterable[Path], shape: tuple[int, ...], classes: int) -> Shards:
    """The split whose shards are `paths`, with images of `shape` [C, H, W] and labels in [0, classes).

    Raises:
        DataError: one is not as `write` has it.
    """
    images, labels = [], [np.empty(0, np.int64)]
    for path in paths:
        try:
            found, numbers = _mapped(path, shape)
        except Exception as error:  # pyarrow raises whatever it meets first
            why = " ".join(str(error).split())[:200]
            raise DataError(f"{path} is no shard of images {'x'.join(map(str, shape))} ({why}); delete its folder and run again") from None
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < classes:
            raise DataError(f"{path} has labels outside 0..{classes - 1}; delete its folder and run again")
        images.append(found)
        labels.append(numbers)
    return Shards(images, np.concatenate(labels))


def _mapped(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    import pyarrow as pa

    width = int(np.prod(shape))
    with pa.memory_map(str(path)) as source:
        stream = pa.ipc.open_stream(source)
        if stream.schema.types != [pa.list_(pa.uint8(), width), pa.int64()] or stream.schema.names != ["image", "label"]:
            raise ValueError("it has other columns")
        if _is_packed(path):
            raise ValueError("it is compressed")
        batch = stream.read_next_batch()
    batch.validate()
    flat, numbers = batch.column("image").flatten(), batch.column("label")
    if batch.column("image").null_count or flat.null_count or numbers.null_count or len(flat) != len(numbers) * width:
        raise ValueError("it lacks values")
    return _view(flat, np.uint8).reshape(-1, *shape), _view(numbers, np.int64)


def _is_packed(path: Path) -> bool:
    """Whether its record batch is compressed, so that a few bytes could stand for all memory; pyarrow tells only when it has unpacked it.

    Format: `RecordBatch.compression` in https://github.com/apache/arrow/blob/main/format/Message.fbs, a flatbuffer.
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        pa.ipc.read_message(source)
        content = pa.ipc.read_message(source).metadata.to_pybytes()

    def at(table: int, slot: int) -> int:
        """Where a field of a table is; 0 if it has none."""
        names = table - struct.unpack_from("<i", content, table)[0]
        (size,) = struct.unpack_from("<H", content, names)
        (offset,) = struct.unpack_from("<H", content, names + 4 + 2 * slot) if 4 + 2 * slot < size else (0,)
        return table + offset if offset else 0

    try:
        header = at(struct.unpack_from("<I", content, 0)[0], 2)
        return bool(at(header + struct.unpack_from("<I", content, header)[0], 3))
    except struct.error as error:
        raise ValueError("its record batch has no header") from error


def _view(column: "pa.Array", dtype: type[np.generic]) -> NDArray[Any]:
    """The memory of `column` itself; pyarrow's own `to_numpy` imports pandas, for a quarter of a second."""
    return np.frombuffer(column.buffers()[1], dtype, len(column), column.offset * np.dtype(dtype).itemsize)
