"""Reads what W&B has on this disk of a run: a log of protobuf records in LevelDB's framing, one for each life, online or not."""

import json
import mmap
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes; no header crosses its end
HEADER = 7  # bytes: crc, length, type (1 whole, 2 first, 3 middle, 4 last); as many as the mark at the beginning of the file


def of_run(places: Iterable[Path], run_id: str) -> list[Path]:
    """The files of all lives, oldest first, by the run folders that they had; W&B numbers the folders of lives begun in one second."""
    found = (path for place in places for path in place.glob(f"wandb/*run-*-{run_id}*/run-{run_id}.wandb"))
    return sorted(found, key=lambda path: path.parent.name.removeprefix("offline-"))


def is_offline(path: Path) -> bool:
    return path.parent.name.startswith("offline-")


def records(path: Path) -> Iterator[Any]:
    """Each whole record; a last one cut short, by whatever has killed the service, does not count.

    Raises:
        ValueError: it is not such a file, or is damaged.
    """
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    for content in _contents(path):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        try:
            record.ParseFromString(content)
        except DecodeError as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        yield record


def _contents(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if file.read(4) != b":W&B":
            if file.tell() == 0:  # nothing was written yet
                return
            raise ValueError(f"{path} is no log of W&B")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at, pieces = HEADER, b""
            while at + HEADER <= len(content):
                if BLOCK - at % BLOCK < HEADER:
                    at += BLOCK - at % BLOCK
                    continue
                _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
                piece = content[at + HEADER : at + HEADER + length]
                if kind == 0 or len(piece) < length:
                    return
                pieces, at = (piece if kind in (1, 2) else pieces + piece), at + HEADER + length
                if kind in (1, 4):
                    yield pieces


def history(path: Path) -> Iterator[dict[str, Any]]:
    """What was logged, a dict each time; `_step` is W&B's own count of them."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            yield {_name(item): json.loads(item.value_json) for item in record.history.item}


def artifacts(path: Path) -> list[Any]:
    """The records of artifacts: `name`, `type`, `aliases`, `metadata` (JSON), `manifest`."""
    return [r.artifact for r in records(path) if r.WhichOneof("record_type") == "artifact"]


def has_exit(path: Path) -> bool:
    """Whether that life came to its end."""
    return any(record.WhichOneof("record_type") == "exit" for record in records(path))


def _name(item: Any) -> str:
    return str(item.key) or ".".join(item.nested_key)
