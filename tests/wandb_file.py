"""Reads an offline run of wandb back: a log of protobuf records in LevelDB's framing."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768


def records(path: Path) -> Iterator[Any]:
    """Each record: a header of crc, length, type (1 whole, 2 first, 3 middle, 4 last) before each piece."""
    from wandb.proto import wandb_internal_pb2

    content, at, pieces = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if kind == 0:
            return
        piece = content[at + 7 : at + 7 + length]
        pieces, at = (piece if kind in (1, 2) else pieces + piece), at + 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
            record.ParseFromString(pieces)
            yield record


def history(path: Path) -> list[dict[str, Any]]:
    lines = (r.history for r in records(path) if r.WhichOneof("record_type") == "history")
    return [{(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in line.item} for line in lines]


def summary(path: Path) -> dict[str, Any]:
    updates = (r.summary.update for r in records(path) if r.WhichOneof("record_type") == "summary")
    return {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for update in updates for i in update}


def artifacts(path: Path) -> list[tuple[str, str]]:
    return [(r.artifact.name, r.artifact.type) for r in records(path) if r.WhichOneof("record_type") == "artifact"]


def run_id(path: Path) -> str:
    return next(str(r.run.run_id) for r in records(path) if r.WhichOneof("record_type") == "run")
