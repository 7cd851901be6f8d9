"""Optimizers, and learning rates as plain functions of the step."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(ge=0)]


def sgd(model: "nn.Module", *, momentum: Share = 0.0, nesterov: bool = False, weight_decay: Positive = 0.0) -> "Optimizer":
    import torch

    return torch.optim.SGD(model.parameters(), momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=_fused(model))


def adam(
    model: "nn.Module", *, beta1: Share = 0.9, beta2: Share = 0.999, eps: Positive = 1e-8, weight_decay: Positive = 0.0
) -> "Optimizer":
    import torch

    return torch.optim.Adam(model.parameters(), betas=(beta1, beta2), eps=eps, weight_decay=weight_decay, fused=_fused(model))


def _fused(model: "nn.Module") -> bool:
    """One kernel for all parameters, where there is one: two to four times faster on a CPU too."""
    return all(p.device.type in ("cpu", "cuda") for p in model.parameters())


OPTIMIZERS: dict[str, Callable[..., "Optimizer"]] = {"sgd": sgd, "adam": adam}


# A schedule is a function of the step about to be taken (from 0), the number of steps, and the
# steps an epoch; `train.lr` is multiplied by its value.


def constant(step: int, steps: int, per_epoch: float) -> float:
    return 1.0


def step_decay(
    step: int, steps: int, per_epoch: float, *, every: Annotated[float, Field(gt=0)] = 5.0, factor: Annotated[float, Field(gt=0)] = 0.1
) -> float:
    """Multiplied by `factor` every `every` epochs."""
    return factor ** math.floor(step / per_epoch / every)


def one_cycle(step: int, steps: int, per_epoch: float, *, warmup: Share = 0.3, start: Share = 0.04, end: Share = 4e-6) -> float:
    """Half a cosine from `start` up to 1 over the share `warmup` of the steps, then another down to `end`.

    L. N. Smith, N. Topin, "Super-convergence", 2018; the shape and defaults of torch's OneCycleLR
    with `cycle_momentum=False`.
    """
    peak = max(warmup * steps - 1, 1e-9)
    if step <= peak:
        return _half_cosine(start, 1.0, step / peak)
    return _half_cosine(1.0, end, (step - peak) / max(steps - 1 - peak, 1e-9))


def _half_cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


SCHEDULES: dict[str, Callable[..., float]] = {"constant": constant, "step": step_decay, "one_cycle": one_cycle}
