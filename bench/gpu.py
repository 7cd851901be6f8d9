"""What a GPU is to show: python -m bench.gpu --data DATA [--seconds 500] [--airbench FILE] [--hiverge FILE] [--only G1 ...] [--tiny]

DATA is as for bench/recipes.py. Each arm is a process of its own, ours the command line as users type it; arms take turns.
A row that fails is reported with its last line, and the others still run. A record script is run as it is, from where it
is, beside `cifar10/train.pt` and `test.pt` of the same arrays. --tiny tries everything out, on a CPU too: its figures
mean nothing. Prints a table; writes bench/results/gpu.json, or --out.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import machine, speeds

ROOT = Path(__file__).parent.parent
SCRIPT_SECONDS = 120  # at most, of each record script: 40 to compile, 2 a run
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # FLOP/s in bfloat16, without sparsity, by NVIDIA's data sheets
Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    data: Path
    work: Path
    tiny: bool
    until: float  # on the clock of time.monotonic: no arm is begun after
    scripts: dict[str, Path]
    prepared: set[str]  # recipes whose data are there

    def repeats(self, count: int) -> int:
        return 1 if self.tiny else count

    def limit(self) -> float:
        left = self.until - time.monotonic()
        if left < 5:
            raise TimeoutError("no time is left; raise --seconds, or name fewer rows with --only")
        return left

    def run(self, *words: str | Path, folder: Path | None = None) -> tuple[str, float]:
        """The output of a command, and its seconds on the wall."""
        began = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        ended = subprocess.run(
            [*map(str, words)], cwd=folder or self.work, env=environment, capture_output=True, text=True, timeout=self.limit(), check=False
        )
        if ended.returncode:
            raise RuntimeError((ended.stderr or ended.stdout).strip().splitlines()[-1])
        return ended.stdout, time.monotonic() - began

    def peer(self, name: str, **options: Any) -> Row:
        output, wall = self.run(sys.executable, "-m", "bench.gpu_peers", name, json.dumps(options))
        return {**json.loads(output.splitlines()[-1]), "wall": wall}

    def ours(self, config: str, *words: str, until: str = "train", small: tuple[str, ...] = ()) -> Row:
        """One run of a recipe; its data were prepared before the clock began."""
        typed = [f"data.root={self.data}", "run.trackers=[]", *words, *(small if self.tiny else ())]
        config_file = ROOT / "configs" / f"{config}.yaml"
        if config not in self.prepared:
            self.run(sys.executable, "-m", "pipeline", "prepare", config_file, *typed)
            self.prepared.add(config)
        output, wall = self.run(sys.executable, "-m", "pipeline", until, config_file, *typed)
        place = next(self.work / "runs" / word.partition("=")[2] for word in typed if word.startswith("run.name="))
        timing = json.loads((place / "train/timing.json").read_text())
        each = speeds((place / "train").resolve())
        found: Row = {"wall": wall, **timing, "speed": statistics.median(each[1:] or each)}
        found["recorded"] = "recorded and launched as one" in output and "not as one" not in output
        if until == "evaluate":
            measured = json.loads((place / "evaluate/metrics.json").read_text())
            found["accuracy"] = measured.get("test_views", measured["test"])["accuracy"]
        return found


SMALL = ("train.steps=8", "run.log_every=2")
NET = ("train.model={name: fast_cifar, widths: [4, 4, 4]}", "train.batch_size=32")


def speed_run(bench: Bench) -> Row:
    """G1 and G6: mean accuracy and seconds of training, over fresh seeds; and beside them the record scripts."""
    runs: list[Row] = []
    for seed in range(100, 100 + bench.repeats(20)):
        if runs and bench.limit() < SCRIPT_SECONDS * len(bench.scripts) + 2 * runs[-1]["wall"]:
            break
        runs.append(bench.ours("cifar10_muon", f"train.seed={seed}", f"run.name=muon-{seed}", until="evaluate", small=(*SMALL, *NET)))
    found = {**_means(runs, "seconds", "accuracy", "wall"), "recorded": runs[0]["recorded"]}
    flops = _flops_an_image() * statistics.median(run["speed"] for run in runs)
    found |= {"flop_a_second": flops, **({"utilisation": flops / peak} if (peak := _peak()) else {})}
    return {"ours": found, **{name: _script(bench, path) for name, path in bench.scripts.items()}}


def cold(bench: Bench) -> Row:
    """G2: from the start of the process to the weights, checkpoint and evaluation written."""
    runs = [
        bench.ours("cifar10_muon", f"train.seed={seed}", f"run.name=cold-{seed}", until="evaluate", small=(*SMALL, *NET))
        for seed in range(200, 200 + bench.repeats(3))
    ]
    return {"ours": _means(runs, "wall", "accuracy")}


def tutorial(bench: Bench) -> Row:
    """G3: 25,000 steps of 4."""
    arms: dict[str, list[Row]] = {"ours": [], "tutorial's own loop": []}
    for k in range(bench.repeats(2)):
        arms["ours"].append(bench.ours("cifar10_tutorial", f"train.seed={k}", f"run.name=tutorial-{k}", small=SMALL))
        steps = 3 if bench.tiny else 2000
        arms["tutorial's own loop"].append(bench.peer("tutorial", data=str(bench.data), steps=steps, total=25_000))
    return _compared(arms, "seconds")


def mnist(bench: Bench) -> Row:
    """G4: LeNet-5 to 99 %."""
    arms: dict[str, list[Row]] = {"ours": [], "by hand": []}
    for k in range(bench.repeats(3)):
        arms["ours"].append(bench.ours("mnist", f"train.seed={k}", f"run.name=mnist-{k}", until="evaluate", small=SMALL))
        arms["by hand"].append(bench.peer("mnist", data=str(bench.data), epochs=1 if bench.tiny else 5, seed=k))
    return _compared(arms, "seconds")


def resnet(bench: Bench) -> Row:
    """G5: milliseconds a step, ResNet-18 at batch 512 in bfloat16."""
    arms: dict[str, list[Row]] = {"ours": [], "by hand": []}
    small = (*SMALL, "train.model={name: resnet18, width: 2}", "train.batch_size=16")
    for k in range(bench.repeats(3)):
        run = bench.ours("cifar10_resnet18", f"train.seed={k}", "train.steps=300", f"run.name=resnet-{k}", small=small)
        arms["ours"].append({**run, "ms_a_step": 1e3 * (16 if bench.tiny else 512) / run["speed"]})
        arms["by hand"].append(bench.peer("resnet", steps=2 if bench.tiny else 200, batch=4 if bench.tiny else 512))
    return _compared(arms, "ms_a_step")


def _compared(arms: dict[str, list[Row]], what: str) -> Row:
    names = list(arms)
    ratios = [ours[what] / theirs[what] for ours, theirs in zip(arms[names[0]], arms[names[1]], strict=True)]
    told = {
        name: {**_means(runs, what, "accuracy"), **{k: runs[0][k] for k in ("recorded",) if k in runs[0]}} for name, runs in arms.items()
    }
    return {**told, "ratio": statistics.median(ratios), "pairs": len(ratios)}


def _means(runs: list[Row], *names: str) -> Row:
    found: Row = {"n": len(runs)}
    for name in names:
        values = [run[name] for run in runs if name in run]
        if values:
            found[name] = statistics.fmean(values)
            found[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return found


def _script(bench: Bench, path: Path) -> Row:
    """A record script until it has printed 20 results of its own, or the time is up: accuracy with views, and its own seconds."""
    import torch

    from bench.gpu_peers import raw

    place = bench.work / path.stem / "cifar10"
    place.mkdir(parents=True, exist_ok=True)
    arrays = raw("cifar10", str(bench.data))
    for name, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        torch.save(
            {"images": images.permute(0, 2, 3, 1).contiguous(), "labels": labels, "classes": list("0123456789")}, place / f"{name}.pt"
        )
    began, results, first = time.monotonic(), [], 0.0
    process = subprocess.Popen([sys.executable, "-u", path.resolve()], cwd=place.parent, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    late = threading.Timer(min(bench.limit() / len(bench.scripts), SCRIPT_SECONDS), process.kill)
    late.start()
    for line in process.stdout:
        cells = [cell.strip() for cell in line.split("|")]
        if "eval" in cells and len(numbers := re.findall(r"\d+\.\d+", line)) >= 2:
            results.append({"accuracy": float(numbers[-2]), "seconds": float(numbers[-1])})
            first = first or time.monotonic() - began
        if len(results) > bench.repeats(20):
            break
    late.cancel()
    process.kill()
    process.wait()
    if len(results) < 2:
        raise RuntimeError(f"{path.name} printed no results")
    return {**_means(results[1:], "accuracy", "seconds"), "seconds_to_its_warm_up": first}


def _flops_an_image() -> int:
    """Of the speed-run net, forwards and backwards."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from pipeline.config import Spec
    from pipeline.learning.models import build

    model = build(Spec(name="fast_cifar"), (3, 32, 32), 10)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 32, 32)).sum().backward()
    return int(counter.get_total_flops()) // 2


