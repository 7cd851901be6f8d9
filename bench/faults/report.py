"""What a campaign prints and keeps: its table, and with what and on what it was measured."""

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
Row = Mapping[str, Any]  # column -> figure


def report(name: str, rows: Sequence[Row], **facts: Any) -> int:
    """Print `rows` as a Markdown table and keep them as bench/results/faults_<name>.json.

    `failures` of a row are the cases that should have passed, each in a line; the exit code is 1 if there are any.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row if column != "failures"))
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row.get(column, "")) for column in columns) + " |")
    for row in rows:
        for failure in row.get("failures", ()):
            print(f"failed: {failure}", file=sys.stderr)
    kept = {"command": f"python -m bench.faults.{name}", **facts, "machine": machine(), "rows": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"faults_{name}.json").write_text(_anywhere(json.dumps(kept, indent=1)) + "\n")
    return int(any(row.get("failures") for row in rows))


def _anywhere(text: str) -> str:
    """Without the places of this machine: those of its Python, and temporary ones."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^/\s\"]+/|{re.escape(sys.prefix)}/", "", text)


def machine() -> dict[str, Any]:
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=RESULTS.parent)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "accelerate", "safetensors")},
        "commit": commit.stdout.strip(),
    }
