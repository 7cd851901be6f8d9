"""Counts and sums add up however the images are cut into batches."""

import torch
from torch.nn import functional as F

from pipeline.learning.metrics import Tally, confusion, top5

LOGITS, LABELS = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 7


def test_a_tally_of_parts_is_the_tally_of_the_whole() -> None:
    tally = Tally.zero(torch.device("cpu"))
    for rows in (slice(0, 1), slice(1, 40), slice(40, 100)):
        tally.add(LOGITS[rows], LABELS[rows], F.cross_entropy(LOGITS[rows], LABELS[rows], reduction="none"))
    means = tally.means()
    assert abs(means["loss"] - F.cross_entropy(LOGITS.double(), LABELS).item()) < 1e-6
    assert means["accuracy"] == (LOGITS.argmax(1) == LABELS).double().mean().item()


def test_the_confusion_matrix_counts_each_image_once_at_its_label() -> None:
    matrix = confusion(LOGITS, LABELS)
    assert matrix.sum(1).tolist() == LABELS.bincount().tolist()
    assert matrix.trace().item() == (LOGITS.argmax(1) == LABELS).sum().item()


def test_top_five_of_five_or_fewer_classes_is_everything() -> None:
    assert top5(LOGITS[:, :4], LABELS % 4).item() == 100
    assert top5(LOGITS, LABELS).item() == sum(int(k) in row.topk(5).indices.tolist() for row, k in zip(LOGITS, LABELS, strict=True))


def test_a_model_that_has_diverged_is_not_right() -> None:
    nothing = torch.full_like(LOGITS, torch.nan)
    tally = Tally.zero(torch.device("cpu"))
    tally.add(nothing, LABELS, torch.zeros(100))
    assert tally.means()["accuracy"] <= (LABELS == 0).double().mean().item()
