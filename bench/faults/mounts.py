"""A disk that is too small, and one that may only be read: file systems of its own that a command works on. Needs root.

One becomes read-only while files are open for writing as a real one does when the kernel has found an error: by the
abort of an ext4 file system in a file. What had not been synced by then is lost when it is mounted again.
"""

import contextlib
import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from processes import launch

from bench.faults.commands import Command, Tally, Tried, folders, harm, results

PLACES = ("artifacts", "runs")
ROOM = 64 << 10  # KiB: for all that these commands write
EXT4 = ("-t", "ext4", "-o", "loop,errors=remount-ro")
CAP_DAC_OVERRIDE = 1  # linux/capability.h


def refused() -> str:
    """Why nothing can be mounted here; empty if it can."""
    if os.geteuid() != 0:
        return "only root may mount"
    with folders() as (folder, _):
        try:
            with _disks(folder, "any"):
                return ""
        except FileNotFoundError as error:
            return str(error)
        except subprocess.CalledProcessError as error:
            return str(error.stderr).strip()


def refused_small() -> str:
    """Why there can be no small disk here; empty if there can."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small(Path(folder), 16):
                return ""
        except subprocess.CalledProcessError as error:
            return str(error.stderr).strip()


def sizes(command: Command, cases: int) -> Tally:
    """`command` on a disk of each of so many sizes, from too small to begin to one that holds all of it."""
    tally = Tally(f"a small disk; {command}")
    with folders() as (folder, reference):
        expected = _undisturbed(command, reference)
        needed = sum(-(-path.lstat().st_size // 4096) * 4 + 4 for path in reference.rglob("*"))
        for case in range(cases):
            size = 16 + (needed + 128 - 16) * case // max(1, cases - 1) // 4 * 4
            with _mounted(folder, size):
                tried = _tried(folder, command)
                trouble = harm(folder, command)
                _call("mount", "-o", f"remount,size={ROOM}k", folder)
                tally.judge(f"case {case}, a disk of {size} KiB", tried, trouble, folder, command, expected)
    return tally


@dataclass(frozen=True)
class Locked:
    """Which folders may only be read, and from when on."""

    places: Sequence[str]
    after: str = ""  # the stage that is done then; "" from the beginning
    by: str = "mount"

    def __str__(self) -> str:
        return f"{' and '.join(self.places)} read-only by {self.by} {f'after {self.after}' if self.after else 'from the beginning'}"


LOCKS = [
    *(Locked(places, after) for places in (("artifacts",), ("runs",), PLACES) for after in ("", "prepare", "train")),
    *(Locked(places, by="mode") for places in (("artifacts",), ("runs",))),
]


def read_only(command: Command, locks: Sequence[Locked] = LOCKS) -> Tally:
    """`command` with a folder that may only be read, and then may be written again."""
    tally = Tally(f"read-only; {command}")
    with folders() as (folder, reference):
        expected = _undisturbed(command, reference)
        for lock in locks:
            with _disks(folder, *PLACES):
                command.prepare(folder)
                before = _files(folder)
                tried = _locked(folder, command, lock)
                trouble = harm(folder, command)
                locked = tuple(lock.places)
                if not lock.after and _files(folder, *locked) != {k: v for k, v in before.items() if k.startswith(locked)}:
                    trouble = "what may only be read has changed"
                if tried.code == 1 and not any(place in tried.output.splitlines()[-1] for place in locked):
                    trouble = trouble or "the line does not name the folder"
                tally.judge(str(lock), tried, trouble, folder, command, expected)
    return tally


def _undisturbed(command: Command, folder: Path) -> tuple[bytes, ...]:
    command.prepare(folder)
    assert launch(folder, command.words).code == 0
    return results(folder)


def _tried(folder: Path, command: Command, before: Callable[[int], None] | None = None) -> Tried:
    ended = launch(folder, command.words, before=before)
    return Tried(ended.code, ended.output)


def _locked(folder: Path, command: Command, lock: Locked) -> Tried:
    places = [folder / place for place in lock.places]
    if lock.by != "mount":
        return _by_mode(folder, command, places)
    if not lock.after:
        os.sync()
        lock_now(places)
    try:
        return _tried(folder, command, partial(locks_after, last=lock.after, places=places) if lock.after else None)
    finally:
        for place in places:
            _call("umount", place)
            _call("mount", *EXT4, _image(place), place)


def lock_now(places: Sequence[Path]) -> None:
    for place in places:
        _call("mount", "-o", "remount,abort", place)


def locks_after(rank: int, *, last: str, places: Sequence[Path]) -> None:
    from pipeline.runtime import folder

    real = folder.RunFolder.link

    def link(self: folder.RunFolder, stage: str, place: Path, done: bool) -> None:
        real(self, stage, place, done)
        if stage == last and done:
            lock_now(places)

    folder.RunFolder.link = link  # type: ignore[method-assign]


def _by_mode(folder: Path, command: Command, places: Sequence[Path]) -> Tried:
    shut = [path for place in places for path in [place, *place.rglob("*")] if not path.is_symlink()]
    for path in shut:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        return _tried(folder, command, obeys)
    finally:
        for path in shut:
            path.chmod(path.stat().st_mode | 0o200)


def obeys(rank: int) -> None:
    """Let the bits of a file's mode count for this process, though it is root's: it gives up the right to override them."""
    header = struct.pack("Ii", 0x20080522, 0)  # man 2 capset: version 3, this process
    held = ctypes.create_string_buffer(24)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, held) == 0
    effective, *others = struct.unpack("6I", held.raw)
    assert libc.capset(header, struct.pack("6I", effective & ~(1 << CAP_DAC_OVERRIDE), *others)) == 0


def _files(folder: Path, *places: str) -> dict[str, bytes]:
    found = [path for place in places or PLACES for path in (folder / place).rglob("*") if path.is_file() and not path.is_symlink()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@contextlib.contextmanager
def _mounted(folder: Path, size: int) -> Iterator[None]:
    """A folder that is a disk of `size` KiB; what is printed goes elsewhere."""
    folder.mkdir()
    with small(folder, size):
        (folder / "output.txt").symlink_to(folder.parent / "output.txt")
        yield
    folder.rmdir()


@contextlib.contextmanager
def small(folder: Path, size: int) -> Iterator[None]:
    """Have `folder` be a disk of `size` KiB."""
    _call("mount", "-t", "tmpfs", "-o", f"size={size}k", "none", folder)
    try:
        yield
    finally:
        _call("umount", folder)


@contextlib.contextmanager
def _disks(folder: Path, *names: str) -> Iterator[None]:
    """A folder with a disk at each of `names`."""
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        for place in (folder / name for name in names):
            place.mkdir(parents=True)
            with _image(place).open("wb") as image:
                image.truncate(ROOM << 10)
            _call("mkfs.ext4", "-q", _image(place))
            _call("mount", *EXT4, _image(place), place)
            stack.callback(_call, "umount", place)
            (place / "lost+found").rmdir()
        yield


def _image(place: Path) -> Path:
    return place.with_name(f".{place.name}.ext4")


def _call(*words: str | Path) -> None:
    subprocess.run(words, capture_output=True, text=True, check=True)
