"""What the clients of all services lack: an end to their patience, and few words."""

import contextlib
import re
import signal
from collections.abc import Iterator

from pipeline.errors import PipelineError

LONG = 300  # characters


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise PipelineError in the main thread, where this is to be entered, if it takes longer.

    A client waits for a byte now and then, or as long as it is told to before it asks again.
    """

    def too_long(*_: object) -> None:
        raise PipelineError(f"given up after {seconds} s; the same command goes on")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def reason(error: BaseException, text: str = "") -> str:
    """`text`, or what `error` says, in one line that a terminal takes for words: some of it is a service's."""
    said = re.sub(r"\[Errno -?\d+\] ", "", text or str(error))
    words = "".join(letter if letter.isprintable() else " " for letter in said).split()
    return " ".join(words)[:LONG].rstrip(". ") or type(error).__name__
