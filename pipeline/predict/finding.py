"""Which files are to be looked at: those that were named, and the images in folders that were."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.data.images import suffixes
from pipeline.errors import of_the_machine


@dataclass(frozen=True)
class Found:
    names: list[str] = field(default_factory=list)  # of files, each below what was given
    refused: list[str] = field(default_factory=list)  # folders that cannot be read, and why
    passed_over: list[str] = field(default_factory=list)  # files in folders whose names are none of images


def find(given: Sequence[Path]) -> Found:
    """In the order in which they were given; of a folder and all below it in that of names, but for those that begin with a dot.

    Links to folders are not followed, so there is no end of no loop.
    """
    found = Found()
    for path in given:
        if path.is_dir():
            _walk(path, found)
        else:
            found.names.append(str(path))
    return found


def _walk(top: Path, found: Found) -> None:
    for folder, below, names in os.walk(top, onerror=lambda error: found.refused.append(f"cannot read the folder {of_the_machine(error)}")):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            place = found.names if os.path.splitext(name)[1].lower() in suffixes() else found.passed_over  # noqa: PTH122 (a million)
            place.append(os.path.join(folder, name))  # noqa: PTH118
