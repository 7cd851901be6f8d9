"""The figures of the page are those of scipy, scikit-learn, and of counting by hand."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_fscore_support

from pipeline.learning.statistics import wilson
from pipeline.stages.report.charts import POINTS, points
from pipeline.stages.report.numbers import Calibration, PerClass, confused, fit

RNG = np.random.default_rng(0)
LABELS, PREDICTED = RNG.integers(0, 7, 200), RNG.integers(0, 7, 200)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (353, 355), (1, 1), (5525, 10_000)])
def test_the_interval_of_an_accuracy_is_wilsons(right: int, n: int) -> None:
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_precision_recall_and_f1_of_each_class_are_those_of_scikit_learn() -> None:
    labels, predicted = LABELS % 5, PREDICTED % 6  # 5 is predicted alone, 6 is in neither
    found = PerClass.of(labels, predicted, 7)
    expected = precision_recall_fscore_support(labels, predicted, labels=range(7), zero_division=0)
    for mine, theirs in zip((found.precision, found.recall, found.f1, found.support), expected, strict=True):
        np.testing.assert_allclose(np.nan_to_num(mine), theirs, rtol=1e-12)
    assert np.isnan(found.recall[5:]).tolist() == [True, True]
    assert np.isnan(found.f1).tolist() == [False] * 6 + [True]


def test_the_most_frequent_mistakes_come_first() -> None:
    labels, predicted = np.array([0, 0, 1, 1, 1, 2, 2]), np.array([0, 1, 2, 2, 0, 2, 2])
    assert confused(labels, predicted, 3, 2) == [(1, 2, 2), (0, 1, 1)]
    assert confused(labels, labels, 3, 2) == []


def test_the_calibration_error_is_that_of_counting_by_hand() -> None:
    confidence = np.array([0.0, 1 / 15, 0.1, 0.61, 0.65, 1.0])
    right = np.array([False, True, False, True, False, True])
    found = Calibration.of(confidence, right)
    assert found.images.tolist() == [2, 1, *[0] * 7, 2, *[0] * 4, 1]
    assert found.accuracy[[0, 1, 9, 14]].tolist() == [0.5, 0, 0.5, 1]
    by_hand = (2 * abs(0.5 - 1 / 30) + abs(0 - 0.1) + 2 * abs(0.5 - 0.63) + 0) / 6
    assert found.error == pytest.approx(by_hand, rel=1e-12)


def record(train: list[float], held_out: list[float], *, accuracy: float = 0.9, held_out_accuracy: float = 0.9) -> list[dict[str, Any]]:
    """A line of each every ten steps."""
    lines: list[dict[str, Any]] = [
        {"step": 10 * (k + 1), "train/loss": value, "train/accuracy": accuracy, "train/lr": 0.1} for k, value in enumerate(train)
    ]
    lines += [
        {"step": 10 * (k + 1), "validation/loss": value, "validation/accuracy": held_out_accuracy} for k, value in enumerate(held_out)
    ]
    return sorted(lines, key=lambda line: int(line["step"]))


FLAT = [0.5] * 10
FALLING = [1.0 - 0.1 * k for k in range(10)]


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (
            record([1, 0.5, 0.3, 0.2, 0.1], [1, 0.6, 0.5, 0.6, 0.8]),
            "Over-fitting since step 30: there the validation loss was lowest",
        ),
        (record(FLAT, FLAT, accuracy=0.99), "Over-fitting: in the end 99.0 % of the training images were right, and 90.0 %"),
        (record(FALLING, FALLING, accuracy=0.8, held_out_accuracy=0.8), "Under-fitting: in the last fifth"),
        (record(FALLING, FALLING, accuracy=0.99, held_out_accuracy=0.99), "Neither"),  # rates end low, so that losses end falling
        (record(FLAT, FLAT), "Neither over- nor under-fitting is to be seen"),
        (record([1, 0.5, 0.5, 0.5, 0.5], [1, 0.6, 0.5, 0.6, 0.8]), "Neither"),  # the validation got worse, but training no better
        (record(FLAT, []), "There was no validation split"),
        (record([1], [1]), "Too few points to tell over-fitting from under-fitting: 1 of validation, 1 of training."),
        (record([5, 1], [5, 1]), "Too few points"),  # of what fell in the last fifth of the steps nothing is known
        ([], "There was no validation split"),
    ],
)
def test_over_and_under_fitting_are_said_by_a_rule(lines: list[dict[str, Any]], told: str) -> None:
    assert fit(lines).startswith(told)


def test_a_long_curve_is_drawn_by_means_that_keep_its_mean() -> None:
    lines = [{"step": k, "loss": float(k % 7)} for k in range(POINTS * 4)]
    steps, values = points(lines, "loss")
    assert len(steps) == len(values) == POINTS
    assert np.mean(values) == pytest.approx(np.mean([line["loss"] for line in lines]))
    assert points(lines[:5], "loss") == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
