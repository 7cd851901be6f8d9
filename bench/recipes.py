"""The recipes on real data, and the same result on 1, 2 and 3 processes.

    python bench/recipes.py DATA [--only mnist cifar10_tutorial hand_loop folder processes]

DATA holds MNIST/raw, cifar-10-batches-py and mnist_images (a folder of class folders), each
downloaded by the recipe if it offers that. Prints a table; writes bench/results/recipes.json.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TUTORIAL = [2.235, 1.940, 1.713, 1.573, 1.507, 1.442, 1.378, 1.364, 1.349, 1.319, 1.284, 1.267]  # as the tutorial's page has them


def run(folder: Path, config: str, data: Path, *words: str, processes: int = 1) -> dict[str, Any]:
    """`summary.json` of one run, and its metrics, in `folder`."""
    start = [BIN / "torchrun", "--nproc-per-node", str(processes)] if processes > 1 else [sys.executable]
    command = [*start, ROOT / "launch/run.py", ROOT / "configs" / f"{config}.yaml", "--data-dir", data, *words, "run.trackers=[]"]
    ended = subprocess.run([str(w) for w in command], cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    place = next(folder.glob("runs/*"))
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    measured = json.loads((place / "evaluate/metrics.json").read_text())
    result = {**json.loads((place / "summary.json").read_text()), "lines": lines, "confusion": measured["test"]["confusion"]}
    shutil.rmtree(folder / "runs")
    return result


def mnist(folder: Path, data: Path) -> dict[str, Any]:
    runs = [run(folder, "mnist", data, f"train.seed={seed}") for seed in range(3)]
    return {
        "test_accuracy": [r["test_accuracy"] for r in runs],
        "validation_accuracy": [r["validation_accuracy"] for r in runs],
        "training_seconds": [round(r["training_seconds"], 1) for r in runs],
        "notes": runs[0]["notes"],
    }


def cifar10_tutorial(folder: Path, data: Path) -> dict[str, Any]:
    runs = [run(folder, "cifar10_tutorial", data, f"train.seed={seed}") for seed in range(3)]
    losses = [[line["train/loss"] for line in r["lines"] if line["step"] % 2000 == 0] for r in runs]
    return {
        "test_accuracy": [r["test_accuracy"] for r in runs],
        "training_seconds": [round(r["training_seconds"], 1) for r in runs],
        "loss_a_2000_batches": [round(statistics.mean(column), 3) for column in zip(*losses, strict=True)],
        "tutorial": TUTORIAL,
        "notes": runs[0]["notes"],
    }


def hand_loop(folder: Path, data: Path) -> dict[str, Any]:
    """The tutorial's loop written by hand, on tensors in memory, one thread: no code of ours but the reader of the files."""
    import time

    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F

    from pipeline.data.datasets import DATASETS

    torch.set_num_threads(1)
    raw = DATASETS["cifar10"](data).load()
    images, test_images = ((torch.from_numpy(np.asarray(s.images)) / 255 - 0.5) / 0.5 for s in (raw.train, raw.test))
    labels, test_labels = (torch.from_numpy(s.labels) for s in (raw.train, raw.test))
    accuracies, losses, seconds = [], [], []
    for seed in range(3):
        torch.manual_seed(seed)
        pooled = [nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
        net = nn.Sequential(*pooled, nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
        began, seen = time.monotonic(), []
        for rows in torch.cat([torch.randperm(50_000) for _ in range(2)]).view(-1, 4):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            seen.append(loss.item())
        seconds.append(round(time.monotonic() - began, 1))
        losses.append(np.array(seen)[:24_000].reshape(12, 2000).mean(1))
        with torch.no_grad():
            accuracies.append((net(test_images).argmax(1) == test_labels).double().mean().item())
    return {"test_accuracy": accuracies, "seconds": seconds, "loss_a_2000_batches": np.mean(losses, 0).round(3).tolist()}


def folder(folder: Path, data: Path) -> dict[str, Any]:
    runs = [run(folder, "folder", data / "mnist_images", f"train.seed={seed}") for seed in range(3)]
    return {"test_accuracy": [r["test_accuracy"] for r in runs], "counts": runs[0]["counts"]}


def processes(folder: Path, data: Path) -> dict[str, Any]:
    """MNIST in float64 for 300 steps: the largest difference of any number in the record, and the counts."""
    words = ["train.precision=fp64", "train.steps=300", "run.log_every=10", "run.artifacts=artifacts-{}"]
    runs = {n: run(folder, "mnist", data, *(w.format(n) for w in words), processes=n) for n in (1, 2, 3)}
    alone = runs.pop(1)

    def apart(other: dict[str, Any]) -> float:
        pairs = zip(alone["lines"], other["lines"], strict=True)
        return float(max(abs(a[k] - b[k]) / abs(a[k]) for a, b in pairs for k in a if a[k]))

    return {
        "lines": len(alone["lines"]),
        "largest_relative_difference": {n: apart(r) for n, r in runs.items()},
        "equal_confusion_counts": {n: r["confusion"] == alone["confusion"] for n, r in runs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    benches = {"mnist": mnist, "cifar10_tutorial": cifar10_tutorial, "hand_loop": hand_loop, "folder": folder, "processes": processes}
    parser.add_argument("--only", nargs="+", choices=tuple(benches), default=tuple(benches))
    options = parser.parse_args()
    place = ROOT / "bench/results/recipes.json"
    results = json.loads(place.read_text()) if place.exists() else {}
    results["machine"] = {
        "processor": next(
            (x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), platform.machine()
        ),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "accelerate", "numpy")},
    }
    for name in options.only:
        with tempfile.TemporaryDirectory() as temporary:
            results[name] = benches[name](Path(temporary), options.data.absolute())
        print(name, json.dumps(results[name], indent=2), flush=True)
        place.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
