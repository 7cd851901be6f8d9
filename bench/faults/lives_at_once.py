"""Several lives of a run at once: starts at the same moment, and old ones that wake when another has gone on.

Each case is drawn from (seed, kind, k), and `--only KIND --case K` runs it alone. An old life is stopped with SIGSTOP at
a random time, or just before a random one of its operations on files, or in the middle of a line of its record.
"""

import argparse
import hashlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from conftest import TINY
from processes import CONTEXT, free_port

from bench.faults.report import Row, report
from pipeline.runtime import files

WORDS = ["evaluate", *TINY, "run.trackers=[]"]
BEAT, STALE = 0.2, 1.0  # seconds; as the product's own, thirty times faster
WAIT = 120.0  # seconds, for what must come
COMPARED = ("prepare/train-00000.arrow", "train/weights.safetensors", "train/metrics.jsonl", "evaluate/predictions.safetensors")
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink")


@dataclass(frozen=True)
class Life:
    """One start of the run: its processes, and what the main one says."""

    processes: list[ForkServerProcess]
    output: Path

    def end(self) -> int:
        """The exit code of the main process."""
        for process in self.processes:
            process.join(WAIT)
            if process.exitcode is None:
                process.kill()
        return int(self.processes[0].exitcode if self.processes[0].exitcode is not None else 1000)

    def send(self, number: signal.Signals) -> None:
        for process in self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, number)

    @property
    def lines(self) -> list[str]:
        return self.output.read_text().splitlines() if self.output.exists() else []

    @property
    def stands_still(self) -> bool:
        return all(_state(process) == "T" for process in self.processes)


def start(folder: Path, name: str, *words: str, size: int = 1, stop_before: int = 0, stop_in_line: int = 0, go: Path | None = None) -> Life:
    """A life of the run in `folder`; it may stop itself before an operation on files, or in a line of its record."""
    started = []
    for rank in range(size):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
        started.append({key: str(value) for key, value in place.items()} if size > 1 else {})
    port = {"MASTER_PORT": str(free_port())} if size > 1 else {}
    how = (folder, name, [*WORDS, *words], stop_before, stop_in_line, go)
    processes = [CONTEXT.Process(target=_live, args=(*how, {**place, **port})) for place in started]
    for process in processes:
        process.start()
    return Life(processes, folder / f"{name}-0.txt")


def _live(
    folder: Path, name: str, words: list[str], stop_before: int, stop_in_line: int, go: Path | None, variables: dict[str, str]
) -> None:
    os.chdir(folder)
    os.environ |= variables
    output = os.open(f"{name}-{variables.get('RANK', 0)}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from pipeline.main import main
    from pipeline.runtime import claims

    claims.BEAT, claims.STALE = BEAT, STALE
    _stop_before(folder, stop_before)
    _stop_in_line(stop_in_line)
    if go is not None:
        Path(f"{name}.ready").touch()
        while not go.exists():
            time.sleep(0.001)
    sys.exit(main(words))


def _stop_before(folder: Path, number: int) -> None:
    """Stop before that of the operations on files below `folder` that come after the claim; write their count, if it is 0."""
    seen = [-1]  # before the claim
    inside = (f"{folder}/", "artifacts/", "runs/")

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not str(arguments[0]).startswith(inside):
            return
        if seen[0] >= 0:
            seen[0] += event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR))
            if seen[0] == number and number:
                seen[0] = 10**9
                os.kill(os.getpid(), signal.SIGSTOP)
            elif not number:
                os.pwrite(count, b"%d" % seen[0], 0)
        elif event == "os.rename" and ".run.claim-" in str(arguments[1]):
            seen[0] = 0

    count = os.open("count.txt", os.O_WRONLY | os.O_CREAT, 0o644)
    sys.addaudithook(note)


def _stop_in_line(number: int) -> None:
    """Stop when half of that line of the record is in the file."""
    from pipeline.runtime.journal import Journal

    append, seen = Journal.append, [0]

    def halting(journal: Journal, step: int, values: Any) -> None:
        seen[0] += 1
        if seen[0] == number:
            journal._file.write(b'{"step": ')
            journal._file.flush()
            os.kill(os.getpid(), signal.SIGSTOP)
            journal._file.seek(-len(b'{"step": '), os.SEEK_END)
        append(journal, step, values)

    if number:
        Journal.append = halting  # type: ignore[assignment,method-assign]


