"""SIGKILL, to any process of a run or to its launcher, at any moment; then the same command again.

    python -m bench.faults.kills [--cases 200] [--only CASE]

What must come out is what comes out undisturbed, bit for bit; and five seconds after the kill no process may be left.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.faults import launcher, strikes
from bench.faults.launcher import How
from bench.faults.phases import PHASES, PLACES, RECIPES, TINY, UNTIL
from bench.faults.report import Row, report
from bench.faults.strikes import LAUNCHER, Strike

SEED = 0
AT_ONCE = 3  # cases
PATIENCE = 5.0  # seconds after the kill, until which all must have ended
SOON = 180.0  # seconds, for what must end by itself
TORCHRUN = 20  # every so many cases the real one


@dataclass(frozen=True)
class Whole:
    """An undisturbed run: what it left, and what could have been hit in it."""

    results: tuple[bytes, bytes]
    calls: Sequence[Mapping[str, int]]  # by rank: of each place, how often it was called
    seconds: float  # of the main process


@dataclass(frozen=True)
class Case:
    """A run that is killed, once or twice, before it may finish."""

    number: int
    recipe: str
    processes: int
    real: bool  # torchrun itself
    phase: str
    strikes: Sequence[Strike]

    def __str__(self) -> str:
        blows = ", then ".join(map(str, self.strikes))
        return f"case {self.number}: {self.recipe!r} on {self.processes}{' by torchrun' if self.real else ''}, {blows}"

    @property
    def victim(self) -> str:
        victim = self.strikes[0].victim
        return "launcher" if victim == LAUNCHER else "rank 0" if victim == 0 else "another rank"

    def how(self, strike: Strike | None = None, counted: Sequence[str] = ()) -> How:
        words = [UNTIL.get(self.phase, "train"), *TINY, *RECIPES[self.recipe]]
        return How(words, self.processes, self.real, strike, counted, loader=self.recipe == "workers")


@dataclass(frozen=True)
class End:
    """What became of a run that was struck."""

    came: bool  # the blow; a second one, or one by the clock, may come too late
    orphans: Sequence[str]
    seconds: float  # from the blow until all had ended


@dataclass(frozen=True)
class Outcome:
    case: Case
    wrong: str  # how what came out differs, "" if it does not
    ends: Sequence[End]
    seconds: float  # of the same command again

    @property
    def orphans(self) -> list[str]:
        return [orphan for end in self.ends for orphan in end.orphans]

    @property
    def failures(self) -> list[str]:
        return [f"{self.case}: {what}" for what in (self.wrong, "left: " + "; ".join(self.orphans) if self.orphans else "") if what]


def drawn(number: int, whole: Callable[[str, int, str], Whole]) -> Case:
    """The case of that number, always the same but for what the clock says."""
    draw = random.Random(f"{SEED}/{number}")
    real = number % TORCHRUN == TORCHRUN - 1
    recipe, processes = draw.choice([name for name in RECIPES if not (real and name == "workers")]), draw.randint(2 if real else 1, 3)
    victims = [*range(processes), LAUNCHER] if processes > 1 else [0]
    phase = draw.choice(list(PHASES))
    known = whole(recipe, processes, phase)
    blows = []
    for share in (1.0, 0.4) if draw.random() < 0.2 else (1.0,):
        place, victim = draw.choice(PHASES[phase]), draw.choice(victims)
        by = max(victim, 0)
        by = by if not place or known.calls[by].get(place) else 0  # some places only the main process comes by
        calls = known.calls[by].get(place, 0) if place else 0
        assert calls or not place, f"{recipe}: {place} is never called"
        call = 1 + int(draw.random() * share * calls)
        seconds = draw.random() * share * known.seconds * (3 if real else 1)
        blows.append(Strike(place, call, draw.random() < 0.5, seconds, by, victim))
    return Case(number, recipe, processes, real, phase, blows)


def undisturbed(folder: Path, recipe: str, processes: int, phase: str) -> Whole:
    folder.mkdir(parents=True)
    code = launcher.run(folder, Case(0, recipe, processes, False, phase, ()).how(counted=PLACES))
    assert code == 0, f"{recipe} on {processes}: exit code {code}\n{(folder / 'output.txt').read_text()}"
    calls = [json.loads((folder / f"calls-{rank}.json").read_text()) for rank in range(processes)]
    seconds = (folder / "calls-0.json").stat().st_mtime - (folder / "pid-0").stat().st_mtime
    return Whole(results(folder), calls, seconds)


def results(folder: Path) -> tuple[bytes, bytes]:
    run = folder / "runs/tiny"
    return (run / "train/weights.safetensors").read_bytes(), (run / "metrics.jsonl").read_bytes()


def carried_out(case: Case, whole: Whole, folder: Path) -> Outcome:
    folder.mkdir()
    ends = [struck(case.how(strike), folder) for strike in case.strikes]
    began = time.monotonic()
    code = launcher.run(folder, case.how(), SOON)
    seconds = time.monotonic() - began
    missed = bool(case.strikes[0].at) and not ends[0].came  # a kill by the clock may come too late
    wrong = _difference(folder, code, whole) or ("no kill landed" if missed else "")
    return Outcome(case, wrong, ends, seconds)


def struck(how: How, folder: Path) -> End:
    """Run until the blow, and let what is left of the run come to its end; kill what does not.

    While its launcher lives, a process is in good hands; without it, it is an orphan.
    """
    code, mark, deadline = launcher.start(folder, how), folder / strikes.STRUCK, time.time() + SOON
    while code() is None and time.time() < deadline:
        time.sleep(0.02)
    ended = time.time()
    at = mark.stat().st_mtime if mark.exists() else ended
    while (left := launcher.left(folder)) and time.time() < max(at + PATIENCE, ended + 1):
        time.sleep(0.05)
    seconds, orphans = time.time() - at, list(map(launcher.described, left))
    launcher.end(left)
    while launcher.left(folder):
        time.sleep(0.02)
        code()
    return End(mark.exists(), orphans, seconds)


def _difference(folder: Path, code: int, whole: Whole) -> str:
    if code:
        said = (folder / "output.txt").read_text(errors="replace").splitlines()
        return f"exit code {code}, {said[-1] if said else 'without a word'}"
    names = ("weights.safetensors", "metrics.jsonl")
    return ", ".join(f"{name} differs" for name, a, b in zip(names, results(folder), whole.results, strict=True) if a != b)


def campaign(numbers: Sequence[int], work: Path, at_once: int = AT_ONCE) -> list[Outcome]:
    """The cases of these numbers, in folders of their own below `work`; of those that failed the folder stays."""
    lock, known = threading.Lock(), dict[str, Whole]()

    def whole(recipe: str, processes: int, phase: str) -> Whole:
        name = f"{UNTIL.get(phase, 'train')} {recipe} on {processes}"
        with lock:
            if name not in known:
                known[name] = undisturbed(work / name, recipe, processes, phase)
        return known[name]

    def one(number: int) -> Outcome:
        case, folder = drawn(number, whole), work / f"case-{number}"
        outcome = carried_out(case, whole(case.recipe, case.processes, case.phase), folder)
        print("\n".join(f"failed: {failure}" for failure in outcome.failures) or f"as undisturbed: {case}", flush=True)
        if not outcome.failures:
            shutil.rmtree(folder)
        return outcome

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, numbers))


def rows(outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """A row for each victim and phase, for torchrun itself, and for all."""
    groups: dict[tuple[str, str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        case = outcome.case
        groups[("torchrun", case.victim, "all") if case.real else ("forked", case.victim, case.phase)].append(outcome)
    for (by, victim, phase), group in sorted(groups.items()):
        yield {"launcher": by, "killed": victim, "in": phase, **_figures(group), "failures": [f for o in group for f in o.failures]}
    yield {"launcher": "all", **_figures(outcomes)}


def _figures(outcomes: Sequence[Outcome]) -> Row:
    return {
        "cases": len(outcomes),
        "kills": sum(end.came for outcome in outcomes for end in outcome.ends),
        "identical": sum(not outcome.wrong for outcome in outcomes),
        "with orphans": sum(bool(outcome.orphans) for outcome in outcomes),
        "s to the end, longest": round(max(end.seconds for outcome in outcomes for end in outcome.ends), 1),
        "s of the same command again, median": round(statistics.median(outcome.seconds for outcome in outcomes), 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--only", type=int, help="the number of one case, which is not kept among the results")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    outcomes = campaign(range(options.cases) if options.only is None else [options.only], work)
    failed = any(outcome.failures for outcome in outcomes)
    if options.only is None:
        report("kills", list(rows(outcomes)), seed=SEED)
    if failed:
        print(f"what failed is kept in {work}", file=sys.stderr)
    else:
        shutil.rmtree(work)
    return failed


if __name__ == "__main__":
    sys.exit(main())
