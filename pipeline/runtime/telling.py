"""The process aside itself, which tells the trackers.

Down the pipe comes a JSON list a line: [what was typed, configuration, run folder] first; then ["record"], whenever there are journals:
to tell of all that they hold, but for what a tracker has of earlier lives; and [method of `Tracker`, argument, ...] again and again.

When the pipe ends, the process that trains is gone, however it went: this one tells the rest, and is gone `ALONE` seconds later at the
latest. After a "close" it may go on sending for `AFTERWARDS` seconds, with nobody waiting for it.
"""

import contextlib
import ctypes
import json
import logging
import os
import queue
import select
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.runtime import files, journal
from pipeline.runtime.aside import AFTERWARDS, LINUX, LOCK, PATIENCE, below, kill, locked
from pipeline.runtime.console import say
from pipeline.runtime.trackers import TRACKERS, Tracker

ALONE = 4.0  # seconds
EARLIER = AFTERWARDS + 5.0  # seconds that the process aside of an earlier life, which may be sending yet, is waited for
NICE = 10  # where cores are few, those that train go first
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
OPEN: dict[str, "_Once | None"] = {}  # by name, as in TRACKERS; None while it is being opened


def main() -> None:
    """Tell the trackers what comes down the pipe."""
    _, pipe, said, folder, lock, training = sys.argv
    for descriptor in (pipe, said, folder, lock):
        os.set_inheritable(int(descriptor), False)  # out of reach of what a client starts, which may stay longer
    os.dup2(int(lock), 0)  # but for the lock, which is free when all are gone
    sys.stdout = os.fdopen(int(said), "w")
    threading.Thread(target=_into_the_log, args=(int(said),), daemon=True).start()
    os.nice(NICE)
    logging.raiseExceptions = False  # a client that cannot write its log would fill ours with that
    if LINUX:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)  # adopt what a client's service leaves behind
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    turn = threading.Event()
    threading.Thread(target=_receive, args=(int(pipe), lines, turn), daemon=True).start()
    deadline = time.monotonic() + EARLIER
    while not locked(int(lock)) and time.monotonic() < deadline:
        time.sleep(0.05)
    turn.set()
    if first := lines.get():
        sys.argv, values, place = json.loads(first)  # as clients note it
        _tell_all(lines, Config.model_validate(values), Path(place), Path(f"/proc/self/fd/{folder}" if LINUX else training))
    _leave(0)


def _into_the_log(said: int) -> None:
    """Have what is said written there, with what clients print, once nobody listens."""
    listened = select.poll()
    listened.register(said, 0)  # an error alone: the other end is closed
    listened.poll()
    os.dup2(sys.stderr.fileno(), said, inheritable=False)


def _receive(pipe: int, lines: "queue.SimpleQueue[bytes]", turn: threading.Event) -> None:
    """Put whole lines from `pipe` into `lines`, as they come, whatever a client is about; an empty one when there will be no more."""
    closed = False
    for line in os.fdopen(pipe, "rb"):
        if line.endswith(b"\n"):
            lines.put(line)
            closed = line.startswith(b'["close"')
        if closed:
            threading.Thread(target=_be_gone, args=(turn,), daemon=True).start()
    if not closed:
        lines.put(b"")
        time.sleep(ALONE)
        _leave(1)


def _be_gone(turn: threading.Event) -> None:
    """Say what is left to do before nobody listens any more, and end in time."""
    time.sleep(PATIENCE * 0.75)
    if not turn.is_set():
        say(f"trackers: an earlier life tells them yet; this one follows it, for up to {AFTERWARDS / 60:.0f} minutes")
    for name, once in list(OPEN.items()):
        if once is None or once.tracker.later:
            what, then = ("its service has not answered", "") if once is None else ("not all is sent", f"; then {once.tracker.later}")
            say(f"{name}: {what} yet; that goes on for up to {AFTERWARDS / 60:.0f} minutes{then}")
    turn.wait()  # an earlier one may be sending yet
    time.sleep(AFTERWARDS)
    _leave(1)


def _leave(code: int) -> None:
    """End at once, with what clients have started: that looks for its parent now and then, but not often enough."""
    kill(*below(os.getpid()))
    os._exit(code)


class _Once:
    """A tracker, told each value of a step once, whichever life finds it and however often training goes back to a checkpoint."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.made: list[str] = []  # fingerprints of what it was told of
        self._told: dict[int, frozenset[str]] = {}
        self._sets: dict[frozenset[str], frozenset[str]] = {}  # the few that there are, once each

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        told = self._told.get(step, frozenset())
        new = {k: v for k, v in values.items() if k not in told and isinstance(v, int | float) and not self.tracker.has(step, k)}
        names = frozenset((*told, *values))
        self._told[step] = self._sets.setdefault(names, names)
        if new:
            self.tracker.log(step, new)

    def tell(self, training: Path, what: str, *arguments: Any) -> None:
        """One line of the pipe."""
        if what == "log":
            self.log(*arguments)
        elif what == "record":
            for step, values in recorded(training):
                self.log(step, values)
        else:
            getattr(self.tracker, what)(*arguments)
        if what == "made":
            self.made.append(Path(arguments[1]).name)


def _tell_all(lines: "queue.SimpleQueue[bytes]", config: Config, folder: Path, training: Path) -> None:
    """Open the trackers, and tell each what comes, to the end; drop the one that cannot be told of steps, with a word."""
    for spec in config.run.trackers:
        OPEN[spec.name] = None
        with _without_harm(spec.name, "; going on without it") as failed:
            OPEN[spec.name] = _Once(TRACKERS[spec.name](config, folder, training, **spec.options))
        if failed:
            del OPEN[spec.name]
    what = ""
    while what != "close":
        what, *arguments = json.loads(lines.get() or b'["close", 1]')
        for name, once in list(OPEN.items()):
            assert once is not None
            with _without_harm(name, "; going on without it" if what in ("log", "record") else "") as failed:
                once.tell(training, what, *arguments)
            if failed and what in ("log", "record"):
                with contextlib.suppress(Exception):
                    once.tracker.close(1)  # what it has is to be whole
                del OPEN[name]
            if what == "close":
                del OPEN[name]
                if not failed:
                    with _without_harm(name, ""):
                        _note(training / LOCK, name, once.made)


def _note(path: Path, name: str, made: Sequence[str]) -> None:
    """That a tracker has all of these fingerprints. It is the file that is locked, so it is written where it is."""
    known = files.read_json(path)
    told = known if isinstance(known, dict) else {}
    told[name] = sorted({*told.get(name, []), *made})
    with path.open("r+") as file:
        file.truncate(file.write(json.dumps(told)))


def recorded(training: Path) -> list[tuple[int, dict[str, Any]]]:
    """What the journals of a training hold, step by step."""
    rows: dict[int, dict[str, Any]] = {}
    for name in ("metrics.jsonl", "timings.jsonl"):
        for line in journal.read(training / name):
            rows.setdefault(line["step"], {}).update(line)
    return [(step, {k: v for k, v in values.items() if k != "step"}) for step, values in sorted(rows.items())]


@contextlib.contextmanager
def _without_harm(name: str, then: str) -> Iterator[list[Exception]]:
    """The record is local; whatever a service's client raises, the others are told."""
    failed: list[Exception] = []
    try:
        yield failed
    except Exception as error:
        failed.append(error)
        kind = "" if isinstance(error, PipelineError) else f"{type(error).__name__}: "
        say(f"{name}: {kind}{' '.join(str(error).split())[:300]}{then}")


if __name__ == "__main__":
    main()
