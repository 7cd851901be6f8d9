"""SHA256SUMS: the sha256 of each file of a folder that is passed on, a line each, as `sha256sum -c` takes it.

A manifest says where its folder was made, and stays there; this goes with the files. A name in it is compared with those
that are to be opened, and never opened itself.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.reading import opened, read
from pipeline.runtime import files

NAME = "SHA256SUMS"


def write(folder: Path, names: Iterable[str]) -> None:
    """List the files `names`, each in `folder` itself."""
    files.write_whole(folder / NAME, _lines({name: _digest(folder / name) for name in names}))


def damage(folder: Path, names: Iterable[str]) -> str:
    """The first of the files `names` that is not as SHA256SUMS of `folder` says, and how; empty if all are."""
    try:
        text = read(folder / NAME).decode(errors="replace")
    except FileNotFoundError:
        return f"{NAME} is missing"
    except OSError as error:
        return f"{NAME}: {error.strerror}"
    listed = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  ([\w.-]+)$", text, re.MULTILINE)}
    if not listed or _lines(listed) != text:
        return f"{NAME} is not one line `<sha256>  <name>` for each file"
    return next(filter(None, (_damage(folder / name, listed.get(name)) for name in names)), "")


def _lines(digests: Mapping[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


def _damage(path: Path, listed: str | None) -> str:
    try:
        found = _digest(path)
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    if listed is None:
        return f"{NAME} does not list {path.name}"
    return "" if found == listed else f"{path.name} is not as {NAME} says"


def _digest(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
