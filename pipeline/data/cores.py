"""Work that is shared out to processes of this machine."""

import contextlib
import functools
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from pipeline.runtime.signals import STOP_SIGNALS, die_with_parent


@contextlib.contextmanager
def cores(count: int, chunk: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map` over so many processes, `chunk` items at a time: threads would take turns at small images, four times as slowly as one alone.

    Raises:
        BrokenExecutor: one of them was killed.
    """
    if count == 1:
        yield map
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(count, context, initializer=_serve)
    try:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        pool.submit(int)  # forks them: one that is told to end before it serves has to hear of it when it does
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield functools.partial(pool.map, chunksize=chunk)
    finally:
        pool.shutdown(cancel_futures=True)  # it would else wait for ever for what an exception has kept `submit` from handing out


def _serve() -> None:
    """Leave signals to the process that shares out, but for the one by which a pool ends all when one was killed; and end with it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, {*STOP_SIGNALS} - {signal.SIGTERM})
    die_with_parent()
