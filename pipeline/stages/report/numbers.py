"""What the page says in numbers: of each class, of the model's confidence, and whether it has learnt too much or too little."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
RISE, RISE_AT_LEAST, GAP, FALL, KNOWN = 0.1, 0.02, 0.05, 0.1, 0.9

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PerClass:
    """All [K], in the order of the classes; not a number where there is nothing to divide by."""

    support: Ints  # images
    predicted: Ints  # images taken for it
    right: Ints
    precision: Floats
    recall: Floats
    f1: Floats  # 2 TP / (2 TP + FP + FN)

    @classmethod
    def of(cls, labels: Ints, predicted: Ints, classes: int) -> "PerClass":
        support, taken = (np.bincount(each, minlength=classes) for each in (labels, predicted))
        right = np.bincount(labels[labels == predicted], minlength=classes)
        with np.errstate(invalid="ignore"):
            return cls(support, taken, right, right / taken, right / support, 2 * right / (support + taken))


def confused(labels: Ints, predicted: Ints, classes: int, most: int) -> list[tuple[int, int, int]]:
    """(class, what it was taken for, how often) of the most frequent mistakes."""
    wrong = labels != predicted
    pairs, counts = np.unique(labels[wrong] * classes + predicted[wrong], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(pairs[k] // classes), int(pairs[k] % classes), int(counts[k])) for k in order]


@dataclass(frozen=True)
class Calibration:
    """Images by how sure the model was of them, in `BINS` equal parts of [0, 1]: all [BINS], not a number where there are none.

    The expected calibration error is the mean distance of a bin's accuracy from its confidence, weighted by its images:
    C. Guo et al., "On calibration of modern neural networks", ICML 2017, equation 3; bin m is ((m - 1) / M, m / M].
    """

    images: Ints
    confidence: Floats
    accuracy: Floats
    error: float

    @classmethod
    def of(cls, confidence: Floats, right: NDArray[np.bool_]) -> "Calibration":
        """`confidence` [N] in [0, 1], of the predictions that are `right` [N] or not."""
        place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
        images, sure, hits = (np.bincount(place, weights, minlength=BINS) for weights in (None, confidence, right))
        with np.errstate(invalid="ignore"):
            return cls(images.astype(np.int64), sure / images, hits / images, float(np.abs(sure - hits).sum() / len(right)))


def fit(lines: Sequence[Mapping[str, Any]]) -> str:
    """Whether a training learnt by heart, or could have gone on learning, by the lines of its journal; the rule is on the page."""
    held_out = [line for line in lines if "validation/loss" in line]
    if not held_out:
        return "There was no validation split, so that over-fitting cannot be seen."
    trained = sum("train/loss" in line for line in lines)
    few = f"Too few points to tell over-fitting from under-fitting: {len(held_out)} of validation, {trained} of training."
    if len(held_out) < 2 or trained < 2:
        return few
    lowest, last = min(held_out, key=lambda line: line["validation/loss"]), held_out[-1]
    learnt, learnt_then = (_mean(lines, "train/loss", _before(held_out, line), line["step"]) for line in (last, lowest))
    rise = last["validation/loss"] - lowest["validation/loss"]
    if rise > max(RISE * lowest["validation/loss"], RISE_AT_LEAST) and learnt < learnt_then:
        return (
            f"Over-fitting since step {lowest['step']:,}: there the validation loss was lowest, {lowest['validation/loss']:.4f}; "
            f"in the end it was {last['validation/loss']:.4f}, while the training loss fell from {learnt_then:.4f} to {learnt:.4f}."
        )
    known = _mean(lines, "train/accuracy", _before(held_out, last), last["step"])
    gap = known - last["validation/accuracy"]
    if gap > GAP:
        shares = f"{100 * known:.1f} % of the training images were right, and {100 * last['validation/accuracy']:.1f} % of validation's"
        return f"Over-fitting: in the end {shares}."
    steps = lines[-1]["step"]
    fifths = [_values(lines, "train/loss", steps * (share - 0.2), steps * share) for share in (0.8, 1.0)]
    if not all(fifths):
        return few
    before, after = map(statistics.fmean, fifths)
    if after < (1 - FALL) * before and rise <= 0 and known < KNOWN:
        return (
            f"Under-fitting: in the last fifth of the steps the training loss still fell by {100 * (1 - after / before):.0f} %, the last "
            f"validation loss is the lowest, and {100 * (1 - known):.0f} % of the training images were still wrong; "
            "train for longer, or a larger net."
        )
    return f"Neither over- nor under-fitting is to be seen: training and validation accuracy ended {100 * abs(gap):.1f} points apart."


def _before(lines: Sequence[Mapping[str, Any]], line: Mapping[str, Any]) -> float:
    """The step of the validation before, from which on what was learnt up to this one is counted."""
    return max((other["step"] for other in lines if other["step"] < line["step"]), default=0)


def _mean(lines: Sequence[Mapping[str, Any]], name: str, after: float, until: float) -> float:
    """Of the values in (after, until], or if there is none of the last before."""
    return statistics.fmean(_values(lines, name, after, until) or _values(lines, name, 0, until)[-1:] or [0.0])


def _values(lines: Sequence[Mapping[str, Any]], name: str, after: float, until: float) -> list[float]:
    return [line[name] for line in lines if name in line and after < line["step"] <= until]