@dataclass(frozen=True)
class Undisturbed:
    """What a run comes to that nobody disturbs."""

    folder: Path
    size: int = 1

    @cached_property
    def results(self) -> dict[str, str]:
        self.folder.mkdir(parents=True)
        life = start(self.folder, "alone", size=self.size)
        assert life.end() == 0, life.lines
        return results(self.folder)

    @cached_property
    def operations(self) -> int:
        assert self.results
        return int((self.folder / "count.txt").read_text())

    @cached_property
    def lines(self) -> int:
        assert self.results
        return len((self.folder / "runs/tiny/metrics.jsonl").read_bytes().splitlines())


def results(folder: Path, name: str = "tiny") -> dict[str, str]:
    run = folder / "runs" / name
    return {path: hashlib.sha256((run / path).read_bytes()).hexdigest() for path in COMPARED}


def kept(folder: Path) -> dict[str, str]:
    """Every file and link of the run and of the artifacts, by its content.

    But for what other processes print, in logs/, the marks in .watch/, and for who works on an artifact: that one may say that it
    no longer does.
    """
    found = {}
    for path in [*(folder / "artifacts").rglob("*"), *(folder / "runs").rglob("*")]:
        if path.is_symlink():
            found[str(path)] = str(path.readlink())
        elif (
            path.is_file()
            and path.parent.name not in ("logs", ".watch")
            and not ("artifacts" in path.parts and ".claim-" in path.parent.name)
        ):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def litter(folder: Path) -> list[str]:
    """What is left of making things, when all is made."""
    return [str(p) for p in folder.rglob("*") if "partial" in p.name or ".draft-" in p.name]


def whole(folder: Path, run: str = "tiny") -> list[str]:
    """What is wrong with the artifacts of a run that has ended."""
    wrong = [f"left: {path}" for path in litter(folder)]
    for stage in ("prepare", "train", "evaluate"):
        manifest, broken = files.read_manifest(folder / "runs" / run / stage)
        broken = broken or ("no manifest" if manifest is None else files.damage(folder / "runs" / run / stage, manifest["outputs"]))
        wrong += [f"{stage}: {broken}"] if broken else []
    return wrong


def one_run(folder: Path, draw: random.Random, alone: Undisturbed) -> list[str]:
    """Two to eight starts at once on one run folder: one works, the others say in a line that they do not."""
    lives = _at_once(folder, [() for _ in range(draw.randint(2, 8))])
    codes = [life.end() for life in lives]
    wrong = whole(folder) + _differences(folder, alone)
    if sorted(codes) != [0] + [2] * (len(codes) - 1):
        wrong.append(f"exit codes {codes}: {[life.lines[-1:] for life in lives]}")
    for life, code in zip(lives, codes, strict=True):
        if code == 2 and (len(life.lines) != 1 or "runs/tiny is being worked on by pid " not in life.lines[0]):
            wrong.append(f"said {life.lines}")
    return wrong


def shared_artifacts(folder: Path, draw: random.Random, alone: Undisturbed) -> list[str]:
    """Two to eight runs of the same recipe at once: each thing is made once, and all end well."""
    names = [f"tiny-{k}" for k in range(draw.randint(2, 8))]
    lives = _at_once(folder, [(f"run.name={name}",) for name in names])
    codes = [life.end() for life in lives]
    if any(codes):
        return [f"exit codes {codes}: {[life.lines[-1:] for life in lives]}"]
    wrong = [difference for name in names for difference in whole(folder, name) + _differences(folder, alone, name)]
    for stage in ("prepare", "train", "evaluate"):
        made = sum(f"{stage}: first time" in life.lines for life in lives)
        wrong += [f"{stage} was made {made} times"] if made != 1 else []
    return wrong


