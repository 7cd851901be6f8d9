"""The recipes on real data, and the same result on 1, 2 and 3 processes.

    python bench/recipes.py DATA [--only mnist cifar10_tutorial ...] [--work FOLDER]

DATA holds MNIST/raw, cifar-10-batches-py and mnist_images (a folder of class folders), each
downloaded by the recipe if it offers that. With --work the runs are kept, and what is finished
there is not trained again. Prints each result; writes bench/results/recipes.json.

mnist_best, mnist_l1, cifar10_wide and finetune were tuned with seed 0, on the validation split, and are measured with others.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.images import write_class_folders
from bench.measure import speeds

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
TUTORIAL = [2.235, 1.940, 1.713, 1.573, 1.507, 1.442, 1.378, 1.364, 1.349, 1.319, 1.284, 1.267]  # as the tutorial's page has them


def command(config: str, data: Path, *words: str, processes: int = 1) -> list[str]:
    start = [BIN / "torchrun", "--nproc-per-node", str(processes)] if processes > 1 else [sys.executable]
    return [
        str(w) for w in (*start, ROOT / "launch/run.py", ROOT / "configs" / f"{config}.yaml", "--data-dir", data, *words, "run.trackers=[]")
    ]


def run(folder: Path, config: str, data: Path, *words: str, processes: int = 1, name: str = "") -> dict[str, Any]:
    """`summary.json` of one run in `folder`, with its metrics and what was measured with views, if anything was."""
    name = name or config
    typed = command(config, data, *words, f"run.name={name}", processes=processes)
    ended = subprocess.run(typed, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        sys.exit(f"{' '.join(typed)} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}")
    place = folder / "runs" / name
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    measured = json.loads((place / "evaluate/metrics.json").read_text())
    views = {
        f"{split}_views_accuracy": measured[f"{split}_views"]["accuracy"]
        for split in ("validation", "test")
        if f"{split}_views" in measured
    }
    return {**json.loads((place / "summary.json").read_text()), **views, "lines": lines, "confusion": measured["test"]["confusion"]}


def told(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several seeds say: every figure, and for the accuracy on the test split its mean and standard deviation."""
    found: dict[str, Any] = {}
    for name in ("test_accuracy", "test_views_accuracy", "validation_accuracy", "validation_views_accuracy"):
        values = [r[name] for r in runs if r.get(name) is not None]
        if values:
            found[name] = values
    for name in ("test_accuracy", "test_views_accuracy"):
        if len(found.get(name, ())) > 1:
            found[f"{name}_mean"], found[f"{name}_std"] = statistics.fmean(found[name]), statistics.stdev(found[name])
    seconds = [round(r["training_seconds"], 1) for r in runs]
    return {**found, "training_seconds": seconds, "counts": runs[0]["counts"], "precision": runs[0]["precision"], "notes": runs[0]["notes"]}


def seeds(config: str, count: int = 3, *, first: int = 1) -> Callable[[Path, Path], dict[str, Any]]:
    def bench(folder: Path, data: Path) -> dict[str, Any]:
        return told([run(folder, config, data, f"train.seed={seed}") for seed in range(first, first + count)])

    return bench


def first_epochs(config: str, count: int, *words: str) -> Callable[[Path, Path], dict[str, Any]]:
    """The first epochs of a recipe that takes hours here; then it is told to stop, and leaves a checkpoint to go on from."""

    def bench(folder: Path, data: Path) -> dict[str, Any]:
        place = folder / "runs" / config / "metrics.jsonl"
        if len(_validations(place)) < count:
            log = folder / f"{config}.log"
            with log.open("w") as output:
                process = subprocess.Popen(command(config, data, *words), cwd=folder, stdout=output, stderr=output)
            while process.poll() is None and len(_validations(place)) < count:
                time.sleep(1)
            process.terminate()
            if process.wait() != 75:
                sys.exit(f"{config} ended with {process.returncode}:\n{log.read_text()}")
        speed = statistics.median(speeds(place.resolve().parent))
        return {"validation_accuracy_of_epochs": _validations(place)[:count], "images_per_second": round(speed, 1), "words": list(words)}

    return bench


