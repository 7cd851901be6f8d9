"""Types many commands in one process that has imported the command line alone: 10 ms each, and to be seen which of them imports torch.

`python tests/mistakes.py FOLDER` reads a JSON list of [words, environment], and writes one of what became of each.
"""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HEAVY = ("torch", "torchvision", "wandb", "datasets", "matplotlib", "sklearn", "onnxruntime")
PATIENCE = 60  # seconds for a command, after which all end

Command = tuple[Sequence[str], Mapping[str, str]]  # its words, and variables of its environment


@dataclass(frozen=True)
class Told:
    """What became of a command."""

    code: int
    said: str
    imported: list[str]  # of the libraries that take long
    changed: list[str]  # paths that are new, gone or other


def told(folder: Path, commands: Sequence[Command]) -> list[Told]:
    """Each command typed in `folder`, one after the other."""
    ended = subprocess.run([sys.executable, __file__, str(folder)], input=json.dumps(commands), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"one of {commands} went on: {ended.stdout[-2000:]}{ended.stderr[-2000:]}"
    return [Told(**facts) for facts in json.loads(ended.stdout)]


def _type(folder: Path, words: list[str], environment: dict[str, str]) -> Told:
    from pipeline.main import main

    before, variables = _seen(folder), dict(os.environ)
    os.environ |= environment
    said = io.StringIO()
    signal.alarm(PATIENCE)
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception:
            code = 1
            traceback.print_exc()
    signal.alarm(0)
    os.environ.clear()
    os.environ |= variables
    changed = {path for path, _ in before.items() ^ _seen(folder).items()}
    return Told(code, said.getvalue(), [name for name in HEAVY if name in sys.modules], sorted(changed))


def _seen(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


if __name__ == "__main__":
    place = Path(sys.argv[1])
    os.chdir(place)
    print(json.dumps([asdict(_type(place, words, environment)) for words, environment in json.load(sys.stdin)]))