def asleep(folder: Path, draw: random.Random, alone: Undisturbed, *, how: str, half_way: bool) -> list[str]:
    """An old life wakes after, or while, another goes on with the run: it leaves with a line, and changes nothing."""
    where = {"operation": {"stop_before": draw.randint(1, alone.operations)}, "line": {"stop_in_line": draw.randint(1, alone.lines)}}
    old = start(folder, "old", size=alone.size, **where.get(how, {}))  # type: ignore[arg-type]
    if how == "time":
        _until(lambda: any((folder / "runs/tiny").glob(".run.claim-*/owner.json")) or old.end() >= 0)
        time.sleep(draw.uniform(0, 1.5))
        old.send(signal.SIGSTOP)
    _until(lambda: old.stands_still or all(p.exitcode is not None for p in old.processes))
    time.sleep(1.2 * STALE)
    new = start(folder, "new", size=alone.size)
    if half_way:
        _until(lambda: any((folder / "runs/tiny").glob(".run.claim-2")) or new.processes[0].exitcode is not None)
        time.sleep(draw.uniform(0, 1.5))
        old.send(signal.SIGCONT)
    ended = new.end()
    before = kept(folder)
    old.send(signal.SIGCONT)
    code = old.end()
    wrong = whole(folder) + _differences(folder, alone)
    wrong += (
        [f"changed: {sorted(p for p in before.keys() | after if before.get(p) != after.get(p))}"]
        if (after := kept(folder)) != before
        else []
    )
    wrong += [f"the new life ended with {ended}: {new.lines[-3:]}"] if ended else []
    made = any(line.endswith(("first time", "goes on where it stopped", "starts again")) for line in new.lines)
    told = [line for line in old.lines if line.startswith("pipeline: ")]
    if code == 0 and not made:  # it had finished
        return wrong
    if code != 1 or len(told) != 1 or "was taken over by" not in told[0] or any("Traceback" in line for line in old.lines):
        wrong.append(f"the old life ended with {code}: {old.lines[-8:]}")
    return wrong


def _at_once(folder: Path, words: Sequence[Sequence[str]]) -> list[Life]:
    lives = [start(folder, f"life{k}", *each, go=folder / "go") for k, each in enumerate(words)]
    _until(lambda: len(list(folder.glob("*.ready"))) == len(lives))
    (folder / "go").touch()
    return lives


def _differences(folder: Path, alone: Undisturbed, name: str = "tiny") -> list[str]:
    try:
        found = results(folder, name)
    except OSError as error:
        return [str(error)]
    return [f"{path} differs from that of an undisturbed run" for path, digest in alone.results.items() if found[path] != digest]


def _state(process: ForkServerProcess) -> str:
    try:
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "did not come"
        time.sleep(0.01)


@dataclass(frozen=True)
class Kind:
    run: Callable[[Path, random.Random, Undisturbed], list[str]]
    says: str
    size: int = 1


def _asleep(how: str, *, half_way: bool) -> Callable[[Path, random.Random, Undisturbed], list[str]]:
    return lambda folder, draw, alone: asleep(folder, draw, alone, how=how, half_way=half_way)


KINDS = {
    "one run": Kind(one_run, "2 to 8 starts at once of one run"),
    "shared artifacts": Kind(shared_artifacts, "2 to 8 runs at once of one recipe"),
    "time": Kind(_asleep("time", half_way=False), "stopped at a random time, wakes when another life has finished"),
    "operation": Kind(
        _asleep("operation", half_way=False), "stopped before a random operation on files, wakes when another life has finished"
    ),
    "line": Kind(_asleep("line", half_way=False), "stopped in a line of the record, wakes when another life has finished"),
    "half-way": Kind(_asleep("operation", half_way=True), "stopped before a random operation on files, wakes while another life works"),
    "two processes": Kind(
        _asleep("time", half_way=False), "two processes, stopped at a random time, wake when two others have finished", 2
    ),
}


def campaign(folder: Path, cases: int, kinds: Sequence[str] = tuple(KINDS), *, seed: int = 0, first: int = 0) -> list[Row]:
    """`cases` cases of each kind, from number `first` on; a row for each."""
    alone = {size: Undisturbed(folder / f"alone-{size}", size) for size in (1, 2)}
    rows: list[Row] = []
    for name in kinds:
        kind, began = KINDS[name], time.monotonic()
        failures: list[str] = []
        for k in range(first, first + cases):
            place = folder / f"{name.replace(' ', '-')}-{k}"
            place.mkdir()
            try:
                wrong = kind.run(place, random.Random(f"{seed}/{name}/{k}"), alone[kind.size])
            except (AssertionError, OSError) as error:
                wrong = [f"{type(error).__name__}: {error}"]
            failures += [f"--seed {seed} --only {name!r} --case {k}: {'; '.join(wrong)}"] if wrong else []
        seconds = round(time.monotonic() - began, 1)
        rows.append({"case": kind.says, "cases": cases, "as promised": cases - len(failures), "seconds": seconds, "failures": failures})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(KINDS))
    parser.add_argument("--case", type=int, help="this one alone")
    options = parser.parse_args()
    kinds = [options.only] if options.only else [*KINDS]
    cases, first = (options.cases, 0) if options.case is None else (1, options.case)
    with tempfile.TemporaryDirectory() as folder:
        rows = campaign(Path(folder), cases, kinds, seed=options.seed, first=first)
    return report("lives_at_once", rows, seed=options.seed, stale_seconds=STALE)


if __name__ == "__main__":
    sys.exit(main())
