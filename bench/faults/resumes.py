"""A run of forty steps, stopped or killed at each of them; then the same command again.

    python -m bench.faults.resumes [--every 1] [--only "RECIPE, PROCESSES, stopped, 17"]

What must come out is what comes out undisturbed, bit for bit: the selected weights, the last checkpoint with all
that it holds, and the record.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.faults import launcher
from bench.faults.launcher import How
from bench.faults.report import Row, report
from bench.faults.strikes import UPDATE, Strike

SEED = 0
AT_ONCE = 3  # cases
STEPS = 40
PROCESSES = (1, 2, 4)
SOON = 120.0  # seconds, for what must end by itself
CLOCK = ("seconds", "outputs", "sha256")  # of a checkpoint's manifest, what depends on the clock, or on what is compared itself

# 180 images to train on: an epoch is 13.8 steps, and a batch of 13 can be cut evenly into nothing.
TINY = [
    "train",
    "data.source={name: synthetic, train: 200, test: 20}",
    "train.model={name: lenet, kernel: 3, channels: [4, 8], hidden: [16]}",
    f"train.steps={STEPS}",
    "train.batch_size=13",
    "train.lr=0.05",
    "train.augment=[flip, {name: crop, padding: 1}]",
    "train.validate_every=0.5",
    "run.name=tiny",
    "run.log_every=3",
    "run.trackers=[]",
    "run.threads=1",
]
RECIPES = {
    "momentum": ["train.optimizer={name: sgd, momentum: 0.9}"],
    "adamw, average, warm-up": ["train.optimizer=adamw", "train.lr=0.003", "train.average={name: ema, decay: 0.9}", "train.warmup=1"],
    "dropout, batch norm": ["train.model={name: wrn_16_4, depth: 10, widen: 1, dropout: 0.3}"],
    "float16": ["train.precision=fp16", "train.lr=1"],
    "mixup, plateau": ["train.mix=mixup", "train.schedule={name: plateau, patience: 0, factor: 0.5}", "train.metric=loss"],
    "accumulation": ["train.accumulate=3"],
    "workers": ["run.workers=2"],
}


@dataclass(frozen=True)
class Case:
    """A run that is interrupted after these updates, in one way, before it may finish."""

    recipe: str
    processes: int
    way: str  # stopped: SIGUSR1, a checkpoint at the step itself; killed: SIGKILL, there is one a step
    steps: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.recipe}, {self.processes}, {self.way}, {' '.join(map(str, self.steps))}"

    @classmethod
    def read(cls, text: str) -> "Case":
        recipe, processes, way, steps = text.rsplit(", ", 3)
        return cls(recipe, int(processes), way, tuple(map(int, steps.split())))

    def how(self, strike: Strike | None = None) -> How:
        every = {"killed": 1}.get(self.way, STEPS)
        words = [*TINY, *RECIPES[self.recipe], f"run.checkpoint_every={every}"]
        return How(words, self.processes, strike=strike, ask_each_step=True, loader=self.recipe == "workers")

    def may_keep(self, step: int) -> set[int]:
        """The last checkpoint when it is interrupted after the update of `step`: that of the step before may not be written yet."""
        return {step} if self.way == "stopped" else {max(0, step - 1), max(0, step - 2)}


def cases(recipe: str, processes: int, every: int = 1) -> Iterator[Case]:
    """Each step, stopped at and killed at; and as many again by tens, three times in one run."""
    draw = random.Random(f"{SEED}/{recipe}/{processes}")
    for way in ("stopped", "killed"):
        yield from (Case(recipe, processes, way, (step,)) for step in range(STEPS, 0, -every))
        yield from (Case(recipe, processes, way, tuple(sorted(draw.sample(range(1, STEPS), 3)))) for _ in range(0, STEPS, 10 * every))


def carried_out(case: Case, whole: Mapping[str, Any], folder: Path) -> str:
    """What is other than in the undisturbed run, "" if nothing is."""
    folder.mkdir()
    before = 0
    for step in case.steps:
        rank = step % case.processes
        stopped = case.way == "stopped"
        strike = Strike(UPDATE, step - before, True, by=rank, victim=rank, signal="SIGUSR1" if stopped else "SIGKILL")
        code = launcher.run(folder, case.how(strike), SOON)
        wrong = _wrong_beginning(folder, before)
        if wrong or (code != 75 if stopped else code < 1):
            return f"interrupted at {step}: {wrong} exit code {code}, {_last_words(folder)}"
        before = _kept(folder)
        if before not in case.may_keep(step):
            return f"interrupted at {step}: a checkpoint of step {before} is kept"
    code = launcher.run(folder, case.how(), SOON)
    if wrong := f"exit code {code}, {_last_words(folder)}" if code else _wrong_beginning(folder, before):
        return f"gone on: {wrong}"
    found = results(folder)
    return ", ".join(f"{name} differs" for name in sorted(whole.keys() | found.keys()) if whole.get(name) != found.get(name))


def _kept(folder: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name.partition("-")[2]) for path in folder.glob("artifacts/train/*/checkpoints/step-*")), default=0)


def results(folder: Path) -> dict[str, Any]:
    """All that must be the same: by file, or fact of the last checkpoint."""
    run = folder / "runs/tiny"
    last = max((run / "train/checkpoints").glob("step-*"))
    manifest = json.loads((last / "manifest.json").read_text())
    facts = {f"{last.name}, {name}": value for name, value in manifest.items() if name not in CLOCK}
    tensors = {f"{last.name}/{path.name}": path.read_bytes() for path in last.glob("*.safetensors")}
    chosen = {"weights": (run / "train/weights.safetensors").read_bytes(), "metrics.jsonl": (run / "metrics.jsonl").read_bytes()}
    return chosen | tensors | facts


def _wrong_beginning(folder: Path, step: int) -> str:
    """Whether the run has gone on from another step than `step`, or at 0 at all."""
    said = (folder / "output.txt").read_text()
    right = f"going on from step-{step:09d} " in said if step else "going on from" not in said
    return "" if right else f"not from step {step};"


def _last_words(folder: Path) -> str:
    return next(reversed((folder / "output.txt").read_text().splitlines()), "without a word")


def undisturbed(recipe: str, processes: int, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    code = launcher.run(folder, Case(recipe, processes, "stopped", ()).how())
    assert code == 0, f"{recipe} on {processes}: exit code {code}, {_last_words(folder)}"
    return results(folder)


def campaign(wanted: Sequence[Case], work: Path, at_once: int = AT_ONCE) -> dict[Case, str]:
    """What is wrong with each case, "" if nothing is; the folder of one that failed stays below `work`."""
    groups = sorted({(case.recipe, case.processes) for case in wanted})

    def one(case: Case) -> str:
        folder = work / str(case).replace(", ", "-")
        wrong = carried_out(case, whole[case.recipe, case.processes], folder)
        if wrong:
            print(f"failed: {case}: {wrong}", flush=True)
        else:
            shutil.rmtree(folder)
        return wrong

    with ThreadPoolExecutor(at_once) as pool:
        begun = {group: pool.submit(undisturbed, *group, work / f"{group[0]} on {group[1]}") for group in groups}
        whole = {group: future.result() for group, future in begun.items()}
        return dict(zip(wanted, pool.map(one, wanted), strict=True))


def rows(found: Mapping[Case, str]) -> Iterator[Row]:
    """A row for each recipe and number of processes: of its interruptions, how many left no trace."""
    groups: dict[tuple[str, int], dict[Case, str]] = defaultdict(dict)
    for case, wrong in found.items():
        groups[case.recipe, case.processes][case] = wrong
    for (recipe, processes), group in groups.items():
        figures = {}
        for way in ("stopped", "killed"):
            for times, name in ((1, f"{way} at a step"), (3, f"{way} three times")):
                of_kind = [wrong for case, wrong in group.items() if case.way == way and len(case.steps) == times]
                figures[name] = f"{of_kind.count('')} of {len(of_kind)} identical"
        failures = [f"{case}: {wrong}" for case, wrong in group.items() if wrong]
        yield {"recipe": recipe, "processes": processes, **figures, "failures": failures}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th step")
    parser.add_argument("--only", type=Case.read, help="one case, as a failure names it; it is not kept among the results")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="resumes-"))
    every = [case for processes in PROCESSES for recipe in RECIPES for case in cases(recipe, processes, options.every)]
    found = campaign([options.only] if options.only else every, work)
    failed = any(found.values())
    if not options.only:
        report("resumes", list(rows(found)), seed=SEED, every=options.every)
    if failed:
        print(f"what failed is kept in {work}", file=sys.stderr)
    else:
        shutil.rmtree(work)
    return failed


if __name__ == "__main__":
    sys.exit(main())
