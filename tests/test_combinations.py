"""Whatever is combined trains, or is refused in one line before the first step.

A case is drawn by its number from the configuration itself: a key, a table's entry and its options
have the values that their annotations allow. What is added to them is drawn without a word here.
"""

import inspect
import json
import math
import random
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import pytest
from processes import launch
from pydantic.fields import FieldInfo
from safetensors.numpy import load_file

from pipeline.config import Config
from pipeline.data.augment import AUGMENTATIONS, MIXES, VIEWS
from pipeline.learning.losses import LOSSES
from pipeline.learning.models import MODELS
from pipeline.learning.optim import OPTIMIZERS
from pipeline.learning.schedules import AVERAGES, SCHEDULES
from pipeline.learning.start import BEGINNINGS
from pipeline.runtime import journal

Table = Mapping[str, Callable[..., Any]]

CASES, BLOCK = 120, 20
QUICK = range(1500, 1504)  # a sample for every day
STEPS = 5

TABLES: dict[str, Table] = {
    "train.model": MODELS,
    "train.init": BEGINNINGS,
    "train.loss": LOSSES,
    "train.optimizer": OPTIMIZERS,
    "train.schedule": SCHEDULES,
    "train.average": AVERAGES,
    "train.augment": AUGMENTATIONS,
    "train.mix": MIXES,
    "evaluate.views": VIEWS,
}
# What the cases have in common, besides the defaults of `LEFT`.
SET: dict[str, Any] = {"run.artifacts": "../artifacts", "train.steps": STEPS, "run.device": "cpu", "run.threads": 1, "run.trackers": []}
LEFT = {
    *("data.root", "train.epochs", "evaluate.min_accuracy", "export.formats", "export.tolerance", "export.int8_loss"),
    *("run.name", "run.folder", "run.time_limit", "run.hang_timeout", "run.processes"),
}
# Where what the annotation allows is too large, too slow, or hardly ever fits the rest.
VALUES: dict[str, Sequence[Any]] = {
    "data.size": (*[None] * 5, 13, 24),
    "data.channels": (None, None, 1, 3),
    "data.validation": (0, *[0.1] * 6, *[0.2] * 6),
    "train.freeze": (*[[]] * 8, ["*.bias"], ["*0.*"], ["*.weight"]),
    "train.batch_size": (1, 2, 6, *[8] * 5, 12, *[16] * 12, *[24] * 3, *[32] * 3, "all", "all"),
    "train.batch_norm": (*["sync"] * 3, *["local"] * 3, 2, 4),
    "train.accumulate": (*[None] * 6, 1, 2, 2, 3),
    "train.clip": (None, None, 0.1, 1),
    "train.determinism": (*["resume"] * 24, "elastic"),
    "train.shards": (2, 4, 8),
    "train.warmup": (0, 0, 0, 0, 0.1, 0.2),
    "train.mean": (*[None] * 24, *[[0.5]] * 12, [0.4, 0.5, 0.6]),
    "train.std": (*[None] * 24, *[[0.25]] * 12, [0.2, 0.25, 0.3]),
    "train.validate_every": (0.2, 0.5, 1, 10),
    "train.metric": (*["accuracy", "loss", "balanced_accuracy", "macro_f1"] * 3, "top5"),  # of five classes or fewer it is refused
    "run.compile": (*["no"] * 24, "aot_eager"),
    "run.workers": (0, 0, 2),
    "run.eval_batch_size": (5, 1000, 1000),
    "run.log_every": (1, 1, 2, 50),
    "run.checkpoint_every": (2, 500, 500),
    "run.scratch": (*[None] * 8, "scratch"),
}
IMAGES: dict[str, Sequence[Any]] = {"size": (12, 16, 16, 20, 32), "channels": (1, 3), "classes": (2, 4, 11)}
STRATEGIES = {1: (*["auto"] * 30, *["dp"] * 19, "ddp"), 2: (*["auto"] * 15, *["ddp"] * 15, *["fsdp"] * 19, "dp")}
RATES = {"sgd": 0.02, "muon": 0.005}  # of others 0.001
# Options that are always given, by their entry: a whole ResNet would take minutes.
OPTIONS: dict[str, dict[str, Sequence[Any]]] = {
    **{name: {"channels": ([4], [4, 6]), "kernel": (2, 3)} for name in ("lenet", "lenet5", "cifar_tutorial", "cifar_wide", "lenet3x3")},
    **{name: {"width": (1, 2, 4)} for name in ("resnet18", "resnet34", "resnet50")},
    "resnet9": {"width": (2, 4)},
    **{name: {"depth": (10, 10, 16), "widen": (1, 2)} for name in ("wrn_16_4", "wrn_28_10")},
    "fast_cifar": {"widths": ([4, 8, 8], [12, 4, 6])},
    "torchvision": {"arch": ("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5")},
    "timm": {"arch": ("test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet")},
    "weights": {"path": ("runs/before",)},
    "sgd": {"momentum": (0, 0.5, *[0.9] * 10)},
    "rand_augment": {"magnitude": (0, 5, 9), "bins": (10, 31)},
    "progressive_resize": {"start": (8, 16, 16), "multiple": (1, 2, 4)},
    "shift": {"pixels": (1, 1, 1, 2, 2, 12)},
}


