"""The pipeline on one page: each artifact, and what it is made from."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from pipeline.config import Config, Spec, bind
from pipeline.data.augment import AUGMENTATIONS
from pipeline.data.datasets import DATASETS, RawData
from pipeline.errors import ConfigError
from pipeline.learning.losses import LOSSES
from pipeline.learning.models import MODELS
from pipeline.learning.optim import OPTIMIZERS, SCHEDULES
from pipeline.runtime.manifests import A, Input, Look, Stage, artifact, look
from pipeline.runtime.trackers import TRACKERS
from pipeline.stages.artifacts import ExportedModel, PreparedData, Report, TrainedModel

PREPARE = Stage("prepare", PreparedData, version=1, on="first")
TRAIN = Stage("train", TrainedModel, version=1, on="all")
EVALUATE = Stage("evaluate", Report, version=1, on="all")
EXPORT = Stage("export", ExportedModel, version=1, on="main")


class Run(Protocol):
    """Makes, finds or only looks for the artifact of a stage."""

    def __call__(self, stage: Stage[A], *inputs: Input) -> A: ...


@dataclass(frozen=True)
class Plan:
    config: Config
    run: Run

    @cached_property
    def data(self) -> PreparedData:
        return self.run(PREPARE, self.config.data, RawData(self.config.data.source, self.config.data.root))

    @cached_property
    def trained(self) -> TrainedModel:
        return self.run(TRAIN, self.config.train, self.data)

    @cached_property
    def report(self) -> Report:
        return self.run(EVALUATE, self.config.evaluate, self.data, self.trained)

    @cached_property
    def exported(self) -> ExportedModel:
        return self.run(EXPORT, self.config.export, self.data, self.trained, self.report)


TARGETS = {"prepare": "data", "train": "trained", "evaluate": "report", "export": "exported"}


def check(config: Config) -> Config:
    """`config` with every choice found in its table and its options completed, before anything runs.

    Raises:
        ConfigError: in one line, with the nearest valid name.
    """

    def bound(table: Mapping[str, Callable[..., Any]], what: str, spec: Spec) -> Spec:
        return bind(table, spec, what=what)

    data, train, run = config.data, config.train, config.run
    return config.model_copy(
        update={
            "data": data.model_copy(update={"source": bound(DATASETS, "data.source", data.source)}),
            "train": train.model_copy(
                update={
                    "model": bound(MODELS, "train.model", train.model),
                    "loss": bound(LOSSES, "train.loss", train.loss),
                    "optimizer": bound(OPTIMIZERS, "train.optimizer", train.optimizer),
                    "schedule": bound(SCHEDULES, "train.schedule", train.schedule),
                    "augment": tuple(bound(AUGMENTATIONS, f"train.augment.{k}", s) for k, s in enumerate(train.augment)),
                }
            ),
            "run": run.model_copy(update={"trackers": tuple(bound(TRACKERS, f"run.trackers.{k}", s) for k, s in enumerate(run.trackers))}),
        }
    )


def check_size(config: Config, processes: int) -> None:
    """See that the global batch can be cut into a part for each process and micro-batch.

    Raises:
        ConfigError: it is too small.
    """
    parts = processes * config.train.accumulate
    if config.train.batch_size < parts:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} images cannot be cut into {parts} parts "
            f"({processes} processes, train.accumulate={config.train.accumulate}); use {parts} or more"
        )


def status(config: Config) -> dict[str, Look | None]:
    """Each stage as it stands, without running any; None where that depends on one before."""
    found: dict[str, Look | None] = dict.fromkeys(TARGETS)

    def only_look(stage: Stage[A], *inputs: Input) -> A:
        found[stage.name] = seen = look(config, stage, *inputs)
        if seen.manifest is None:
            raise LookupError(stage.name)
        return artifact(stage, seen.place, seen.manifest)

    with contextlib.suppress(LookupError):
        _ = Plan(config, only_look).exported
    return found
