"""Harm to files on a disk: a bit flipped, a file cut, lengthened, deleted, or swapped with another."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

KINDS = ("flip", "flip", "flip", "flip", "cut", "append", "delete", "swap")  # by how often


@dataclass(frozen=True)
class Harm:
    kind: str
    path: Path
    other: Path  # what it is swapped with
    at: int  # the bit that is flipped, the size to which it is cut, the byte that is appended

    def __str__(self) -> str:
        place = "/".join(self.path.parts[-2:])
        if self.kind == "swap":
            return f"swap {place} with {'/'.join(self.other.parts[-2:])}"
        return f"delete {place}" if self.kind == "delete" else f"{self.kind} {place} at {self.at}"

    def do(self) -> None:
        content = bytearray(self.path.read_bytes())
        if self.kind == "flip":
            content[self.at // 8] ^= 1 << self.at % 8
            self.path.write_bytes(content)
        elif self.kind == "cut":
            self.path.write_bytes(content[: self.at])
        elif self.kind == "append":
            self.path.write_bytes(content + bytes([self.at]))
        elif self.kind == "delete":
            self.path.unlink()
        else:
            self.path.write_bytes(self.other.read_bytes())
            self.other.write_bytes(content)


def draw(chance: random.Random, paths: Sequence[Path]) -> Harm:
    """Any file alike, any place in it alike; what would change nothing is drawn anew."""
    while True:
        kind, path, other = chance.choice(KINDS), chance.choice(paths), chance.choice(paths)
        size = path.stat().st_size
        at = {"flip": 8 * size, "cut": size, "append": 256}.get(kind, 1)
        harm = Harm(kind, path, other, chance.randrange(max(at, 1)))
        if kind == "swap" and path.read_bytes() == other.read_bytes():
            continue
        if size or kind not in ("flip", "cut"):
            return harm


@contextlib.contextmanager
def undone(paths: Sequence[Path]) -> Iterator[None]:
    """Let whatever happens to the content of `paths` be undone."""
    before = {path: path.read_bytes() for path in paths}
    try:
        yield
    finally:
        for path, content in before.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)


def changed(paths: Sequence[Path], before: dict[Path, bytes]) -> set[Path]:
    return {path for path in paths if not path.exists() or path.read_bytes() != before[path]}
