"""The cost of growth: python -m bench.growth [--only images classes size parameters processes] [--most N] [--repeats N] [--work FOLDER]

Each axis grows by itself, from a small experiment (LeNet-5, 28x28x1, 20,000 images, batch 64, one thread a process). A point is
prepared once and trained `--repeats` times, in processes of its own; medians are kept, with the least and the most. Memory is what is
anonymous (RssAnon) beyond what the process had before it began: pages of mapped files, which the kernel may drop, are told
apart. On the axis of images the processes may have but 1 GB of it, however large the data (RLIMIT_DATA). --most leaves out larger points.

Prints a table an axis; keeps them in bench/results/growth.json, docs/growth.svg and docs/performance.md (which
python -m bench.growth_page makes anew without measuring).
"""

import argparse
import json
import math
import resource
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from bench.growth_page import table, write
from bench.measure import RESULTS, machine

LIMIT, ROOM = 1 << 30, 40 << 30  # bytes: of memory on the axis of images, and of disk
STEPS, WARM = 40, 10  # of a training, and of these before they count
SMALL = "{name: lenet, kernel: 3, channels: [6], hidden: [32]}"  # which takes images of 8 pixels
Count = Annotated[int, Field(ge=1)]
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One experiment of an axis."""

    value: int
    words: tuple[str, ...] = ()
    images: int = 20_000
    shape: tuple[int, int] = (1, 28)  # channels, pixels a side
    classes: int = 10
    processes: int = 1
    limit: int = 0  # bytes of anonymous memory that it may have; 0: as much as it likes

    @property
    def bytes(self) -> int:
        return (self.images + 100) * self.shape[0] * self.shape[1] ** 2

    def command(self, stage: str) -> list[str]:
        source = f"{{name: growth, images: {self.images}, classes: {self.classes}, channels: {self.shape[0]}, size: {self.shape[1]}}}"
        words = [f"data.source={source}", f"data.validation={min(0.1, 2000 / self.images)}", "train.augment=[flip]", "train.batch_size=64"]
        run = ["run.threads=1", "run.trackers=[]", "run.name=growth", f"run.log_every={STEPS}", f"train.steps={STEPS}", "train.lr=0.001"]
        return [stage, *words, *run, "train.model=lenet5", *self.words, "--force", stage]


def _mlp(parameters: int) -> Point:
    """Two equal hidden layers: 784 h + h^2 + 10 h weights, and the biases."""
    hidden = round((math.sqrt(796**2 + 4 * parameters) - 796) / 2)
    count = 784 * hidden + hidden**2 + 10 * hidden + 2 * hidden + 10
    return Point(count, (f"train.model={{name: mlp, hidden: [{hidden}, {hidden}]}}",))


AXES: dict[str, tuple[Point, ...]] = {
    "images": tuple(Point(10**k, images=10**k, limit=LIMIT) for k in range(3, 8)),
    "classes": tuple(Point(10**k, classes=10**k) for k in range(1, 5)),
    "size": tuple(Point(side, (f"train.model={SMALL}",), images=1000, shape=(3, side)) for side in (8, 16, 32, 64, 128, 224)),
    "parameters": tuple(_mlp(10**k) for k in range(4, 9)),
    "processes": tuple(Point(count, processes=count) for count in (1, 2, 4, 8)),
}


def growth(root: Path, *, images: Count = 1000, classes: Count = 10, channels: Literal[1, 3] = 1, size: Count = 28) -> Any:
    """As many different images as one likes, in hardly any memory: each is a window of one row of random bytes."""
    from pipeline.data.raw import RawDataset, RawSplit, Source

    def split(count: int, seed: int) -> RawSplit:
        width = channels * size * size
        row = np.random.default_rng(seed).integers(0, 256, count + width, np.uint8)
        windows = np.lib.stride_tricks.as_strided(row, (count, channels, size, size), (1, size * size, size, 1), writeable=False)
        return RawSplit(windows, np.arange(count) % classes)

    return Source(None, lambda: RawDataset(split(images, 0), split(max(100, classes), 1), [f"class {k}" for k in range(classes)]))


def memory() -> dict[str, int]:
    """Bytes of this process, by the kernel's names."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: int(value.split()[0]) * 1024 for name, _, value in (line.partition(":") for line in lines) if value.endswith(" kB")}


