"""The runs in a folder, each as its own files tell it. Of a journal only the end is read, so that a thousand runs take a second."""

import contextlib
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

from pipeline.errors import ConfigError
from pipeline.runtime import files
from pipeline.runtime.claims import holder
from pipeline.runtime.manifests import Manifest

DEEP = 3  # folders below the one that is asked for: a sweep of seeds
TAIL = 1 << 16  # bytes at the end of a journal: some 500 lines
YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast; what `config.dump` writes means the same to both


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
        return {key: finite(value) for key, value in asdict(self).items()} | {"path": _text(self.path), "group": self.group}


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
    for place, why in _places(folder, DEEP):
        if not why:
            try:
                found.append(read_run(place, folder))
            except (OSError, ValueError, OverflowError, RecursionError) as error:  # whatever somebody may have put there
                why = " ".join(str(error).split())
        if why:
            left_out.append(f"{_text(place)} is left out: {why}")
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
        places = []
        with contextlib.suppress(PermissionError):
            places = list(_places(path, deep - 1)) if deep > 1 or (path / "config.yaml").exists() else []
        yield from places or [(path, "there is no run in it")]


def read_run(place: Path, folder: Path) -> Run:
    """The run in `place`, named by its way from `folder`.

    Raises:
        ValueError: it is not one that can be read.
    """
    asked = configuration(place)
    train = _mapping(asked.get("train"))
    training = _training(place)
    made = _json(training / files.MANIFEST) if training else {}
    result = _mapping(made.get("result"))
    metric = str(train.get("metric", "accuracy"))
    step, last, best, then = _validations(training, metric, _mapping(result.get("selected"))) if training else (None, None, None, {})
    device, world_size = _where(made, then)
    timing = _json(training / "timing.json") if training else {}
    rates = (
        [line["images/s"] for line in _tail(training / "timings.jsonl", 1 << 10) if "images/s" in line] if training and not timing else []
    )
    batch_size, epoch, steps = _lengths(place, train)
    status = _status(place)
    return Run(
        name=_text(place.relative_to(folder) if place != folder else place.absolute().name),
        path=place,
        state=str(status.get("state", "unknown")),
        when=str(status.get("at", "")),
        step=_whole(result.get("steps", step)),
        steps=steps,
        metric=metric,
        last=last,
        best=best,
        test_accuracy=_tested(place, made),
        images_per_second=_number(timing.get("images_per_second", rates[-1] if rates else None)),
        seconds=_number(timing.get("seconds", then.get("seconds"))),
        device=device,
        world_size=world_size,
        data=_choice(_mapping(asked.get("data")).get("source")),
        model=_choice(train.get("model")),
        optimizer=_choice(train.get("optimizer")),
        lr=_number(train.get("lr")),
        batch_size=batch_size,
        epoch=epoch,
        report=(report := artifact_file(place / "report", "evaluate")) is not None and (report / "index.html").is_file(),
        exit_code=_whole(status.get("exit_code")),
        message=str(status.get("message", "")),
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


def finite(value: Any) -> Any:
    """`value`, or None for a number that JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@functools.lru_cache(4096)
def _parsed(path: Path, _: int) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_bytes(), YAML)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError):
        raise ValueError("its config.yaml is not YAML") from None
    if not isinstance(tree, dict):
        raise ValueError("its config.yaml holds no sections")
    return tree


def _status(place: Path) -> dict[str, Any]:
    """As its file has it, but for a process that died without a word."""
    status = _json(place / "status.json")
    if status.get("state") == "running" and holder(place / ".run") is None:
        status = _json(place / "status.json")  # it may have ended in between, which it says before it leaves
        if status.get("state") == "running":
            return {**status, "state": "lost", "message": "its process is gone; the same command goes on"}
    return status


def _training(place: Path) -> Path | None:
    """Where this run's training is, or is being, made: the journal is linked from when it begins."""
    path = artifact_file(place / "metrics.jsonl", "train")
    return path.parent if path else None


def artifact_file(path: Path, stage: str) -> Path | None:
    """Where `path` of a run folder leads: a file or folder in an artifact of `stage`, or in the run folder itself; else None.

    So a link that somebody has put there leads nowhere else.
    """
    try:
        found, home = path.resolve(strict=True), path.parent.resolve(strict=True)
    except (OSError, RuntimeError):  # it leads nowhere, or in a circle
        return None
    return found if found.parent == home or (found.parent.parent.name == stage and _is_artifact(found.parent.name)) else None


def _is_artifact(name: str) -> bool:
    """`<fingerprint>`, or `<fingerprint>.partial-<n>`."""
    fingerprint, _, number = name.partition(".partial-")
    return len(fingerprint) == 12 and set(fingerprint) <= set("0123456789abcdef") and (not number or number.isdecimal())


def _validations(training: Path, metric: str, selected: Mapping[str, Any]) -> tuple[Any, float | None, float | None, dict[str, Any]]:
    """Step, last and best value of `metric` by the end of the journal; and the newest checkpoint, which knows of the earlier ones."""
    lines = _tail(training / "metrics.jsonl", TAIL >> 4 if metric in selected else TAIL)
    values = [_number(line[f"validation/{metric}"]) for line in lines if f"validation/{metric}" in line]
    last = values[-1] if values else None
    if metric in selected:
        return lines[-1]["step"] if lines else None, last, _number(selected[metric]), {}
    then = _checkpoint(training)
    history = then.get("history")
    values += [_number(_mapping(scores).get(metric)) for scores in history] if isinstance(history, list) else []
    known = [value for value in values if value is not None and math.isfinite(value)]
    best = (min if metric == "loss" else max)(known) if known else None
    return lines[-1]["step"] if lines else None, last, best, then


def _checkpoint(training: Path) -> dict[str, Any]:
    newest = max(training.glob("checkpoints/step-*"), default=None)
    return _json(newest / files.MANIFEST) if newest else {}


def _where(made: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> tuple[str, int | None]:
    """The device of a training, and the number of its processes: by its manifest, or else by a checkpoint."""
    if now := _mapping(made.get("environment")):
        return str(now.get("device", "")), _whole(now.get("world_size"))
    then = _mapping(checkpoint.get("environment"))
    return "cpu" if "threads" in then else str(then.get("device", "")), _whole(then.get("processes"))


def _lengths(place: Path, train: Mapping[str, Any]) -> tuple[float | None, float | None, int | None]:
    """Images of a batch, steps of an epoch, and of the training; as in `stages.recipe`."""
    counts = _mapping(_mapping(_json(place / "prepare" / files.MANIFEST).get("result")).get("counts"))
    images, batch_size = _number(counts.get("train")), train.get("batch_size")
    size = images if batch_size == "all" else _number(batch_size)
    epoch = images / size if images and size else None
    epochs, steps = _number(train.get("epochs")), _whole(train.get("steps"))
    return size, epoch, steps or (math.ceil(epochs * epoch) if epochs and epoch else None)


def _tested(place: Path, training: Mapping[str, Any]) -> float | None:
    """The accuracy on the test split, if it was this training that was tested."""
    report = _json(place / "evaluate" / files.MANIFEST)
    try:
        if not report or _mapping(report.get("reasons")).get("train") != Manifest.model_validate(training).digest:
            return None
    except (ValueError, KeyError):
        return None
    return _number(_mapping(_mapping(report.get("result")).get("test")).get("accuracy"))


def _tail(path: Path, size: int) -> list[dict[str, Any]]:
    """The whole lines among the last `size` bytes of a journal."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - size)
            file.seek(start)
            content = file.read(size)
    except OSError:
        return []
    return lines_of(content.partition(b"\n")[2] if start else content)


def lines_of(content: bytes) -> list[dict[str, Any]]:
    """The lines of a journal, or of a part of one, but for those that are not whole."""
    found = []
    for text in content.split(b"\n"):
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict) and _whole(line.get("step")) is not None:
                found.append(line)
    return found


def _text(path: Path | str) -> str:
    """A name as text, which in a folder may be any bytes."""
    return str(path).encode(errors="replace").decode()


def _json(path: Path) -> dict[str, Any]:
    return _mapping(files.read_json(path))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _choice(value: Any) -> str:
    """The name of a choice, with what it names where that is of another library."""
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    return " ".join(str(value[key]) for key in ("name", "arch", "path") if value.get(key))
