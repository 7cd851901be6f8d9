"""W&B is not to be had: a run goes on, to the same bits, waits no more than 5 s for it, and loses nothing.

    python -m bench.faults.outages [--only TEXT]

Ten faults of the service, or of the disk under its client's folder, each of which strikes at the start, at a line of the log,
at an artifact and at the finish; until then the service is well. Each case is a whole run with the real client, beside one
without trackers, by turns. When nothing of it runs any more, what the client has kept must hold every point once, and to the
service, well again, every point must come once: by the same command, or `wandb sync` if the run went on offline. Where the
client's own folder is on the full disk, nothing can be asked of it but that the record is whole.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from conftest import TINY
from processes import Ended, launch
from tracking import settled
from wandb_service import Service
from wandb_store import Store

from bench.faults import mounts
from bench.faults.report import Row, report
from bench.faults.unwell import FAULTS, MOMENTS, Unwell
from pipeline.runtime.aside import AFTERWARDS
from pipeline.runtime.trackers.wandb import file

ADDED = 5.0  # seconds that a run may take longer
GONE = AFTERWARDS + 10  # seconds after its end in which all that it has started has ended
AT_ONCE = 4  # cases, when nothing is timed any more
ROOM = 16 << 10  # KiB of the disk that is then filled
WORDS = ["run", *TINY, "run.hang_timeout=null"]
PROMPTS = ("(1) ", "Enter your", "API key:")


@dataclass(frozen=True)
class Case:
    fault: str
    moment: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.moment}"


@dataclass(frozen=True)
class Found:
    """What came of a case; `wrong` is empty if all but the time is as promised."""

    wrong: str
    added: float  # seconds
    said: str

    @property
    def failure(self) -> str:
        return self.wrong or (f"{self.added:.1f} s longer" if self.added > ADDED else "")


def cases(only: str = "") -> list[Case]:
    every = [Case(*pair) for pair in itertools.product(FAULTS, MOMENTS)]
    return [case for case in every if only in str(case) and not (case.fault == "disk full" and mounts.refused_small())]


def campaign(chosen: Sequence[Case]) -> Iterator[tuple[Case, Found]]:
    """What came of each case: first all are run, then what they have left is looked at."""
    with tempfile.TemporaryDirectory(prefix="outages-") as name, contextlib.ExitStack() as unwell:
        work = Path(name)
        struck = [strike(case, work / str(number), unwell) for number, case in enumerate(chosen)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            yield from zip(chosen, pool.map(judge, struck), strict=True)


@dataclass(frozen=True)
class Struck:
    """A run that has met with a case, and has ended."""

    case: Case
    folder: Path  # and beside it, the run without trackers
    service: Unwell
    ended: Ended
    at: float  # when that was
    added: float  # seconds that it took longer


def strike(case: Case, work: Path, unwell: contextlib.ExitStack) -> Struck:
    """A run without trackers, and one that meets with `case`, which lasts."""
    plain, seconds = _timed(work / "plain", ["run.trackers=[]"], {})
    assert plain.code == 0, plain.output
    folder, full = work / "struck", case.fault == "disk full"
    mirror = folder / "runs/tiny/wandb"
    mirror.mkdir(parents=True)
    if full:
        unwell.enter_context(mounts.small(mirror, ROOM))
    service = unwell.enter_context(Unwell(case.fault, case.moment, partial(_fill, mirror) if full else None))
    ended, longer = _timed(folder, ["run.trackers=[wandb]"], service.environment)
    return Struck(case, folder, service, ended, time.monotonic(), longer - seconds)


def judge(struck: Struck) -> Found:
    wrong = _wrong(struck)
    said = [line for line in struck.ended.output.splitlines() if line.startswith(("wandb: ", "trackers: "))]
    return Found("; ".join(wrong), struck.added, " / ".join(said))


def _timed(folder: Path, words: Sequence[str], environment: Mapping[str, str]) -> tuple[Ended, float]:
    """How a run ended that has a home of its own, and its seconds."""
    home = folder / "home"
    home.mkdir(parents=True)
    begun = time.monotonic()
    ended = launch(folder, [*WORDS, *words], environment={**environment, "HOME": str(home)})
    return ended, time.monotonic() - begun


def _at_home(home: Path) -> list[str]:
    """The names of the processes that were started with this folder for a home."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"HOME={home}\0".encode() in (process / "environ").read_bytes():
                found.append((process / "comm").read_text().strip())
    return found


