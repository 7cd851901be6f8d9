"""The process aside, as the one that trains has it: a training neither waits for a service nor shares its interpreter with a client.

What is to be told goes down a pipe, a line each, to `telling`; what that says for people comes back by another.
"""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from pipeline.runtime.console import say
from pipeline.runtime.signals import STOP_SIGNALS

PATIENCE = 3.0  # seconds that the end of a run waits for it: an outage is to cost 5, with all that a client does meanwhile
AFTERWARDS = 180.0  # seconds that it may go on then; a client has some fewer to finish
TOGETHER = 0.1  # seconds in which what is told waits, to go as one
ROOM = 2**24  # bytes that wait for a process that takes none
PIPE = 2**20  # bytes that it has yet to take when nobody waits for it any more
LINUX = sys.platform == "linux"
LOCK = "trackers.json"  # in the folder of the training: held by whoever tells of it; tracker -> fingerprints that it has been told of
LOG = "logs/trackers.log"  # in the run folder: what clients print


class Aside:
    """The process aside, for the one that trains. What it does not take at once waits, and goes with what is told next."""

    def __init__(self, training: Path, log: Path) -> None:
        """Start it: a fresh interpreter, since one with threads and a device is not to be forked.

        Signals are for those that train, so it starts, and stays, with all of them blocked, in a session of its own: Ctrl-C goes to
        every process of a terminal, and so does its closing. It has nothing of the terminal open, which is free when the run ends.
        It gets the folder `training` open, whose name will change; and the lock of it, if no earlier process aside, or what that has
        started, has it yet.
        """
        with contextlib.ExitStack() as theirs:

            def opened(path: Path, how: int) -> int:
                theirs.callback(os.close, descriptor := os.open(path, how, 0o644))
                return descriptor

            log.parent.mkdir(parents=True, exist_ok=True)
            printed = opened(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            folder = opened(training, os.O_RDONLY)
            lock = opened(training / LOCK, os.O_RDWR | os.O_CREAT)
            locked(lock)
            told, self._in = os.pipe()
            self._out, said = os.pipe()
            for descriptor in (told, said):
                theirs.callback(os.close, descriptor)
            words = [str(word) for word in (told, said, folder, lock, training.absolute())]
            before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
            try:
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-P", "-m", "pipeline.runtime.telling", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    pass_fds=[told, said, folder, lock],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                    start_new_session=True,
                )
            except OSError:
                self._close()
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if LINUX:
            with contextlib.suppress(OSError):  # more than a user may have
                fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE)
        os.set_blocking(self._in, False)
        os.set_blocking(self._out, False)
        self._waiting, self._half, self._told = bytearray(), b"", 0.0

    def tell(self, line: bytes) -> None:
        """Raises OSError if the process is gone, or has taken nothing for long."""
        self._waiting += line
        if (now := time.monotonic()) - self._told > TOGETHER:
            self._told = now
            self._go_on()
        if len(self._waiting) > ROOM:
            raise OSError("their process takes nothing")

    def finish(self) -> None:
        """Wait until the process has told everything and has ended, or else `PATIENCE` seconds: it goes on by itself then.

        Raises:
            OSError: it had to be killed, or ended otherwise than well.
        """
        deadline = time.monotonic() + PATIENCE
        while self._go_on():
            left = deadline - time.monotonic()
            if left <= 0 and (self._waiting or _is_stopped(self._process.pid)):
                raise OSError(f"not all was told within {PATIENCE:.0f} s")
            if left <= 0:
                self._close()
                self._process.returncode = 0  # nobody will ask
                return
            select.select([self._out], [self._in] if self._waiting else [], [], left)
        if code := self._process.wait():
            raise OSError(f"their process ended with code {code}")

    def end(self) -> None:
        """Have it gone, whatever it does, unless it is, or goes on by itself."""
        if self._process.poll() is None:
            kill(*below(self._process.pid))
            self._process.kill()
            self._process.wait()
        self._close()

    def _close(self) -> None:
        for descriptor in (self._in, self._out):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._in = self._out = -1

    def _go_on(self) -> bool:
        """Hand over what waits, as far as it is taken, and say what has come; whether more may come."""
        more = True
        with contextlib.suppress(BlockingIOError):
            while said := os.read(self._out, 2**16):
                *lines, self._half = (self._half + said).split(b"\n")
                for line in lines:
                    say(line.decode(errors="replace"))
            more = False
        try:
            while self._waiting:
                del self._waiting[: os.write(self._in, self._waiting)]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            raise OSError(f"their process ended with code {self._process.wait()}") from None
        return more


def locked(file: int) -> bool:
    """Lock an open file, for whom that is passed on to as well; whether nobody else has it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False


def below(pid: int) -> list[int]:
    """All that a process has started or adopted, and those in turn."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, children.read_text().split())
    return found + [further for child in found for further in below(child)]


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
