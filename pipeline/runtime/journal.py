"""The record of a training: an append-only JSONL file, the same bytes however often it was interrupted.

metrics.jsonl   {"step": n, "train/loss": ..., ...}   only what is a function of the recipe
timings.jsonl   {"step": n, "images/s": ..., ...}     what depends on the machine: speed, share of the time that batches take, memory;
                {"step": n, "start": ...}             and when a life of the training has begun
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import reading
from pipeline.runtime import files

LONGEST = 1 << 20  # bytes of a line, which has some hundreds
SHOWN = 0.1  # seconds after which a line is in the file, if another comes: one for each step of a small net would cost a tenth of it


class Journal:
    """Lines of one step each. Opening it at step n drops what a lost process wrote after n.

    What is kept is copied: a process that was taken for lost may have the old file open, and write to it yet.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        kept = b"".join(_line(line) for line in read(path) if line["step"] <= step)
        files.write_whole(path, kept)
        self._file = path.open("r+b")
        self._file.seek(0, os.SEEK_END)
        self._size, self._digest = len(kept), hashlib.sha256(kept)
        self._flushed = 0.0

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        line = _line({"step": step, **values})
        self._file.write(line)
        if (now := time.monotonic()) - self._flushed > SHOWN:
            self._file.flush()
            self._flushed = now
        self._size += len(line)
        self._digest.update(line)

    def mark(self) -> dict[str, Any]:
        """Size and digest of all lines up to here, for a checkpoint that relies on them."""
        return {"size": self._size, "sha256": self._digest.hexdigest()}

    def sync(self) -> None:
        """Make all lines survive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a journal; a last one cut short does not count."""
    try:
        file = reading.opened(path)
    except FileNotFoundError:
        return []
    lines = []
    with file:
        while text := file.readline(LONGEST):
            try:
                line = json.loads(text)
                if not isinstance(line, dict) or type(line.get("step")) is not int or text != _line(line):
                    break
            except (ValueError, RecursionError):
                break
            lines.append(line)
    return lines


def at(path: Path, step: int) -> dict[str, Any]:
    """All that a journal says of one step."""
    return {name: value for line in read(path) if line["step"] == step for name, value in line.items()}


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values) + "\n").encode()
