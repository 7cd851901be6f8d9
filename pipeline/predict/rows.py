"""How predictions are written: a table for people, JSON lines or CSV for other programs. A row an image, at once."""

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

from pipeline.runtime.console import moves, visible

DIGITS = 6  # of a probability; those after them depend on the images beside it
SHORTEST = 12  # columns of a name that is cut


@dataclass(frozen=True)
class Prediction:
    name: str
    best: Sequence[tuple[str, float]]  # class and probability, the most probable first

    @classmethod
    def of(cls, name: str, shares: NDArray[np.float32], classes: Sequence[str], top: int) -> "Prediction":
        """Of several that are as probable the first class comes first, as in `evaluate`."""
        return cls(name, [(classes[k], float(shares[k])) for k in np.argsort(-shares, kind="stable")[:top]])


Row = Callable[[Prediction], str]
Form = Callable[[Sequence[str], Sequence[str], int], tuple[str, Row]]


def table(names: Sequence[str], classes: Sequence[str], top: int) -> tuple[str, Row]:
    """The head of a table in which all `names` and `classes` have room, and what writes a row of it; names are cut in front."""
    wide = max(cell_len(visible(name)) for name in (*classes, "class"))
    rest = top * (wide + 10)
    room = shutil.get_terminal_size().columns - rest if moves(sys.stdout) else sys.maxsize
    first = min(max(cell_len(visible(name)) for name in (*names, "image")), max(room, SHORTEST))

    def line(name: str, cells: Sequence[tuple[str, str]]) -> str:
        parts = [_padded(name, first), *(f"{_padded(one, wide)}  {share}" for one, share in cells)]
        return f"{'  '.join(parts).rstrip()}\n"

    def row(found: Prediction) -> str:
        return line(visible(found.name), [(visible(name), f"{share:.4f}") for name, share in found.best])

    head = line("image", [("class", "prob. "), *(("", "") for _ in range(top - 1))])
    return head, row


def _padded(text: str, wide: int) -> str:
    missing = wide - cell_len(text)
    if missing >= 0:
        return text + " " * missing
    return "..." + set_cell_size(text[::-1], wide - 3)[::-1]  # the end tells files apart


def jsonl(names: Sequence[str], classes: Sequence[str], top: int) -> tuple[str, Row]:
    def row(found: Prediction) -> str:
        best = [{"class": name, "probability": round(share, DIGITS)} for name, share in found.best]
        return json.dumps({"image": _text(found.name), **best[0], "top": best}) + "\n"

    return "", row


def comma_separated(names: Sequence[str], classes: Sequence[str], top: int) -> tuple[str, Row]:
    """RFC 4180, but for the line ends of this system."""
    words = visible if sys.stdout.isatty() else _text  # a terminal would obey what is in a name

    def line(*cells: str | float) -> str:
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerow(cells)
        return written.getvalue()

    def row(found: Prediction) -> str:
        best = (cell for name, share in found.best for cell in (words(name), round(share, DIGITS)))
        return line(words(found.name), *best)

    more = (name for k in range(2, top + 1) for name in (f"class_{k}", f"probability_{k}"))
    return line("image", "class", "probability", *more), row


def _text(name: str) -> str:
    return os.fsencode(name).decode(errors="backslashreplace")


FORMS: dict[str, Form] = {"table": table, "jsonl": jsonl, "csv": comma_separated}
