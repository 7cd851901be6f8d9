"""A step of the training loop beside that of the loop written by hand: python -m bench.steps DATA [--only NAME ...] [--repeats N]

Ours is `pipeline train` with all it does: metrics, rate schedule, seeded order, checkpoints, W&B offline, the watch for
hangs. Beside it are the loop of bench/peers/by_hand.py, and the same with the fused optimizer that few know of. All have
one thread, the same net, batch and images, no augmentation, and are processes of their own that take turns, in windows of
so many steps. The seconds are medians of the windows; a ratio is the median of those of neighbouring windows. On a machine
that others use as well, the ratio of the seconds that each process was computing is the one to believe.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import JPEG_COPY, Row, keep, ratio, spread
from bench.turns import windows

LENET = "{name: lenet, channels: [16, 32], hidden: [120, 84]}"
BF16 = ("train.precision=bf16", "run.channels_last=true")
EVERY = ("run.threads=1", "train.augment=[]", "data.validation=0", "train.epochs=1000", "train.lr=0.001")


@dataclass(frozen=True)
class Work:
    source: str
    model: str
    batch_size: int
    steps: int  # of a window
    also: tuple[str, ...] = ()  # settings of a second arm of ours


WORKS = {
    "C1: tutorial net, batch 4": Work("cifar10", "cifar_tutorial", 4, 1000),
    "C2: LeNet 16/32 on MNIST, batch 64": Work("mnist", LENET, 64, 100, BF16),
    "C2: LeNet 16/32 on CIFAR-10, batch 64": Work("cifar10", LENET, 64, 100, BF16),
    "C3: tutorial net, batch 512": Work("cifar10", "cifar_tutorial", 512, 20, BF16),
    "C3: ResNet-18, batch 32": Work("cifar10", "resnet18", 32, 2, BF16),
    "C3: speed-run net, batch 128": Work("cifar10", "fast_cifar", 128, 2, BF16),
}


def measured(work: Work, data: Path, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds a step of each arm, window by window, by both clocks of `bench.turns`."""
    settings = (f"data.source={work.source}", f"train.model={work.model}", f"train.batch_size={work.batch_size}", *EVERY)
    words = ["train", "--data-dir", str(data), *settings, "train.optimizer={name: sgd, momentum: 0.9}"]

    def ours(*more: str) -> list[str]:
        return [sys.executable, "-m", "bench.ours", *words, *more]

    def by_hand(optimizer: str) -> list[str]:
        return [sys.executable, "-m", "bench.peers.by_hand", str(data), work.source, work.model, optimizer, str(work.batch_size)]

    arms = {"ours": ours(), **({"ours, also": ours(*work.also)} if work.also else {})}
    with tempfile.TemporaryDirectory() as folder:
        return windows(
            {**arms, "by hand": by_hand("sgd"), "by hand, fused": by_hand("fused_sgd")}, Path(folder), steps=work.steps, repeats=repeats
        )


def rows(name: str, work: Work, found: dict[str, list[tuple[float, float]]]) -> list[Row]:
    passed, busy = ({arm: [clocks[which] for clocks in times] for arm, times in found.items()} for which in (0, 1))

    def one(arm: str, what: str) -> Row:
        seconds = statistics.median(passed[arm])
        beside = {f"of {peer}": round(ratio(passed[arm], passed[peer]), 3) for peer in ("by hand", "by hand, fused")}
        return {
            "work": name,
            "arm": what,
            "ms a step": round(seconds * 1e3, 3),
            "images/s": round(work.batch_size / seconds),
            **beside,
            "of by hand, computing": round(ratio(busy[arm], busy["by hand"]), 3),
            "windows": f"{len(found[arm])} of {work.steps} steps",
            "spread": spread(passed[arm]),
        }

    return [one(arm, f"ours, {' '.join(work.also)}" if arm == "ours, also" else arm) for arm in found]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", default=("",), metavar="NAME", help="those whose name begins so, as C1")
    parser.add_argument("--repeats", type=int, default=20, help="windows of each arm")
    asked = parser.parse_args(words)
    found: list[Row] = []
    for name, work in WORKS.items():
        if name.startswith(tuple(asked.only)):
            found += rows(name, work, measured(work, asked.data.absolute(), asked.repeats))
            print(f"{name}: done", file=sys.stderr, flush=True)
    keep("steps", found, settings=EVERY, data=JPEG_COPY)


if __name__ == "__main__":
    main()
