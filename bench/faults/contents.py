"""What a file holds after writes of which some have not reached the disk."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

PAGE = 4096


@dataclass(frozen=True)
class Write:
    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Cut:
    inode: int
    size: int


@dataclass(frozen=True)
class Sync:
    inode: int


Change = Write | Cut | Sync


def played(content: bytes, steps: Sequence[Change]) -> bytes:
    result = bytearray(content)
    for step in steps:
        if isinstance(step, Write):
            overwrite(result, step.offset, step.data)
        elif isinstance(step, Cut):
            cut(result, step.size)
    return bytes(result)


def shortened(step: Change, rng: random.Random) -> Change:
    """A write up to a page's border."""
    if not isinstance(step, Write):
        return step
    first, last = step.offset // PAGE, (step.offset + len(step.data)) // PAGE
    return Write(step.inode, step.offset, step.data[: max(0, rng.randint(first, last) * PAGE - step.offset)])


def mixed(old: bytes, since: Sequence[Change], rng: random.Random) -> bytes:
    """Each page the new one or the old; or zeros, where there was none, or it was cut off on the way."""
    new = played(old, since)
    lasting = min([len(old), *(step.size for step in since if isinstance(step, Cut))])
    pages = []
    for at in range(0, len(new), PAGE):
        page = new[at : at + PAGE]
        before = old[at : at + PAGE].ljust(len(page), b"\0")[: len(page)]
        pages.append(rng.choice([page, before] if at < lasting else [page, page, before, bytes(len(page))]))
    return b"".join(pages)


def overwrite(content: bytearray, offset: int, data: bytes) -> None:
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


def cut(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))
