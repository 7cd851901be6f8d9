"""Work in a process of its own, forked from this one, that may be stopped, killed, or crash on what it reads."""

import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 120.0  # seconds after which a process counts as hanging
GRACE = 3.0  # seconds for a process to see that the one it works with is gone

Work = Callable[[], object]


def begin(work: Work, output: Path, *, stopped: bool = False) -> int:
    """The id of a process that does `work` and prints to `output`; `stopped` has it wait for SIGCONT first."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(_do(work, output, stopped))
    if stopped:
        os.waitpid(pid, os.WUNTRACED)
    return pid


def wait(pid: int, patience: float = PATIENCE, *, kill: bool = True) -> int | None:
    """The exit code of a process that `begin` gave, negative for a signal; None if it was still there after `patience` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    if kill:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return None


def go_on(pid: int, beside: Sequence[Work] = ()) -> tuple[int | None, int]:
    """Let a stopped process go on, others beside it; its exit code, and how many of the others ended without being told to."""
    others = [begin(work, Path(os.devnull)) for work in beside]
    os.kill(pid, signal.SIGCONT)
    code = wait(pid)
    alone = sum(_ended(other, GRACE if code else PATIENCE) for other in others)
    return code, alone


def _ended(pid: int, patience: float) -> bool:
    """Whether a process ends by itself; if not, it is told to, as a launcher does."""
    if wait(pid, patience, kill=False) is not None:
        return True
    os.kill(pid, signal.SIGTERM)
    wait(pid, GRACE)
    return False


def value(work: Callable[[], Any], otherwise: Any) -> Any:
    """What `work` gives in a process of its own; `otherwise` if that one dies."""
    reader, writer = os.pipe()
    pid = begin(lambda: os.write(writer, pickle.dumps(work())), Path(os.devnull))
    os.close(writer)
    with os.fdopen(reader, "rb") as f:
        content = f.read()
    wait(pid)
    return pickle.loads(content) if content else otherwise


def _do(work: Work, output: Path, stopped: bool) -> int:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 (pytest has put its own there)
    warnings.simplefilter("default")  # a test has them raised
    try:
        if stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        work()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
