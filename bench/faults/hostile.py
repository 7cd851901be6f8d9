"""Files and words made to harm, given to every reader: python -m bench.faults.hostile [--only TEXT]

Each is read by the command that a person would type, in a process of its own. It must end as the table says: with its exit
code, in one line that names the file, without a traceback; nothing of the file is executed, nothing is written outside of the
folder, no more than `SECONDS` of processor time and `MEMORY` are taken.
"""

import argparse
import contextlib
import json
import multiprocessing.connection
import multiprocessing.util
import os
import resource
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from processes import begin

from bench.faults import report

MEMORY, SECONDS = 1 << 30, 10.0  # of a case, beyond what a process has that does nothing
PATIENCE = 120.0  # seconds after which a case hangs, on a machine that others use
OURS = {"git"}  # programs that are started in any case
ONE = threading.Lock()  # two threads that ask for exit codes may take each other's
Make = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    name: str
    reader: str
    make: Make  # puts it into the folder in which the command is typed
    words: tuple[str, ...]
    code: int
    told: str  # in the last line, or if all is well in any


@dataclass(frozen=True)
class Found:
    code: int | None
    output: str
    executed: Sequence[str]
    outside: Sequence[str]  # that were written
    memory: float  # bytes
    seconds: float

    def wrong(self, case: Case) -> str:
        lines = self.output.splitlines()
        last = lines[-1] if lines else ""
        where = self.output if case.code == 0 else last
        found = {
            f"exit code {self.code} instead of {case.code}": self.code != case.code,
            "a traceback": "Traceback" in self.output,
            "not one line": case.code != 0 and (sum("pipeline: " in line for line in lines) != 1 or not last.startswith("pipeline: ")),
            f"nothing of {case.told!r}": case.told not in where,
            "letters that a terminal obeys": not all(letter.isprintable() for line in self.output.split("\n") for letter in line),
            f"{', '.join(self.executed)} executed": bool(self.executed),
            f"{', '.join(self.outside)} written": bool(self.outside),
            f"{int(self.memory) >> 20} MiB": self.memory > MEMORY,
            f"{self.seconds:.1f} s": self.seconds > SECONDS,
        }
        return "; ".join(what for what, true in found.items() if true) + (f": {last[:200]}" if any(found.values()) else "")


def canary(work: Path) -> Path:
    """What each payload would make, if it were executed."""
    return work.parent / "ran"


def strike(case: Case, folder: Path) -> Found:
    """What comes of a case, in an empty folder of its own."""
    work, home = folder / "work", folder / "home"
    for place in (work, home, home / "bin"):
        place.mkdir(parents=True)
    (folder / "secret").write_text("as it was")
    for program in ("gs", "gswin64c", "hostile"):  # which some libraries start
        (home / "bin" / program).write_text(f"#!/bin/sh\ntouch {canary(work)}\n")
        (home / "bin" / program).chmod(0o755)
    case.make(work)
    before = {path.name for path in folder.iterdir()}
    environment = {"HOME": str(home), "HF_HOME": str(home / "hf"), "TMPDIR": str(home), "PATH": f"{home / 'bin'}:{os.environ['PATH']}"}
    with ONE:
        (process,) = begin(work, case.words, before=partial(watched, folder), environment={**environment, "HF_HUB_OFFLINE": "1"})
    ended = bool(multiprocessing.connection.wait([process.sentinel], PATIENCE))
    with ONE:
        if not ended:
            process.kill()
        process.join()
        code = process.exitcode if ended else None
    used: dict[str, float] = {"memory": 2 * MEMORY, "seconds": PATIENCE}  # if it was killed
    if (folder / "used.json").exists():
        used = json.loads((folder / "used.json").read_text())
    seen = (folder / "seen").read_text().splitlines() if (folder / "seen").exists() else []
    executed = [line.removeprefix("started ") for line in seen if line.startswith("started ")]
    outside = [line.removeprefix("wrote ") for line in seen if line.startswith("wrote ")]
    executed += ["the payload"] if canary(work).exists() else []
    outside += sorted({path.name for path in folder.iterdir()} - before - {"used.json", "seen", "ran"})
    outside += [] if (folder / "secret").read_text() == "as it was" else ["secret"]
    output = (work / "output.txt").read_bytes().decode(errors="surrogateescape")
    return Found(code, output, executed, outside, used["memory"], used["seconds"])


