"""A limit on what a client of a service takes, which may wait for a byte now and then, or until it is told to ask again."""

import contextlib
import signal
from collections.abc import Iterator

from pipeline.errors import PipelineError


@contextlib.contextmanager
def seconds(limit: int) -> Iterator[None]:
    """Raise PipelineError in the main thread, where this is to be entered, if it takes longer."""

    def too_long(*_: object) -> None:
        raise PipelineError(f"given up after {limit} s; the same command goes on")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(limit)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
