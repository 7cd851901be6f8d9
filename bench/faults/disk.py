"""A disk on which only what was synced is sure: what may be left of a folder when the power goes.

The model, after Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014, ALICE), section 3,
and POSIX's fsync; it is weaker than any one file system (ext4 and XFS would keep more):

- What a file held at its last fsync is sure. Of what was written or cut off since, there may be none; all; the first
  so many calls, the last of them up to a page; or each page of 4096 bytes the new one or the old one, at the
  new length; or zeros, where the file did not reach before, or was cut off in between.
- A name (of a file, folder or link: made, renamed, removed) is sure once its folder was synced afterwards. An fsync of the
  file itself does not make its name sure, nor does that of a folder the folder's own name.
- Of the other operations on names any subset may be there, in any folder, whatever came between; but those on one
  name stay in order: one that is there implies the earlier ones on the same name.
- A rename is atomic: both names, or neither; sure once either folder was synced.
- Names and data know nothing of each other: a new name may show an empty file, a removed one may be back.

Not modelled: sectors torn below a page, media errors, a disk that lies about its flush.
"""

import os
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.faults.contents import Cut, Sync, Write, cut, mixed, overwrite, played, shortened
from bench.faults.traced import Call

SAID = ".said-"  # a folder of such a name is no folder, but word that save <n> was said to be done

Entry = tuple[int, str]  # (the folder, a name in it)
ROOT = 0


@dataclass(frozen=True)
class Names:
    """Entries that change together."""

    entries: dict[Entry, int | None]  # -> what the name is of; None: it is gone


@dataclass(frozen=True)
class Said:
    number: int


Step = Names | Write | Cut | Sync | Said


