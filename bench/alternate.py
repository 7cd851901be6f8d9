"""What a part of the training costs: windows of one training, each from a checkpoint to where the next is due, with it and without."""

import functools
import importlib
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import faults  # noqa: F401  (which puts `processes` in reach)

# isort: split
from processes import begin


def windows(folder: Path, words: Sequence[str], off: Sequence[str], *, processes: int = 1) -> tuple[list[float], list[float]]:
    """Seconds of the windows with, and of those without, of `pipeline WORDS` in `folder`; the first, which warms up, is left out.

    What is taken away from every other window are the methods `off`, each as "module:Class.method", and the checkpoint.
    """
    started = begin(folder, words, before=functools.partial(_alternate, off), processes=processes)
    for process in started:
        process.join()
    assert not any(process.exitcode for process in started), (folder / "output.txt").read_text()
    on, without = json.loads((folder / "seconds.json").read_text())
    return on, without


def ratio(on: Sequence[float], without: Sequence[float]) -> float:
    """The median of those of neighbours, on a machine whose speed drifts."""
    return statistics.median(ours / theirs for ours, theirs in zip(on, without, strict=True))


def _alternate(off: Sequence[str], rank: int) -> None:
    """Take the methods `off` away from every other window; the seconds of the windows, with them and without, go into a file."""
    from pipeline.stages.record import Record

    real = {owner_and_name: getattr(*owner_and_name) for owner_and_name in (_method(place) for place in off)}
    keep = Record.save
    seconds: dict[bool, list[float]] = {True: [], False: []}
    trusted, began = False, time.perf_counter()

    def save(record: Any, count: int) -> None:
        nonlocal trusted, began
        record._written()
        seconds[trusted].append(time.perf_counter() - began)
        trusted, began = not trusted, time.perf_counter()
        for (owner, name), function in real.items():
            setattr(owner, name, function if trusted else lambda *_: None)
        if trusted:
            keep(record, count)
        if rank == 0:
            Path("seconds.json").write_text(json.dumps([seconds[True], seconds[False][1:]]))

    Record.save = save  # type: ignore[assignment, method-assign]


def _method(place: str) -> tuple[type, str]:
    module, _, method = place.partition(":")
    owner, _, name = method.partition(".")
    return getattr(importlib.import_module(module), owner), name