def _wrong(struck: Struck) -> list[str]:
    """What is not as promised."""
    ended, folder = struck.ended, struck.folder
    while (left := _at_home(folder / "home")) and time.monotonic() < struck.at + GONE:
        time.sleep(0.05)
    run, plain = folder / "runs/tiny", folder.with_name("plain") / "runs/tiny"
    found = {
        "it was never struck": not struck.service.struck.is_set(),
        f"exit code {ended.code}": ended.code != 0,
        "a traceback": "Traceback" in ended.output,
        "a prompt": any(prompt in ended.output for prompt in PROMPTS),
        f"{', '.join(left)} still there after {GONE:.0f} s": bool(left),
    }
    for name in ("train/weights.safetensors", "metrics.jsonl"):
        found[f"{name} differs"] = not (run / name).exists() or (run / name).read_bytes() != (plain / name).read_bytes()
    if struck.case.fault != "disk full":
        record = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
        found[_lost(record, [line for path in _kept(run) for line in file.history(path)], "kept")] = True
        found[_lost(record, _brought(folder, struck.service.store), "brought later")] = True
    return [what for what, true in found.items() if true and what]


def _kept(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/*run-*/*.wandb"))


def _brought(folder: Path, store: Store) -> list[dict[str, Any]]:
    """What the service has in the end, well again."""
    offline = [str(path.parent) for path in _kept(folder / "runs/tiny") if file.is_offline(path)]
    with Service(store) as service:
        environment = {**service.environment, "HOME": str(folder / "home")}
        if offline:
            command = [sys.executable, "-m", "wandb", "sync", *offline]
            subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, timeout=60, check=False)
        else:
            launch(folder, [*WORDS, "run.trackers=[wandb]"], environment=environment)
            settled(folder)
    return [line for told in store.runs.values() for line in told.history]


def _lost(record: Sequence[Mapping[str, float]], lines: Sequence[Mapping[str, Any]], where: str) -> str:
    """Which points of the record are not among `lines` once; "" if all are."""
    told = Counter((line.get("step"), name, value) for line in lines for name, value in line.items() if isinstance(value, int | float))
    wanted = [(line["step"], name, value) for line in record for name, value in line.items() if name != "step"]
    lost, doubled = sum(not told[point] for point in wanted), sum(told[point] > 1 for point in wanted)
    return f"{where}: {lost} of {len(wanted)} points lost, {doubled} there twice" if lost or doubled else ""


def _fill(folder: Path) -> None:
    """To the last byte."""
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    chosen = cases(parser.parse_args(arguments).only)
    skipped = {"disk full": why} if (why := mounts.refused_small()) else {}
    rows: dict[str, list[tuple[Case, Found]]] = {}
    with tempfile.TemporaryDirectory() as name:
        _timed(Path(name), ["run.trackers=[]"], {})  # what is imported once is not timed
    for case, found in campaign(chosen):
        print(f"{case}: {found.failure or 'as promised'} ({found.added:+.1f} s) {found.said}", flush=True)
        rows.setdefault(case.fault, []).append((case, found))
    return report("outages", [_row(fault, every) for fault, every in rows.items()], skipped=skipped, allowed_s=ADDED)


def _row(fault: str, every: Sequence[tuple[Case, Found]]) -> Row:
    return {
        "fault": fault,
        "cases": len(every),
        "as promised": sum(not found.failure for _, found in every),
        **{f"s longer, {case.moment}": round(found.added, 1) for case, found in every},
        "failures": [f"{case}: {found.failure}" for case, found in every if found.failure],
    }


if __name__ == "__main__":
    sys.exit(main())