class Measured:
    """In a process of the product: seconds and memory, which go into a file when a stage is done."""

    def __init__(self, rank: int, limit: int) -> None:
        from pipeline.data import datasets
        from pipeline.runtime import runner
        from pipeline.stages import prepare, train
        from pipeline.stages.artifacts import PreparedData

        self.rank, self.seconds, self.updates, self.began = rank, dict.fromkeys(("check", "open", "prepare"), 0.0), list[float](), 0.0
        datasets.DATASETS["growth"] = growth
        if limit:
            allowed = memory()["VmData"] + limit
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
        self.before = self.most = memory()
        threading.Thread(target=self._watch, daemon=True).start()
        self._time(runner, "look", "check")
        self._time(PreparedData, "open", "open")
        self._time(prepare, "prepare", "prepare", done=self.write)
        self._time(train, "initial_state", "", done=self._begin)
        self._time(train, "update", "", done=lambda: self.updates.append(time.perf_counter()))
        self._time(train, "finish", "", done=self.write)

    def _time(self, owner: Any, name: str, what: str, done: Callable[[], None] = lambda: None) -> None:
        """Let each call of a function count for `what`; of looks only those at prepared data do."""
        function = getattr(owner, name)

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            result = function(*arguments, **named)
            if what and (name != "look" or arguments[1].name == "prepare"):
                self.seconds[what] += time.perf_counter() - began
            done()
            return result

        setattr(owner, name, timed)

    def _begin(self) -> None:
        self.began = time.perf_counter()

    def _watch(self) -> None:
        while True:
            now = memory()
            self.most = {name: max(value, now[name]) for name, value in self.most.items()}
            time.sleep(0.02)

    def write(self) -> None:
        steps = np.diff([self.began, *self.updates])
        found = {
            **{f"{what}, s": value for what, value in self.seconds.items()},
            **({"first step, ms": steps[0] * 1e3, "step, ms": float(np.median(steps[WARM:])) * 1e3} if self.updates else {}),
            "memory, MB": (self.most["RssAnon"] - self.before["RssAnon"]) / 1e6,
            "mapped, MB": (self.most["RssFile"] - self.before["RssFile"]) / 1e6,
            "peak RSS, MB": self.most["VmHWM"] / 1e6,
        }
        Path(f"measured-{self.rank}.json").write_text(json.dumps(found))


def measured_within_limit(rank: int) -> None:
    Measured(rank, LIMIT)


def measured(rank: int) -> None:
    Measured(rank, 0)


def run(folder: Path, point: Point, stage: str) -> Row:
    """What the main process of one command measured; of memory, the most of any process."""
    from processes import begin

    before = measured_within_limit if point.limit and stage == "train" else measured
    processes = point.processes if stage == "train" else 1
    started = begin(folder, point.command(stage), before=before, processes=processes)
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        sys.exit(f"{' '.join(point.command(stage))} failed:\n{(folder / 'output.txt').read_text()}")
    found = [json.loads((folder / f"measured-{rank}.json").read_text()) for rank in range(processes)]
    return {name: max(each[name] for each in found) if "MB" in name else value for name, value in found[0].items()}


def measure(point: Point, repeats: int, work: Path) -> Row:
    """One line of an axis; a point for which the disk has no room says so."""
    if 1.2 * point.bytes > min(ROOM, shutil.disk_usage(work).free - (5 << 30)):
        return {"value": point.value, "skipped": f"needs {1.2 * point.bytes / 1e9:.0f} GB of disk"}
    with _folder(work) as folder:
        prepared = run(folder, point, "prepare")
        trained = [run(folder, point, "train") for _ in range(repeats)]
    middle = {name: statistics.median(each[name] for each in trained) for name in trained[0] if name != "prepare, s"}
    spread = {name: [min(each[name] for each in trained), max(each[name] for each in trained)] for name in middle}
    first = {"value": point.value, "prepare, s": prepared["prepare, s"], "prepare, MB": prepared["memory, MB"]}
    return {**first, **middle, "open, ms": middle["open, s"] * 1e3, "spread": spread}


@contextmanager
def _folder(work: Path) -> Iterator[Path]:
    """One below `work`, which is deleted."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        yield Path(folder)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=tuple(AXES), default=tuple(AXES))
    parser.add_argument("--most", type=int, default=10**9, help="the largest value of an axis")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()), help="where data are made, and deleted")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    place = RESULTS / "growth.json"
    kept: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {"command": "python -m bench.growth", "axes": {}}
    for name in options.only:
        here = machine()
        rows = [measure(point, options.repeats, options.work) for point in AXES[name] if point.value <= options.most]
        kept["axes"][name] = {"n": options.repeats, "steps": STEPS - WARM, "machine": here, "rows": rows}
        place.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"\n{table(name, kept['axes'][name])}", flush=True)
        write(kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
