"""The pipeline on one page: each artifact, and what it is made from."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from pipeline.arguments import STAGES
from pipeline.config import Config, Spec, bind
from pipeline.credentials import hide
from pipeline.data.augment import AUGMENTATIONS, MIXES, VIEWS
from pipeline.data.datasets import DATASETS, RawData
from pipeline.errors import ConfigError
from pipeline.learning.losses import LOSSES
from pipeline.learning.models import MODELS
from pipeline.learning.optim import OPTIMIZERS
from pipeline.learning.schedules import AVERAGES, SCHEDULES
from pipeline.learning.start import BEGINNINGS, Beginning, at_hand, beginning
from pipeline.runtime.manifests import A, Input, Look, Stage, artifact, look, read, whereabouts
from pipeline.runtime.trackers import TRACKERS
from pipeline.stages.artifacts import ExportedModel, PreparedData, RateTest, Report, TrainedModel
from pipeline.stages.export.formats import CALIBRATED, FORMATS, completed

PREPARE = Stage("prepare", PreparedData, version=1, on="first")
TRAIN = Stage("train", TrainedModel, version=2, on="all")
EVALUATE = Stage("evaluate", Report, version=3, on="all")
LR_FIND = Stage("lr_find", RateTest, version=1, on="all")
EXPORT = Stage("export", ExportedModel, version=3, on="main")


class Run(Protocol):
    """Makes, finds or only looks for the artifact of a stage."""

    def __call__(self, stage: Stage[A], *inputs: Input) -> A: ...


@dataclass(frozen=True)
class Plan:
    config: Config
    run: Run

    @cached_property
    def raw(self) -> RawData:
        return RawData(self.config.data.source, self.config.data.root)

    @cached_property
    def beginning(self) -> Beginning:
        return Beginning(self.config.train.init)

    @cached_property
    def data(self) -> PreparedData:
        return self.run(PREPARE, self.config.data, self.raw)

    @cached_property
    def trained(self) -> TrainedModel:
        return self.run(TRAIN, self.config.train, self.data, self.beginning)

    @cached_property
    def report(self) -> Report:
        return self.run(EVALUATE, self.config.evaluate, self.data, self.trained)

    @cached_property
    def exported(self) -> ExportedModel:
        return self.run(EXPORT, self.config.export, self.data, self.trained, self.report)

    @cached_property
    def rates(self) -> RateTest:
        return self.run(LR_FIND, self.config.train, self.data, self.beginning)

    def foresee(self) -> bool:
        """See that training can begin, as far as that can be told before anything is done; whether that is all of it.

        It is where the images are prepared; else their shape may be known. Torch is imported, unless there is nothing to train.

        Raises:
            ConfigError: it cannot.
        """
        data, train = self.config.data, self.config.train
        place, _ = whereabouts(self.config, PREPARE, data, self.raw)
        manifest, _ = read(place)
        if manifest is not None:
            made = artifact(PREPARE, place, manifest)
            if not whereabouts(self.config, TRAIN, train, made, self.beginning)[0].is_dir():
                self.refuse(made)
            return True
        if self.raw.source.known is None:
            return False
        from pipeline.stages.recipe import foresee

        (channels, height, width), classes = self.raw.source.known
        foresee(train, (data.channels or channels, data.size or height, data.size or width), classes)
        return False

    def refuse(self, data: PreparedData) -> None:
        """Raises ConfigError if training cannot begin on `data`."""
        from pipeline.stages.recipe import refuse

        refuse(self.config.train, data)


TARGETS = dict(zip(STAGES, ("data", "trained", "report", "exported"), strict=True))


def check(config: Config) -> Config:
    """`config` with every choice found in its table and its options completed, before anything runs.

    Raises:
        ConfigError: in one line, with the nearest valid name; or a value holds a credential.
    """
    _without_credentials("", config.model_dump(mode="json"))
    if twice := next((name for name, count in Counter(spec.name for spec in config.run.trackers).items() if count > 1), None):
        raise ConfigError(f"run.trackers: {twice} is named twice; once is enough for all that there is to tell")

    if config.data.validation == 0 and any(spec.name == "int8" for spec in config.export.formats):
        raise ConfigError(CALIBRATED)

    def bound(table: Mapping[str, Callable[..., Any]], what: str, spec: Spec) -> Spec:
        return bind(table, spec, what=what)

    def each(table: Mapping[str, Callable[..., Any]], what: str, specs: tuple[Spec, ...]) -> tuple[Spec, ...]:
        return tuple(bind(table, spec, what=f"{what}.{k}") for k, spec in enumerate(specs))

    data, train, run = config.data, config.train, config.run
    checked = config.model_copy(
        update={
            "data": data.model_copy(update={"source": bound(DATASETS, "data.source", data.source)}),
            "train": train.model_copy(
                update={
                    "model": bound(MODELS, "train.model", train.model),
                    "init": bound(BEGINNINGS, "train.init", beginning(train.init)),
                    "loss": bound(LOSSES, "train.loss", train.loss),
                    "optimizer": bound(OPTIMIZERS, "train.optimizer", train.optimizer),
                    "schedule": bound(SCHEDULES, "train.schedule", train.schedule),
                    "augment": each(AUGMENTATIONS, "train.augment", train.augment),
                    "mix": each(MIXES, "train.mix", train.mix),
                    "average": train.average and bound(AVERAGES, "train.average", train.average),
                }
            ),
            "evaluate": config.evaluate.model_copy(update={"views": each(VIEWS, "evaluate.views", config.evaluate.views)}),
            "export": config.export.model_copy(update={"formats": completed(each(FORMATS, "export.formats", config.export.formats))}),
            "run": run.model_copy(update={"trackers": each(TRACKERS, "run.trackers", run.trackers)}),
        }
    )
    _check_together(checked)
    return checked


def _check_together(config: Config) -> None:
    """See that values which are good by themselves go together, as far as that can be told without the data.

    Raises:
        ConfigError: they do not.
    """
    data, train = config.data, config.train
    if not data.validation and (train.patience or train.schedule.name == "plateau"):
        what = "train.patience" if train.patience else "train.schedule: plateau"
        raise ConfigError(f"{what} looks at the validation split, but data.validation=0; raise that")
    if train.steps is not None:
        return  # the epochs do not count
    if train.warmup >= train.epochs:
        raise ConfigError(
            f"train.warmup: {train.warmup:g} epochs of {train.epochs:g} leave none to train; give fewer, or more train.epochs"
        )
    last = max(train.schedule.options.get("milestones", [0]), default=0)
    if last >= train.epochs - train.warmup:
        after = f", of which train.warmup takes {train.warmup:g}" if train.warmup else ""
        raise ConfigError(
            f"train.schedule.milestones: {last:g} never comes in {train.epochs:g} epochs{after}; give earlier ones, or more train.epochs"
        )


def _without_credentials(where: str, value: Any) -> None:
    if isinstance(value, dict | list | tuple):
        for name, below in value.items() if isinstance(value, dict) else enumerate(value):
            _without_credentials(f"{where}.{name}".lstrip("."), below)
    elif (word := f"{where}={value}") != hide(word):
        raise ConfigError(
            f"{where}: this looks like a credential, and a configuration is kept and shown; put it into the environment or ~/.netrc"
        )


def fetched(config: Config) -> Config:
    """`config` with the weights that training is to begin with at hand.

    Raises:
        ConfigError: there are none.
    """
    begin = at_hand(config.train.init, config.run.artifacts)
    return config.model_copy(update={"train": config.train.model_copy(update={"init": begin})})


def check_places(config: Config) -> None:
    """See that no file stands where a folder is to be.

    Raises:
        ConfigError: one does.
    """
    for name, place in {"run.folder": config.run.folder, "run.artifacts": config.run.artifacts}.items():
        if wrong := next((path for path in (place, *place.parents) if path.exists() and not path.is_dir()), None):
            raise ConfigError(f"{name}: {wrong} is a file, and a folder is needed; move it, or give another {name}")


def check_size(config: Config, processes: int) -> None:
    """See that the global batch can be cut into a part for each process, or shard, and micro-batch.

    Raises:
        ConfigError: it is too small, or the shards cannot be shared out.
    """
    train, elastic = config.train, config.train.determinism == "elastic"
    if elastic and config.run.strategy in ("fsdp", "dp"):
        raise ConfigError(
            f"run.strategy: {config.run.strategy} adds up gradients in an order of its own; with train.determinism=elastic use auto"
        )
    if elastic and train.shards % processes:
        counts = ", ".join(str(2**k) for k in range(train.shards.bit_length()))
        few = f"one of {counts}" if "," in counts else counts
        raise ConfigError(f"train.shards: {train.shards} cannot be shared out evenly to {processes} processes; start {few}")
    accumulate = train.accumulate or 1
    each = train.shards if elastic else processes
    parts = each * accumulate
    if train.batch_size != "all" and train.batch_size < parts:
        who = "shards" if elastic else "process" if each == 1 else "processes"
        raise ConfigError(
            f"train.batch_size: {train.batch_size} images cannot be cut into {parts} parts "
            f"({each} {who}, train.accumulate={accumulate}); use {parts} or more"
        )


def prepared(config: Config) -> PreparedData:
    """The data that have been made for `config`."""
    return Plan(config, _finder(config)).data


def foreseen(config: Config) -> bool:
    """Whether it is known what training would begin on; as `Plan.foresee`, but for weights that are no file here."""
    config = fetched(config)
    plan = Plan(config, _finder(config))
    return plan.foresee() or plan.raw.source.known is not None


def finished(config: Config, until: str) -> TrainedModel | None:
    """What has been trained for `config`, if all up to the stage `until`, from `train` on, is fresh."""
    plan = Plan(config, _finder(config))
    with contextlib.suppress(LookupError):
        _ = getattr(plan, TARGETS[until])
        return plan.trained
    return None


def _finder(config: Config) -> Run:
    """Finds what has been made for `config`, or raises LookupError."""

    def find(stage: Stage[A], *inputs: Input) -> A:
        seen = look(config, stage, *inputs)
        if seen.manifest is None:
            raise LookupError(stage.name)
        return artifact(stage, seen.place, seen.manifest)

    return find


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
