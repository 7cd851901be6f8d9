"""What W&B has of the runs of a test's folder, by its own files."""

import contextlib
import fcntl
import json
import os
import random
import signal
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from cluster import until
from processes import below

from pipeline.runtime.aside import LOCK
from pipeline.runtime.trackers.wandb import file


def settled(folder: Path) -> None:
    """Wait until nobody tells of any training in `folder` any more."""
    for lock in folder.glob(f"artifacts/train/*/{LOCK}"):
        until(lambda lock=lock: _is_free(lock), 60, lambda: "trackers are told yet")  # type: ignore[misc]


def kill_all(process: ForkServerProcess, draw: random.Random) -> None:
    """Those that tell of a run, and the one that trains, in any order."""
    assert process.pid
    doomed = [*below(process.pid), process.pid]
    end(*draw.sample(doomed, len(doomed)))
    process.join()


def end(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_free(lock: Path) -> bool:
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def lives(folder: Path, name: str = "tiny") -> list[Path]:
    """The files of all lives of the run or runs `name`, when they are whole."""
    settled(folder)
    return sorted(folder.glob(f"runs/{name}/wandb/*run-*/*.wandb"), key=lambda path: path.parent.name.removeprefix("offline-"))


def run_id(path: Path) -> str:
    return path.stem.removeprefix("run-")


def summary(path: Path) -> dict[str, Any]:
    updates = (r.summary.update for r in file.records(path) if r.WhichOneof("record_type") == "summary")
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for update in updates for item in update}


def points(*paths: Path) -> Counter[tuple[int, str]]:
    """How often each metric of each step was told, over several lives."""
    rows = [row for path in paths for row in file.history(path)]
    return Counter((row["step"], name) for row in rows for name in row if name.startswith(("train/", "validation/")))


def steps(*paths: Path) -> list[int]:
    """In the order told, those with a loss."""
    return [row["step"] for path in paths for row in file.history(path) if "train/loss" in row]


def of_record(folder: Path, name: str = "tiny") -> Counter[tuple[int, str]]:
    """Each metric of the record of the run `name`, once."""
    lines = [json.loads(text) for text in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return Counter((line["step"], name) for line in lines for name in line if name != "step")


def configuration(path: Path) -> dict[str, Any]:
    """As the run shows it in the end."""
    found: dict[str, Any] = {}
    for record in file.records(path):
        kind = record.WhichOneof("record_type")
        config = record.run.config if kind == "run" else record.config if kind == "config" else None
        found |= {item.key: json.loads(item.value_json) for item in (config.update if config else ())}
    return found


def described(path: Path) -> Any:
    """The record of the run itself: its name, group, tags."""
    return next(record.run for record in file.records(path) if record.WhichOneof("record_type") == "run")


def exit_codes(path: Path) -> list[int]:
    return [record.exit.exit_code for record in file.records(path) if record.WhichOneof("record_type") == "exit"]
