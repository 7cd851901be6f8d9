"""The curves of a run, read from its journals as these grow, and thinned to what a screen can show."""

import json
import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import reading
from pipeline.runs import Run
from pipeline.runtime import foreign
from pipeline.runtime.foreign import finite

MOST = 1000  # points of a curve that are shown: about as many as a chart has pixels across
NAMES = 50  # curves of a run
CHUNK = 1 << 20  # bytes of a journal that are read at once
KNOWN = 100  # bytes at the end of what was read, by which a journal is known again

Numbers = NDArray[np.float64]


class Growing:
    """A journal, of which each call of `more` reads what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end, self._known = 0, b""

    def is_other(self) -> bool:
        """Whether the file is not what it was with more at its end: a restart drops the lines after its checkpoint."""
        try:
            with reading.opened(self._path) as file:
                file.seek(self._end - len(self._known))
                return file.read(len(self._known)) != self._known
        except OSError:
            return self._end > 0

    def more(self) -> Iterator[list[dict[str, Any]]]:
        """The whole lines that have come since, in parts."""
        if not self._path.is_file():
            return
        with reading.opened(self._path) as file:
            file.seek(self._end)
            while True:
                content = file.read(CHUNK)
                whole = content[: content.rfind(b"\n") + 1]
                if not whole:  # or a line as long as that, which is none of ours
                    return
                self._end += len(whole)
                self._known = (self._known + whole)[-KNOWN:]
                file.seek(self._end)
                yield _parsed(whole)


class Curves:
    """All that the journals of one training have told so far: for each name the steps, and the values."""

    def __init__(self, training: Path) -> None:
        self._training = training
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._journals = [Growing(self._training / name) for name in ("metrics.jsonl", "timings.jsonl")]
        self._points: dict[str, tuple[array[float], array[float]]] = {}
        self._starts: list[float] = []

    @property
    def points(self) -> int:
        return sum(len(steps) for steps, _ in list(self._points.values()))

    def shown(self, run: Run, axis: str) -> dict[str, Any]:
        """Each curve as its thinned points, against steps, epochs or seconds of training, with the number of all its points.

        `starts` is where the training went on after an interruption.
        """
        with self._lock:
            if any(journal.is_other() for journal in self._journals):
                self._begin()
            for lines in (lines for journal in self._journals for lines in journal.more()):
                self._take(lines)
            points = {name: (np.array(steps, np.float64), np.array(values)) for name, (steps, values) in self._points.items()}
            starts = np.array(sorted({step for step in self._starts if step > 0}), np.float64)
        along = _along(axis, run, points.get("images/s"))
        series = {}
        for name, (steps, values) in points.items():
            kept = thinned(values)
            x, y = along(steps[kept]).tolist(), values[kept].tolist()
            series[name] = {"x": [finite(value) for value in x], "y": [finite(value) for value in y], "of": len(values)}
        return {"series": series, "starts": [finite(value) for value in along(starts).tolist()]}

    def _take(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for line in lines:
            try:
                numbers = {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
            except OverflowError:  # which no line of ours has
                continue
            step = numbers.pop("step")
            if "start" in line:
                self._starts.append(step)
            for name, value in numbers.items():
                if name not in self._points:
                    if len(self._points) == NAMES:
                        continue
                    self._points[name] = array("d"), array("d")
                steps, values = self._points[name]
                steps.append(step)
                values.append(value)


def thinned(values: Numbers) -> NDArray[np.int64]:
    """Which to show: all, or of more than `MOST` the lowest and the highest of each stretch, so that no spike is lost; and both ends."""
    count = len(values)
    if count <= MOST:
        return np.arange(count)
    long = -(-count // (MOST // 2 - 1))
    places = np.minimum(np.arange(-(-count // long) * long), count - 1).reshape(-1, long)
    shown, row = values[places], np.arange(len(places))
    low, high = (np.where(np.isnan(shown), worst, shown) for worst in (np.inf, -np.inf))
    return np.unique(np.concatenate([places[row, low.argmin(1)], places[row, high.argmax(1)], [0, count - 1]]))


def _along(axis: str, run: Run, speed: tuple[Numbers, Numbers] | None) -> Any:
    """The function from steps to what stands below a chart."""
    if axis == "epoch" and run.epoch:
        return lambda steps: steps / run.epoch
    if axis == "seconds" and run.batch_size and speed is not None:
        steps, rates = np.append(0.0, speed[0]), speed[1]
        with np.errstate(divide="ignore", invalid="ignore"):
            seconds = np.append(0.0, np.nan_to_num(np.diff(steps) * run.batch_size / rates, posinf=0.0, neginf=0.0).cumsum())
        return lambda found: np.interp(found, steps, seconds)
    return lambda steps: steps


def _parsed(content: bytes) -> list[dict[str, Any]]:
    """The lines of a journal; all at once, which is twice as fast, if they are as they should be."""
    try:
        lines = json.loads(b"[" + b",".join(content.splitlines()) + b"]")
    except (ValueError, RecursionError):
        return foreign.lines(content)
    return lines if all(isinstance(line, dict) and type(line.get("step")) is int for line in lines) else foreign.lines(content)
