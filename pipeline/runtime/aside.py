"""The process aside, which tells the trackers: a training neither waits for a service nor shares its interpreter with a client.

What is to be told goes down a pipe, a JSON list a line: [what was typed, configuration, run folder] first, then [method of `Tracker`,
argument, ...] again and again. What the process aside says for people comes back by another. When the first pipe ends, the process that
trains is gone, however it went: the process aside tells the rest, and is gone `ALONE` seconds later at the latest.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.runtime.console import say
from pipeline.runtime.signals import STOP_SIGNALS
from pipeline.runtime.trackers import TRACKERS, Tracker

ALONE = 4.0  # seconds
EARLIER = 5.0  # seconds that the process aside of an earlier life, which was killed just now, is waited for
PATIENCE = 35.0  # seconds, at the end of a run; a client has 30 of them to finish
TOGETHER = 0.1  # seconds in which what is told waits, to go as one
ROOM = 2**24  # bytes that wait for a process that takes none
NICE = 10  # where cores are few, those that train go first
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
LASTING = sys.platform == "linux"  # which has names by descriptor


class Aside:
    """The process aside, for the one that trains. What it does not take at once waits, and goes with what is told next."""

    def __init__(self, training: Path) -> None:
        """Start it: a fresh interpreter, since one with threads and a device is not to be forked.

        Signals are for those that train, so it starts, and stays, with all of them blocked: Ctrl-C goes to every process of a terminal.
        It gets the folder `training` open, and locked if no earlier process aside has it yet.
        """
        folder = os.open(training, os.O_RDONLY)
        _locked(folder)
        command = [sys.executable, "-P", "-m", __name__, str(folder), str(training.absolute())]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(  # noqa: S603
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[folder], env=environment
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(folder)
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
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
        """Wait until the process has told everything and has ended.

        Raises:
            OSError: it had to be killed, or ended otherwise than well.
        """
        deadline = time.monotonic() + PATIENCE
        while self._go_on():
            left = deadline - time.monotonic()
            if left <= 0:
                raise OSError(f"not all was told within {PATIENCE:.0f} s")
            select.select([self._out], [self._in] if self._waiting else [], [], left)
        if code := self._process.wait():
            raise OSError(f"their process ended with code {code}")

    def end(self) -> None:
        """Have it gone, whatever it does, if it is not already."""
        if self._process.poll() is None:
            _kill(*_below(self._process.pid))
        self._process.kill()
        self._process.wait()
        for pipe in filter(None, (self._process.stdin, self._process.stdout)):
            pipe.close()

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


def main() -> None:
    """Tell the trackers what comes down the pipe."""
    pipe, said = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w")  # out of reach of what a client starts, which may stay longer
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = said
    os.nice(NICE)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # adopt what a client's service leaves behind
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(pipe, lines), daemon=True).start()
    _, descriptor, training = sys.argv
    deadline = time.monotonic() + EARLIER
    while not _locked(int(descriptor)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if first := lines.get():
        sys.argv, values, folder = json.loads(first)  # as clients note it
        config = Config.model_validate(values)
        _tell_all(lines, config, Path(folder), Path(f"/proc/self/fd/{descriptor}" if LASTING else training))
    _leave(0)


def _locked(folder: int) -> bool:
    """Lock an open folder, for whom that is passed on to as well; whether nobody else has it locked."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _receive(pipe: Any, lines: "queue.SimpleQueue[bytes]") -> None:
    """Put whole lines from `pipe` into `lines`, as they come, whatever a client is about; an empty one when there will be no more."""
    for line in pipe:
        if line.endswith(b"\n"):
            lines.put(line)
    lines.put(b"")
    time.sleep(ALONE)
    _leave(1)


def _leave(code: int) -> None:
    """End at once, with what clients have started: that looks for its parent now and then, but not often enough."""
    _kill(*_below(os.getpid()))
    os._exit(code)


def _below(pid: int) -> list[int]:
    """All that a process has started or adopted, and those in turn."""
    found: list[int] = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread has ended
            found += map(int, children.read_text().split())
    return found + [further for child in found for further in _below(child)]


def _kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _tell_all(lines: "queue.SimpleQueue[bytes]", config: Config, folder: Path, training: Path) -> None:
    """Open the trackers, and tell each what comes, to the end; drop the one that fails, with a word."""
    trackers: dict[str, Tracker] = {}
    for spec in config.run.trackers:
        with _without_harm(spec.name):
            trackers[spec.name] = TRACKERS[spec.name](config, folder, training, **spec.options)
    what = ""
    while what != "close":
        what, *arguments = json.loads(lines.get() or b'["close", 1]')
        for name, tracker in list(trackers.items()):
            with _without_harm(name) as failed:
                getattr(tracker, what)(*arguments)
            if failed:
                del trackers[name]


@contextlib.contextmanager
def _without_harm(name: str) -> Iterator[list[Exception]]:
    """The record is local; whatever a service's client raises, the others are told."""
    failed: list[Exception] = []
    try:
        yield failed
    except Exception as error:
        failed.append(error)
        say(f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:200]}; going on without it")


if __name__ == "__main__":
    main()
