"""What a training costs on this machine, and what would cost less: all of it measured here and now, nothing of it kept."""

import contextlib
import io
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import Config, TrainConfig
from pipeline.errors import ConfigError
from pipeline.learning import models
from pipeline.learning.start import freeze
from pipeline.runtime.runner import Workspace
from pipeline.runtime.world import AUTOCAST, World
from pipeline.stages.artifacts import PreparedData
from pipeline.stages.bench_arm import Arm

PEAK_SECONDS = 0.25  # for which what the machine reaches is measured
WORTH = 1.1  # times as fast: what is less may be chance
ENOUGH = 30.0  # seconds, after which no other variant is begun
RECIPE = "another recipe, so look at the accuracy"

Join = Callable[[Config], World]  # the world of the processes that are there, for another configuration


def bench(config: Config, data: PreparedData, space: Workspace, join: Join, cores: int) -> dict[str, Any]:
    """How fast the training of `config` is, where its time goes, and which other values are faster.

    Files go where `space` is; `cores` are those that each process may use.
    """
    world, began = space.world, time.perf_counter()
    with contextlib.redirect_stdout(told := io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # what a training tells
        arm = Arm(config, data, world, space)
        notes = [line for line in told.getvalue().splitlines() if line.startswith("train: ")]
        seconds = statistics.median(arm.seconds(arm.count) for _ in range(arm.windows))
        loop = arm.phases()
        memory = _total(world, world.peak_memory())  # before steps that are none of the training's
        phases = arm.phases(plain=True) if arm.recorded else loop
        peak = _total(world, _peak(world, config.train.precision))
        tried = []
        for variant in variants(config, arm, data.counts["train"], cores):
            late = world.agree(time.perf_counter() - began) > ENOUGH
            facts = {"refused": f"not tried, since {ENOUGH:g} s are over"} if late else _try(variant, config, arm, data, space, join)
            tried.append({**variant.facts, **facts})
        arm.close()
    speed, operations = arm.recipe.batch_size / seconds, _operations(config.train, data, arm.shape)
    share = loop["batch"] / sum(loop.values())
    return {
        "how": str(world),
        "notes": notes,
        "processes": world.size,
        "batch_size": arm.recipe.batch_size,
        "images_per_second": speed,
        "step_seconds": seconds,
        "data_seconds": loop["batch"],
        "data_share": share,
        "recorded": arm.recorded,
        "phases_seconds": phases,  # of plain steps if they are recorded
        "flops_per_image": operations,
        "flops_per_second": operations * speed,
        "peak_flops_per_second": peak,
        "utilisation": operations * speed / peak,
        "memory_bytes": memory,
        "tried": tried,
        "advice": advice(tried, share),
    }


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
    if arm.world.can_record and run.cuda_graph == "no":
        found.append(Variant({"run": {"cuda_graph": "auto"}}))
    if not arm.world.channels_last and any(isinstance(layer, nn.Conv2d) for layer in arm.state.model.modules()):
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
    return {
        "images_per_second": statistics.median(speed for speed, _ in speeds),
        "beside_images_per_second": statistics.median(beside for _, beside in speeds),
        "times_as_fast": [speed / beside for speed, beside in speeds],
    }


def advice(tried: Sequence[Mapping[str, Any]], data_share: float) -> list[str]:
    """In words, of what was tried, whatever was faster by enough, and in all windows but one; the fastest first."""
    faster = [each for each in tried if "refused" not in each and sorted(each["times_as_fast"])[:2][-1] > 1 and _times(each) >= WORTH]

    def said(each: Mapping[str, Any]) -> str:
        reason = f"data take {data_share:.0%} of a step; " if each["data"] else ""
        note = f" ({each['note']})" if each["note"] else ""
        return f"{reason}{each['words']} is {_times(each):.2f} x as fast{note}"

    return [said(each) for each in sorted(faster, key=_times, reverse=True)]


def _times(tried: Mapping[str, Any]) -> float:
    return float(statistics.median(tried["times_as_fast"]))


def _total(world: World, value: float) -> float:
    return float(world.sum(torch.tensor(value, dtype=world.dtype, device=world.device)))


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
        while sum(times) < PEAK_SECONDS or len(times) < 3:  # the first of which are slow
            began = time.perf_counter()
            work()
            world.synchronize()
            times.append(time.perf_counter() - began)
        best = max(best, operations / min(times))
    return best
