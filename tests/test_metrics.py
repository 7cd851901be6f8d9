"""What is measured of all images at once is what is measured of their parts."""

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch.nn import functional as F

from pipeline.learning.metrics import Answers, Tally

LOGITS, LABELS = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 7
ANSWERS = Answers.of(LOGITS.double(), LABELS, F.cross_entropy(LOGITS.double(), LABELS, reduction="none"))


def test_a_tally_of_parts_is_the_tally_of_the_whole() -> None:
    tally = Tally.zero(torch.device("cpu"))
    for rows in (slice(0, 1), slice(1, 40), slice(40, 100)):
        tally.add(LOGITS[rows], LABELS[rows], F.cross_entropy(LOGITS[rows], LABELS[rows], reduction="none"))
    means = tally.means()
    assert abs(means["loss"] - F.cross_entropy(LOGITS.double(), LABELS).item()) < 1e-6
    assert means["accuracy"] == (LOGITS.argmax(1) == LABELS).double().mean().item()


def test_a_tally_has_the_same_bits_whenever_it_is_looked_at() -> None:
    losses = F.cross_entropy(LOGITS, LABELS, reduction="none") * 10.0 ** torch.arange(-8, 8).repeat(7)[:100]
    looked_at, left_alone = Tally.zero(torch.device("cpu")), Tally.zero(torch.device("cpu"))
    for first in range(0, 100, 4):
        rows = slice(first, first + 4)
        for tally in (looked_at, left_alone):
            tally.add(LOGITS[rows], LABELS[rows], losses[rows])
        assert looked_at.sums[0] == first + 4
    assert left_alone.sums.tolist() == looked_at.sums.tolist()


def test_the_confusion_matrix_counts_each_image_once_at_its_label() -> None:
    matrix = ANSWERS.confusion()
    assert matrix.sum(1).tolist() == LABELS.bincount().tolist()
    assert matrix.sum(0).tolist() == LOGITS.argmax(1).bincount(minlength=7).tolist()
    assert matrix.trace().item() == (LOGITS.argmax(1) == LABELS).sum().item()


def test_scores_are_those_of_torch_and_scikit_learn() -> None:
    predicted = LOGITS.argmax(1)
    in_five = sum(int(k) in row.topk(5).indices.tolist() for row, k in zip(LOGITS, LABELS, strict=True))
    assert ANSWERS.scores() == {
        "loss": pytest.approx(F.cross_entropy(LOGITS.double(), LABELS).item(), rel=1e-12),
        "accuracy": (predicted == LABELS).double().mean().item(),
        "top5": in_five / 100,
        "balanced_accuracy": pytest.approx(balanced_accuracy_score(LABELS, predicted), rel=1e-12),
        "macro_f1": pytest.approx(f1_score(LABELS, predicted, average="macro"), rel=1e-12),
    }


def test_top_five_of_five_or_fewer_classes_is_everything() -> None:
    four = Answers.of(LOGITS[:, :4], LABELS % 4, torch.zeros(100))
    assert four.in_five.sum().item() == 100


def test_confidence_is_the_probability_of_what_was_predicted() -> None:
    probabilities = LOGITS.double().exp() / LOGITS.double().exp().sum(1, keepdim=True)
    assert torch.allclose(ANSWERS.confidence, probabilities.max(1).values, rtol=1e-12, atol=0)
    asked = Answers.of(LOGITS.double(), LABELS, ANSWERS.losses, with_all=True).probabilities
    assert asked is not None
    assert torch.equal(asked, LOGITS.double().softmax(1))
    assert ANSWERS.probabilities is None


def test_classes_that_are_absent_count_as_scikit_learn_has_it() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 5])
    predicted = torch.tensor([0, 0, 1, 2, 3, 2])  # 1 and 3 are predicted alone, 4 and 6 are in neither
    scores = Answers(labels, predicted, labels, labels, labels, 7).scores()
    with pytest.warns(UserWarning, match="not in y_true"):
        expected = balanced_accuracy_score(labels, predicted)
    assert scores["balanced_accuracy"] == pytest.approx(expected, rel=1e-12)
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro", zero_division=0), rel=1e-12)


def test_scores_of_a_million_classes_need_no_matrix_of_them() -> None:
    labels = torch.tensor([0, 999_999])
    assert Answers(labels, labels.flip(0), labels, labels, labels, 1_000_000).scores()["balanced_accuracy"] == 0.0


def test_a_model_that_has_diverged_is_not_right() -> None:
    nothing = torch.full_like(LOGITS, torch.nan)
    tally = Tally.zero(torch.device("cpu"))
    tally.add(nothing, LABELS, torch.zeros(100))
    assert tally.means()["accuracy"] <= (LABELS == 0).double().mean().item()
