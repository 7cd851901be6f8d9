"""A terminal without a person: what runs on it, and what would be seen."""

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import pyte

NOT_CI = {"CI": "", "TERM": "xterm-256color", "NO_COLOR": "", "FORCE_COLOR": ""}


@dataclass
class Terminal:
    """`columns` wide and 40 lines high; reads what is written to it until `close`."""

    columns: int = 80
    written: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._keyboard, self._screen = pty.openpty()
        self.resize(self.columns)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._screen, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

    def before(self, *, out: bool = True) -> "partial[None]":
        """For `processes.begin`: the main process has its stderr here, and if `out` its stdout too."""
        return partial(on, os.ttyname(self._screen), out)

    def close(self) -> None:
        """Have all that was written; nobody may be writing any more."""
        os.close(self._screen)
        self._reader.join()

    def shown(self) -> list[str]:
        """The lines on it in the end, the empty ones below left out."""
        return [*self._shown()][-1]

    def before_each_clearing(self) -> Iterator[list[str]]:
        """What was shown whenever all that is drawn was taken away."""
        yield from [*self._shown()][:-1]

    def _shown(self) -> Iterator[list[str]]:
        """Before each clearing, and in the end."""
        screen = pyte.Screen(self.columns, 40)
        stream = pyte.ByteStream(screen)
        for part in re.split(rb"(?=\r\x1b\[J)", self.written):
            stream.feed(bytes(part))
            assert not screen.cursor.hidden
            yield [line.rstrip() for line in "\n".join(screen.display).rstrip().split("\n")]

    def _read(self) -> None:
        try:
            while said := os.read(self._keyboard, 2**16):
                self.written += said
        except OSError:  # nobody has it open any more
            os.close(self._keyboard)


def on(name: str, out: bool, rank: int) -> None:
    if rank == 0:
        terminal = os.open(name, os.O_RDWR)
        for stream in (1, 2) if out else (2,):
            os.dup2(terminal, stream)
        os.close(terminal)