@dataclass(frozen=True)
class Case:
    """A command and the processes it runs on."""

    until: Literal["train", "evaluate", "run"]
    processes: int
    values: Mapping[str, Any]

    @property
    def words(self) -> list[str]:
        return [self.until, *(f"{key}={json.dumps(value)}" for key, value in self.values.items())]

    def __str__(self) -> str:
        how = f"torchrun --nproc-per-node {self.processes} launch/run.py" if self.processes > 1 else "pipeline"
        return f"{how} {shlex.join(self.words)}"

    def before(self) -> "Case":
        """What makes the weights with which a case of `init: weights` begins."""
        return Case("train", self.processes, {**self.values, "run.name": "before", "train.init": "default"})


def drawn(number: int) -> Case:
    """The case of that number. Each key has draws of its own, so that a new one leaves the others as they are.

    Four cases in a row have their data in common.
    """
    processes = random.Random(f"{number} processes").choice((1, 1, 2))
    values: dict[str, Any] = {"run.name": f"case-{number}"}
    for section, config in Config():
        for name, field in type(config).model_fields.items():
            key = f"{section}.{name}"
            if key not in LEFT:
                rng = random.Random(f"{number // 4 if section == 'data' else number} {key}")
                values[key] = _value(rng, key, field, processes)
    name = values["train.optimizer"]["name"]
    values["train.lr"] = RATES.get(name, 0.001) * random.Random(f"{number} lr").choice((0.1, 1, 2))
    return Case("run" if number % 10 == 9 else "evaluate" if number % 5 == 2 else "train", processes, values)


def _value(rng: random.Random, key: str, field: FieldInfo, processes: int) -> Any:
    if key in SET:
        return SET[key]
    if key == "data.source":
        return {"name": "synthetic", "train": 96, "test": 23, **{k: rng.choice(v) for k, v in IMAGES.items()}}
    if key == "run.strategy":
        return rng.choice(STRATEGIES[processes])
    if key in VALUES:
        return rng.choice(VALUES[key])
    if key in TABLES:
        return _choice(rng, TABLES[key], field.annotation)
    return _allowed(rng, field, field.default)


def _choice(rng: random.Random, table: Table, annotation: Any) -> Any:
    """An entry of `table`, none if there may be none, or a list of up to two if there may be several."""
    if get_origin(annotation) is tuple:
        return [_entry(rng, table, name) for name in rng.sample(sorted(table), rng.choice((0, 0, 1, 1, 2)))]
    if NoneType in get_args(annotation) and rng.random() < 0.5:
        return None
    return _entry(rng, table, rng.choice(sorted(table)))


def _entry(rng: random.Random, table: Table, name: str) -> dict[str, Any]:
    """With every third of its options."""
    given = {option: rng.choice(values) for option, values in OPTIONS.get(name, {}).items()}
    for option in inspect.signature(table[name]).parameters.values():
        if option.kind is option.KEYWORD_ONLY and option.name not in given and rng.random() < 1 / 3:
            given[option.name] = _allowed(rng, FieldInfo.from_annotation(option.annotation), option.default)
    return {"name": name, **given}


