"""Loops that take turns: each a process of its own, of which one works at a time, for a window of so many steps.

A process is told to go on by a byte on its end of a socket, and answers with the seconds of its window when that is
over. What it does meanwhile by itself, as writing a checkpoint in a thread, belongs to the window that comes next.
"""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from bench.measure import by_turns

ROOT = Path(__file__).parents[1]


class Window:
    """In the process that works: `step` after each of its steps."""

    def __init__(self, descriptor: int, steps: int) -> None:
        self._socket, self._steps = socket.socket(fileno=descriptor), steps
        self._done, self._began = 0, clocks()

    def step(self) -> None:
        """Wait for the next turn if the window is over; when all are over, this process ends here."""
        self._done += 1
        if self._done % self._steps:
            return
        passed = [now - before for now, before in zip(clocks(), self._began, strict=True)]
        self._socket.sendall(f"{json.dumps(passed)}\n".encode())
        if not self._socket.recv(1):
            os._exit(0)
        self._began = clocks()


def clocks() -> tuple[float, float]:
    """Seconds that passed; and those that this process, with all its threads, was computing."""
    return time.perf_counter(), time.process_time()


class Worker:
    """A started process; its first window, the slow one, is over when it is made."""

    def __init__(self, command: Sequence[str], folder: Path, steps: int) -> None:
        self._socket, other = socket.socketpair()
        self._output = folder / "output.txt"
        with self._output.open("w") as output:
            words = [*command[:3], str(other.fileno()), str(steps), *command[3:]]
            self._process = subprocess.Popen(words, cwd=folder, env=environment(), stdout=output, stderr=output, pass_fds=[other.fileno()])
        other.close()
        self._answers = self._socket.makefile()
        self._answer()

    def window(self) -> tuple[float, float]:
        """Its seconds, by both `clocks`."""
        self._socket.sendall(b".")
        return self._answer()

    def _answer(self) -> tuple[float, float]:
        if not (line := self._answers.readline()):
            raise RuntimeError(f"a loop ended before its time:\n{self._output.read_text()}")
        seconds, busy = json.loads(line)
        return seconds, busy

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._answers.close()
        self._socket.close()
        self._process.wait()


@contextlib.contextmanager
def _workers(commands: Mapping[str, Sequence[str]], folder: Path, steps: int) -> Iterator[dict[str, Worker]]:
    with contextlib.ExitStack() as open_ones:
        found = {}
        for name, command in commands.items():
            place = folder / name.replace(" ", "_")
            place.mkdir()
            found[name] = open_ones.enter_context(Worker(command, place, steps))
        yield found


def windows(commands: Mapping[str, Sequence[str]], folder: Path, *, steps: int, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds a step of each command, by both `clocks`, in each of its windows.

    A command is `[python, -m, module, ...]`, a module that makes a Window of the two words that are put before its others.
    """
    with _workers(commands, folder, steps) as workers:
        seconds = by_turns({name: worker.window for name, worker in workers.items()}, repeats)
    return {name: [(passed / steps, busy / steps) for passed, busy in found] for name, found in seconds.items()}


def environment() -> dict[str, str]:
    """That of all arms: one thread each, and no network."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
