"""What a benchmark prints and keeps: its table; and with what, and on what, it was measured."""

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

RESULTS = Path(__file__).parent / "results"
JPEG_COPY = "CIFAR-10 as a lossy JPEG copy, if it is not the official one: no figure here is one of CIFAR-10 itself"
ALONE = ("failures", "runs")  # columns
Row = Mapping[str, Any]  # column -> figure
T = TypeVar("T")


def speeds(training: Path) -> list[float]:
    """Images a second, of each interval of the log of what was trained in the folder `training`."""
    lines = [json.loads(line) for line in (training / "timings.jsonl").read_text().splitlines()]
    return [line["images/s"] for line in lines if "images/s" in line]


def keep(name: str, rows: Sequence[Row], **facts: Any) -> None:
    """Print `rows` of `python -m bench.<name>` as a Markdown table, and keep them as bench/results/<name>.json (dots as underscores).

    What `ALONE` names is for the file alone.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row if column not in ALONE))
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |")
    kept = {"command": f"python -m bench.{name}", **facts, "machine": machine(), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name.replace('.', '_')}.json").write_text(_anywhere(json.dumps(kept, indent=1)) + "\n")


def _anywhere(text: str) -> str:
    """Without the places of this machine: those of its Python, and temporary ones."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/\s\"]+/|{re.escape(sys.prefix)}/", "", text)


def machine() -> dict[str, Any]:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),  # 1 for each busy process, those of the benchmark among them
        "python": platform.python_version(),
        **{package: found for package in ("torch", "accelerate", "safetensors", "wandb", "lightning") if (found := _version(package))},
        "commit": commit.stdout.strip(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def by_turns(arms: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """What each arm gives, so many times; they take turns, so that a machine whose speed drifts is as fast for each."""
    found: dict[str, list[T]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            found[name].append(arm())
    return found


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of those of neighbours in time."""
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def spread(values: Sequence[float]) -> str:
    """Of the middle half of `values`, as a share of their median: what noise there was."""
    if len(values) < 3:
        return ""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{(high - low) / middle:.0%}"
