"""How a run stands: what is going on in its folder, which of its stages are fresh, and what the next command would do."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, load
from pipeline.errors import PipelineError
from pipeline.plan import check, fetched, status
from pipeline.runs import Run, read_run
from pipeline.runtime.claims import holder
from pipeline.runtime.job import job_state
from pipeline.runtime.manifests import Look, begun_before
from pipeline.runtime.progress import clock
from pipeline.summary import called
from pipeline.wording import shown

SHOWN = 3  # settings of which one line tells


def standing(config: Config, typed: Sequence[str]) -> Iterator[str]:
    """Line by line, of what was `typed`, the program first; nothing is run, and nothing of what another process makes is touched."""
    place = config.run.folder / config.run.name
    owner = holder(place / ".run")
    try:
        yield f"{place}: {_state(read_run(place, config.run.folder))}"
    except ValueError:  # there is no run in it
        yield f"{place}: never run"
    if owner:
        yield f"{place} is being worked on by pid {owner.pid} on host {owner.host} since {owner.since}"
    if told := job_state(place):
        yield told
    found = status(config)
    waiting = ""
    for name, seen in found.items():
        if seen is None:
            yield f"{name:9} waits     for {waiting}"
        elif seen.manifest is None:
            yield f"{name:9} not fresh {'under way' if owner and begun_before(seen.place) else seen.why}"
            waiting = waiting or name
        else:
            fresh, _, note = seen.why.partition(" (")
            yield f"{name:9} {fresh:9} {_near(seen.place)}" + (f"\n{'':10}{note[:-1]}" if note else "")
    command = shlex.join([called(typed[0]), "run", *typed[1:]])
    if owner is not None:
        yield "next: wait; the same command would leave at once while this one works"
        return
    yield f"next: {_next(found, command)}"
    made = _made(place)
    if made is not None and (differences := _differences(config, made)):
        command = shlex.join([called(typed[0]), "run", str(place / "config.yaml")])
        yield f"  or: {_next(status(made), command)}, with {differences}, as this run was made"


def _made(place: Path) -> Config | None:
    """With what the run in `place` was last begun, if that can be told, and is still possible."""
    try:
        return fetched(check(load(place / "config.yaml")))
    except PipelineError:
        return None


def _differences(asked: Config, made: Config) -> str:
    """What decides on results, where the run was not made with what is asked about; empty if it was."""
    pairs = zip(_decisive(asked).items(), _decisive(made).values(), strict=True)
    found = [f"{key}={shown(value)}" for (key, before), value in pairs if before != value]
    return ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")


def _decisive(config: Config) -> dict[str, Any]:
    return config.data.reasons() | config.train.reasons() | config.evaluate.reasons() | config.export.reasons()


def _state(run: Run) -> str:
    when = run.when[:19].replace("T", " ")
    step = "" if run.step is None else f"step {run.step:,}" + ("" if run.steps is None else f" of {run.steps:,}")
    if run.state == "running":
        return ", ".join(filter(None, (f"running since {when}", step, _left(run))))
    if run.state == "done":
        return f"done at {when}" + ("" if run.test_accuracy is None else f", test accuracy {run.test_accuracy:.4f}")
    if run.state == "lost":
        return ", ".join(filter(None, (f"lost, it began at {when}", step, run.message)))
    return f"{run.state} at {when}: {run.message or step}"


def _left(run: Run) -> str:
    """By the pace of late, of the training alone."""
    if not (run.step and run.steps and run.batch_size and run.images_per_second) or run.step >= run.steps:
        return ""
    return f"eta {clock((run.steps - run.step) * run.batch_size / run.images_per_second)}"


def _near(place: Path) -> Path:
    return place.relative_to(Path.cwd()) if place.is_relative_to(Path.cwd()) else place


def _next(found: Mapping[str, Look | None], command: str) -> str:
    missing = [name for name, seen in found.items() if seen is None or seen.manifest is None]
    if not missing:
        return f"`{command}` finds all of it fresh"
    first = found[missing[0]]
    verb = "goes on with" if first and first.why.startswith("goes on") else "makes"
    return f"`{command}` {verb} {', '.join(missing)}"
