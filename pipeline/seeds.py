"""Several seeds of one experiment: where each is run, and what they say together.

runs/<name>-seeds/seed-<k>/     an ordinary run folder for each
runs/<name>-seeds/seeds.json    each seed's results, and their mean, standard deviation and interval
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, TrainConfig, validated
from pipeline.errors import ConfigError, GateError, Stopped
from pipeline.learning.statistics import Spread, spread
from pipeline.process import Process, make
from pipeline.runtime import files
from pipeline.runtime.console import say

MEASURES = {"validation_accuracy": "validation accuracy", "test_accuracy": "test accuracy", "training_seconds": "training seconds"}


def run_seeds(config: Config, count: int, process: Process) -> int:
    """The whole pipeline for `count` seeds from `train.seed` on, one after the other in one world.

    A seed that fails a gate (it diverged, it is below `evaluate.min_accuracy`) is named, and the
    others still run; the exit code is then that of a gate. What would befall each seed alike, the
    data, the machine, a signal, ends them all. The same command goes on.

    Raises:
        ConfigError: all of them are to be one run of W&B.
    """
    check_apart(config)
    of_seed(config, config.train.seed + count - 1)  # the last is the first that could be none
    summaries, failures = {}, {}
    for seed in range(config.train.seed, config.train.seed + count):
        if process.stopping():
            raise Stopped(f"stopped before seed {seed}; the same command goes on")
        if process.launch.is_main:
            say(f"seed {seed}: {seed - config.train.seed + 1} of {count}")
        try:
            summaries[seed] = make(of_seed(config, seed), "export", "", process)
        except GateError as error:  # the same on every process
            failures[seed] = str(error)
            say(f"seed {seed} failed: {error}")
    if process.launch.is_main:
        say(_conclude(config, {seed: summary for seed, summary in summaries.items() if summary is not None}, failures))
    return GateError.exit_code if failures else 0


def check_apart(config: Config) -> None:
    """See that the seeds are not to be one run of W&B.

    Raises:
        ConfigError: they are.
    """
    if "WANDB_RUN_ID" in os.environ and any(tracker.name == "wandb" for tracker in config.run.trackers):
        raise ConfigError("several seeds are several runs, but WANDB_RUN_ID names one of W&B; unset it, or add run.trackers=[]")


def of_seed(config: Config, seed: int) -> Config:
    """The same experiment with another `train.seed`, in a run folder of its own.

    Raises:
        ConfigError: it is too large.
    """
    validated(TrainConfig, {"seed": seed}, "train.")
    where = {"folder": together(config), "name": f"seed-{seed}"}
    return config.model_copy(
        update={"train": config.train.model_copy(update={"seed": seed}), "run": config.run.model_copy(update=where)},
    )


def together(config: Config) -> Path:
    """The folder of all the seeds."""
    return config.run.folder / f"{config.run.name}-seeds"  # beside a run of the same name, not in its place


def _conclude(config: Config, summaries: Mapping[int, Mapping[str, Any]], failures: Mapping[int, str]) -> str:
    """Write `seeds.json` of the finished and the failed seeds; the same as a table, for the terminal."""
    spreads = {}
    for name in MEASURES:
        values = [summary[name] for summary in summaries.values() if summary[name] is not None]
        if values:
            spreads[name] = spread(values)
    results = [{"seed": seed, **{name: summary[name] for name in MEASURES}} for seed, summary in summaries.items()]
    failed = [{"seed": seed, "message": message} for seed, message in failures.items()]
    joint = {name: dataclasses.asdict(found) for name, found in spreads.items()}
    place = together(config) / "seeds.json"
    files.write_json(place, {"name": config.run.name, "seeds": results, "failed": failed, **joint})
    return "\n".join(
        [
            *([_table(summaries, spreads)] if summaries else []),
            *(f"seed {seed} failed: {message}" for seed, message in failures.items()),
            f"  seeds    {place}",
        ]
    )


def _table(summaries: Mapping[int, Mapping[str, Any]], spreads: Mapping[str, Spread]) -> str:
    rows = [["seed", *(title for name, title in MEASURES.items() if name in spreads)]]
    rows += [[str(seed), *(_shown(name, summary[name]) for name in spreads)] for seed, summary in summaries.items()]
    rows.append(["mean", *(_shown(name, found.mean) for name, found in spreads.items())])
    if len(summaries) > 1:
        rows.append(["std", *(_shown(name, found.std) for name, found in spreads.items())])
        intervals = [[_shown(name, end) for end in found.interval or ()] for name, found in spreads.items()]
        rows.append(["95 %", *(" to ".join(ends) for ends in intervals)])
    return columns(rows)


def _shown(name: str, value: float | None) -> str:
    digits = 1 if name == "training_seconds" else 4
    return "" if value is None else f"{value:.{digits}f}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Text in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(text.rjust(width) for text, width in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
