"""Learning rates and running averages of the weights, as plain functions of the moment."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from pipeline.errors import ConfigError

Share = Annotated[float, Field(ge=0, le=1)]
Above0 = Annotated[float, Field(gt=0)]
Factor = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Moment:
    """A point of the training: all that a rate and an average may depend on."""

    step: int  # the one about to be taken, from 0
    steps: int  # in all
    per_epoch: float  # steps
    history: Sequence[float] = ()  # the score of every validation so far; higher is better


def rate(schedule: Callable[[Moment], float], at: Moment, *, warmup: float, by: Literal["step", "epoch"]) -> float:
    """What scales `train.lr`: a linear rise over `warmup` epochs to the schedule's first value, then the schedule.

    The schedule sees only the steps after the rise; with `by` "epoch" only the first of each epoch's, a staircase.
    P. Goyal et al., "Accurate, large minibatch SGD", 2017, section 2.2; torch's LinearLR before another in a SequentialLR.

    Raises:
        ConfigError: nothing would be left of the steps.
    """
    rise = round(warmup * at.per_epoch)
    if rise and rise >= at.steps:
        raise ConfigError(f"train.warmup: {warmup:g} epochs are {rise} steps, and the training has {at.steps}; give fewer epochs")
    if not rise and by == "step":
        return schedule(at)
    after = replace(at, steps=at.steps - rise)
    if at.step < rise:
        return schedule(replace(after, step=0, history=())) * (at.step + 1) / rise
    look = at.step if by == "step" else math.ceil(_whole(at.step / at.per_epoch) * at.per_epoch - 1e-9)
    return schedule(replace(after, step=max(look - rise, 0)))


def constant(at: Moment) -> float:
    return 1.0


def step_decay(at: Moment, *, every: Above0 = 5.0, factor: Annotated[float, Field(gt=0, le=1)] = 0.1) -> float:
    """Multiplied by `factor` every `every` epochs; torch's StepLR."""
    return factor ** _whole(at.step / at.per_epoch / every)


def multi_step(
    at: Moment, *, milestones: tuple[Above0, ...] = (30.0, 60.0, 80.0), factor: Annotated[float, Field(gt=0, le=1)] = 0.1
) -> float:
    """Multiplied by `factor` at each of the `milestones`, in epochs; torch's MultiStepLR.

    The default is that of P. Goyal et al., 2017, for 90 epochs of ImageNet.
    """
    epoch = at.step / at.per_epoch
    return factor ** sum(epoch >= milestone - 1e-9 for milestone in milestones)


def cosine(at: Moment, *, end: Share = 0.0) -> float:
    """Half a cosine from 1 to `end`, which would be reached one step after the last; torch's CosineAnnealingLR.

    I. Loshchilov, F. Hutter, "SGDR", 2017, without restarts.
    """
    return _half_cosine(1.0, end, at.step / at.steps)


def linear(at: Moment, *, end: Share = 0.0) -> float:
    """A line from 1 to `end`, which would be reached one step after the last; torch's LinearLR."""
    return polynomial(at, power=1.0, end=end)


def polynomial(at: Moment, *, power: Above0 = 2.0, end: Share = 0.0) -> float:
    """From 1 to `end`, which would be reached one step after the last, as what is left to the `power`; torch's PolynomialLR."""
    left = 1 - at.step / at.steps
    return end + (1 - end) * math.pow(left, power)


def one_cycle(at: Moment, *, warmup: Share = 0.3, start: Share = 0.04, end: Share = 4e-6) -> float:
    """Half a cosine from `start` up to 1 over the share `warmup` of the steps, then another down to `end` at the last.

    L. N. Smith, N. Topin, "Super-convergence", 2018; torch's OneCycleLR, with its defaults and `cycle_momentum=False`.
    """
    peak = warmup * at.steps - 1
    if at.step <= peak:
        return _half_cosine(start, 1.0, at.step / peak if peak else 1.0)
    return _half_cosine(1.0, end, (at.step - peak) / (at.steps - 1 - peak))


