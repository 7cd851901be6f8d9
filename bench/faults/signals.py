"""A stop signal at any point of a run: all ranks stop at one step, nothing is lost, and the same command ends with the same bits.

    python -m bench.faults.signals [--cases N] [--seed S] [--case K]

Every signal, once and twice (0.2 s apart), to one rank, to all, to the launcher, in every phase; then a rank or the launcher
is killed outright. The launcher does as torchrun does (`launched.py`); some cases are given to torchrun itself.
"""

import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conftest import TINY

from bench.faults.launched import Launched, Trap, alive, options, pids, start
from bench.faults.report import report

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
TARGETS = ("rank", "all", "launcher")
STOPPED = ("start", "waiting", "step", "validation", "save", "evaluation", "finish")
KILLED = ("step", "validation", "save", "evaluation")
WORDS = [*TINY, "train.epochs=2", "run.trackers=[]", "run.eval_batch_size=5", "run.hang_timeout=null"]
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Case:
    number: int
    phase: str
    signal: str
    target: str
    times: int = 1
    size: int = 2
    rank: int = 0  # in whose run the phase is, and which is signalled if one is
    alone: bool = False  # nobody looks after the ranks

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


def cases(count: int, seed: int = 0) -> list[Case]:
    """Each phase in turn, with each signal, target and number of times in it before any comes again."""
    drawn = random.Random(seed)
    orders = {phase: [drawn.sample(values, len(values)) for values in (SIGNALS, TARGETS)] for phase in STOPPED}
    found = []
    for number in range(count):
        phase, k = STOPPED[number % len(STOPPED)], number // len(STOPPED)
        signals, targets = orders[phase]
        size = (2, 3, 2, 1, 2)[k % 5]
        target = targets[k % 3] if size > 1 else targets[k % 3].replace("launcher", "rank")
        found.append(Case(number, phase, signals[k % 4], target, 1 + k // 4 % 2 if k > 3 else 1 + k % 2, size, drawn.randrange(size)))
    return found


def kills(first: int, seed: int = 0) -> list[Case]:
    """SIGKILL of a rank, with a launcher and without, and of the launcher, in each phase of a run."""
    drawn = random.Random(seed)
    kinds = [(phase, target, alone) for phase in KILLED for target, alone in (("rank", False), ("rank", True), ("launcher", False))]
    return [Case(first + k, phase, "SIGKILL", target, 1, 3, drawn.randrange(3), alone) for k, (phase, target, alone) in enumerate(kinds)]


def strike(case: Case, folder: Path) -> None:
    """In the rank whose phase it is: the signals, and where ranks are to wait for it, a wait for its own end."""
    ranks = pids(folder, case.size)
    others = [pid for pid in ranks if pid != os.getpid()]
    whom = {"rank": [os.getpid()], "all": [*others, os.getpid()], "launcher": [os.getppid()]}[case.target]
    for again in range(case.times):
        time.sleep(0.2 * again)
        (folder / "struck").write_text(str(time.time()))
        for pid in filter(alive, whom):
            os.kill(pid, getattr(signal, case.signal))
    time.sleep(60 if case.phase == "waiting" else 0.3)


def results(folder: Path) -> tuple[bytes, bytes]:
    run = folder / "runs" / "tiny"
    return (run / "train" / "weights.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()


def undisturbed(folder: Path, size: int) -> tuple[bytes, bytes]:
    if not (folder / "ended").exists():
        codes = start(folder, ["train", *WORDS], size).join(120)
        assert set(codes) == {0}, f"undisturbed: {codes}\n{(folder / 'output.txt').read_text()}"
    return results(folder)


def play(case: Case, folder: Path, whole: tuple[bytes, bytes]) -> tuple[str, float]:
    """What is wrong, empty if nothing; and the seconds from the signal to the end of the last rank."""
    words = ["evaluate" if case.phase in ("evaluation", "finish") else "train", *WORDS]
    run = start(folder, words, case.size, trap=Trap(case.phase, case.rank, functools.partial(strike, case)), alone=case.alone)
    codes = run.join(40)
    if not (folder / "struck").exists():
        return f"the phase never came: {codes} {run.output()[-300:]}", 0.0
    seconds = time.time() - float((folder / "struck").read_text())
    status = json.loads((folder / "runs/tiny/status.json").read_text())
    wrong = _wrong(case, codes, status, run, seconds)
    told = f"{codes} {status} {run.output()[-600:]}"
    if wrong:
        return f"{wrong}: {told}", seconds
    again = start(folder, words, case.size)
    if set(again.join(60)) != {0}:
        return f"the same command did not end well: {told}", seconds
    if results(folder) != whole:
        return f"other bits than undisturbed: {told}", seconds
    step = re.search(r"stopped after step (\d+)", status["message"])
    if step and f"going on from step-{int(step[1]):09d}" not in again.output():
        return f"went on from another step than {step[1]}: {again.output()[:400]}", seconds
    return "", seconds


def _wrong(case: Case, codes: Sequence[int | None], status: Mapping[str, Any], run: Launched, seconds: float) -> str:
    if case.signal == "SIGKILL" and case.target == "rank":
        return _wrong_after_loss(case, codes, status, run, seconds)
    told = 130 if case.signal == "SIGINT" else 143
    early, late = [{told}, {told, 143}, {75}], [{75}, {0}]
    allowed = {"start": early, "waiting": early[:2], "evaluation": late, "finish": late}.get(case.phase, [{75}])
    if case.phase in ("start", "waiting"):
        allowed = [*allowed, {143}]
    if set(codes) not in allowed:
        return "other exit codes than documented"
    if (status["state"], status["exit_code"]) != ("stopped" if codes[0] else "done", codes[0]):
        return "status.json says otherwise"
    return "a traceback" if "Traceback" in run.output() else ""


def _wrong_after_loss(case: Case, codes: Sequence[int | None], status: Mapping[str, Any], run: Launched, seconds: float) -> str:
    rest = [code for rank, code in enumerate(codes) if rank != case.rank]
    if set(rest) - {1, 143} or codes[case.rank] != -signal.SIGKILL:
        return "other exit codes than documented"
    if seconds > 5:
        return f"the others took {seconds:.1f} s to end"
    if "another process was lost" not in run.output() and 1 in rest:
        return "not a word of the loss"
    if case.rank != 0 and (status["state"], status["exit_code"]) != ("failed" if codes[0] == 1 else "stopped", codes[0]):
        return "status.json says otherwise"
    return "a traceback" if "Traceback" in run.output() else ""


def under_torchrun(folder: Path, name: str, whom: str) -> tuple[str, float]:
    """The real launcher, told once its ranks have a checkpoint: the agent, or as a terminal does all of its group."""
    words = [*TINY, "run.trackers=[]", "train.epochs=5000", "train.validate_every=100"]
    command = [str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2", str(ROOT / "launch/train.py"), *words]
    folder.mkdir()
    agent = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 90
    while not list(folder.glob("artifacts/train/*/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    ranks = [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]
    struck = time.monotonic()
    (os.kill if whom == "launcher" else os.killpg)(agent.pid, getattr(signal, name))
    agent.wait(60)
    while any(map(alive, ranks)) and time.monotonic() < struck + 40:
        time.sleep(0.05)
    left = [pid for pid in ranks if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    status = json.loads((folder / "runs/tiny/status.json").read_text())
    wrong = "orphans" if left else "" if (status["state"], status["exit_code"]) == ("stopped", 75) else f"status.json: {status}"
    return wrong, time.monotonic() - struck


def campaign(chosen: Sequence[Case]) -> Iterator[tuple[Case, str, float]]:
    """Each case, what is wrong with it, and how long its end took."""
    work = Path(tempfile.mkdtemp(prefix="signals-"))
    for case in chosen:
        whole = undisturbed(work / f"whole-{case.size}", case.size)
        folder = work / f"case-{case.number}"
        yield case, *play(case, folder, whole)
        shutil.rmtree(folder)
    shutil.rmtree(work)


def row(kind: str, found: Sequence[tuple[str, str, float]]) -> dict[str, Any]:
    """Of a kind: (case, what is wrong, seconds) of each."""
    failures = [f"{case}: {wrong}" for case, wrong, _ in found if wrong]
    slowest = max(seconds for _, _, seconds in found)
    return {"kind": kind, "cases": len(found), "passed": len(found) - len(failures), "slowest, s": f"{slowest:.1f}", "failures": failures}


def main() -> int:
    asked = options(__doc__, cases=63)
    chosen = cases(asked.cases, asked.seed)
    chosen += kills(len(chosen), asked.seed)
    found: dict[str, list[tuple[str, str, float]]] = {}
    for case, wrong, seconds in campaign(chosen if asked.case is None else [chosen[asked.case]]):
        print(f"{case}: {wrong or 'passed'} ({seconds:.1f} s)", flush=True)
        kind = f"killed: {case.target}" if case.signal == "SIGKILL" else f"told in: {case.phase}"
        found.setdefault(kind, []).append((str(case), wrong, seconds))
    if asked.case is not None:
        return int(any(wrong for each in found.values() for _, wrong, _ in each))
    work = Path(tempfile.mkdtemp(prefix="signals-torchrun-"))
    for name, whom in (("SIGTERM", "launcher"), ("SIGINT", "group"), ("SIGUSR1", "launcher"), ("SIGKILL", "launcher")):
        wrong, seconds = under_torchrun(work / f"{name}-{whom}", name, whom)
        found.setdefault("torchrun itself", []).append((f"{name} to the {whom}", wrong, seconds))
    shutil.rmtree(work)
    return report("signals", [row(kind, each) for kind, each in found.items()], seed=asked.seed)


if __name__ == "__main__":
    sys.exit(main())
