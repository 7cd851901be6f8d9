"""Learning rates and averages of weights, beside torch's own."""

import functools
import math
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler, swa_utils

from pipeline.config import Spec, bind
from pipeline.errors import ConfigError
from pipeline.learning.schedules import AVERAGES, SCHEDULES, Moment, diverged, range_test_rate, rate, suggest

LENGTHS = [1, 2, 3, 7, 100]
PER_EPOCH = 10.0

# Options, and torch's scheduler with its options for as many steps.
REFERENCES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "constant": ("constant", {}, lambda o, n: lr_scheduler.ConstantLR(o, factor=1.0)),
    "step": ("step", {"every": 3, "factor": 0.5}, lambda o, n: lr_scheduler.StepLR(o, step_size=30, gamma=0.5)),
    "step, parts of an epoch": ("step", {"every": 0.1, "factor": 0.9}, lambda o, n: lr_scheduler.StepLR(o, step_size=1, gamma=0.9)),
    "multi_step": ("multi_step", {"milestones": [0.2, 5, 7.1], "factor": 0.3}, lambda o, n: lr_scheduler.MultiStepLR(o, [2, 50, 71], 0.3)),
    "cosine": ("cosine", {}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=n)),
    "cosine, end": ("cosine", {"end": 0.1}, lambda o, n: lr_scheduler.CosineAnnealingLR(o, T_max=n, eta_min=0.1)),
    "linear": ("linear", {}, lambda o, n: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=n)),
    "linear, end": ("linear", {"end": 0.2}, lambda o, n: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.2, total_iters=n)),
    "polynomial": ("polynomial", {}, lambda o, n: lr_scheduler.PolynomialLR(o, total_iters=n, power=2.0)),
    "polynomial, power": ("polynomial", {"power": 0.9}, lambda o, n: lr_scheduler.PolynomialLR(o, total_iters=n, power=0.9)),
    "one_cycle": ("one_cycle", {}, lambda o, n: lr_scheduler.OneCycleLR(o, 1.0, n, cycle_momentum=False)),
    "one_cycle, down": ("one_cycle", {"warmup": 0}, lambda o, n: lr_scheduler.OneCycleLR(o, 1.0, n, pct_start=0.0, cycle_momentum=False)),
    "one_cycle, late": ("one_cycle", {"warmup": 0.9}, lambda o, n: lr_scheduler.OneCycleLR(o, 1.0, n, pct_start=0.9, cycle_momentum=False)),
}


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)


