"""What a training costs on this machine, and what would cost less: all of it measured here and now, nothing of it kept."""

import contextlib
import dataclasses
import io
import itertools
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Config, TrainConfig
from pipeline.data.batches import Images
from pipeline.errors import ConfigError
from pipeline.learning import models
from pipeline.learning.start import freeze
from pipeline.runtime.runner import Workspace
from pipeline.runtime.watch import Marks
from pipeline.runtime.world import AUTOCAST, World
from pipeline.stages.artifacts import PreparedData
from pipeline.stages.recipe import Recipe, initial_state, normalisation
from pipeline.stages.record import Record
from pipeline.stages.train import due
from pipeline.stages.update import update

SECONDS = 1.0  # for which each thing is measured
WINDOWS = 5  # of a variant, each beside one of what it is compared with
WORTH = 1.1  # times as fast: what is less may be chance
ENOUGH = 30.0  # seconds, after which no other variant is begun
ENDLESS = 10**9  # steps
PHASES = ("batch", "forward", "backward", "exchange", "optimizer", "record")
RECIPE = "another recipe, so look at the accuracy"

Join = Callable[[Config], World]  # the world of the processes that are there, for another configuration


def bench(config: Config, data: PreparedData, space: Workspace, join: Join, cores: int) -> dict[str, Any]:
    """How fast the training of `config` is, where its time goes, and which other values are faster.

    Files go where `space` is; `cores` are those that each process may use.
    """
    world, began = space.world, time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # what a training tells
        arm = Arm(config, data, world, space)
        seconds = statistics.median(arm.seconds(arm.count) for _ in range(arm.windows))
        waits = arm.phases(waiting=False)["batch"]
        phases = arm.phases(waiting=True)
        memory = _total(world, _memory(world))
        peak = _total(world, _peak(world, config.train.precision))
        tried = []
        for variant in variants(config, arm, data.counts["train"], cores):
            late = world.agree(time.perf_counter() - began) > ENOUGH
            tried.append(
                {**variant.facts, **({"refused": "a step takes too long"} if late else _try(variant, config, arm, data, space, join))}
            )
        arm.close()
    speed, operations = arm.recipe.batch_size / seconds, _operations(config.train, data, arm.shape)
    return {
        "how": str(world),
        "processes": world.size,
        "batch_size": arm.recipe.batch_size,
        "images_per_second": speed,
        "step_seconds": seconds,
        "waits_for_data_seconds": waits,
        "phases_seconds": phases,
        "flops_per_image": operations,
        "flops_per_second": operations * speed,
        "peak_flops_per_second": peak,
        "utilisation": operations * speed / peak,
        "memory_bytes": memory,
        "tried": tried,
        "advice": advice(tried, phases),
    }


@dataclass
class Clock(Marks):
    """The marks of the loop, and the seconds from each to the next."""

    now: Callable[[], float] = time.perf_counter
    since: float = 0.0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))

    def at(self, phase: str) -> None:
        now = self.now()
        if self.phase in PHASES:
            self.seconds[self.phase] += now - self.since
        self.since = now
        super().at(phase)


class Arm:
    """One way to train, on its way: the loop of `train` but for validation, for as many steps as are asked for."""

    def __init__(self, config: Config, data: PreparedData, world: World, space: Workspace) -> None:
        self.world, self._run, self._stop = world, config.run, space.stop
        nonfinite = "stop" if config.train.nonfinite == "stop" else "skip"  # there is nothing to go back to
        train = config.train.model_copy(update={"steps": ENDLESS, "nonfinite": nonfinite})
        self.recipe = Recipe.of(train, data)
        images = Images(data.open("train"), world, *normalisation(train, data))
        self.resident = images.resident
        self.state, parts = initial_state(self.recipe, data, images, world)
        batches = self.recipe.batches(images, data, world, parts)
        self.shape = batches.first_shape()
        self._batches = batches.steps(0, ENDLESS, config.run.workers)
        space = dataclasses.replace(space, dir=Path(tempfile.mkdtemp(dir=space.dir)), open_world=lambda: world)
        self._record = Record(space, self.state, steps=ENDLESS, batch_size=self.recipe.batch_size)
        self.threads, self._tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
        self._matmul = torch.get_float32_matmul_precision()
        self._steps(2)  # memory is asked for, programs are compiled
        seconds = world.agree(self.seconds(1))  # on every process, since all must take as many steps
        self.windows = max(1, min(WINDOWS, int(SECONDS / seconds)))
        self.count = max(1, int(SECONDS / seconds / self.windows))  # steps in each

    def seconds(self, count: int) -> float:
        """Of a step, over `count`, after one that brings back what another arm has driven out."""
        torch.set_num_threads(self.threads)  # what belongs to the whole process, as this arm's world has set it
        torch.backends.cudnn.allow_tf32 = self._tf32
        torch.set_float32_matmul_precision(self._matmul)
        self._steps(1)
        self.world.synchronize()
        began = time.perf_counter()
        self._steps(count)
        self.world.synchronize()
        return (time.perf_counter() - began) / count

    def speed(self) -> float:
        """Images a second, over a window."""
        return self.recipe.batch_size / self.seconds(self.count)

    def phases(self, *, waiting: bool) -> dict[str, float]:
        """Seconds a step in each; `waiting` for the device at the end of each, or not."""

        def now() -> float:
            if waiting:
                self.world.synchronize()
            return time.perf_counter()

        count = self.windows * self.count
        before, self.world.marks = self.world.marks, (clock := Clock(now=now))
        self._steps(count)
        clock.at("")
        self.world.marks = before
        return {phase: seconds / count for phase, seconds in clock.seconds.items()}

    def close(self) -> None:
        self._record.__exit__(None, None, None)

    def _steps(self, count: int) -> None:
        for batch in self.world.marks.each(itertools.islice(self._batches, count)):
            lr = self.recipe.lr(self.state)
            done = update(self.state, batch, self.recipe, lr, self.world)
            self.world.marks.at("record")
            self._record.step(done)
            if due(self.state.step, self._run.log_every, ENDLESS):
                self._record.training(lr)
            if due(self.state.step, self._run.checkpoint_every, ENDLESS):
                self._record.save(self._run.keep)
            if self.world.stopping():
                raise self._stop.interrupted("while measuring")


