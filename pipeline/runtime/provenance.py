"""Which code this is, and what it stands on."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipeline import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = ("torch", "torchvision", "accelerate", "numpy", "timm", "wandb")


def code() -> dict[str, Any]:
    """The version; of a checkout also the commit, and whether files differ from it."""
    found: dict[str, Any] = {"pipeline": __version__, "packages": {name: known for name in PACKAGES if (known := _version(name))}}
    if (ROOT / ".git").exists() and (commit := _git("rev-parse", "HEAD")):
        found |= {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()  # noqa: S603, S607
    except (OSError, subprocess.SubprocessError):
        return ""