def torchs_rates(scheduled: torch.optim.Optimizer, scheduler: lr_scheduler.LRScheduler, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(scheduled.param_groups[0]["lr"])
        scheduled.step()
        scheduler.step()
    return rates


def rates(name: str, steps: int, *, rise: float = 0, by: Literal["step", "epoch"] = "step", **options: Any) -> list[float]:
    schedule = functools.partial(SCHEDULES[name], **options)
    return [rate(schedule, Moment(step, steps, PER_EPOCH), warmup=rise, by=by) for step in range(steps)]


@pytest.mark.parametrize("steps", LENGTHS)
@pytest.mark.parametrize("case", REFERENCES)
def test_a_schedule_is_torchs_of_the_same_name(case: str, steps: int) -> None:
    name, options, reference = REFERENCES[case]
    scheduled = optimizer()
    assert rates(name, steps, **options) == pytest.approx(torchs_rates(scheduled, reference(scheduled, steps), steps), rel=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", LENGTHS)
def test_a_rate_is_above_zero_and_at_most_one_however_short_the_training(name: str, steps: int) -> None:
    assert all(0 < value <= 1 for value in rates(name, steps))


def test_a_polynomial_of_power_one_is_a_line_to_its_end() -> None:
    assert rates("polynomial", 9, power=1, end=0.25) == pytest.approx(rates("linear", 9, end=0.25), rel=1e-12)


def test_one_cycle_of_a_rise_of_one_step_begins_at_the_peak() -> None:
    assert rates("one_cycle", 2, warmup=0.5) == [1.0, 4e-6]  # torch divides by zero


SCORES = {
    "better, then not": [0.1, 0.2, 0.3, *[0.3] * 20, 0.9, *[0.5] * 9],
    "too little better": [0.5 + 1e-5 * k for k in range(30)],
    "never a number": [math.nan] * 12,
    "noise": [float(x) for x in np.random.default_rng(0).normal(size=200)],
    "negative losses": [-2.0, -1.5, -1.4, -1.6, -1.39, -1.38, -1.7, -1.8],
    "so often that changes get too small": [0.5] * 300,
}


@pytest.mark.parametrize("options", [{}, {"factor": 0.5, "patience": 2, "cooldown": 3, "end": 0.01}, {"patience": 0, "threshold": 0.0}])
@pytest.mark.parametrize("scores", SCORES)
def test_plateau_is_torchs_for_scores_that_should_rise(scores: str, options: dict[str, Any]) -> None:
    theirs = {("min_lr" if name == "end" else name): value for name, value in options.items()}
    scheduled = optimizer()
    scheduler = lr_scheduler.ReduceLROnPlateau(scheduled, mode="max", threshold_mode="abs", **theirs)
    history: list[float] = []
    for score in SCORES[scores]:
        history.append(score)
        scheduler.step(score)
        ours = SCHEDULES["plateau"](Moment(5, 10, PER_EPOCH, history), **options)
        assert ours == pytest.approx(scheduled.param_groups[0]["lr"], rel=1e-12)
        assert ours > 0


@pytest.mark.parametrize("case", ["constant", "cosine, end", "linear", "step", "polynomial"])
def test_a_warm_up_is_torchs_linear_one_in_front_of_the_rest_of_the_steps(case: str) -> None:
    name, options, reference = REFERENCES[case]
    scheduled = optimizer()
    rise = lr_scheduler.LinearLR(scheduled, start_factor=1 / 20, total_iters=19)
    theirs = lr_scheduler.SequentialLR(scheduled, [rise, reference(scheduled, 80)], milestones=[20])
    assert rates(name, 100, rise=2.0, **options) == pytest.approx(torchs_rates(scheduled, theirs, 100), rel=1e-12)


def test_a_warm_up_rises_to_the_schedules_first_value() -> None:
    ours = rates("one_cycle", 100, rise=1.0)
    assert ours[:10] == pytest.approx([0.04 * k / 10 for k in range(1, 11)], rel=1e-12)
    assert ours[10:] == rates("one_cycle", 90)


@pytest.mark.parametrize("warmup", [10.0, 12.5])
def test_a_warm_up_that_leaves_no_step_is_refused(warmup: float) -> None:
    with pytest.raises(ConfigError, match=rf"train\.warmup: {warmup:g} epochs are \d+ steps, and the training has 100; give fewer"):
        rates("cosine", 100, rise=warmup)


def test_a_warm_up_shorter_than_half_a_step_is_none() -> None:
    assert rates("cosine", 1, rise=0.04) == [1.0]


def test_by_epoch_a_schedule_is_a_staircase_of_its_values_at_the_beginning_of_each_epoch() -> None:
    scheduled = optimizer()
    stairs = torchs_rates(scheduled, lr_scheduler.CosineAnnealingLR(scheduled, T_max=10), 10)
    assert rates("cosine", 100, by="epoch") == pytest.approx([value for value in stairs for _ in range(10)], rel=1e-12)


def test_by_epoch_a_warm_up_still_rises_with_every_step() -> None:
    ours, smooth = rates("cosine", 100, rise=1.5, by="epoch"), rates("cosine", 100, rise=1.5)
    assert ours[:15] == smooth[:15]
    assert ours[15:20] == [1.0] * 5
    assert ours[20:30] == [smooth[20]] * 10


def test_an_epoch_begins_with_its_first_whole_step() -> None:
    look = [rate(lambda at: at.step, Moment(step, 9, 2.5), warmup=0, by="epoch") for step in range(9)]
    assert look == [0, 0, 0, 3, 3, 5, 5, 5, 8]


def averaged(name: str, weights: torch.Tensor, **options: Any) -> list[torch.Tensor]:
    """The average after each step that touches it, of `weights` [steps, ...]."""
    average, averages = torch.full_like(weights[0], math.nan), []
    for step, current in enumerate(weights):
        share = AVERAGES[name](Moment(step, len(weights), PER_EPOCH), **options)
        if share is not None:
            average = current if share == 1 else average + share * (current - average)
            averages.append(average)
    return averages


def torchs_averages(weights: Sequence[torch.Tensor], **how: Any) -> list[torch.Tensor]:
    model = torch.nn.ParameterList([torch.zeros_like(weights[0])])
    averages = []
    theirs = swa_utils.AveragedModel(model, **how)
    for current in weights:
        model[0].data.copy_(current)
        theirs.update_parameters(model)
        averages.append(next(theirs.module.parameters()).detach().clone())
    return averages


WEIGHTS = torch.randn(100, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).cumsum(0)


@pytest.mark.parametrize("every", [1, 7])
def test_ema_without_warm_up_is_torchs(every: int) -> None:
    ours = averaged("ema", WEIGHTS, decay=0.9, warmup=False, every=every)
    theirs = torchs_averages(list(WEIGHTS[::every]), multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.9))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_ema_with_warm_up_decays_the_nth_by_at_most_its_share() -> None:
    shares = [AVERAGES["ema"](Moment(step, 300, PER_EPOCH), decay=0.9) for step in range(300)]
    decays = [1 - share for share in shares if share is not None]
    assert decays == pytest.approx([0.0, *(min(0.9, (1 + n) / (10 + n)) for n in range(1, 300))], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [80, 90, 100]),
        ({"start": 0.5, "every": 2.0}, [60, 80, 100]),
        ({"start": 0.0, "every": 3.0}, [30, 60, 90, 100]),
        ({"start": 0.29, "every": 0.1}, range(30, 101)),
        ({"start": 0.95, "every": 20.0}, [100]),
    ],
)
def test_swa_is_torchs_mean_of_the_ends_of_the_epochs_after_its_start_and_of_the_last_step(
    options: dict[str, Any], steps: Sequence[int]
) -> None:
    torch.testing.assert_close(
        averaged("swa", WEIGHTS, **options), torchs_averages([WEIGHTS[k - 1] for k in steps]), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", AVERAGES)
def test_there_is_an_average_however_short_the_training(name: str, steps: int) -> None:
    assert torch.isfinite(averaged(name, WEIGHTS[:steps])[-1]).all()


def test_a_range_test_goes_up_in_equal_ratios() -> None:
    assert [range_test_rate(step, 4, 1e-3, 1.0) for step in range(4)] == pytest.approx([1e-3, 1e-2, 1e-1, 1.0], rel=1e-12)
    assert range_test_rate(0, 1, 1e-3, 1.0) == 1e-3


def curve(points: int, noise: float = 0.0) -> tuple[list[float], list[float]]:
    """Rates, and losses that fall most steeply at 0.01, and rise from 0.14 on."""
    tried = np.array([range_test_rate(step, points, 1e-6, 10.0) for step in range(points)])
    clean = 2.3 / (1 + tried / 1e-2) + 0.1 + (tried / 0.5) ** 2
    return tried.tolist(), (clean * (1 + noise * np.random.default_rng(0).normal(size=points))).tolist()


@pytest.mark.parametrize("points", [5, 10, 30, 100, 1000])
def test_the_suggested_rate_is_near_the_steepest_descent(points: int) -> None:
    assert 1e-2 / 4 < suggest(*curve(points)) < 4e-2


@pytest.mark.parametrize("points", [30, 100, 1000])
def test_noise_moves_the_suggestion_little(points: int) -> None:
    assert 1e-2 / 4 < suggest(*curve(points, noise=0.1)) < 5e-2


@pytest.mark.parametrize("tail", [[math.nan] * 3, [math.inf] * 3, [1e30, 1e-9, 1e-9]])
def test_what_comes_after_the_divergence_does_not_count(tail: list[float]) -> None:
    tried, losses = curve(30)
    tried, losses = tried[:24], losses[:24]
    assert suggest([*tried, 1.0, 2.0, 3.0], losses + tail) == suggest(tried, losses)


@pytest.mark.parametrize("losses", [[2.0], [1.0, 2.0, 3.0], [math.nan, 1.0, 0.5], [1.0, math.inf, 0.5]])
def test_a_loss_that_never_fell_suggests_the_lowest_rate(losses: list[float]) -> None:
    assert suggest([1e-3, 1e-2, 1e-1][: len(losses)], losses) == 1e-3


def test_a_range_test_may_end_when_the_smoothed_loss_is_four_times_the_best() -> None:
    assert not diverged([])
    assert not diverged([1.0, 1.0, 3.9])
    assert not diverged([1.0, 1.0, 9.0])  # smoothed: 3.95
    assert diverged([1.0, 1.0, 10.0])  # smoothed: 4.32
    assert diverged([1.0, math.nan])


@pytest.mark.parametrize("table", [SCHEDULES, AVERAGES])
def test_what_is_bound_can_be_called(table: dict[str, Any]) -> None:
    for name in table:
        options = bind(table, Spec(name=name), what="train").options
        assert table[name](Moment(0, 10, PER_EPOCH), **options) == table[name](Moment(0, 10, PER_EPOCH))


def test_the_tables_are_read_without_torch() -> None:
    code = "import sys, pipeline.learning.schedules as s; assert s.SCHEDULES and s.AVERAGES and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