def _allowed(rng: random.Random, field: FieldInfo, default: Any = None) -> Any:
    """A value that the annotation allows: for a number one of its bounds, or one that is near the default if nothing bounds it."""
    kind, parts = field.annotation, get_args(field.annotation)
    if get_origin(kind) is Literal:
        return rng.choice(parts)
    if get_origin(kind) in (Union, UnionType):
        part = FieldInfo.from_annotation(rng.choice(parts))
        part.metadata += field.metadata  # the bounds of `int | None` are the field's
        return _allowed(rng, part, default)
    if get_origin(kind) is tuple:
        parts = parts[:1] * rng.randint(1, 3) if parts[-1] is Ellipsis else parts
        return [_allowed(rng, FieldInfo.from_annotation(part)) for part in parts]
    if kind is NoneType:
        return None
    if kind is bool:
        return rng.random() < 0.5
    bounds = {name: getattr(bound, name) for bound in field.metadata for name in ("gt", "ge", "lt", "le") if hasattr(bound, name)}
    if kind is int:
        return _whole_number(rng, bounds, default)
    assert kind is float, f"say in VALUES or OPTIONS what there is to draw of {field}"
    return _number(rng, bounds, default)


def _whole_number(rng: random.Random, bounds: Mapping[str, int], default: int | None) -> int:
    low = bounds.get("ge", bounds.get("gt", -1) + 1)
    near = {low, low + 1, low + 3, low if default is None else default}
    return rng.choice(sorted(n for n in near if n < bounds.get("lt", math.inf) and n <= bounds.get("le", math.inf)))


def _number(rng: random.Random, bounds: Mapping[str, float], default: float | None) -> float:
    low = bounds.get("ge", bounds.get("gt", 0.0))
    high = bounds.get("le", bounds.get("lt", low + 2 * (default or 1.0)))
    inside = [low + (high - low) * share for share in (0.1, 0.5, 0.9)]
    return rng.choice([*2 * inside, *(bounds[name] for name in ("ge", "le") if name in bounds)])


def outcome(case: Case, folder: Path) -> str:
    """What becomes of `case`, run in `folder` with the artifacts beside it: trained, refused, or stopped at a gate."""
    folder.mkdir()
    if case.values["train.init"]["name"] == "weights":
        launch(folder, case.before().words, processes=case.processes)
    ended = launch(folder, case.words, processes=case.processes)
    run = folder / "runs" / case.values["run.name"]
    outputs = [path.read_text() for path in sorted(folder.glob("output*.txt"), reverse=True)]  # the main process first
    printed = "".join(outputs)
    assert "Traceback" not in printed, printed
    assert ended.code in (0, 2, 4), printed
    lines = journal.read(run / "metrics.jsonl")
    assert all(math.isfinite(value) for line in lines for value in line.values()), lines
    if ended.code:
        told = [[line.startswith("pipeline: ") for line in output.splitlines()] for output in outputs]
        assert told[0][-1:] == [True], printed
        assert all(of_one.count(True) <= 1 for of_one in told), printed
        assert ended.code == 4 or not lines, f"refused after step {lines[-1]['step']}\n{printed}"
        return "refused" if ended.code == 2 else "stopped at a gate"
    assert lines[-1]["step"] == STEPS or "ended early" in printed, printed
    weights = load_file(run / "train" / "weights.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())
    return "trained"


def assert_good(numbers: Sequence[int], folder: Path) -> None:
    """Every case of `numbers` ends well, and half of them or more are trained: to refuse all is no way out."""
    ends: Counter[str] = Counter()
    wrong = []
    for number in numbers:
        case = drawn(number)
        print(f"{number}: {case}")  # shown if the test fails, also when a case does not end
        try:
            ends[outcome(case, folder / str(number))] += 1
        except AssertionError as error:
            wrong.append(f"{case}\n{error}")
    assert not wrong, f"{len(wrong)} of {len(numbers)}:\n\n" + "\n\n".join(wrong)
    assert ends["trained"] >= 0.5 * len(numbers), ends


def test_a_few_combinations_train_or_are_refused_before_the_first_step(tmp_path: Path) -> None:
    assert_good(QUICK, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, CASES, BLOCK))
def test_combinations_train_or_are_refused_before_the_first_step(tmp_path: Path, first: int) -> None:
    assert_good(range(first, first + BLOCK), tmp_path)


def test_the_cases_have_every_entry_of_every_table() -> None:
    cases = [drawn(number).values for number in range(CASES)]
    for key, table in TABLES.items():
        entries = [entry for values in cases for entry in (values[key] if isinstance(values[key], list) else [values[key]]) if entry]
        assert {entry["name"] for entry in entries} == set(table), key
