"""SIGKILL at every system call that touches the disk: a whole artifact is there afterwards, and the same command ends the same.

A process is killed as it enters the call, so what is seen are the states between two calls; a
write that is itself cut short is `bench.faults.power`'s matter.

    python -m bench.faults.syscalls [--cases N] [--seed S]     N points of a command at most, drawn from the seed; 0: all of them
"""

import argparse
import contextlib
import importlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from conftest import TINY
from processes import free_port, launch

from bench.faults import forked, shim, traced
from bench.faults.keepers import PEERS, Keeper, Ours
from bench.faults.report import report
from bench.faults.traced import Call
from pipeline.learning.state import checkpoints
from pipeline.runtime import checksums, files, manifests

SMALL = [*TINY, "train.steps=3", "run.log_every=1", "run.checkpoint_every=1", "run.keep=1"]


IMPORTED = [  # before forking, for speed
    "torch._dynamo",
    "torch.onnx",
    "onnxruntime",
    "onnxscript",
    "pipeline.main",
    *(f"pipeline.stages.{stage}" for stage in ("prepare", "train", "evaluate", "report.page", "export.card", "export.check", "export.net")),
]


Way = Callable[..., traced.Ran]  # `traced.run` or `shim.run`


class Deed(Protocol):
    """What is killed, and how one sees that nothing is lost."""

    @property
    def name(self) -> str: ...

    def prepare(self, folder: Path) -> None:
        """What was there before."""

    def work(self, folder: Path) -> list[forked.Work]:
        """What is done, by each process; the first is killed."""

    def look(self, folder: Path) -> "Found": ...


@dataclass(frozen=True)
class Found:
    """What is left after a kill."""

    loads: bool
    any: bool | None = None  # whether one of the folders loads
    same: bool | None = None  # whether the same command ends with the same bytes
    wrong: str = ""


@dataclass
class Tally:
    """One row of the table."""

    points: int = 0
    killed: int = 0
    elsewhere: int = 0  # not killed, or not where it was meant
    found: list[Found] = field(default_factory=list)
    beside: int = 0  # processes that the killed one worked with
    alone: int = 0  # of those, which ended by themselves
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Keeping:
    """The second save of a run."""

    keeper: Keeper
    name = property(lambda self: self.keeper.name)

    def prepare(self, folder: Path) -> None:
        self.keeper.save(folder, 1)  # in this process, so that what is imported on the way is imported for all
        assert self.keeper.load(folder) == 1

    def work(self, folder: Path) -> list[forked.Work]:
        return [partial(self.keeper.save, folder, 2)]

    def look(self, folder: Path) -> Found:
        loads, any_loads = forked.value(lambda: (self.keeper.load(folder), self.keeper.any(folder)), (0, 0))
        return Found(loads > 0, any_loads > 0)


@dataclass
class Command:
    """A command on so many processes, the main one of which is killed."""

    until: str
    processes: int
    undisturbed: dict[str, Any] = field(default_factory=dict)  # stage -> its files' digests

    @property
    def name(self) -> str:
        return f"ours, {self.until}, {self.processes} process{'es' * (self.processes > 1)}"

    def prepare(self, folder: Path) -> None:
        """What the command finds, and what it makes of that undisturbed."""
        for name in IMPORTED:
            importlib.import_module(name)
        if self.until == "train":  # one checkpoint is there
            launch(folder, ["train", *SMALL], kill_at=3)  # the second waits until the first is written
        if self.until == "run":
            launch(folder, ["evaluate", *SMALL])
        with tempfile.TemporaryDirectory() as copy:
            again = shutil.copytree(folder, Path(copy) / "copy", symlinks=True)
            assert self._end(again, Path(copy) / "output") == 0, (Path(copy) / "output").read_text()
            self.undisturbed = _outputs(again)

    def work(self, folder: Path) -> list[forked.Work]:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": self.processes, "LOCAL_WORLD_SIZE": self.processes}
        environments = [{**place, "RANK": rank, "LOCAL_RANK": rank} if self.processes > 1 else {} for rank in range(self.processes)]
        return [partial(_pipeline, folder, [self.until, *SMALL, "run.trackers=[]"], environment) for environment in environments]

    def look(self, folder: Path) -> Found:
        if broken := broken_in(folder, self.until):
            return Found(loads=False, wrong=broken)
        with tempfile.NamedTemporaryFile() as output:
            code = self._end(folder, Path(output.name))
            text = Path(output.name).read_text()
        if self.until == "train" and "going on from step-" not in text and "train: fresh" not in text:
            return Found(loads=False, wrong=f"begun again: {text}")
        same = code == 0 and _outputs(folder) == self.undisturbed
        return Found(loads=True, same=same, wrong="" if same else f"exit code {code}, or other bytes: {text[-300:]}")

    def _end(self, folder: Path, output: Path) -> int | None:
        first, *others = self.work(folder)
        return forked.go_on(forked.begin(first, output, stopped=True), others)[0]


