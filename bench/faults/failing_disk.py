"""A disk that fails: an error at every call that writes, a disk of every size, and one that may only be read.

What is promised: training goes on, or the command stops with one line; a checkpoint that was whole still is; and
once the disk is well, the same command ends with the bits of an undisturbed run.

    python -m bench.faults.failing_disk [--cases N] [--sizes N] [--seed S] [--only TEXT]

N errors for each command, N sizes; rows whose names contain TEXT.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from processes import begin

from bench.faults import forked, injected, mounts, traced
from bench.faults.commands import Command, Tally, Tried, folders, harm, results
from bench.faults.injected import Fault
from bench.faults.keepers import PEERS, Keeper, Ours
from bench.faults.report import Row, report

PATIENCE = 120.0  # seconds after which a process counts as hanging
GRACE = 10.0  # seconds for a process to see that the one it works with is gone


def errors(command: Command, cases: int, seed: int = 0) -> Tally:
    """`command`, the main process of which meets with errors: one a case, drawn from `seed`."""
    with folders() as (folder, before):
        command.prepare(folder)
        shutil.copytree(folder, before, symlinks=True)
        pid, well, calls = attempt(folder, command)
        assert well.code == 0, well.output
        expected, inside = results(folder), [call for call in calls if _counts(call, folder)]
        among = injected.faults(inside, pid)
        tally = Tally(f"an error; {command}", len(among))
        for case, fault in enumerate(injected.drawn(among, cases, seed)):
            shutil.rmtree(folder)
            shutil.copytree(before, folder, symlinks=True)
            _, tried, _ = attempt(folder, command, fault)
            tally.beside += command.processes - 1
            tally.judge(f"case {case}, {fault}", tried, harm(folder, command), folder, command, expected)
    return tally


def _counts(call: traced.Call, folder: Path) -> bool:
    """Whether a call is about the experiment, and not about the file that the output goes to."""
    return any(path.is_relative_to(folder) and not path.name.startswith("output") for path in call.paths)


def attempt(folder: Path, command: Command, fault: Fault | None = None) -> tuple[int, Tried, list[traced.Call]]:
    """Its process id, how it ended, and its calls."""
    waiting = injected.waits_to_save if fault and not fault.paths and fault.thread else injected.waits
    first, *others = begin(folder, command.words, processes=command.processes, before=waiting)
    assert first.pid is not None
    with injected.watched(first.pid, folder, fault) as calls:
        code = _ended(first, PATIENCE)
        alone = sum(_ended(other, GRACE if code else PATIENCE) is not None for other in others)
    mute = any(call.injected and path.name == "output.txt" for call in calls for path in call.paths)
    return first.pid, Tried(code, (folder / "output.txt").read_text(), alone, injected.hits(calls, folder, fault), mute), calls


def _ended(process: ForkServerProcess, patience: float) -> int | None:
    """The exit code; None if it had to be killed."""
    process.join(patience)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    return code


def keeping(keeper: Keeper, cases: int, seed: int = 0) -> Row:
    """The second save of a run, on a disk that is full from one of its calls on."""
    counts = dict.fromkeys(("tried", "met with it", "told of it", "loads", "any folder loads", "nothing told, nothing kept"), 0)
    failures = []
    with folders() as (folder, before):
        folder.mkdir()
        forked.value(partial(keeper.save, folder, 1), None)
        shutil.copytree(folder, before, symlinks=True)
        pid, _, calls = _saved(folder, keeper)
        full = [f for f in injected.faults([c for c in calls if _counts(c, folder)], pid) if f.error == "ENOSPC" and f.lasting]
        for fault in injected.drawn(full, cases, seed):
            shutil.rmtree(folder)
            shutil.copytree(before, folder, symlinks=True)
            _, code, calls = _saved(folder, keeper, fault)
            loads, any_loads = forked.value(partial(_loads, keeper, folder), (0, 0))
            hit = injected.hits(calls, folder, fault) > 0
            found = (True, hit, code != 0, loads > 0, any_loads > 0, code == 0 and loads < 2)
            counts = {name: counts[name] + value for name, value in zip(counts, found, strict=True)}
            if not loads:
                failures.append(f"{keeper.name}: {fault}: nothing loads")
    ours = isinstance(keeper, Ours)
    return {"what": f"a full disk; {keeper.name}", "points x errors": len(full), **counts, "failures": failures if ours else []}


def _saved(folder: Path, keeper: Keeper, fault: Fault | None = None) -> tuple[int, int | None, list[traced.Call]]:
    pid = forked.begin(partial(_save, keeper, folder), folder.parent / "output.txt", stopped=True)
    with injected.watched(pid, folder, fault) as calls:
        code = forked.wait(pid)
    return pid, code, calls


def _save(keeper: Keeper, folder: Path) -> None:
    """Ends this process at an error: what it would print may fail as well."""
    try:
        keeper.save(folder, 2)
    except BaseException:
        os._exit(1)


def _loads(keeper: Keeper, folder: Path) -> tuple[int, int]:
    return keeper.load(folder), keeper.any(folder)


TRAININGS = [Command("train", "checkpoint"), Command("train", ""), Command("train", "checkpoint", 2)]
LATER = Command("run", "train")


def rows(cases: int, size_count: int, seed: int) -> dict[str, Callable[[], Row]]:
    found: dict[str, Callable[[], Row]] = {}
    if not traced.refused():
        for command in (*TRAININGS, LATER):
            found[f"errors {command}"] = lambda command=command: errors(command, cases, seed).row()  # type: ignore[misc]
        for keeper in (Ours(2), Ours(1), *PEERS):
            found[f"keeping {keeper.name}"] = lambda keeper=keeper: keeping(keeper, cases, seed)  # type: ignore[misc]
    if not mounts.refused():
        found[f"sizes {TRAININGS[1]}"] = lambda: mounts.sizes(TRAININGS[1], size_count).row()
        found |= {f"read-only {command}": lambda command=command: mounts.read_only(command).row() for command in (TRAININGS[0], LATER)}  # type: ignore[misc]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--sizes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    options = parser.parse_args(arguments)
    skipped = {what: why for what, why in {"errors": traced.refused(), "sizes, read-only": mounts.refused()}.items() if why}
    for what, why in skipped.items():
        print(f"skipped: {what}: {why}")
    made: list[dict[str, Any]] = [
        dict(row()) for name, row in rows(options.cases, options.sizes, options.seed).items() if options.only in name
    ]
    return report("failing_disk", made, seed=options.seed, skipped=skipped)


if __name__ == "__main__":
    sys.exit(main())