def plateau(
    at: Moment, *, factor: Factor = 0.1, patience: Count = 10, threshold: Share = 1e-4, cooldown: Count = 0, end: Share = 0.0
) -> float:
    """Multiplied by `factor`, down to `end`, when more than `patience` validations were not better than the best by `threshold`.

    Those during `cooldown` validations after that do not count. torch's ReduceLROnPlateau with mode "max", threshold_mode
    "abs", and its eps: a change of less than 1e-8 is not made, so it stays above 0.
    """
    scale, best, bad, rest = 1.0, -math.inf, 0, 0
    for score in at.history:
        best, bad = (score, 0) if score > best + threshold else (best, bad + 1)
        if rest:
            rest, bad = rest - 1, 0
        if bad > patience:
            lower = max(scale * factor, end)
            scale = lower if scale - lower > 1e-8 else scale
            rest, bad = cooldown, 0
    return scale


def ema(
    at: Moment, *, decay: Annotated[float, Field(ge=0, lt=1)] = 0.999, warmup: bool = True, every: Annotated[int, Field(ge=1)] = 1
) -> float | None:
    """An exponential average from the first step on, over every `every`-th step.

    With `warmup` the n-th decays by at most (1 + n) / (10 + n), so that the first weights are soon forgotten; as
    tf.train.ExponentialMovingAverage has it.
    """
    n, others = divmod(at.step, every)
    if others:
        return None
    return 1 - min(decay, (1 + n) / (10 + n) if warmup else 1.0) if n else 1.0


def swa(at: Moment, *, start: Annotated[float, Field(ge=0, lt=1)] = 0.75, every: Above0 = 1.0) -> float | None:
    """The mean of the weights at every `every` epochs after the share `start` of the steps, and of the last.

    P. Izmailov et al., "Averaging weights leads to wider optima and better generalization", 2018, algorithm 1.
    """
    done, period = at.step + 1, max(1, round(every * at.per_epoch))
    begin = start * at.steps
    if done <= begin + 1e-9 or (done % period and done != at.steps):
        return None
    return 1 / (math.ceil(done / period) - _whole(begin / period))


def range_test_rate(step: int, steps: int, low: float, high: float) -> float:
    """From `low` to `high` in equal ratios. L. N. Smith, "Cyclical learning rates", 2015, section 3.3, on fastai's log scale."""
    return float(low * (high / low) ** (step / max(steps - 1, 1)))


def diverged(losses: Sequence[float]) -> bool:
    """Whether a loss, smoothed, was above four times the best before it, or no number: a range test may end."""
    return len(_before_divergence(losses)) < len(losses)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The rate at which the smoothed loss fell most steeply, over the logarithm of the rate, before its minimum.

    As fastai's `lr_find`: without the first tenth of the points, of which there is no mean yet; and, for noise, with the
    slope over another tenth. The lowest rate if the loss never fell.
    """
    tenth = len(losses) // 10
    smooth = np.array(_before_divergence(losses)[tenth:])
    fallen = int(np.argmin(smooth)) + 1 if len(smooth) else 0
    if fallen < 2:
        return float(rates[0])
    y, x = smooth[:fallen], np.log(rates[tenth : tenth + fallen])
    span = min(max(1, tenth), fallen - 1)
    steepest = int(np.argmin((y[span:] - y[:-span]) / (x[span:] - x[:-span])))
    return float(rates[tenth + steepest + span // 2])


def _before_divergence(losses: Sequence[float], beta: float = 0.9) -> list[float]:
    """Exponential means of `losses`, unbiased as Adam's, up to the first above four times the best."""
    smooth: list[float] = []
    mean, best = 0.0, math.inf
    for n, loss in enumerate(losses, 1):
        mean = beta * mean + (1 - beta) * loss
        value = mean / (1 - beta**n)
        best = min(best, value)
        if not value <= 4 * best < math.inf:  # nor is NaN
            break
        smooth.append(value)
    return smooth


def _half_cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * share))


def _whole(value: float) -> int:
    """Rounded down, but 6.999999999999999 to 7: that is 0.7 / 0.1."""
    return math.floor(value + 1e-9)


# A schedule scales `train.lr`, by at most 1.
SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "step": step_decay,
    "multi_step": multi_step,
    "cosine": cosine,
    "linear": linear,
    "polynomial": polynomial,
    "one_cycle": one_cycle,
    "plateau": plateau,
}

# An average says the share of the weights in it after the update `step`, as in average += share * (weights - average);
# 1 begins it anew, None leaves it as it is.
AVERAGES: dict[str, Callable[..., float | None]] = {"ema": ema, "swa": swa}
