"""Many checkpoints in one run: python -m bench.faults.endurance [--checkpoints N]

After each save the process counts what it holds; what it holds at the end is compared with what it held
after a fifth of them, when all that is made once has been made.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from conftest import TINY
from processes import launch

from bench.faults.report import Row, report

MEGABYTES = 8  # that memory may wander by: what the allocator keeps is not for us to say
EQUAL = ("file descriptors", "threads", "files and folders")


def counts(rank: int) -> None:
    """Let the main process write down what it holds after each checkpoint."""
    from pipeline.stages.record import Record

    save = Record.save

    def saved(record: Record, keep: int) -> None:
        save(record, keep)
        record._written()  # so that the same moment is looked at each time
        held = {
            "file descriptors": len(list(Path("/proc/self/fd").iterdir())),
            "threads": len(list(Path("/proc/self/task").iterdir())),
            "files and folders": sum(1 for _ in Path("artifacts").rglob("*")) + sum(1 for _ in Path("runs").rglob("*")),
            "megabytes": int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6,
        }
        with Path("held.jsonl").open("a") as file:
            file.write(json.dumps(held) + "\n")

    if rank == 0:
        Record.save = saved  # type: ignore[assignment, method-assign]


def campaign(checkpoints: int, processes: int) -> Row:
    words = [f"train.steps={checkpoints}", "run.checkpoint_every=1", "run.log_every=10", "train.optimizer=adamw", "run.trackers=[]"]
    with tempfile.TemporaryDirectory() as work:
        ended = launch(Path(work), ["train", *TINY, *words], processes=processes, before=counts)
        assert ended.code == 0, ended.output
        held = [json.loads(line) for line in (Path(work) / "held.jsonl").read_text().splitlines()]
    first, last = held[len(held) // 5], held[-1]
    row: dict[str, Any] = {"processes": processes, "checkpoints": checkpoints}
    row |= {name: f"{first[name]:g}, then {last[name]:g}" for name in first}
    grown = [f"{name} {row[name]}" for name in EQUAL if last[name] > first[name]]
    grown += [f"megabytes {row['megabytes']}"] if last["megabytes"] > first["megabytes"] + MEGABYTES else []
    return {**row, "failures": [f"{processes} processes: {what}" for what in grown]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=int, default=1000)
    asked = parser.parse_args().checkpoints
    sys.exit(report("endurance", [campaign(asked, processes) for processes in (1, 2)]))
