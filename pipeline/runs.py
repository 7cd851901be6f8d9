"""The runs in a folder, each as its own files tell it. Of a journal only the end is read, so that a thousand runs take a second."""

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from pipeline import reading
from pipeline.errors import ConfigError, of_the_machine
from pipeline.runtime import files, foreign
from pipeline.runtime.claims import holder
from pipeline.runtime.foreign import choice, json_in, mapping, number, tail, whole
from pipeline.runtime.manifests import Manifest

DEEP = 3  # folders below the one that is asked for: a sweep of seeds
TAIL = 1 << 16  # bytes at the end of a journal: some 500 lines


@dataclass(frozen=True)
class Run:
    """What is known of a run; None, or an empty text, is what is not known, or not yet."""

    name: str  # its folder, below that of all runs
    path: Path
    state: str  # running, done, stopped, failed; lost: it says running, but its process is dead
    when: str  # ISO 8601: when it began to run, or how it ended was noted
    step: int | None
    steps: int | None  # in all
    metric: str  # what the validations below are of
    last: float | None
    best: float | None  # so far
    test_accuracy: float | None
    images_per_second: float | None  # over all of a finished training, else of late
    seconds: float | None  # of training
    device: str
    world_size: int | None
    data: str
    model: str
    optimizer: str
    lr: float | None
    batch_size: float | None  # images
    epoch: float | None  # in steps
    report: bool  # whether there is one
    exit_code: int | None
    message: str

    @property
    def group(self) -> str:
        """The folder that it shares with other seeds, or with other trials of a sweep; empty if there is none."""
        return self.name.rpartition("/")[0]

    def facts(self) -> dict[str, Any]:
        """All of it as JSON has it, which knows no infinity."""
        return {key: foreign.finite(value) for key, value in asdict(self).items()} | {"path": foreign.text(self.path), "group": self.group}


@dataclass(frozen=True)
class Runs:
    found: Sequence[Run]  # the newest first; those of one folder, as of a sweep, together
    left_out: Sequence[str]  # why, a line for each folder that could not be read


