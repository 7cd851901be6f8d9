"""A run as a job of a real SLURM, watched from outside: what its log says and when, and which processes are on which node."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster import ENDED, Cluster
from conftest import TINY

POLL = 0.005  # seconds between looks at the log
SOON = 240.0  # seconds, for what must come
# A lost node is noticed within seconds; jobs of `low` make room for those of `high`, and are given ten seconds for it.
FURTHER = """\
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP
"""
# Some twenty seconds of training on two processes, as if there were a network between them.
RECIPE = [
    *TINY,
    "data.source={name: synthetic, train: 2000, test: 200}",
    "train.epochs=24",
    "train.lr=0.01",
    "run.strategy=ddp",
    "run.checkpoint_every=150",
    "run.trackers=[wandb]",
]
LIFE, STEP, LAST = re.compile(r" job \d+, life (\d+), on "), re.compile(r"train (\d+)/(\d+) "), re.compile(r" ended with status (\d+)$")


@dataclass
class Life:
    """What the log says of one: the seconds are those of `time.time`."""

    number: int
    first_line: float
    first_step: float | None = None
    last_line: float = 0.0
    status: int | None = None


@dataclass
class Job:
    """What was submitted in `folder`, the log of which is read as it grows."""

    cluster: Cluster
    folder: Path
    words: Sequence[str] = ()  # besides those of `RECIPE`
    typed: float = 0.0
    submitted: float = 0.0
    numbers: list[str] = field(default_factory=list)
    lines: list[tuple[float, str]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)

    def submit(self) -> None:
        """By `pipeline submit`, as a person does; a second time too."""
        self.typed = time.time()
        told = pipeline(self.cluster, self.folder, "submit", *RECIPE, "--nodes", "2", "--cpus-per-task", "1", "--time", "60", *self.words)
        self.submitted = time.time()
        self.numbers.append(told.split()[1])
        if len(self.numbers) == 1:
            threading.Thread(target=self._read, daemon=True).start()

    @property
    def number(self) -> str:
        return self.numbers[-1]

    @property
    def log(self) -> str:
        return "\n".join(text for _, text in self.lines)

    @property
    def steps(self) -> tuple[int, int]:
        """The last that the log has told of, and of how many."""
        found = next((STEP.match(text) for _, text in reversed(self.lines) if STEP.match(text)), None)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def lives(self) -> list[Life]:
        """In the order told; those of a job that was submitted again count from 1 again."""
        found: list[Life] = []
        for at, text in list(self.lines):
            if life := LIFE.search(text):
                found.append(Life(int(life[1]), at))
            elif found:
                found[-1].last_line = at
                if STEP.match(text) and found[-1].first_step is None:
                    found[-1].first_step = at
                if last := LAST.search(text):
                    found[-1].status = int(last[1])
        return found

    def wait(self, until: Callable[[], bool], what: str, seconds: float = SOON) -> None:
        deadline = time.time() + seconds
        while not until():
            assert time.time() < deadline, f"{what}: not within {seconds:g} s\n{self.state()}\n{self.log[-2000:]}"
            time.sleep(POLL)

    def state(self) -> dict[str, str]:
        """What SLURM says of it; nothing while the controller is away."""
        with contextlib.suppress(AssertionError):
            return self.cluster.job(self.number)
        return {}

    def end(self) -> str:
        """The state in which it has ended for good."""
        deadline = time.time() + SOON
        while (state := self.state().get("JobState", "")) not in ENDED:
            assert time.time() < deadline, f"no end: {self.state()}\n{self.log[-2000:]}"
            time.sleep(0.3)
        return state

    def _read(self) -> None:
        path, half, seen = self.folder / "runs/tiny/job.log", "", 0
        while not self.closed.wait(POLL):
            if not path.exists() or path.stat().st_size == seen:
                continue
            with path.open("rb") as file:
                file.seek(seen)
                new = file.read()
            seen, now = seen + len(new), time.time()
            *whole, half = (half + new.decode(errors="replace")).split("\n")
            self.lines += [(now, text) for text in whole]


def place(folder: Path) -> Path:
    """A folder to submit from: all nodes are this machine, whatever its name resolves to."""
    (folder / "slurm").mkdir(parents=True)
    (folder / "slurm/site.yaml").write_text("interface: lo\n")
    return folder


def pipeline(cluster: Cluster, folder: Path, *words: str) -> str:
    """What it prints.

    Raises:
        AssertionError: it failed.
    """
    environment = cluster.environment | {"WANDB_MODE": "offline", "HOME": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pipeline", *words]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def processes(folder: Path, node: str = "") -> list[int]:
    """Those that work in `folder`, or below, and were started on `node`, if given."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            here = (process / "cwd").readlink().is_relative_to(folder)
            there = f"SLURMD_NODENAME={node}\0".encode() in (process / "environ").read_bytes() if node and here else here
            if there and _state(process) != "Z":
                found.append(int(process.name))
    return found


def keepers(pids: list[int]) -> list[int]:
    """SLURM's own processes above them, that see to what a node runs."""
    found = set()
    for pid in pids:
        while pid > 1:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().startswith("slurmstepd"):
                    found.add(pid)
            pid = _parent(pid)
    return sorted(found)


def send(number: int, pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def described(pids: list[int]) -> list[str]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found.append(f"{pid} {_state(Path(f'/proc/{pid}'))} {words[:120]}")
    return found


def _state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
