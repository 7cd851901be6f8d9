"""A stop during an export, whose time is spent in libraries and in what they start: nothing there looks at a flag."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from pipeline.errors import Stopped
from pipeline.runtime.aside import below
from pipeline.runtime.launch import StopFlag
from pipeline.runtime.signals import STOP_SIGNALS


def look(stop: StopFlag) -> None:
    """Raises Stopped if the process was told to stop, or its time is up."""
    if stop:
        raise Stopped("stopped while exporting; the trained model is kept, the same command goes on")


@contextlib.contextmanager
def interrupted_by(stop: StopFlag) -> Iterator[None]:
    """A signal interrupts what goes on at once, whichever library that is in, once.

    Processes begun meanwhile are told to end first: a compiler then removes what it has half written, and none is left behind.

    Raises:
        Stopped: there was one, whatever the library has made of it.
    """
    others = set(below(os.getpid()))
    told: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        stop.signal = stop.signal or signal.Signals(number)
        for pid in set(below(os.getpid())).difference(others, *map(below, others)):  # nor what the others begin, as a tracker's service
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if not told:  # a second one must not interrupt what is tidied up
            told.append(number)
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in STOP_SIGNALS}
    try:
        yield
    except BaseException:
        look(stop)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