def watched(folder: Path, rank: int) -> None:
    """In the process of a case: bound its memory, note what it starts and what it writes elsewhere, and in the end what it has taken."""
    base, _ = _memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    _, data = _memory()
    resource.setrlimit(resource.RLIMIT_DATA, (data + 3 * MEMORY, resource.RLIM_INFINITY))
    began = _seconds()

    def end() -> None:
        peak = max(_memory("VmHWM")[0], resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
        (folder / "used.json").write_text(json.dumps({"memory": peak - base, "seconds": _seconds() - began}))

    multiprocessing.util.Finalize(None, end, exitpriority=100)
    main = os.getpid()

    def hook(event: str, values: tuple[Any, ...]) -> None:
        if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"):
            program = Path(os.fsdecode(values[0] or values[1][0])).name
            _note(folder, f"started {program}" if program not in OURS else "")
        elif event == "open" and isinstance(values[0], str | bytes) and values[2] & (os.O_WRONLY | os.O_RDWR) and os.getpid() == main:
            place = Path(os.fsdecode(values[0])).resolve()
            if not any(place.is_relative_to(allowed) for allowed in (folder, "/dev", "/proc")) and place.parent.name != "__pycache__":
                _note(folder, f"wrote {place}")

    sys.addaudithook(hook)


def _note(folder: Path, line: str) -> None:
    if line:
        descriptor = os.open(folder / "seen", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{line}\n".encode(errors="replace"))
        os.close(descriptor)


def _memory(what: str = "VmRSS") -> tuple[int, int]:
    """Bytes of `what`, and of all that this process has for itself."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) << 10, int(lines["VmData"].split()[0]) << 10


def _seconds() -> float:
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def cases(only: str = "") -> list[Case]:
    from bench.faults import hostile_data, hostile_runs

    return [case for case in (*hostile_data.CASES, *hostile_runs.CASES) if only in f"{case.reader}: {case.name}"]


def campaign(chosen: Sequence[Case]) -> Iterator[tuple[Case, Found]]:
    with tempfile.TemporaryDirectory(prefix="hostile-") as name, contextlib.ExitStack() as pools:
        pool = pools.enter_context(ThreadPoolExecutor(len(os.sched_getaffinity(0))))
        yield from zip(chosen, pool.map(strike, chosen, [Path(name).resolve() / str(k) for k in range(len(chosen))]), strict=True)


def row(reader: str, every: Sequence[tuple[Case, Found]]) -> report.Row:
    failures = [f"{case.reader}: {case.name}: {wrong}" for case, found in every if (wrong := found.wrong(case))]
    return {
        "reader": reader,
        "files": len(every),
        "as promised": len(every) - len(failures),
        "executed": sum(bool(found.executed) for _, found in every),
        "MiB at most": int(max(found.memory for _, found in every)) >> 20,
        "s at most": round(max(found.seconds for _, found in every), 1),
        "failures": failures,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    rows: dict[str, list[tuple[Case, Found]]] = {}
    for case, found in campaign(cases(parser.parse_args(arguments).only)):
        said = found.output.splitlines()[-1:] or [""]
        print(f"{case.reader}: {case.name}: {found.wrong(case) or 'as promised'} | {said[0][:160]}", flush=True)
        rows.setdefault(case.reader, []).append((case, found))
    facts: Mapping[str, Any] = {"MiB allowed": MEMORY >> 20, "s allowed": SECONDS}
    return report.report("hostile", [row(reader, every) for reader, every in rows.items()], **facts)


if __name__ == "__main__":
    sys.exit(main())
