"""What signals do to a process that has nothing to keep. Imports next to nothing: it comes before all else."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from pipeline.errors import Interrupted

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG = 1  # of Linux's prctl


def exit_code(number: int | None) -> int:
    """130 after Ctrl-C, 143 after any other signal."""
    return 130 if number == signal.SIGINT else 143


def leave_at_signals() -> None:
    """From now on a signal ends the process at once, with its exit code and without a traceback."""
    for number in STOP_SIGNALS:
        signal.signal(number, _leave)


def _leave(number: int, _: FrameType | None) -> None:
    if int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) == 0:
        os.write(2, b"pipeline: stopped; run the same command again\n")
    os._exit(exit_code(number))


class _Signal(KeyboardInterrupt):
    """No Exception: what reads an image, say, takes each of those for a fault of the image."""


@contextlib.contextmanager
def interruptible(said: str) -> Iterator[None]:
    """Let a signal end what goes on in order, so that nothing of it stays: what comes out is Interrupted, with what is to be `said`."""

    def leave(number: int, _: FrameType | None) -> None:
        raise _Signal(number)

    before = {number: signal.signal(number, leave) for number in STOP_SIGNALS}
    try:
        yield
    except _Signal as found:
        raise Interrupted(said, exit_code(found.args[0])) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent(_: int = 0) -> None:
    """Let the kernel kill this process, a worker forked by the main thread of another, when that one ends; even if stuck.

    Only Linux can; elsewhere a worker ends when it next looks for its parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid != os.getppid():  # it ended before the kernel was asked
            os._exit(1)