def read(folder: Path) -> Runs:
    """All runs in `folder`, those of seeds and sweeps included.

    Raises:
        ConfigError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"{folder} is no folder of runs; `pipeline run` makes {folder if folder.name == 'runs' else 'runs'}, or name another"
        )
    found, left_out = [], []
    try:
        places = list(_places(folder, DEEP))
    except OSError as error:
        raise ConfigError(of_the_machine(error)) from None
    for place, why in places:
        if not why:
            try:
                found.append(read_run(place, folder))
            except (OSError, ValueError, OverflowError, RecursionError) as error:  # whatever somebody may have put there
                why = " ".join(str(error).split())
        if why:
            left_out.append(f"{foreign.text(place)} is left out: {why}")
    newest: dict[str, float] = {}
    for run in found:
        newest[run.group or run.name] = max(_moment(run.when), newest.get(run.group or run.name, 0.0))
    found.sort(key=lambda run: (newest[run.group or run.name], run.group, _moment(run.when), run.name), reverse=True)
    return Runs(found, left_out)


def _moment(when: str) -> float:
    try:
        return datetime.fromisoformat(when).timestamp()
    except ValueError:
        return 0.0


def _places(folder: Path, deep: int) -> Iterator[tuple[Path, str]]:
    """Folders of runs, and such as are none, with the reason."""
    if (folder / "config.yaml").exists() or (folder / "status.json").exists():
        yield folder, ""
        return
    below = sorted(entry.path for entry in os.scandir(folder) if not entry.name.startswith(".") and entry.is_dir())
    for path in map(Path, below):
        if path.is_symlink():
            yield path, "it is a link, which is not followed"
            continue
        try:
            places = list(_places(path, deep - 1)) if deep > 1 or (path / "config.yaml").exists() else []
        except OSError as error:  # it is closed to us, or gone by now
            places = [(path, error.strerror or str(error))]
        yield from places or [(path, "there is no run in it")]


def read_run(place: Path, folder: Path) -> Run:
    """The run in `place`, named by its way from `folder`.

    Raises:
        ValueError: it is not one that can be read.
    """
    asked = _asked(place)
    report = foreign.of_artifact(place / "report", "evaluate")
    return Run(
        name=foreign.text(place.relative_to(folder) if place != folder else place.absolute().name),
        path=place,
        report=report is not None and (report / "index.html").is_file(),
        **asked,
        **_learnt(place, asked["metric"]),
        **_standing(place),
    )


def configuration(place: Path) -> dict[str, Any]:
    """What the run in `place` was last asked to do.

    Raises:
        ValueError: nobody knows.
    """
    path = place / "config.yaml"
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise ValueError("it has no config.yaml") from None


def flat(tree: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """A configuration by dotted keys, its values as overrides are written; a choice is its name, and below it its options."""
    found: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping):
            found |= {name: str(value["name"])} if "name" in value and above else {}
            found |= flat({k: v for k, v in value.items() if k != "name" or not above}, f"{name}.")
        else:
            found[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


@functools.lru_cache(4096)
def _parsed(path: Path, _: int) -> dict[str, Any]:
    try:
        tree = reading.parsed(reading.read(path, reading.YAML), reading.Fast)
    except yaml.YAMLError:
        raise ValueError("its config.yaml is not YAML") from None
    if not isinstance(tree, dict):
        raise ValueError("its config.yaml holds no sections")
    return tree


def _asked(place: Path) -> dict[str, Any]:
    """What the training was to do; how long that is, as in `stages.recipe`."""
    asked = configuration(place)
    train = mapping(asked.get("train"))
    counts = mapping(mapping(json_in(place / "prepare" / files.MANIFEST).get("result")).get("counts"))
    images, batch_size = number(counts.get("train")), train.get("batch_size")
    size = images if batch_size == "all" else number(batch_size)
    epoch = images / size if images and size else None
    epochs, steps = number(train.get("epochs")), whole(train.get("steps"))
    return {
        "data": choice(mapping(asked.get("data")).get("source")),
        "model": choice(train.get("model")),
        "optimizer": choice(train.get("optimizer")),
        "lr": number(train.get("lr")),
        "metric": str(train.get("metric", "accuracy")),
        "batch_size": size,
        "epoch": epoch,
        "steps": steps or (math.ceil(epochs * epoch) if epochs and epoch else None),
    }


def _standing(place: Path) -> dict[str, Any]:
    """How it stands: as its file has it, but for a process that died without a word."""
    status = json_in(place / "status.json")
    if status.get("state") == "running" and holder(place / ".run") is None:
        status = json_in(place / "status.json")  # it may have ended in between, which it says before it leaves
        if status.get("state") == "running":
            status |= {"state": "lost", "message": "its process is gone; the same command goes on"}
    return {
        "state": str(status.get("state", "unknown")),
        "when": str(status.get("at", "")),
        "exit_code": whole(status.get("exit_code")),
        "message": str(status.get("message", "")),
    }


def _learnt(place: Path, metric: str) -> dict[str, Any]:
    """How far the training is, and what came of it: by its manifest if it is finished, else by its newest checkpoint and its journals."""
    journal = foreign.of_artifact(place / "metrics.jsonl", "train")  # linked from when the training begins
    training = journal.parent if journal else place / ".no-training"  # where nothing is
    made = json_in(training / files.MANIFEST)
    result, environment = mapping(made.get("result")), mapping(made.get("environment"))
    selected = number(mapping(result.get("selected")).get(metric))
    then = {} if made else _checkpoint(training)
    lines = tail(training / "metrics.jsonl", TAIL if selected is None else TAIL >> 4)
    values = [value for line in lines if (value := number(line.get(f"validation/{metric}"))) is not None]
    timing = json_in(training / "timing.json") if made else _latest(training, then)
    return {
        "step": whole(result.get("steps", lines[-1]["step"] if lines else None)),
        "last": values[-1] if values else None,
        "best": _best(metric, [*values, *_history(then, metric)]) if selected is None else selected,
        "images_per_second": number(timing.get("images_per_second")),
        "seconds": number(timing.get("seconds")),
        "device": str(environment.get("device", "")) if made else _device(then),
        "world_size": whole(environment.get("world_size", mapping(then.get("environment")).get("processes"))),
        "test_accuracy": _tested(place, made),
    }


def _checkpoint(training: Path) -> dict[str, Any]:
    newest = max(training.glob("checkpoints/step-*"), default=None)
    return json_in(newest / files.MANIFEST) if newest else {}


def _latest(training: Path, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The timing of a training that is not finished, as far as it is known."""
    rates = [line["images/s"] for line in tail(training / "timings.jsonl", TAIL >> 6) if "images/s" in line]
    return {"images_per_second": rates[-1] if rates else None, "seconds": checkpoint.get("seconds")}


def _history(checkpoint: Mapping[str, Any], metric: str) -> list[float]:
    """All validations until a checkpoint: of a journal only the end is read."""
    history = checkpoint.get("history")
    found = [number(mapping(scores).get(metric)) for scores in history] if isinstance(history, list) else []
    return [value for value in found if value is not None]


def _best(metric: str, values: Sequence[float]) -> float | None:
    return (min if metric == "loss" else max)(filter(math.isfinite, values), default=None)


def _device(checkpoint: Mapping[str, Any]) -> str:
    environment = mapping(checkpoint.get("environment"))
    return "cpu" if "threads" in environment else str(environment.get("device", ""))  # of a CPU it is the kind


def _tested(place: Path, training: Mapping[str, Any]) -> float | None:
    """The accuracy on the test split, if it was this training that was tested."""
    report = json_in(place / "evaluate" / files.MANIFEST)
    try:
        if not report or mapping(report.get("reasons")).get("train") != Manifest.model_validate(training).digest:
            return None
    except (ValueError, KeyError):
        return None
    return number(mapping(mapping(report.get("result")).get("test")).get("accuracy"))
