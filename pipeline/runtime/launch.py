"""What the launcher told this process, and what the process needs before torch is imported.

Torch-free, so that `--help`, `status` and a run in which everything is fresh answer at once.
"""

import contextlib
import ctypes
import math
import os
import re
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, Interrupted, TakenOver
from pipeline.runtime.signals import STOP_SIGNALS, exit_code

GRACE, WARNED = 3.0, 20.0  # seconds; the latter after USR1 and USR2, which schedulers send well ahead of the end
TICK = 0.25  # seconds between two looks at the launcher
MALLOPT = {-1: -1, -4: 0}  # man 3 mallopt: M_TRIM_THRESHOLD, never; M_MMAP_MAX, no block of its own


@dataclass(frozen=True)
class Launch:
    """Who this process is, as torchrun, accelerate or srun say; one of one without them."""

    rank: int = 0
    size: int = 1
    local_size: int = 1  # processes on this machine

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def read_launch(run: RunConfig) -> Launch:
    """The place of this process in its launch.

    Raises:
        ConfigError: fewer or more processes were started than were asked for.
    """
    _adopt_slurm_step()
    launch = Launch(
        rank=_number("RANK", 0),
        size=_number("WORLD_SIZE", 1),
        local_size=_number("LOCAL_WORLD_SIZE", 1),
    )
    if not launch.rank < launch.size:
        raise ConfigError(f"RANK={launch.rank} is none of WORLD_SIZE={launch.size} processes; unset both, or start with torchrun")
    asked = run.processes or _asked_of_accelerate(Path(f"/proc/{os.getppid()}/cmdline"))
    if asked not in (None, launch.size):
        raise ConfigError(
            f"{asked} processes were asked for, but this is {launch.rank + 1} of {launch.size}; start "
            f"`torchrun --nproc-per-node {asked} launch/run.py` instead (`accelerate launch --cpu` starts only one)"
        )
    return launch


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is in the environment, and no whole number; a launcher sets it: unset it")
    return int(text)


def _adopt_slurm_step() -> None:
    """Let one `srun` task be one process, as torchrun would have set it."""
    size = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if "RANK" in os.environ or "SLURM_STEP_ID" not in os.environ or size == "1":
        return
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise ConfigError("srun started several tasks without MASTER_ADDR and MASTER_PORT; see slurm/train.sbatch")
    here = os.environ.get("SLURM_STEP_TASKS_PER_NODE", size).split(",")[0].split("(")[0]
    os.environ |= {
        "RANK": os.environ["SLURM_PROCID"],
        "WORLD_SIZE": size,
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": here,
    }


def _asked_of_accelerate(command_line: Path) -> int | None:
    """What `accelerate launch --num_processes` was given; on a CPU it may silently start one."""
    try:
        words = command_line.read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    if not any(Path(word).name.startswith("accelerate") for word in words[:2]) or "--num_machines" in words:
        return None
    for word, value in zip(words, [*words[1:], ""], strict=True):
        flag, _, joined = word.partition("=")
        if flag in ("--num_processes", "--num-processes") and (joined or value).isdigit():
            return int(joined or value)
    return None


def check_strategy(asked: str, size: int) -> str:
    """How so many processes train together when `run.strategy` is `asked`.

    Raises:
        ConfigError: it is for more processes, or for fewer.
    """
    if asked == "dp" and size > 1:
        raise ConfigError(f"run.strategy: dp is one process with several GPUs, but {size} were started; use ddp or auto")
    if asked in ("ddp", "fsdp") and size == 1:
        raise ConfigError(f"run.strategy: {asked} needs several processes; start with torchrun, accelerate or srun, or use auto")
    if asked == "auto":
        return "ddp" if size > 1 else "single"
    return asked


def speaks() -> bool:
    """Whether this process, of those that make the same mistake, is the one to tell of it."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0"
    return rank == "0" or not rank.isdecimal()


def as_trial(run: RunConfig) -> RunConfig:
    """`run` for a trial that the agent of a sweep of W&B has started: in `<folder>/sweep-<its id>`, a run folder for each run of W&B.

    One that was preempted is started again as the same run, and finds its own.
    """
    sweep, trial = (re.sub(r"[^A-Za-z0-9._-]", "-", os.environ.get(name, "")) for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID"))
    if not sweep or not trial:
        return run
    return run.model_copy(update={"folder": run.folder / f"sweep-{sweep}", "name": f"{run.name}-{trial}"})


def prepare_process(run: RunConfig, launch: Launch) -> int:
    """Set what must be set before the first tensor; the number of CPU threads to compute with.

    OpenMP threads that spin at barriers lose a factor of 40 on a shared machine, so they wait
    passively; cores are shared out between the processes of this machine, but for those that SLURM gave to each.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # restarts under torchrun: 20 of 20, not 7
    threads = run.threads or _cores(launch)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if launch.size > launch.local_size and (found := interface(os.environ.get("MASTER_ADDR", "localhost"))):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)
    keep_freed_memory()
    return threads