def _validations(metrics: Path) -> list[float]:
    lines = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")] if metrics.exists() else []
    return [line["validation/accuracy"] for line in lines if "validation/accuracy" in line]


def cifar10_tutorial(folder: Path, data: Path) -> dict[str, Any]:
    runs = [run(folder, "cifar10_tutorial", data, f"train.seed={seed}") for seed in range(3)]
    losses = [[line["train/loss"] for line in r["lines"] if line["step"] % 2000 == 0] for r in runs]
    means = [round(statistics.mean(column), 3) for column in zip(*losses, strict=True)]
    return {**told(runs), "loss_a_2000_batches": means, "tutorial": TUTORIAL}


def hand_loop(folder: Path, data: Path) -> dict[str, Any]:
    """The tutorial's loop written by hand, on tensors in memory, one thread: no code of ours but the reader of the files."""
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
    return told([run(folder, "folder", data / "mnist_images", f"train.seed={seed}") for seed in range(3)])


def mnist_folder_adam(folder: Path, data: Path) -> dict[str, Any]:
    write_class_folders("mnist", data, folder / "mnist_png")
    return seeds("mnist_folder_adam")(folder, folder / "mnist_png")


def finetune(folder: Path, data: Path) -> dict[str, Any]:
    """A few digits learnt from weights of MNIST, each seed from its own; and from scratch, at the rate that was best for that."""
    ways = {
        "finetune": [],
        "all_weights": ["train.freeze=[]"],
        "from_scratch": ["train.init=default", "train.freeze=[]", "train.lr=0.05"],
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for seed in range(1, 4):
        run(folder, "mnist", data, f"train.seed={seed}")
        for name, words in ways.items():
            runs[name].append(run(folder, "finetune", data, f"train.seed={seed}", *words, name=name))
    return {name: told(found) for name, found in runs.items()}


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


BENCHES: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "mnist": seeds("mnist", first=0),
    "mnist_sgd": seeds("mnist_sgd"),
    "mnist_folder_adam": mnist_folder_adam,
    "mnist_l1": seeds("mnist_l1"),
    "mnist_best": seeds("mnist_best", 5),
    "cifar10_tutorial": cifar10_tutorial,
    "hand_loop": hand_loop,
    "mnist_quick": seeds("mnist_quick", 10, first=100),
    "cifar10_tutorial_quick": seeds("cifar10_tutorial_quick", 10, first=100),
    "cifar10_wide": seeds("cifar10_wide"),
    "cifar10_fast": seeds("cifar10_fast", 1, first=0),
    "cifar10_muon": seeds("cifar10_muon", 1, first=0),
    "cifar10_resnet18": first_epochs("cifar10_resnet18", 1),
    "folder": folder,
    "finetune": finetune,
    "processes": processes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(BENCHES), default=tuple(BENCHES))
    parser.add_argument("--work", type=Path, help="where the runs are made and kept; by default nowhere")
    options = parser.parse_args()
    for name in options.only:
        with tempfile.TemporaryDirectory() as temporary:
            place = (options.work or Path(temporary)).absolute()
            place.mkdir(parents=True, exist_ok=True)
            result = BENCHES[name](place, options.data.absolute())
        print(name, json.dumps(result, indent=2), flush=True)
        keep(name, result)


def keep(name: str, result: dict[str, Any]) -> None:
    place = ROOT / "bench/results/recipes.json"
    results = json.loads(place.read_text()) if place.exists() else {}
    results["machine"] = {
        "processor": next(
            (x.split(": ")[1] for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")), platform.machine()
        ),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "accelerate", "numpy")},
    }
    results[name] = {**result, "cores": len(os.sched_getaffinity(0))}
    place.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
