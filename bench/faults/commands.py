"""A command on a small experiment that meets with trouble, and what is promised of it afterwards."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conftest import TINY
from processes import launch

from bench.faults.report import Row
from pipeline.learning.state import checkpoints
from pipeline.runtime import files

FEW = [*TINY, "train.steps=6", "train.validate_every=0.2", "run.log_every=2", "run.checkpoint_every=2", "run.keep=2"]


@dataclass(frozen=True)
class Command:
    """A command of which something is there already."""

    until: str
    before: str  # "" for nothing; a stage that is done; "checkpoint"
    processes: int = 1

    def __str__(self) -> str:
        after = {"": "from nothing", "checkpoint": "from a checkpoint"}.get(self.before, f"after {self.before}")
        return f"{self.until} {after}, {self.processes} process{'es' * (self.processes > 1)}"

    @property
    def words(self) -> list[str]:
        return [self.until, *FEW]

    def prepare(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        if self.before == "checkpoint":
            assert launch(folder, ["train", *FEW], processes=self.processes, stop_at=2).code == 75
        elif self.before:
            assert launch(folder, [self.before, *FEW]).code == 0


@dataclass(frozen=True)
class Tried:
    """How a command went that met with an error."""

    code: int | None  # None: it hung
    output: str
    alone: int = 0  # of the processes beside it, how many ended by themselves
    hits: int = 0
    mute: bool = False  # what it had to say was what failed

    @property
    def wrong(self) -> str:
        """What is not as promised of the way it ended."""
        words = [line for line in self.output.splitlines() if line.startswith("pipeline: ")]
        if self.code is None:
            return "it hangs"
        if "Traceback" in self.output:
            return "a traceback"
        if any(not {"/", "runs", "artifacts"} & {*line, *line.split()} for line in words):
            return "no path is named"
        return "" if self.mute or (self.code, len(words)) in ((0, 0), (1, 1)) else f"exit code {self.code} with {len(words)} lines"


@dataclass
class Tally:
    """One row of the table."""

    what: str
    points: int = 0
    tried: list[Tried] = field(default_factory=list)
    whole: int = 0  # times that a checkpoint, or the stage, was whole after the error
    same: int = 0  # times that the same command then gave the same bits
    beside: int = 0
    failures: list[str] = field(default_factory=list)

    def row(self) -> Row:
        count = len(self.tried)
        return {
            "what": self.what,
            **({"points x errors": self.points} if self.points else {}),
            "tried": count,
            **({"met with it": sum(t.hits > 0 for t in self.tried)} if self.points else {}),
            "went on to the end": sum(t.code == 0 for t in self.tried),
            "stopped with one line": sum(t.code == 1 and not t.wrong for t in self.tried),
            "before step 1 for want of room": sum("checkpoints take up to" in t.output for t in self.tried),
            "otherwise": sum(bool(t.wrong) for t in self.tried),
            "nothing harmed": f"{self.whole} of {count}",
            "then same command, same bits": f"{self.same} of {count}",
            "others ended by themselves": f"{sum(t.alone for t in self.tried)} of {self.beside}" if self.beside else "",
            "failures": self.failures,
        }

    def judge(self, case: str, tried: Tried, harm: str, folder: Path, command: Command, expected: tuple[bytes, ...]) -> None:
        """Count how it went and what it left; the disk is well again."""
        again = launch(folder, command.words, processes=command.processes)
        gone_on = command.before != "checkpoint" or "going on from step-" in again.output or "train: fresh" in again.output
        wrong = tried.wrong or harm or ("" if gone_on else "begun again")
        same = set(again.codes) == {0} and "Traceback" not in again.output and results(folder) == expected
        self.tried.append(tried)
        self.whole += not harm and gone_on
        self.same += same
        if wrong or not same:
            last = " / ".join((tried.output if wrong else again.output).splitlines()[-3:])
            self.failures.append(f"{self.what}: {case}: {wrong or 'other bits, or no end, when the disk was well'}: {last}")


def results(folder: Path) -> tuple[bytes, ...]:
    run = folder / "runs" / "tiny"
    return tuple((run / name).read_bytes() for name in ("train/weights.safetensors", "metrics.jsonl") if (run / name).exists())


def harm(folder: Path, command: Command) -> str:
    """What of a folder says that it is whole and is not; or that nothing is left of what was there before."""
    kept = [path for place in folder.glob("**/train/*/checkpoints") for path in checkpoints(place)]
    done = [path.parent for path in folder.glob("**/artifacts/*/*/manifest.json")]
    for path in [*kept, *done]:
        manifest, broken = files.read_manifest(path)
        if manifest is None or (broken := files.damage(path, manifest["outputs"])):
            return f"{path.name} says that it is whole, but {broken}"
    if command.before == "checkpoint" and not kept:
        return "no checkpoint is left"
    return "" if command.before in ("", "checkpoint", *(path.parent.name for path in done)) else f"{command.before} is lost"


@contextlib.contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """Where to work, and where to keep what was there before."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name).resolve() / "work", Path(name).resolve() / "before"