def _gpu() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _peak() -> float:
    return next((peak for name, peak in PEAK.items() if name in _gpu()), 0.0)


ROWS: dict[str, Callable[[Bench], Row]] = {"G5": resnet, "G4": mnist, "G3": tutorial, "G2": cold, "G1": speed_run}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=500)
    parser.add_argument("--airbench", type=Path)
    parser.add_argument("--hiverge", type=Path)
    parser.add_argument("--only", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results/gpu.json")
    options = parser.parse_args()
    scripts = {name: path for name in ("airbench", "hiverge") if (path := getattr(options, name)) and path.is_file()}
    rows: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(options.data.absolute(), Path(work), options.tiny, time.monotonic() + options.seconds, scripts, set())
        for name in options.only:
            began = time.monotonic()
            try:
                rows[name] = ROWS[name](bench)
            except Exception as error:  # one row that fails is told, and the others still run
                rows[name] = {"failed": f"{type(error).__name__}: {str(error)[:400]}"}
            rows[name]["row_seconds"] = round(time.monotonic() - began, 1)
            print(name, json.dumps(rows[name], indent=1), flush=True)
            facts = {"command": f"python -m bench.gpu {' '.join(sys.argv[1:])}", "tiny": options.tiny, "gpu": _gpu(), "machine": machine()}
            options.out.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
    return int(any("failed" in row for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
