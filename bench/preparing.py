"""Preparing raw images once, beside reading them each time: python -m bench.preparing DATA [--repeats N]

`pipeline prepare` of MNIST as 70,000 PNG and of CIFAR-10 as 60,000 JPEG in class folders, and of MNIST's IDX files, from process start to
end, with the cores it kept busy; beside one pass of ImageFolder over the same files (what it does in every epoch, in one process as
by default; imports are not counted). Then prepared data are opened, as at each start: found (by the configuration, the md5 of the raw
files if they are there, and whether code has changed), checked (every byte, by its digest) and mapped into memory; and checked and
mapped by themselves. The files are written first, which is not counted.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.images import write_class_folders
from bench.measure import JPEG_COPY, Row, keep, spread
from bench.turns import environment

IMAGE_FOLDER = """
import sys, time
import torch, torchvision
from torchvision import transforms
began = time.monotonic()
for part in ("train", "test"):
    loader = torch.utils.data.DataLoader(torchvision.datasets.ImageFolder(f"{sys.argv[1]}/{part}", transforms.ToTensor()), 64)
    for images, labels in loader:
        pass
print(time.monotonic() - began)
"""


def prepare(source: str, data: Path) -> tuple[float, float]:
    """Seconds of `pipeline prepare` in a new folder, and of them those of all its cores together."""
    with tempfile.TemporaryDirectory() as folder:
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [sys.executable, "-m", "pipeline", "prepare", f"data.source={source}", "--data-dir", str(data)]
        subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=True)
        seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def image_folder(data: Path) -> float:
    ended = subprocess.run([sys.executable, "-c", IMAGE_FOLDER, str(data)], env=environment(), capture_output=True, text=True, check=True)
    return float(ended.stdout)


def once(name: str, source: str, data: Path, images: int, repeats: int, folder: bool) -> list[Row]:
    pairs = [(prepare(source, data), image_folder(data) if folder else None) for _ in range(repeats)]
    walls = [wall for (wall, _), _ in pairs]
    theirs = [seconds for _, seconds in pairs if seconds is not None]
    ours: Row = {
        "what": f"prepare, {name}",
        "s": round(statistics.median(walls), 2),
        "images/s": round(images / statistics.median(walls)),
        "cores busy": round(statistics.median(cpu / wall for (wall, cpu), _ in pairs), 2),
        "n": repeats,
        "spread": spread(walls),
    }
    if not theirs:
        return [ours]
    middle = statistics.median(theirs)
    peer: Row = {
        "what": f"ImageFolder, a pass, {name}",
        "s": round(middle, 2),
        "images/s": round(images / middle),
        "n": repeats,
        "spread": spread(theirs),
    }
    return [ours, peer]


def opening(source: str, data: Path, repeats: int) -> list[Row]:
    """Of the training split of prepared data, that are in the page cache."""
    from pipeline.config import load
    from pipeline.plan import check, prepared
    from pipeline.runtime import files

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipeline", "prepare", f"data.source={source}", "--data-dir", str(data)]
        subprocess.run(command, cwd=folder, env=environment(), capture_output=True, check=True)
        here = Path.cwd()
        os.chdir(folder)
        try:
            config = check(load(None, [f"data.source={source}", f"data.root={data}"]))
            found = prepared(config)
            manifest, _ = files.read_manifest(found.dir)
            assert manifest is not None
            outputs = manifest["outputs"]
            ways: dict[str, Callable[[], object]] = {
                "found, checked and mapped": lambda: prepared(config).open("train"),
                "checked": lambda: files.damage(found.dir, outputs),
                "mapped": lambda: found.open("train"),
            }
            return [_opened(f"open, {source}, {name}", way, repeats) for name, way in ways.items()]
        finally:
            os.chdir(here)


def _opened(what: str, way: Callable[[], object], repeats: int) -> Row:
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        way()
        seconds.append(time.perf_counter() - began)
    middle = statistics.median(seconds[1:])
    return {"what": what, "s": round(middle, 5), "least": round(min(seconds), 5), "n": repeats, "spread": spread(seconds[1:])}


def measured(data: Path, work: Path, repeats: int) -> list[Row]:
    write_class_folders("mnist", data, work / "png")
    write_class_folders("cifar10", data, work / "jpeg", suffix="jpg")
    return [
        *once("MNIST, PNG folders", "folder", work / "png", 70_000, repeats, folder=True),
        *once("CIFAR-10, JPEG folders", "folder", work / "jpeg", 60_000, repeats, folder=True),
        *once("MNIST, IDX", "mnist", data, 70_000, repeats, folder=False),
        *opening("mnist", data, 20),
        *opening("cifar10", data, 20),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        keep("preparing", measured(asked.data.absolute(), Path(temporary), asked.repeats), data=JPEG_COPY)