@dataclass(frozen=True)
class Variant:
    """Other values of some keys."""

    values: Mapping[str, Mapping[str, Any]]  # section -> key -> value
    note: str = ""  # what else becomes of them
    data: bool = False  # whether it is about the time that data take

    @property
    def words(self) -> str:
        pairs = ((f"{section}.{key}", value) for section, keys in self.values.items() for key, value in keys.items())
        return " ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in pairs)

    @property
    def facts(self) -> dict[str, Any]:
        return {"words": self.words, "note": self.note, "data": self.data}

    def of(self, config: Config) -> Config:
        return config.model_copy(update={name: getattr(config, name).model_copy(update=keys) for name, keys in self.values.items()})


def variants(config: Config, arm: Arm, images: int, cores: int) -> list[Variant]:
    """What is worth a try with `images` to train on."""
    train, run, cpu = config.train, config.run, arm.world.device.type == "cpu"
    found = [Variant({"run": {"threads": count}}) for count in sorted({1, cores} - {arm.threads}) if cpu]
    if not arm.resident:
        found.append(Variant({"run": {"workers": 2 * (run.workers or 2)}}, data=True))
    already = train.precision in AUTOCAST if run.channels_last is None else run.channels_last
    if not already and any(isinstance(layer, nn.Conv2d) for layer in arm.state.model.modules()):
        found.append(Variant({"run": {"channels_last": True}}))
    if train.precision in ("no", "tf32"):
        found.append(Variant({"train": {"precision": "bf16"}, "run": {"channels_last": True}}, RECIPE))
    if train.batch_size != "all" and 4 * train.batch_size <= images:
        found.append(Variant({"train": {"batch_size": 4 * train.batch_size}}, RECIPE))
    if without := {key: () for key in ("augment", "mix") if getattr(train, key)}:
        found.append(Variant({"train": without}, RECIPE, data=True))
    return found


def _try(variant: Variant, config: Config, arm: Arm, data: PreparedData, space: Workspace, join: Join) -> dict[str, Any]:
    """How fast it is in each window, beside one of `arm`; or why it cannot be had."""
    try:
        other = Arm(variant.of(config), data, join(variant.of(config)), space)
    except (ConfigError, torch.OutOfMemoryError) as error:
        return {"refused": str(error).splitlines()[0]}
    speeds = [(other.speed(), arm.speed()) for _ in range(min(arm.windows, other.windows))]
    other.close()
    return {"images_per_second": statistics.median(s for s, _ in speeds), "times_as_fast": [ours / base for ours, base in speeds]}


def advice(tried: Sequence[Mapping[str, Any]], phases: Mapping[str, float]) -> list[str]:
    """In words, of what was tried, whatever was faster by enough, and in all windows but one; the fastest first."""
    taken = phases["batch"] / max(sum(phases.values()), 1e-9)
    faster = [each for each in tried if "refused" not in each and sorted(each["times_as_fast"])[:2][-1] > 1 and _times(each) >= WORTH]

    def said(each: Mapping[str, Any]) -> str:
        reason = f"data take {taken:.0%} of a step; " if each["data"] else ""
        note = f" ({each['note']})" if each["note"] else ""
        return f"{reason}{each['words']} is {_times(each):.1f} x as fast{note}"

    return [said(each) for each in sorted(faster, key=_times, reverse=True)]


def _times(tried: Mapping[str, Any]) -> float:
    return float(statistics.median(tried["times_as_fast"]))


def _total(world: World, value: float) -> float:
    return float(world.sum(torch.tensor(value, dtype=world.dtype, device=world.device)))


def _memory(world: World) -> int:
    """Bytes that this process has had at most: of its GPU, or of the machine."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _operations(config: TrainConfig, data: PreparedData, shape: tuple[int, ...]) -> float:
    """Of one image, forward and backward: multiplications and additions in matrix products and convolutions."""
    model = models.build(config.model, data.shape, len(data.classes))
    freeze(model, config.freeze)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, *shape)).sum().backward()
    return float(counter.get_total_flops()) / 2


def _peak(world: World, precision: str) -> float:
    """FLOP/s of this process: the most that a large matrix product or 3x3 convolution reaches, on as many threads, in the precision."""
    dtype, gpu = AUTOCAST.get(precision, world.dtype), world.device.type == "cuda"
    n, batch = (8192, 512) if gpu else (1024, 8)
    square = torch.randn(n, n, device=world.device).to(dtype)
    images = torch.randn(batch, 128, 28, 28, device=world.device).to(dtype, memory_format=torch.channels_last)
    kernel = torch.randn(128, 128, 3, 3, device=world.device).to(dtype, memory_format=torch.channels_last)
    works: list[tuple[int, Callable[[], object]]] = [
        (2 * n**3, lambda: square @ square),
        (2 * images.numel() * kernel[0].numel(), lambda: F.conv2d(images, kernel, padding=1)),
    ]
    best = 0.0
    for operations, work in works:
        times: list[float] = []
        while sum(times) < SECONDS / 4 or len(times) < 3:  # the first of which are slow
            began = time.perf_counter()
            work()
            world.synchronize()
            times.append(time.perf_counter() - began)
        best = max(best, operations / min(times))
    return best
