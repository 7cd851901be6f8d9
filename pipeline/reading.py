"""Reading what anybody may have written: regular files alone, no more of them than a parser can take, YAML that stays as small as it is."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

LARGEST = 16 << 20  # bytes of a file that is read to be parsed: JSON may take twenty times as many in memory
MATRICES = 1 << 26  # of a metrics.json: each of up to four confusion matrices of 1,000 classes takes 11 million, or more
YAML = 1 << 18  # bytes of a file of it, which is read more slowly
VALUES, DEEP = 100_000, 50  # in a document, with what its aliases stand for; and in each other
DIGITS = 400  # of a number: the largest that a float can be has 309
SMALL = 1 << 13  # bytes that libyaml composes, in recursion: a hundred thousand [ take the process down
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def opened(path: Path) -> BufferedReader:
    """The regular file `path`, to be read: a pipe would keep its reader waiting, a device may have no end.

    Raises:
        OSError: it is none, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is a folder" if stat.S_ISDIR(mode) else "it is no regular file", str(path))


def read(path: Path, most: int = LARGEST) -> bytes:
    """All of the regular file `path`.

    Raises:
        OSError: it is none, cannot be read, or has more than `most` bytes.
    """
    with opened(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


class Plain(yaml.SafeLoader):
    """Refuses a key that is there twice, aliases that stand for very much, and what is nested very deep."""

    def get_single_node(self) -> yaml.Node | None:
        return _plain(super().get_single_node())


class Fast(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same, ten times as fast; for what is `SMALL`."""

    def get_single_node(self) -> yaml.Node | None:
        return _plain(super().get_single_node())


def parsed(text: str | bytes, loader: type[Plain] | type[Fast]) -> Any:
    """The value of a YAML document.

    Raises:
        yaml.YAMLError: it is none.
    """
    try:
        return yaml.load(text, loader if len(text) <= SMALL else Plain)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError:
        raise
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except Exception as error:  # the constructor of a date, or of what has a tag, raises anything
        raise yaml.YAMLError(str(error)) from None


def _plain(root: yaml.Node | None) -> yaml.Node | None:
    if root is not None:
        _weigh(root, {}, 1)
    return root


def _weigh(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """The number of values in `node`; `known` has those of nodes by their ids, 0 for one that is being weighed."""
    if node.tag in NUMBERS and len(node.value) > DIGITS:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(node.value):,} digits", node.start_mark)
    if known.get(id(node)) == 0:
        raise yaml.constructor.ConstructorError(None, None, "it holds itself", node.start_mark)
    if depth > DEEP:
        raise yaml.constructor.ConstructorError(None, None, "it is nested too deeply", node.start_mark)
    if id(node) not in known:
        known[id(node)] = 0
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        _see_keys([key for key, _ in pairs if isinstance(key, yaml.ScalarNode)])
        below = [each for pair in pairs for each in pair] or (node.value if isinstance(node, yaml.SequenceNode) else [])
        known[id(node)] = 1 + sum(_weigh(each, known, depth + 1) for each in below)
    if known[id(node)] > VALUES:
        raise yaml.constructor.ConstructorError(None, None, f"it stands for more than {VALUES:,} values", node.start_mark)
    return known[id(node)]


def _see_keys(keys: list[yaml.ScalarNode]) -> None:
    seen = set()
    for key in keys:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice; keep one", key.start_mark)
        seen.add(key.value)
