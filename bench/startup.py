"""From a command to its second training step, and to its answer if there is nothing to train: python -m bench.startup DATA [--repeats N]

LeNet on MNIST, batch 64. Ours with all on, where the data have been prepared by an earlier command, and where they have not
(a new folder); beside a script written by hand, one with Accelerate, and one with Lightning if that is installed. They take
turns; before them each has run once, so that files are in memory and compiled. DATA holds MNIST/raw.
"""

import argparse
import functools
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from bench.images import unpacked_mnist
from bench.measure import Row, by_turns, keep, ratio, spread
from bench.turns import environment

TRAIN = ("data.source=mnist", "train.model=lenet5", "train.batch_size=64", "run.threads=1")
ANSWERS = {"--help": ("--help",), "config": ("config",), "a typo": ("train", "train.modle=lenet5")}


def second_step(module: str, *words: str, folder: Path) -> float:
    """Seconds from the start of `python -m module DESCRIPTOR words` to its second training step."""
    read, write = os.pipe()
    began = time.monotonic()
    with (folder / "output.txt").open("w") as output:
        command = [sys.executable, "-m", module, str(write), *words]
        process = subprocess.Popen(command, cwd=folder, env=environment(), stdout=output, stderr=output, pass_fds=[write])
    os.close(write)
    with os.fdopen(read) as told:
        line = told.readline()
    process.wait()
    if not line:
        raise RuntimeError(f"{' '.join(command)} ended before its second step:\n{(folder / 'output.txt').read_text()}")
    return float(line) - began


def answer(*words: str) -> float:
    """Seconds that `pipeline words` takes."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "pipeline", *words], env=environment(), capture_output=True, check=False)
    return time.monotonic() - began


def starts(data: Path, folder: Path) -> dict[str, Callable[[], float]]:
    seeds = itertools.count()

    def ours(*words: str) -> float:
        seed = f"train.seed={next(seeds)}"  # a training that was not begun before
        return second_step("bench.ours", "0", "train", "--data-dir", str(data), *TRAIN, seed, *words, folder=folder)

    def ours_anew() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as artifacts:
            return ours(f"run.artifacts={artifacts}")

    peers = ["hand", "accelerate", *(["lightning"] if find_spec("lightning") else [])]
    return {
        "ours": ours,
        "ours, data not prepared": ours_anew,
        **{peer: functools.partial(second_step, "bench.peers.starts", peer, str(data), folder=folder) for peer in peers},
    }


def measured(data: Path, repeats: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as work:
        arms = starts(unpacked_mnist(data, Path(work) / "data"), Path(work))
        for arm in arms.values():
            arm()
        found = by_turns(arms, repeats)
    rows = [_row(f"second step, {name}", seconds, found["hand"]) for name, seconds in found.items()]
    if "lightning" not in found:
        rows.append({"what": "second step, lightning", "s": "not installed: pip install .[bench]"})
    answers = by_turns({name: functools.partial(answer, *words) for name, words in ANSWERS.items()}, repeats)
    return [*rows, *(_row(name, seconds, found["hand"]) for name, seconds in answers.items())]


def _row(what: str, seconds: Sequence[float], by_hand: Sequence[float]) -> Row:
    return {
        "what": what,
        "s": round(statistics.median(seconds), 3),
        "least": round(min(seconds), 3),
        "of by hand": round(ratio(seconds, by_hand), 3),
        "n": len(seconds),
        "spread": spread(seconds),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    asked = parser.parse_args()
    keep("startup", measured(asked.data.absolute(), asked.repeats))