def interface(address: str) -> str:
    """The network by which this host reaches, or has, the address where the processes of several hosts meet; "" if none is known.

    Gloo by itself takes the one that the host's own name stands for: on Debian the loopback, which no other host reaches.
    """
    import psutil

    with contextlib.suppress(OSError):  # what cannot be found or reached is told of when the processes are to meet
        family, _, _, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as asked:
            asked.connect(place)  # sends nothing
            here = asked.getsockname()[0]
        return next((name for name, known in psutil.net_if_addrs().items() if here in [each.address for each in known]), "")
    return ""


def _cores(launch: Launch) -> int:
    """Cores for this process."""
    here = len(os.sched_getaffinity(0))
    if os.environ.get("SLURM_STEP_NUM_TASKS") == str(launch.size) and "TORCHELASTIC_RUN_ID" not in os.environ:  # a task of srun's
        return min(here, int(os.environ.get("SLURM_CPUS_PER_TASK") or max(1, here // launch.local_size)))
    return max(1, here // launch.local_size)


def keep_freed_memory() -> None:
    """Have glibc keep what one step frees for the next; as it comes, large blocks go back to the kernel, to be got anew page by page."""
    with contextlib.suppress(AttributeError):  # other C libraries have no such settings
        for setting, value in MALLOPT.items():
            ctypes.CDLL(None).mallopt(setting, value)


class StopFlag:
    """Set by a signal or by the clock, and looked at when it suits: nothing happens in a handler.

    A time limit sets it a tenth of the limit early, or half a minute, so that there is time to save.

    A second Ctrl-C, given a second or more after the first, interrupts at once; sooner it is
    taken for the same one, since a terminal and a launcher may each deliver it.

    While `waits` is set the process only waits for others, perhaps in C++, where handlers never run, and has
    nothing to keep: told to stop, or taken over, it leaves after `GRACE` or `WARNED` unless they come by then. For
    that Python tells a thread of signals as well, which also sees when torchrun or accelerate are gone.
    """

    def __init__(self, limit: timedelta | None = None) -> None:
        self.signal: signal.Signals | None = None
        self.lost = ""  # who has taken this run over, in a line
        self.waits = False
        self.last_words: Callable[[int, str], None] = lambda code, message: None  # before a process that waits leaves
        seconds = math.inf if limit is None else limit.total_seconds()
        self._deadline = time.monotonic() + seconds - min(30.0, seconds / 10)
        self._first = math.inf

    def listen(self) -> None:
        """From now on; until then a signal ends the process."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # what a loader's worker is told is not for this process
        for number in STOP_SIGNALS:
            signal.signal(number, self._note)
        threading.Thread(target=self._attend, args=(read, os.getppid()), name="signals", daemon=True).start()

    def __bool__(self) -> bool:
        return self.signal is not None or bool(self.lost) or time.monotonic() > self._deadline

    def lose(self, why: str) -> None:
        """There is nothing left to do here: another life of this run has gone on with it."""
        self.lost = why

    @property
    def why(self) -> str:
        return "" if self.signal is not None or not self else " by run.time_limit"

    def interrupted(self, when: str) -> Interrupted:
        """To be raised where there is nothing to keep: 130 after Ctrl-C, 143 after any other signal."""
        return Interrupted(f"stopped {when}; run the same command again", exit_code(self.signal))

    @staticmethod
    def ignore() -> None:
        """From now on; Python would restore the deadly defaults when it exits, and lose the exit code to a late signal."""
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        self.signal = self.signal or signal.Signals(number)
        if number == signal.SIGINT and now - self._first > 1:
            raise KeyboardInterrupt
        self._first = min(self._first, now)

    def _attend(self, pipe: int, parent: int) -> None:
        """Note signals while the main thread cannot; see that the launcher lives."""
        launched = "TORCHELASTIC_RUN_ID" in os.environ  # others, a shell say, may well leave before their processes
        waited = 0.0
        while True:
            ready, _, _ = select.select([pipe], [], [], TICK)
            for number in os.read(pipe, 100) if ready else b"":
                if number in STOP_SIGNALS:
                    self.signal = self.signal or signal.Signals(number)
            if launched and os.getppid() != parent:
                launched = False
                os.kill(os.getpid(), signal.SIGTERM)
            waited = waited + TICK * (not ready) if self.waits and (self.signal or self.lost) else 0.0
            if waited >= (WARNED if self.signal in (signal.SIGUSR1, signal.SIGUSR2) else GRACE):
                stopped = TakenOver(self.lost) if self.lost else self.interrupted("before it had begun")
                self.last_words(stopped.exit_code, str(stopped))
                os._exit(stopped.exit_code)
