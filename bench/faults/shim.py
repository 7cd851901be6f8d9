"""What strace does, without it: Python's own calls, seen by an audit hook and a wrapper of os.fsync.

Not seen: every write and close, and all that native code does (safetensors, Arrow, ONNX, torch).
"""

import os
import pickle
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from bench.faults import forked
from bench.faults.traced import Call, Ran

EVENTS = {"os.rename": "rename", "os.remove": "unlink", "os.mkdir": "mkdir", "os.rmdir": "rmdir", "os.symlink": "symlink"}
FLAGS = ("O_CREAT", "O_WRONLY", "O_RDWR", "O_TRUNC", "O_APPEND")


def run(
    work: forked.Work, output: Path, folder: Path, *, data: bool = False, kill: Call | None = None, beside: Sequence[forked.Work] = ()
) -> Ran:
    """As `traced.run`, but for what is not seen; what was written is found by looking at the files before each call."""
    with tempfile.NamedTemporaryFile() as log:

        def seen() -> None:
            with Path(log.name).open("wb", buffering=0) as f:
                seer = _Seer(f, folder, kill, data)
                seer.watch()
                work()
                seer.look()

        code, alone = forked.go_on(forked.begin(seen, output, stopped=True), beside)
        calls = []
        with Path(log.name).open("rb") as f:
            while f.peek(1):
                calls.append(pickle.load(f))
    return Ran(code, alone, calls)


@dataclass
class _Seer:
    """Writes down each call about `folder` before it is made, or kills at one of them."""

    log: IO[bytes]
    folder: Path
    kill: Call | None
    data: bool
    counts: Counter[str] = field(default_factory=Counter)
    known: dict[Path, bytes] = field(default_factory=dict)
    turn: threading.RLock = field(default_factory=threading.RLock)  # files are synced by several threads at once
    busy: int = 0  # the thread that is looking at files itself

    def watch(self) -> None:
        self.known = self._files() if self.data else {}
        sync = os.fsync

        def fsync(descriptor: Any) -> None:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            self._tell("fsync", "", Path(f"/proc/self/fd/{number}").readlink())
            sync(descriptor)

        os.fsync = fsync  # type: ignore[assignment]
        sys.addaudithook(self._hear)

    def _hear(self, event: str, words: tuple[Any, ...]) -> None:
        if self.busy == threading.get_ident():
            return
        if event == "open" and isinstance(words[0], str | bytes | os.PathLike):
            flags = [name for name in FLAGS if words[2] & getattr(os, name)]
            if flags:
                self._tell("openat", "|".join(flags), _place(words[0], -1))
        elif event in EVENTS:
            text, *paths = _places(event, words)
            if os.path.lexists(paths[0]) != (event in ("os.mkdir", "os.symlink")):  # it will not fail
                self._tell(EVENTS[event], text, *paths)

    def _tell(self, name: str, text: str, *paths: Path) -> None:
        if not any(path.is_relative_to(self.folder) for path in paths):
            return
        with self.turn:
            self._write_down(name, text, *paths)

    def _write_down(self, name: str, text: str, *paths: Path) -> None:
        self.look()
        self._write(name, text, paths, b"")
        if name == "rename":
            self.known = {
                paths[1] / path.relative_to(paths[0]) if path.is_relative_to(paths[0]) else path: c for path, c in self.known.items()
            }
        elif name == "openat" and (paths[0] not in self.known or "O_TRUNC" in text):
            self.known[paths[0]] = b""

    def look(self) -> None:
        """Find what was written since the last time."""
        if not self.data:
            return
        self.busy = threading.get_ident()
        found = self._files()
        self.busy = 0
        for path, content in found.items():
            if path not in self.known:
                self._write("openat", "O_CREAT|O_WRONLY", (path,), b"")
            if self.known.get(path, b"") != content:
                self._write("ftruncate", f", {len(content)})", (path,), b"")
                self._write("pwrite64", ", 0)", (path,), content)
        self.known = found

    def _write(self, name: str, text: str, paths: tuple[Path, ...], data: bytes) -> None:
        self.counts[name] += 1
        call = Call(0, name, self.counts[name], paths, data, text, len(data) if data else 0)
        self.log.write(pickle.dumps(call))
        if self.kill and self.kill.where == call.where:
            os.kill(os.getpid(), signal.SIGKILL)

    def _files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file() and not path.is_symlink()}


def _places(event: str, words: tuple[Any, ...]) -> tuple[Any, ...]:
    """The text and the paths of an audit event: https://docs.python.org/3/library/audit_events.html."""
    if event == "os.rename":
        return "", _place(words[0], words[2]), _place(words[1], words[3])
    if event == "os.symlink":
        return str(words[0]), _place(words[1], words[2])
    return "", _place(words[0], words[-1])


def _place(path: Any, directory: int) -> Path:
    base = Path(f"/proc/self/fd/{directory}").readlink() if directory >= 0 else Path.cwd()
    return Path(os.path.normpath(base / os.fsdecode(path)))
