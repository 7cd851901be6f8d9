"""Reading what anybody may have written, or broken: what is not as it should be counts as absent, and no link leads astray."""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import reading
from pipeline.runtime import files


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def number(value: Any) -> float | None:
    with contextlib.suppress(OverflowError):  # a whole number may have any size
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    return None


def whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text(name: Path | str) -> str:
    """The name of a file as text, which on a disk may be any bytes."""
    return str(name).encode(errors="replace").decode()


def choice(value: Any) -> str:
    """The name of a choice in a configuration, with what it names where that is of another library."""
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    return " ".join(str(value[key]) for key in ("name", "arch", "path") if value.get(key))


def finite(value: Any) -> Any:
    """`value`, or None for a number that JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_in(path: Path, most: int = reading.LARGEST) -> dict[str, Any]:
    return mapping(files.read_json(path, most))


def tail(path: Path, size: int) -> list[dict[str, Any]]:
    """The whole lines among the last `size` bytes of a journal."""
    try:
        with reading.opened(path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            content = file.read(size)
    except OSError:
        return []
    return lines(content.partition(b"\n")[2] if start else content)


def lines(content: bytes) -> list[dict[str, Any]]:
    """The lines of a journal, or of a part of one, but for those that are not whole."""
    found = []
    for words in content.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(words)
            if isinstance(line, dict) and whole(line.get("step")) is not None:
                found.append(line)
    return found


def of_artifact(path: Path, stage: str) -> Path | None:
    """Where `path` of a run folder leads: into an artifact of `stage`, or to a file or folder of its own; else None."""
    try:
        found, home = path.resolve(strict=True), path.parent.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or in a circle
        return None
    return found if found.parent == home or (found.parent.parent.name == stage and _is_artifact(found.parent.name)) else None


def _is_artifact(name: str) -> bool:
    """`<fingerprint>`, or `<fingerprint>.partial-<n>`."""
    fingerprint, _, work = name.partition(".partial-")
    return len(fingerprint) == 12 and set(fingerprint) <= set("0123456789abcdef") and (not work or work.isdecimal())
