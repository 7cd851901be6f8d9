"""What a process runs, and on what: the commit of its code and what departs from it, the command, the machine. Recorded only."""

import functools
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.credentials import hide
from pipeline.runtime.fingerprint import ROOT

LONGEST = 100_000  # characters of a diff
PATIENCE = 5  # seconds, for one word of git


@dataclass(frozen=True)
class Origin:
    """`facts` have a commit only where the package is part of a checkout; `diff` is empty where nothing departs from that."""

    facts: dict[str, Any]
    diff: str


@functools.cache
def origin() -> Origin:
    """As found when it is asked for first, which is to be before a stage begins: code may change while that runs."""
    commit, diff = checkout(ROOT)
    code = {"commit": commit, "dirty": bool(diff)} if commit else {}
    return Origin({**code, "command": hide(shlex.join(sys.argv)), "cpu": _cpu(), "cores": len(os.sched_getaffinity(0))}, diff)


def checkout(package: Path) -> tuple[str, str]:
    """The commit that the folder `package` is checked out from, if it is; and how its files differ from that, as git says it.

    A package that is installed may lie within somebody's repository, but is not part of it.
    """
    found = _git(package, "rev-parse", "HEAD", "HEAD:./__init__.py")
    if not found:
        return "", ""
    diff = _git(package, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color", "--", ".")
    new = _git(package, "ls-files", "--others", "--exclude-standard", "--", ".")
    diff += "".join(f"untracked: {name}\n" for name in new.splitlines())
    if len(diff) > LONGEST:
        diff = f"{diff[:LONGEST]}\n... cut here, at {LONGEST:,} of {len(diff):,} characters\n"
    return found.split()[0], hide(diff)


def _git(folder: Path, *words: str) -> str:
    """What git says of `folder`; nothing if it is absent, refuses, or takes long."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's are of another repository
    try:
        ended = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *words],  # noqa: S607
            capture_output=True,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return ended.stdout.decode(errors="replace")


def _cpu() -> str:
    """Its name, where Linux tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