@dataclass
class Disk:
    """What was on the disk before, and the steps since; built from system calls in their order."""

    root: Path
    before: dict[Entry, int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)  # of files, before
    links: dict[int, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    _live: dict[Entry, int] = field(default_factory=dict)
    _now: dict[int, bytearray] = field(default_factory=dict)
    _offsets: dict[int, int] = field(default_factory=dict)
    _inodes: int = ROOT

    @classmethod
    def of(cls, root: Path, before: Path, calls: Sequence[Call]) -> "Disk":
        """The disk on which `calls` found in `root` what `before` is a copy of."""
        disk = cls(root)
        disk._read(before, ROOT)
        disk._live = dict(disk.before)
        disk._now = {inode: bytearray(content) for inode, content in disk.contents.items()}
        for call in calls:
            if call.result != -1:
                disk._take(call)
        return disk

    def _read(self, place: Path, folder: int) -> None:
        for path in sorted(place.iterdir()):
            inode = self._new()
            self.before[folder, path.name] = inode
            if path.is_symlink():
                self.links[inode] = str(path.readlink())
            elif path.is_dir():
                self._read(path, inode)
            else:
                self.contents[inode] = path.read_bytes()

    def _new(self) -> int:
        self._inodes += 1
        return self._inodes

    def _entry(self, path: Path) -> Entry:
        folder = ROOT
        for part in path.parent.relative_to(self.root).parts:
            folder = self._live[folder, part]
        return folder, path.name

    def _inode(self, path: Path) -> int | None:
        return ROOT if path == self.root else self._live.get(self._entry(path))

    def _names(self, entries: dict[Entry, int | None]) -> None:
        step = Names(entries)
        self.steps.append(step)
        _apply(self._live, step)

    def _take(self, call: Call) -> None:
        name, path = call.name, call.paths[0]
        if path.name.startswith(SAID):
            if name == "mkdir":
                self.steps.append(Said(int(path.name.removeprefix(SAID))))
        elif name in ("open", "openat", "creat"):
            self._open(call, path)
        elif name in ("rename", "renameat", "renameat2"):
            entry, target = self._entry(path), self._entry(call.paths[1])
            self._names({entry: None, target: self._live[entry]})
        elif name in ("unlink", "unlinkat", "rmdir"):
            self._names({self._entry(path): None})
        elif name in ("mkdir", "mkdirat", "symlink", "symlinkat"):
            inode = self._new()
            if "symlink" in name:
                self.links[inode] = _target(call)
            self._names({self._entry(path): inode})
        elif name in ("fsync", "fdatasync"):
            if (synced := self._inode(path)) is not None:
                self.steps.append(Sync(synced))
        elif name != "close":
            self._move(call, path)

    def _open(self, call: Call, path: Path) -> None:
        inode = self._inode(path)
        if inode is None and "O_CREAT" in call.text:
            inode = self._new()
            self.contents[inode], self._now[inode] = b"", bytearray()
            self._names({self._entry(path): inode})
        elif inode is not None and "O_TRUNC" in call.text and self._now[inode]:
            self._cut(inode, 0)
        self._offsets[call.descriptor] = len(self._now[inode]) if inode is not None and "O_APPEND" in call.text else 0

    def _move(self, call: Call, path: Path) -> None:
        """What goes by, or sets, the place in an open file or its size."""
        inode, done = self._inode(path), call.result or 0
        if inode is None or inode not in self._now:
            return
        if call.name in ("ftruncate", "truncate"):
            self._cut(inode, _last_number(call))
        elif call.name == "pwrite64":
            self._write(inode, _last_number(call), call.data[:done])
        elif call.name == "lseek":
            self._offsets[call.descriptor] = done
        elif call.name == "read":
            self._offsets[call.descriptor] = self._offsets.get(call.descriptor, 0) + done
        elif call.name in ("write", "writev", "sendfile"):
            at = self._offsets.get(call.descriptor, 0)
            data = call.data if "write" in call.name else call.paths[1].read_bytes()[at:]  # copied from what is not written any more
            self._write(inode, at, data[:done])
            self._offsets[call.descriptor] = at + done
        else:
            assert call.name == "pread64", f"{call.name} is not modelled"

    def _write(self, inode: int, offset: int, data: bytes) -> None:
        self.steps.append(Write(inode, offset, data))
        overwrite(self._now[inode], offset, data)

    def _cut(self, inode: int, size: int) -> None:
        self.steps.append(Cut(inode, size))
        cut(self._now[inode], size)

    def said(self, at: int) -> int:
        """The last save that was said to be done in the first `at` steps."""
        return max((step.number for step in self.steps[:at] if isinstance(step, Said)), default=0)

    def after(self, at: int, rng: random.Random | None, place: Path) -> None:
        """Make `place` the folder as the power, lost after `at` steps, may leave it; without `rng`, as one that was not lost."""
        keep = 1.0 if rng is None else rng.choice([0.0, 0.2, 0.5, 0.8, 1.0])
        entries = dict(self.before)
        for step in self._names_kept(at, keep, rng):
            _apply(entries, step)
        self._make(place, ROOT, entries, at, rng)

    def _names_kept(self, at: int, keep: float, rng: random.Random | None) -> list[Names]:
        """Those that are sure, some of the others, and what these imply; in their order."""
        kept: list[Names] = []
        synced: set[int] = set()
        implied: set[Entry] = set()
        for step in reversed(self.steps[:at]):
            if isinstance(step, Sync):
                synced.add(step.inode)
            elif isinstance(step, Names):
                sure = any(folder in synced for folder, _ in step.entries) or not implied.isdisjoint(step.entries)
                if sure or rng is None or rng.random() < keep:
                    kept.append(step)
                    implied.update(step.entries)
        return kept[::-1]

    def _make(self, place: Path, folder: int, entries: dict[Entry, int], at: int, rng: random.Random | None) -> None:
        for (parent, name), inode in sorted(entries.items()):
            if parent != folder:
                continue
            if inode in self.links:
                (place / name).symlink_to(self.links[inode])
            elif inode in self.contents:
                (place / name).write_bytes(self._content(inode, at, rng))
            else:
                (place / name).mkdir()
                self._make(place / name, inode, entries, at, rng)

    def _content(self, inode: int, at: int, rng: random.Random | None) -> bytes:
        steps = [step for step in self.steps[:at] if isinstance(step, Write | Cut | Sync) and step.inode == inode]
        sure = max((n + 1 for n, step in enumerate(steps) if isinstance(step, Sync)), default=0)
        old = played(self.contents[inode], steps[:sure])
        since = steps[sure:]
        how = rng.choice(["none", "all", "first", "pages"]) if rng and since else "all"
        if how == "none" or rng is None or not since:
            return old if how == "none" else played(old, since)
        if how == "first":
            count = rng.randrange(len(since))
            return played(played(old, since[:count]), [shortened(since[count], rng)])
        return played(old, since) if how == "all" else mixed(old, since, rng)


def _apply(entries: dict[Entry, int], step: Names) -> None:
    for entry, inode in step.entries.items():
        if inode is None:
            entries.pop(entry, None)
        else:
            entries[entry] = inode


def _target(call: Call) -> str:
    match = re.match(r'"((?:\\x[0-9a-f]{2})*)"', call.text)
    return os.fsdecode(bytes.fromhex(match[1].replace("\\x", ""))) if match else call.text


def _last_number(call: Call) -> int:
    return int(re.findall(r", (\d+)\)", call.text)[-1])
