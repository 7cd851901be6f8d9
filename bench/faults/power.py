"""The power goes, at any moment: what was said to be kept is there, whole; nothing is there that only looks whole.

What was done to the disk is read from strace, and played into the model of a disk that `bench.faults.disk`
describes; each case is a moment and what happened to have reached the disk, drawn from (seed, case).

    python -m bench.faults.power [--cases N] [--seed S]     N states a row
"""

import argparse
import contextlib
import itertools
import os
import random
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.faults import forked, traced
from bench.faults.disk import SAID, Disk
from bench.faults.keepers import PEERS, SAVES, Keeper, Ours
from bench.faults.report import report
from bench.faults.syscalls import Command, Found, Way, broken_in, run
from pipeline.runtime import files

AGAIN = 50  # a command is run again in every so many states
Harm = Callable[[], None]  # done to the writer, in its own process


@dataclass
class Tally:
    """One row of the table."""

    states: int = 0
    loads: int = 0  # a save, exactly
    kept: int = 0  # one no older than the last that was said to be done
    again: int = 0  # states in which a command was run again
    same: int = 0  # after which it ended with the same bytes
    failures: list[str] = field(default_factory=list)


def written(work: forked.Work, folder: Path, way: Way | None = None) -> Disk:
    """What `work` does to the disk in `folder`, checked against what it left there."""
    with tempfile.TemporaryDirectory() as name:
        before, again, output = (Path(name).resolve() / part for part in ("before", "again", "output.txt"))
        shutil.copytree(folder, before, symlinks=True)
        ran = (way or run())(work, output, folder, data=True)
        assert ran.code == 0, output.read_text()
        for mark in folder.glob(f"{SAID}*"):
            mark.rmdir()
        disk = Disk.of(folder, before, ran.calls)
        again.mkdir()
        disk.after(len(disk.steps), None, again)
        assert _tree(again) == _tree(folder), "what was played again is not what was done"
    return disk


def _tree(folder: Path) -> dict[str, Any]:
    paths = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    return {name: p.readlink() if p.is_symlink() else p.read_bytes() if p.is_file() else None for name, p in sorted(paths.items())}


def saves(keeper: Keeper, folder: Path, first: int, harm: Harm = lambda: None) -> None:
    """Saves `first`, ..., and word of each when it is done."""
    harm()
    for number in range(first, SAVES + 1):
        keeper.save(folder, number)
        (folder / f"{SAID}{number}").mkdir()


def checkpoints(keeper: Keeper, cases: int, seed: int = 0, *, first: int = 2, harm: Harm = lambda: None, way: Way | None = None) -> Tally:
    """Power losses while `keeper` saves, from save `first` on; those before it lie safely on the disk."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        folder, place = Path(name).resolve() / "work", Path(name).resolve() / "after"
        folder.mkdir()
        keeper.save(folder, 1)  # in this process: what is imported on the way is imported for all
        keeper.load(folder)
        if first == 1:
            shutil.rmtree(folder)
            folder.mkdir()
        disk = written(partial(saves, keeper, folder, first, harm), folder, way)

        def after(case: int) -> int:
            """The save that comes back."""
            _fresh(place)
            disk.after(*_moment(seed, case, disk), place)
            return keeper.load(place)

        found = forked.value(lambda: [after(case) for case in range(cases)], None)
        for case, number in enumerate(found or (forked.value(partial(after, case), 0) for case in range(cases))):
            at, _ = _moment(seed, case, disk)
            said = max(disk.said(at), first - 1)
            tally.states += 1
            tally.loads += number > 0
            tally.kept += number >= said
            if number < said:
                what = f"save {number} comes back" if number else "nothing comes back"
                tally.failures.append(f"{keeper.name}, from save {first}: case {case}, after step {at}: {what}, {said} was said to be done")
    return tally


def stage(until: str, cases: int, seed: int = 0) -> Tally:
    """Power losses while a command makes an artifact: it is absent, or whole; and the same command ends with the same bytes."""
    tally, command = Tally(), Command(until, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "work"
        folder.mkdir()
        command.prepare(folder)
        disk = written(command.work(folder)[0], folder)
        for case in range(cases):
            at, rng = _moment(seed, case, disk)
            _fresh(folder)
            disk.after(at, rng, folder)
            again = case % AGAIN == 0
            broken = broken_in(folder, until)
            found = command.look(folder) if again and not broken else Found(loads=not broken, wrong=broken)
            tally.states += 1
            tally.loads += found.loads
            tally.again += again
            tally.same += bool(found.same)
            if not found.loads or (again and not found.same):
                tally.failures.append(f"{command.name}: case {case}, after step {at}: {found.wrong}")
    return tally


def _moment(seed: int, case: int, disk: Disk) -> tuple[int, random.Random]:
    """After how many steps the power goes, and the chance that says what had reached the disk."""
    rng = random.Random(f"{seed}, {case}")
    return rng.randint(0, len(disk.steps)), rng


def _fresh(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()


def no_sync_of_folders() -> None:
    """A writer that forgets that names have to be synced as well."""
    real = os.fsync
    os.fsync = lambda fd: None if _is_folder(fd) else real(fd)


def no_sync_of_files() -> None:
    """A writer that forgets that a rename does not wait for the data."""
    real = os.fsync
    os.fsync = lambda fd: real(fd) if _is_folder(fd) else None


def _is_folder(fd: Any) -> bool:
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def old_dropped_first() -> None:
    """A writer that makes room before what is new has its manifest and its name."""
    commit = files.commit_folder

    def commit_folder(partial: Path, final: Path, *rest: Any) -> None:
        for old in final.parent.glob("step-*"):
            files.remove(old)
        commit(partial, final, *rest)

    files.commit_folder = commit_folder  # type: ignore[assignment]


HARMS: dict[str, Harm] = {
    "folders not synced": no_sync_of_folders,
    "files not synced": no_sync_of_files,
    "the old one dropped first": old_dropped_first,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cases, seed = options.cases, options.seed
    if why := traced.refused():
        print(f"without strace ({why}): writes are found by looking, and what native code renames in between is not seen")
    rows: list[dict[str, Any]] = []

    def add(name: str, tally: Callable[[], Tally], *, ours: bool = False) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # what is said while loading
            rows.append(row(name, tally(), ours=ours))
        print(f"{name}: {rows[-1]['whole']} whole", flush=True)

    for keep, first in itertools.product((1, 2), (1, 2)):
        add(f"ours, keep={keep}, from save {first}", partial(checkpoints, Ours(keep), cases, seed, first=first), ours=True)
    for until in ("prepare", "run", "train"):
        add(f"ours, {until}", partial(stage, until, cases, seed), ours=True)
    for name, harm in HARMS.items():
        add(f"ours, keep=1, {name}", partial(checkpoints, Ours(1), cases, seed, harm=harm))
    for peer in PEERS:
        add(peer.name, partial(checkpoints, peer, cases, seed))
    return report("power", rows, way="shim" if why else "strace", seed=seed)


def row(name: str, tally: Tally, *, ours: bool = False) -> dict[str, Any]:
    """As it is printed; what does not load of others, or of a writer that was harmed, is no failure."""
    return {
        "what": name,
        "states": tally.states,
        "whole": f"{tally.loads} of {tally.states}",
        "the one said to be done loads": "" if tally.again else f"{tally.kept} of {tally.states}",
        "same command, same bytes": f"{tally.same} of {tally.again}" if tally.again else "",
        "failures": tally.failures if ours else [],
    }


if __name__ == "__main__":
    sys.exit(main())