def _pipeline(folder: Path, words: Sequence[str], environment: dict[str, object]) -> None:
    from pipeline.main import main

    os.chdir(folder)
    os.environ |= {name: str(value) for name, value in environment.items()}
    sys.exit(main(list(words)))


def _outputs(folder: Path) -> dict[str, Any]:
    """Of each stage that is done: path -> size and digest; but for the card, which says how long formats took, and what has its digest."""
    found = [(place.parent.name, manifests.read(place)[0]) for place in folder.glob("artifacts/*/*") if "." not in place.name]
    return {
        stage: {path: listed for path, listed in manifest.outputs.items() if path not in ("README.md", checksums.NAME)}
        for stage, manifest in found
        if manifest
    }


def broken_in(folder: Path, until: str) -> str:
    """What is neither whole nor absent; for a training also that nothing can be gone on from."""
    for place in folder.glob("artifacts/*/*"):
        manifest = manifests.read(place)[0]
        if manifest and (broken := files.damage(place, manifest.outputs)):
            return f"{place.parent.name} says that it is done, but {broken}"
        if until == "train" and place.parent.name == "train" and ".partial-" in place.name:
            kept = [files.read_manifest(path)[0] for path in checkpoints(place / "checkpoints")]
            if not any(kept):
                return "no checkpoint is left"
    return ""


OURS: list[Deed] = [
    *(Keeping(Ours(keep)) for keep in (2, 1)),
    *(Command(until, processes) for until in ("train", "prepare", "run") for processes in (1, 2)),
]
THEIRS: list[Deed] = [Keeping(peer) for peer in PEERS]


def run() -> Way:
    """The best there is to kill with."""
    return shim.run if traced.refused() else traced.run


def sweep(deed: Deed, cases: int = 0, seed: int = 0, way: Way | None = None) -> Tally:
    """Kill `deed` at each of its points, or at `cases` of them drawn from `seed`."""
    way = way or run()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder, before, output = (Path(name).resolve() / part for part in ("work", "before", "output.txt"))
        folder.mkdir()
        deed.prepare(folder)
        shutil.copytree(folder, before, symlinks=True)
        first, *beside = deed.work(folder)
        whole = way(first, output, folder, beside=beside)
        assert whole.code == 0, output.read_text()
        points = traced.touching(whole.calls)
        chosen = random.Random(seed).sample(points, cases) if 0 < cases < len(points) else points
        tally = Tally(len(points))
        for point in chosen:
            shutil.rmtree(folder)
            shutil.copytree(before, folder, symlinks=True)
            first, *beside = deed.work(folder)
            ran = way(first, output, folder, kill=point, beside=beside)
            _count(tally, deed, folder, point, ran, len(beside))
    return tally


def _count(tally: Tally, deed: Deed, folder: Path, point: Call, ran: traced.Ran, beside: int) -> None:
    tally.killed += ran.killed_at(point)
    tally.elsewhere += not ran.killed_at(point)
    tally.beside += beside
    tally.alone += ran.alone
    found = deed.look(folder)
    tally.found.append(found)
    if not found.loads or found.same is False:
        paths = ", ".join(path.name for path in point.paths)
        tally.failures.append(f"{deed.name}: at {point.name} number {point.count} ({paths}): {found.wrong or 'nothing loads'}")


def row(deed: Deed, tally: Tally) -> dict[str, Any]:
    """As it is printed; of others, what does not load is no failure of ours."""
    tried = len(tally.found)
    anys, sames = ([getattr(found, what) for found in tally.found if getattr(found, what) is not None] for what in ("any", "same"))
    return {
        "what": deed.name,
        "points": tally.points,
        "tried": tried,
        "killed there": tally.killed,
        "loads": f"{sum(found.loads for found in tally.found)} of {tried}",
        "any folder loads": f"{sum(anys)} of {len(anys)}" if anys else "",
        "same command, same bytes": f"{sum(sames)} of {len(sames)}" if sames else "",
        "others ended by themselves": f"{tally.alone} of {tally.beside}" if tally.beside else "",
        "failures": tally.failures if deed.name.startswith("ours") else [],
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    why = traced.refused()
    if why:
        print(f"without strace ({why}): kills only where Python itself calls; {(shim.__doc__ or '').splitlines()[-1]}")
    rows = []
    for deed in [*OURS, *THEIRS]:
        with contextlib.redirect_stdout(sys.stderr):  # what is said while loading
            rows.append(row(deed, sweep(deed, options.cases if isinstance(deed, Command) else 0, options.seed)))
        print(f"{deed.name}: {rows[-1]['loads']} load", flush=True)
    return report("syscalls", rows, way="shim" if why else "strace", seed=options.seed)


if __name__ == "__main__":
    sys.exit(main())
