"""What a person sees while it runs: lines on stdout; on stderr, if that is a terminal, how far it is, drawn below them.

Elsewhere (a pipe, a log, `TERM=dumb`, `CI`) that is a plain line an interval. What is decided about it is decided here, in
`moves` and `coloured`.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pipeline.credentials import hide
from pipeline.errors import shown
from pipeline.runtime.progress import Progress

if TYPE_CHECKING:
    from pipeline.runtime.live import Live

PLAIN = str.maketrans({"±": "+-"})  # for a terminal without it

_live: "Live | None" = None  # what is drawn below the lines just now


def moves(stream: TextIO) -> bool:
    """Whether what is on `stream` can be drawn over, and somebody is there to see it."""
    watched = stream.isatty() and os.environ.get("CI", "").lower() in ("", "0", "false")
    return watched and os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


def coloured(stream: TextIO) -> bool:
    """Whether `stream` gets colours: see no-color.org and force-color.org."""
    return not os.environ.get("NO_COLOR") and (moves(stream) or bool(os.environ.get("FORCE_COLOR")))


def say(text: str) -> None:
    """Whole lines, above what is drawn."""
    text = _shown(text)
    if coloured(sys.stdout):
        from pipeline.runtime.live import painted

        text = painted(text)
    with _live.aside() if _live else contextlib.nullcontext():
        _print(text)


def say_plainly(text: str) -> None:
    _print(_shown(text))


def _shown(text: str) -> str:
    """Without credentials, and line by line without what would move the cursor."""
    return "\n".join(map(shown, hide(text).split("\n")))


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN).encode(encoding, "replace").decode(encoding)
    try:
        print(text, flush=True)
    except OSError as error:  # the disk of a log is full, or the reader has left, `head` say, or a terminal; the run goes on
        if error.errno in (errno.EPIPE, errno.EIO):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def put(text: str) -> None:
    """`text` on stdout, as it is but for what no encoding has, above what is drawn: for other programs, and of the user's own names.

    Raises:
        OSError: nobody takes it, `BrokenPipeError` if the reader has left; nothing more can be written.
    """
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        with _live.aside() if _live else contextlib.nullcontext():
            sys.stdout.write(text)
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try once more, and fail, as it ends
        raise


def warn(text: str) -> None:
    """A line on stderr, above what is drawn."""
    with _live.aside() if _live else contextlib.nullcontext():
        print(f"pipeline: {hide(text)}", file=sys.stderr, flush=True)


def visible(text: str) -> str:
    """`text` in one line, in which nothing moves a cursor: a file may have any name, of any bytes."""
    return shown(os.fsencode(text).decode(errors="backslashreplace"))


def write_to(log: Path) -> None:
    """Send all that this process prints, and what its libraries print, to the file `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show that `what` goes on, on a terminal, and how far it is once that is told; at the end nothing is left of it."""
    global _live
    if _live is not None or not moves(sys.stderr):
        yield
        return
    from pipeline.runtime.live import Live

    _live = Live(what, sys.stderr, coloured=coloured(sys.stderr))
    try:
        yield
    finally:
        live, _live = _live, None
        if live:
            live.end()


def _forget() -> None:
    """A forked process does not draw what its parent draws."""
    global _live
    _live = None


os.register_at_fork(after_in_child=_forget)


def leave_terminal() -> None:
    """Take away what is drawn, for a thread that is about to end this process without its main thread."""
    if _live is not None:
        _live.end()


def show_progress(what: str, *, first: int = 0, total: int | None, units: str, epoch: float | None = None) -> Progress:
    """Of `what` is `working`: drawn if that is, else lines that are said."""
    progress = Progress(what, first=first, total=total, units=units, epoch=epoch, line=None if _live else say)
    if _live:
        _live.progress = progress
    return progress
