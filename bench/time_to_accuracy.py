"""The time to a promised accuracy, in training and as a whole process: python -m bench.time_to_accuracy DATA [--seeds N] [--peers N]

Ours is `pipeline evaluate` with a recipe of configs/ that stops after a fixed number of epochs, chosen on a validation split, with
all it does, in a new folder: it reads and prepares the raw data too, unless the row says that an earlier command has. Its accuracy
is the mean on the test split over fresh seeds. Beside it are the loops that people copy (bench/peers/whole.py), with as many
threads as their libraries take, and ours with as many as there are cores, in one process and in four. DATA holds cifar-10-batches-py
and MNIST/raw; the PNG of MNIST are written first, which is not counted, and read by both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.images import write_class_folders
from bench.measure import JPEG_COPY, Row, keep
from bench.turns import ROOT

Result = tuple[float, float, float]  # seconds of the whole process, those of training, accuracy on the test split


@dataclass(frozen=True)
class Race:
    target: float
    config: str
    source: str  # of the files that both read
    peer: str


RACES = {
    "C4: the tutorial's net on CIFAR-10": Race(0.54, "cifar10_tutorial_quick", "cifar10", "tutorial"),
    "C5: LeNet-5 on MNIST": Race(0.99, "mnist_quick", "mnist", "folder"),
}
FIRST_SEED = 100  # none that a recipe was chosen with


def ours(race: Race, data: Path, folder: Path, seed: int, *, processes: int = 1) -> Result:
    start = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", str(processes)] if processes > 1 else [sys.executable]
    words = [ROOT / "launch/evaluate.py", ROOT / f"configs/{race.config}.yaml", "--data-dir", data, f"train.seed={seed}", *_source(race)]
    began = time.monotonic()
    _output([*start, *words], folder)
    seconds = time.monotonic() - began
    place = folder / "runs" / race.config
    training = json.loads((place / "train/timing.json").read_text())["seconds"]
    return seconds, training, json.loads((place / "evaluate/metrics.json").read_text())["test"]["accuracy"]


def _source(race: Race) -> tuple[str, ...]:
    return ("data.source=folder",) if race.peer == "folder" else ()


def theirs(race: Race, data: Path, folder: Path, seed: int) -> Result:
    began = time.monotonic()
    output = _output([sys.executable, "-m", "bench.peers.whole", race.peer, data, seed], folder)
    training, accuracy = output.split()[-2:]
    return time.monotonic() - began, float(training), float(accuracy)


def _output(command: list[object], folder: Path) -> str:
    typed = [str(word) for word in command]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    variables.pop("OMP_NUM_THREADS", None)
    ended = subprocess.run(typed, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(typed)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    return ended.stdout


def run(race: Race, data: Path, work: Path, seeds: int, peers: int) -> Mapping[str, list[Result]]:
    found: dict[str, list[Result]] = {"theirs": []}
    for number in range(seeds):
        seed = FIRST_SEED + number
        for processes in (1, 4):
            folder = work / f"{race.config}-{seed}-{processes}"
            folder.mkdir()
            name = f"ours, {processes} process{'es' * (processes > 1)}"
            found.setdefault(name, []).append(ours(race, data, folder, seed, processes=processes))
            if processes == 1:
                again = ours(race, data, folder, seed + 1000, processes=1)
                found.setdefault("ours, 1 process, data prepared before", []).append(again)
        if number < peers:
            found["theirs"].append(theirs(race, data, work, seed))
    return found


def rows(name: str, race: Race, found: Mapping[str, list[Result]]) -> list[Row]:
    beside = [statistics.median(each) for each in list(zip(*found["theirs"], strict=True))[:2]]

    def one(arm: str, results: list[Result]) -> Row:
        seconds, training, accuracies = (list(each) for each in zip(*results, strict=True))
        mean, middle = statistics.fmean(accuracies), [statistics.median(each) for each in (seconds, training)]
        deviation = f" ± {statistics.stdev(accuracies):.2%}" if len(results) > 1 else ""
        return {
            "work": name,
            "arm": arm,
            "s of training": round(middle[1], 2),
            "sooner": round(beside[1] / middle[1], 1),
            "s of the process": round(middle[0], 2),
            "sooner, the process": round(beside[0] / middle[0], 1),
            "test accuracy": f"{mean:.2%}{deviation}",
            "target": f"{race.target:.0%} {'reached' if mean >= race.target else 'missed'}",
            "n": len(results),
            "runs": [[round(s, 2) for s in each] for each in (training, seconds)],
        }

    return [one(arm, results) for arm, results in found.items()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", default="", metavar="NAME", help="that whose name begins so, as C4")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--peers", type=int, default=3, help="runs of the peer, which takes minutes")
    asked = parser.parse_args()
    told: list[Row] = []
    for name, race in RACES.items():
        if not name.startswith(asked.only):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            data = asked.data.absolute()
            if race.peer == "folder":
                write_class_folders(race.source, data, Path(temporary) / "png")
                data = Path(temporary) / "png"
            told += rows(name, race, run(race, data, Path(temporary), asked.seeds, asked.peers))
    keep("time_to_accuracy", told, data=JPEG_COPY)
