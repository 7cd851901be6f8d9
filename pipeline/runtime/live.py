"""What is drawn on a terminal, over and over, below all lines; and the colours of these.

The cursor stays at the beginning of it, visible. So a process that is killed leaves nothing to be restored; a line that somebody
else writes lands on it whole, and it is drawn anew below; and what has to be cleared is all from the cursor on, however a terminal
folds lines when its width changes.
"""

import contextlib
import io
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar, TextIO

from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.style import Style
from rich.text import Text
from rich.theme import Theme

from pipeline.runtime.progress import Progress, clock

INTERVAL = 0.2  # seconds from frame to frame: a person sees it move, and the training does not notice
SHORTEST, LONGEST = 8, 40  # characters of a bar
CLEAR, CLEAR_LINE, CLEAR_BELOW = "\r\x1b[J", "\x1b[K", "\x1b[J"
NAME, FACT, FAINT, BAR = map(Style.parse, ("bold cyan", "none", "bright_black", "cyan"))

Piece = tuple[str, Style]


class Live:
    """What goes on, for how long, and its progress if it has any; drawn until `end` by a thread that the main one does not wait for.

    A terminal that takes nothing (Ctrl-S) holds up that thread, and whoever has a line to say.
    """

    def __init__(self, what: str, terminal: TextIO, *, coloured: bool) -> None:
        self.progress: Progress | None = None
        self._what, self._began = what, time.monotonic()
        self._terminal = terminal.fileno()
        self._colours = ColorSystem.STANDARD if coloured else None
        ascii_only = not terminal.encoding.lower().startswith("utf")
        self._full, self._rest = ("#", ".") if ascii_only else ("━", "━" if coloured else "·")
        self._lock = threading.Lock()
        self._ended = threading.Event()
        threading.Thread(target=self._draw, name="terminal", daemon=True).start()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the place to somebody who has whole lines to write."""
        with self._lock:
            self._write(CLEAR)
            yield
            self._show()

    def end(self) -> None:
        """Nothing of it stays, and nothing more is drawn."""
        self._ended.set()
        if self._lock.acquire(timeout=1):  # it may be held by a thread that will not go on
            self._write(CLEAR)
            self._lock.release()

    def _draw(self) -> None:
        while not self._ended.wait(INTERVAL):
            with self._lock:
                self._show()

    def _show(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            if not self._ended.is_set():
                self._write(self._frame(os.get_terminal_size(self._terminal)))

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._terminal, text.encode())

    def _frame(self, size: os.terminal_size) -> str:
        width = (size.columns or 80) - 1
        lines = self._lines(width)[: max(1, (size.lines or 24) - 1)]
        drawn = ["".join(style.render(text, color_system=self._colours) for text, style in _cut(line, width)) for line in lines]
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        return "\r" + f"{CLEAR_LINE}\r\n".join(drawn) + CLEAR_BELOW + up + "\r"

    def _lines(self, width: int) -> list[list[Piece]]:
        progress = self.progress
        if progress is None or progress.closed:
            return [[(f" {self._what}", NAME), (f"  {_short(time.monotonic() - self._began)}", FAINT)]]
        name, left = f" {progress.what} ", progress.left()
        facts = [_counted(progress), _short(time.monotonic() - progress.began) + (f", {_short(left)} left" if left is not None else "")]
        facts += [f"epoch {progress.epochs()}"] if progress.epoch else []
        facts = _fitting(facts, width - cell_len(name) - SHORTEST)
        beside = "".join(f"  {fact}" for fact in facts)
        bar = self._bar(progress, min(LONGEST, width - cell_len(name) - len(beside)))
        told = [[f"{name} {value}" for name, value in values.items()] for values in (progress.values, progress.also) if values]
        if len(together := list(itertools.chain(*told))) == len(_fitting(together, width + 1)):
            told = [together] if together else []
        return [[(name, NAME), *bar, (beside, FACT)], *([(f" {'  '.join(_fitting(facts, width + 1))}", FACT)] for facts in told)]

    def _bar(self, progress: Progress, room: int) -> list[Piece]:
        if not progress.total:
            return []
        full = room * min(progress.count, progress.total) // progress.total
        return [(self._full * full, BAR), (self._rest * (room - full), FAINT)]


def _counted(progress: Progress) -> str:
    if progress.units == "bytes":
        return f"{progress.count / 1e6:.1f}{f'/{progress.total / 1e6:.1f}' if progress.total else ''} MB"
    total = f"{progress.total:,}" if progress.total else ""
    return f"{progress.count:>{len(total)},}{total and '/'}{total} {progress.units}"


def _fitting(facts: Sequence[str], room: int) -> list[str]:
    """The first of `facts` that go into so many cells, with two before each."""
    ends = list(itertools.accumulate(2 + cell_len(fact) for fact in facts))
    return [fact for fact, end in zip(facts, ends, strict=True) if end <= room]


def _cut(line: Sequence[Piece], width: int) -> Iterator[Piece]:
    for text, style in line:
        yield (text if cell_len(text) <= width else set_cell_size(text, max(0, width))), style
        width -= cell_len(text)


def _short(seconds: float) -> str:
    """0:07, and from an hour on 1:00:07."""
    return clock(seconds)[2:].removeprefix("0") if seconds < 3600 else clock(seconds)


class _Words(RegexHighlighter):
    """What stands out in a line."""

    highlights: ClassVar = [
        r"(?m)^(?P<name> *[\w.-]+:) ",
        r"(?m)^[\w.-]+: (?P<good>fresh|done|test accuracy [\d.]+)",
        r"(?P<good>\b[\d.,]+(?: ± [\d.,]+)? \*)",  # the best of a row
        r"(?m)^\w+ +(?:(?P<good>fresh)|(?P<bad>not fresh|waits))",
        r"(?P<bad>\b(?:warning|damaged|failed|left out|going on without it)\b)",
    ]


LOOKS = Theme({"name": "bold cyan", "good": "green", "bad": "yellow"}, inherit=False)


def painted(text: str) -> str:
    """`text`, as it is but for its colours."""
    console = Console(file=io.StringIO(), force_terminal=True, color_system="standard", theme=LOOKS, no_color=False)
    with console.capture() as caught:
        console.print(_Words()(Text(text)), soft_wrap=True, end="")
    return caught.get()
