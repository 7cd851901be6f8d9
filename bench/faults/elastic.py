"""Stopped on 1, 2 or 4 processes, gone on with on 1, 2 or 4: with train.determinism=elastic the bytes are those of one process undisturbed.

    python -m bench.faults.elastic [--cases N] [--rounds N]

Case k has the k-th pair of numbers of processes and the recipe, the stop and the seed of k // 9. Beside it stands
`determinism=resume` on the first recipe. Then what it costs: runs that differ in nothing else, in turn, round after round.
"""

import argparse
import itertools
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from processes import launch

from bench.faults.report import Row, report
from bench.measure import speeds

COUNTS = (1, 2, 4)
PAIRS = tuple(itertools.product(COUNTS, COUNTS))
NET = [
    "data.source={name: synthetic, train: 120, test: 30}",
    "train.model={name: wrn_16_4, depth: 10, widen: 1, dropout: 0.3}",  # dropout and BatchNorm
    "train.batch_norm=local",
    "train.average={name: ema, decay: 0.9}",
    "train.augment=[flip, {name: crop, padding: 1}, cutout]",
    "train.validate_every=0.5",
    "run.name=elastic",
    "run.trackers=[]",
    "run.threads=1",
]
OPTIMIZERS = ("{name: sgd, momentum: 0.9}", "{name: adamw}")
STEPS = 16
COSTS = {
    "LeNet-5, batch 64": ["data.source={name: synthetic, train: 1000, test: 30, size: 28}", "train.model=lenet5", "train.steps=60"],
    "ResNet-18 of width 16, batch 64": [
        "data.source={name: synthetic, train: 1000, test: 30, size: 28}",
        "train.model={name: resnet18, width: 16}",
        "train.batch_norm=local",
        "train.steps=12",
    ],
}


def recipe(seed: int) -> tuple[list[str], int]:
    """What is trained in the cases of `seed`; and the logged step at which it is to stop."""
    draw = random.Random(seed)
    log_every, batch_size, shards = draw.choice([1, 2, 3]), draw.choice([8, 12, 19]), draw.choice([4, 8])
    rate = 0.05 if seed % 2 == 0 else 0.003
    choices = [f"train.optimizer={OPTIMIZERS[seed % 2]}", f"train.lr={rate}", f"train.batch_size={batch_size}", f"train.shards={shards}"]
    stop_at = log_every * draw.randint(1, (STEPS - 10) // log_every)  # several processes may take ten steps more to agree on it
    return [*NET, *choices, f"train.seed={seed}", f"train.steps={STEPS}", f"run.log_every={log_every}"], stop_at


def results(folder: Path) -> list[bytes]:
    return [(folder / "runs/elastic" / name).read_bytes() for name in ("train/weights.safetensors", "metrics.jsonl")]


class Cases:
    """The cases of one seed, which share the undisturbed run and the stopped ones."""

    def __init__(self, seed: int, determinism: str, folder: Path) -> None:
        words, self._stop_at = recipe(seed)
        self._words = ["train", *words, f"train.determinism={determinism}"]
        self._folder = folder
        self._run("whole", 1)
        self._whole = results(folder / "whole")

    def _run(self, name: str, processes: int, *, stop_at: int = 0) -> str:
        (self._folder / name).mkdir(exist_ok=True)
        ended = launch(self._folder / name, self._words, processes=processes, stop_at=stop_at)
        if set(ended.codes) != {75 if stop_at else 0}:
            raise RuntimeError(f"exit codes {ended.codes}: {ended.output.splitlines()[-1:]}")
        return ended.output

    def failure(self, before: int, after: int) -> str:
        """What went wrong in the case, with the command; empty if nothing did."""
        begun, on = f"begun-{before}", f"{before}-{after}"
        try:
            if not (self._folder / begun).exists():
                self._run(begun, before, stop_at=self._stop_at)
            shutil.copytree(self._folder / begun, self._folder / on, symlinks=True)
            if "going on from step-" not in self._run(on, after):
                raise RuntimeError("it began anew")
            found = results(self._folder / on)
            differ = [n for n, a, b in zip(("weights", "metrics.jsonl"), found, self._whole, strict=True) if a != b]
        except RuntimeError as error:
            differ = [str(error)]
        if not differ:
            return ""
        where = f"stopped at {self._stop_at} on {before}, gone on with on {after}, against 1 process"
        return f"{', '.join(differ)} differ ({where}): pipeline {' '.join(map(repr, self._words))}"


def run(cases: Sequence[int], determinism: str = "elastic") -> dict[tuple[int, int], list[str]]:
    """Of each pair of numbers of processes, what came of its cases: a failure, or the empty string."""
    found: dict[tuple[int, int], list[str]] = {}
    for seed, numbers in itertools.groupby(cases, lambda k: k // len(PAIRS)):
        with tempfile.TemporaryDirectory() as folder:
            several = Cases(seed, determinism, Path(folder))
            for k in numbers:
                pair = PAIRS[k % len(PAIRS)]
                found.setdefault(pair, []).append(several.failure(*pair))
                print(f"case {k}: {determinism}, {pair[0]} then {pair[1]}: {found[pair][-1] or 'identical'}"[:140], file=sys.stderr)
    return found


def step_seconds(words: Sequence[str], processes: int) -> list[float]:
    """Of each interval of the log but the first."""
    common = ["train", "train.batch_size=64", "train.augment=[flip, {name: crop, padding: 1}]", "train.validate_every=100", "run.threads=1"]
    with tempfile.TemporaryDirectory() as folder:
        words = [*common, "run.name=elastic", "run.trackers=[]", "run.log_every=4", *words]
        ended = launch(Path(folder), words, processes=processes)
        assert ended.code == 0, ended.output
        return [64 / speed for speed in speeds(next(Path(folder).glob("artifacts/train/*/timings.jsonl")).parent)[1:]]


def costs(rounds: int) -> list[Row]:
    """Medians of milliseconds a step, and their ratio to `resume` on as many processes."""
    ways = {"resume": ["train.determinism=resume"]}
    ways |= {f"elastic, {n} shards": ["train.determinism=elastic", f"train.shards={n}"] for n in (4, 8)}
    rows: list[Row] = []
    for net, words in COSTS.items():
        seconds: dict[tuple[int, str], list[float]] = {key: [] for key in itertools.product((1, 2), ways)}
        for _, (processes, way) in itertools.product(range(rounds), seconds):
            seconds[processes, way] += step_seconds([*words, *ways[way]], processes)
        for (processes, way), found in seconds.items():
            median = statistics.median(found)
            ratio = median / statistics.median(seconds[processes, "resume"])
            rows.append({"net": net, "processes": processes, "way": way, "ms a step": round(1000 * median, 2), "ratio": round(ratio, 2)})
    return rows


def table(cases: int, rounds: int) -> list[Row]:
    elastic, resume = run(range(cases)), run(range(min(cases, len(PAIRS))), "resume")
    rows: list[Row] = [
        {
            "stopped on": before,
            "gone on with on": after,
            "identical, elastic": f"{found.count('')} of {len(found)}",
            "identical, resume": f"{resume[before, after].count('')} of {len(resume[before, after])}",
            "failures": [failure for failure in found if failure],
        }
        for (before, after), found in elastic.items()
    ]
    return [*rows, *costs(rounds)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=5 * len(PAIRS))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sys.exit(report("elastic", table(options.cases, options.rounds), cases=options.cases, rounds=options.rounds))
