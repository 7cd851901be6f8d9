"""Seconds a step on the processes that are there: with as large a batch for each as one alone has, and with that one shared out."""

import contextlib
import io
import statistics
from typing import Any

import torch

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.runtime.runner import Workspace
from pipeline.stages.artifacts import PreparedData
from pipeline.stages.bench import Join
from pipeline.stages.bench_arm import Arm


def scaling(config: Config, data: PreparedData, space: Workspace, join: Join, cores: int) -> dict[str, Any]:
    """Median seconds of both, window by window by turns; or why one of them cannot be had."""
    size, batch_size = space.world.size, config.train.batch_size
    assert batch_size != "all"
    arms: dict[str, Arm] = {}
    found: dict[str, Any] = {"processes": size, "device": str(space.world.device.type)}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # what a training tells
        for name, images in {"weak": batch_size * size, "strong": batch_size}.items():
            if size == 1 and arms:
                continue  # they are one
            other = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": images})})
            try:
                if images < size:
                    raise ConfigError(f"train.batch_size: {images} images cannot be shared out to {size} processes")
                arms[name] = Arm(other, data, join(other), space)
            except (ConfigError, torch.OutOfMemoryError) as error:
                found[name] = {"refused": str(error).splitlines()[0]}
        windows = min((arm.windows for arm in arms.values()), default=0)
        seconds = [{name: arm.seconds(arm.count) for name, arm in arms.items()} for _ in range(windows)]
        for name, arm in arms.items():
            middle = statistics.median(each[name] for each in seconds)
            found[name] = {"batch_size": arm.recipe.batch_size, "seconds": middle, "threads": arm.threads}
            arm.close()
    return found if size > 1 else {**found, "strong": found["weak"]}
