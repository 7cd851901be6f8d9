"""The system calls of a piece of work, read from strace: what it did to a folder, and a way to kill it at one of them."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.faults import forked

NAMED = "open,openat,creat,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat,truncate"
OPENED = "write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,fallocate,sendfile,copy_file_range,close"
MOVES = "read,pread64,lseek"  # the place in a file, which a write goes by
LONGEST = 1 << 24  # bytes of one write that are read back

_HEX = r"(?:\\x[0-9a-f]{2})*"
_PLACE = re.compile(rf'(?P<number>AT_FDCWD|\d+)<(?P<open>{_HEX})>|"(?P<text>{_HEX})"')
_LINE = re.compile(r"(?P<thread>\d+) +(?P<name>\w+)\((?P<rest>.*)", re.DOTALL)
_RESUMED = re.compile(r"(?P<thread>\d+) +<\.\.\. \w+ resumed>(?P<rest>.*)", re.DOTALL)
_RESULT = re.compile(r"\)\s+= (-?\d+)")


@dataclass(frozen=True)
class Call:
    """One system call."""

    thread: int  # in the order in which they first made one
    name: str
    count: int  # of its name in its thread, from 1, as strace counts
    paths: tuple[Path, ...]  # absolute
    data: bytes  # written, if it was asked for
    text: str  # as strace has it, with \\x00 for each byte of a string
    result: int | None  # None: it was not come back from

    @property
    def where(self) -> tuple[str, int]:
        return self.name, self.count

    @property
    def descriptor(self) -> int:
        """The open file that it is about, or gave."""
        return self.result or 0 if "open" in self.name or self.name == "creat" else int(self.text.split("<", 1)[0])

    @property
    def injected(self) -> bool:
        """Whether it was made to fail."""
        return self.text.rstrip().endswith("(INJECTED)")

    @property
    def writes(self) -> bool:
        """Of an `open`: that the file may change, or come to be."""
        return any(flag in self.text for flag in ("O_CREAT", "O_WRONLY", "O_RDWR", "O_TRUNC")) or self.name == "creat"


@dataclass(frozen=True)
class Ran:
    """How a piece of work went."""

    code: int | None  # its exit code, negative for a signal; None: it hung
    alone: int  # of the processes beside it, how many ended by themselves
    calls: list[Call]  # those about the folder

    def killed_at(self, point: Call) -> bool:
        last = self.calls[-1] if self.calls else None
        return self.code == -signal.SIGKILL and last is not None and last.where == point.where


def refused() -> str:
    """Why strace cannot be used here; empty if it can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


def run(
    work: forked.Work, output: Path, folder: Path, *, data: bool = False, kill: Call | None = None, beside: Sequence[forked.Work] = ()
) -> Ran:
    """Do `work` in a process of its own, killed as it enters the call `kill`; with `data`, what it read and wrote is kept.

    `beside` are done in processes that nobody looks at, and that are ended once `work` is.
    """
    pid = forked.begin(work, output, stopped=True)
    calls = ",".join([NAMED, OPENED, *([MOVES] if data else [])])
    inject = [f"-einject={kill.name}:signal=SIGKILL:when={kill.count}"] if kill else []
    with tempfile.NamedTemporaryFile() as log:
        length = LONGEST if data else 0
        words = ["strace", "-f", "-y", "-xx", f"-s{length}", f"-o{log.name}", f"-p{pid}", f"-etrace={calls}", *inject]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            attached = strace.stderr.readline()
            assert "attached" in attached, attached
            code, alone = forked.go_on(pid, beside)
            strace.stderr.read()
        return Ran(code, alone, [call for call in _calls(Path(log.name)) if any(path.is_relative_to(folder) for path in call.paths)])


def touching(calls: Sequence[Call]) -> list[Call]:
    """Those that change something, or may: not the reading, nor the closing of what was read, nor what failed."""
    found, written = [], set()
    for call in calls:
        if call.result == -1:
            continue
        if "open" in call.name or call.name == "creat":
            if not call.writes:
                written.discard(call.descriptor)
                continue
            written.add(call.descriptor)
        if call.name != "close" or call.descriptor in written:
            found.append(call)
    return found


def _calls(log: Path) -> Iterator[Call]:
    """In the order in which they were entered."""
    threads: dict[str, int] = {}
    counts: Counter[tuple[int, str]] = Counter()
    directory = Path()
    for thread, name, text in _whole_lines(log):
        number = threads.setdefault(thread, len(threads))
        counts[number, name] += 1
        places = list(_PLACE.finditer(text))
        directory = next((_path(p["open"]) for p in places if p["number"] == "AT_FDCWD"), directory)
        result = _RESULT.search(text)
        data = b"".join(_bytes(p["text"]) for p in places if p["text"] is not None) if "write" in name else b""
        yield Call(number, name, counts[number, name], _paths(name, places, directory), data, text, int(result[1]) if result else None)


def _whole_lines(log: Path) -> Iterator[tuple[str, str, str]]:
    """(thread, name, the rest): a call that another thread's came between is put together again, where it began."""
    found: list[list[str]] = []
    open_calls: dict[str, list[str]] = {}
    for line in log.read_text().splitlines():
        if match := _LINE.match(line):
            entry = [match["thread"], match["name"], match["rest"].removesuffix(" <unfinished ...>")]
            found.append(entry)
            open_calls[match["thread"]] = entry
        elif match := _RESUMED.match(line):
            open_calls[match["thread"]][2] += match["rest"]
    yield from ((thread, name, rest) for thread, name, rest in found)


def _paths(name: str, places: list[re.Match[str]], directory: Path) -> tuple[Path, ...]:
    """What a call names: by a descriptor, or by a text that may lie under the descriptor before it."""
    if name in OPENED.split(",") + MOVES.split(","):
        return tuple(_path(p["open"]) for p in places if p["open"] is not None)
    paths, base = [], directory
    for place in places:
        if place["open"] is not None:
            if place.start() and place.string[place.start() - 1] == " " and place.string[: place.start()].rstrip().endswith("="):
                break  # what it gave
            base = _path(place["open"])
        elif place["text"] is not None:
            paths.append(Path(os.path.normpath(base / _path(place["text"]))))
            base = directory
    return tuple(paths[1:] if name.startswith("symlink") else paths)


def _path(text: str) -> Path:
    return Path(os.fsdecode(_bytes(text)))


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
