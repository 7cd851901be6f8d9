"""A search without a service: the trials of a sweep file, one after the other, each started as the file says.

runs/<name>-sweep/trial-<k>/     an ordinary run folder for each
runs/<name>-sweep/sweep.json     the trials, the best first; written anew whenever one has ended
runs/<name>-sweep/sweep.png      the metric against each parameter
"""

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.attempt import Attempt, bound, foresee
from pipeline.errors import ConfigError, PipelineError, Stopped
from pipeline.runtime import claims, files
from pipeline.runtime.console import say
from pipeline.runtime.launch import StopFlag
from pipeline.search import Search, read, trials
from pipeline.seeds import columns
from pipeline.summary import called

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def sweep(path: Path, overrides: Sequence[str], *, count: int | None, seed: int) -> int:
    """Carry out what the sweep file `path` asks for; the exit code.

    It is 0 if all trials are done; 75 if one stopped of itself, by its time limit; else 1: one failed. That ends no other trial, and
    the same command tries it again.

    Raises:
        ConfigError: before anything runs, if the file, or the configuration of any trial, is wrong.
        Stopped: told to stop, and so was the trial.
    """
    search = read(path)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", search.name or path.stem)
    if taken := next((word for word in overrides if word.partition("=")[0] in search.parameters), None):
        raise ConfigError(f"{taken}: {path} has parameters.{taken.partition('=')[0]}; change it there")
    attempts = [bound(search, trial, overrides, name) for trial in trials(search, count, seed)]
    foresee(attempts)
    folder = attempts[0].config.run.folder
    if search.early_terminate:
        say(f"{path}: early_terminate is for W&B's service; here every trial runs to its end")
    stop = StopFlag()
    stop.listen()
    with _claimed(folder, stop):
        for attempt in attempts:
            _carry_out(attempt, len(attempts), stop)
            if stop.lost:
                raise PipelineError(stop.lost)
            facts = {"name": name, "method": search.method, "seed": seed, **_results(attempts, search)}
            files.write_json(folder / "sweep.json", facts)
            if stop:
                raise Stopped(f"stopped in trial {attempt.trial.number} of {len(attempts)}; the same command goes on")
        draw(attempts, search, folder / "sweep.png")
    say(_conclusion(attempts, search, folder))
    states = {attempt.state for attempt in attempts}
    return 75 if "stopped" in states else int("failed" in states)


@contextlib.contextmanager
def _claimed(folder: Path, stop: StopFlag) -> Iterator[None]:
    """One sweep works in a folder at a time.

    Raises:
        ConfigError: another does.
    """
    claim = claims.take(folder / ".sweep", folder, stop.lose)
    if isinstance(claim, claims.Owner):
        raise ConfigError(f"{folder} is being worked on by pid {claim.pid} on host {claim.host} since {claim.since}; wait for it to end")
    try:
        yield
    finally:
        claim.leave()


def _carry_out(attempt: Attempt, count: int, stop: StopFlag) -> None:
    """If it is not done, and we are not to stop."""
    if stop or attempt.look():
        return
    say(f"trial {attempt.trial.number} of {count}: {shlex.join(attempt.trial.words)}")
    attempt.carry_out(stop)
    if attempt.state == "failed":
        say(f"trial {attempt.trial.number} failed: {attempt.message}")


def best_first(attempts: Sequence[Attempt], search: Search) -> list[Attempt]:
    """By the metric, of equals by the loss; then those that are not done."""
    sign = -1 if search.metric.goal == "maximize" else 1

    def place(attempt: Attempt) -> tuple[bool, float, float, int]:
        value, loss = (attempt.values.get(name) for name in (search.metric.name, "validation/loss"))
        return attempt.state != "done", sign * (value or 0), loss or 0, attempt.trial.number

    return sorted(attempts, key=place)


def _results(attempts: Sequence[Attempt], search: Search) -> dict[str, Any]:
    """What `sweep.json` says of the trials."""
    rows = [
        {
            "run": str(attempt.place),
            "parameters": dict(attempt.trial.parameters),
            "state": attempt.state,
            "message": attempt.message,
            **attempt.values,
        }
        for attempt in best_first(attempts, search)
    ]
    return {"metric": search.metric.model_dump(), "trials": rows, "next": _next(attempts, search)}


def _next(attempts: Sequence[Attempt], search: Search) -> str:
    """The best trial as a command: its training is fresh, so that only what is lacking is made. Empty if none is done."""
    best = best_first(attempts, search)[0]
    name = best.config.run.folder.name.removesuffix("-sweep")
    words = ["run", *best.words, f"run.name={name}-best"]
    return shlex.join([called(sys.argv[0]), *words]) if best.state == "done" else ""


def _conclusion(attempts: Sequence[Attempt], search: Search, folder: Path) -> str:
    """The same as a table, for the terminal."""
    metric, varied = search.metric.name, _varied(attempts)
    rows = [["", metric, *varied]]
    for attempt in best_first(attempts, search):
        value = f"{attempt.values[metric]:.4f}" if metric in attempt.values else attempt.state
        rows.append([attempt.place.name, value, *(str(attempt.trial.parameters[name]) for name in varied)])
    command = _next(attempts, search)
    return "\n".join(
        [
            columns(rows),
            *(f"{each.place.name} {each.state}: {each.message}" for each in attempts if each.message),
            f"  sweep    {folder / 'sweep.json'}",
            f"  picture  {folder / 'sweep.png'}",
            *([f"next: {command}"] if command else []),
        ]
    )


def _varied(attempts: Sequence[Attempt]) -> list[str]:
    """The parameters that the trials differ in."""
    names = attempts[0].trial.parameters
    return [name for name in names if len({repr(attempt.trial.parameters[name]) for attempt in attempts}) > 1]


def draw(attempts: Sequence[Attempt], search: Search, picture: Path) -> None:
    """The metric of each trial that is done against each parameter, as PNG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from pipeline.stages.report.theme import STYLE

    done, varied = [attempt for attempt in attempts if attempt.state == "done"], _varied(attempts)
    if not done or not varied:
        return
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(1 + 3 * len(varied), 3.5), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(1, len(varied), sharey=True, squeeze=False)[0]
        for axis, name in zip(axes, varied, strict=True):
            values = [attempt.trial.parameters[name] for attempt in done]
            numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
            axis.plot(values if numbers else [str(value) for value in values], [a.values[search.metric.name] for a in done], "o", alpha=0.7)
            if numbers and 0 < 8 * min(values) <= max(values):
                axis.set_xscale("log")
            axis.set_xlabel(name)
        axes[0].set_ylabel(search.metric.name)
        figure.savefig(picture, format="png", dpi=150)
