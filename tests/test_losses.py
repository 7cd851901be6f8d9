"""Losses beside torch's own in float64; a label is the whole of its class."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config import Spec, bind
from pipeline.learning.losses import LOSSES, cross_entropy, focal, kl_div, l1, mse

RANDOM = torch.Generator().manual_seed(0)
LOGITS = torch.randn(50, 7, generator=RANDOM, dtype=torch.float64) * 3
LABELS = torch.arange(50) % 7
ONE_HOT = F.one_hot(LABELS, 7).double()
SOFT = torch.rand(50, 7, generator=RANDOM, dtype=torch.float64).softmax(1)

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.2}),
    ("mse", {"of": "probabilities"}),
    ("mse", {"of": "logits"}),
    ("l1", {"of": "probabilities"}),
    ("l1", {"of": "logits"}),
    ("kl_div", {}),
    ("focal", {"gamma": 2.0}),
    ("focal", {"gamma": 0.5}),
    ("focal", {"gamma": 0.0}),
]
variants = pytest.mark.parametrize(("name", "options"), VARIANTS)
assert_equal = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def gradient(loss: Callable[..., Tensor], logits: Tensor, targets: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(loss(leaf := logits.clone().requires_grad_(), targets).sum(), leaf)
    return slope


def test_every_loss_is_tested_with_its_defaults_valid() -> None:
    assert {name for name, _ in VARIANTS} == set(LOSSES)
    for name in LOSSES:
        bind(LOSSES, Spec(name=name), what="train.loss")


@variants
def test_a_label_is_its_one_hot(name: str, options: dict[str, Any]) -> None:
    losses = LOSSES[name](LOGITS, LABELS, **options)
    assert losses.shape == (50,)
    assert_equal(losses, LOSSES[name](LOGITS, ONE_HOT, **options))


@variants
def test_an_image_is_judged_by_itself(name: str, options: dict[str, Any]) -> None:
    for targets in (LABELS, SOFT):
        alone = torch.cat([LOSSES[name](LOGITS[k : k + 1], targets[k : k + 1], **options) for k in range(50)])
        assert_equal(LOSSES[name](LOGITS, targets, **options), alone)


@variants
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_saturated_logits_are_finite(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    logits = torch.tensor([[100, -100, -100], [-100, 100, -100], [100, 100, -100], [0, 0, 0]], dtype=dtype)
    for targets in (torch.tensor([0, 0, 2, 1]), torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [0, 1, 0]], dtype=dtype)):
        assert gradient(functools.partial(LOSSES[name], **options), logits, targets).isfinite().all()


@variants
def test_gradients_are_those_of_finite_differences(name: str, options: dict[str, Any]) -> None:
    logits = LOGITS[:5].clone().requires_grad_()
    for targets in (LABELS[:5], SOFT[:5]):
        assert torch.autograd.gradcheck(functools.partial(LOSSES[name], targets=targets, **options), logits)


@variants
def test_shares_may_be_more_precise_than_logits(name: str, options: dict[str, Any]) -> None:
    losses = LOSSES[name](LOGITS.float(), SOFT, **options)
    torch.testing.assert_close(losses.double(), LOSSES[name](LOGITS, SOFT, **options), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "shares"])
def test_cross_entropy_is_torchs_with_smoothing_by_hand(targets: Tensor) -> None:
    shares = 0.8 * (ONE_HOT if targets is LABELS else SOFT) + 0.2 / 7
    assert_equal(cross_entropy(LOGITS, targets, label_smoothing=0.2), -(shares * LOGITS.softmax(1).log()).sum(1))
    assert_equal(cross_entropy(LOGITS, targets).mean(), torch.nn.CrossEntropyLoss()(LOGITS, targets))


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["labels", "shares"])
@pytest.mark.parametrize(("loss", "reference"), [(mse, F.mse_loss), (l1, F.l1_loss)])
def test_mse_and_l1_are_torchs(loss: Callable[..., Tensor], reference: Callable[..., Tensor], targets: Tensor) -> None:
    shares = ONE_HOT if targets is LABELS else SOFT
    assert_equal(loss(LOGITS, targets, of="probabilities").mean(), reference(LOGITS.softmax(1), shares))
    assert_equal(loss(LOGITS, targets, of="logits").mean(), reference(LOGITS, shares))


def test_kl_div_is_cross_entropy_less_the_targets_entropy() -> None:
    assert_equal(kl_div(LOGITS, SOFT), cross_entropy(LOGITS, SOFT) + (SOFT * SOFT.log()).sum(1))
    assert_equal(kl_div(LOGITS, SOFT).sum(), F.kl_div(LOGITS.log_softmax(1), SOFT, reduction="sum"))
    assert_equal(kl_div(LOGITS, LABELS), cross_entropy(LOGITS, LABELS))
    assert_equal(gradient(kl_div, LOGITS, SOFT), gradient(cross_entropy, LOGITS, SOFT))


def test_focal_weighs_the_cross_entropy_by_what_is_missing_to_the_class() -> None:
    p = LOGITS.softmax(1)
    by_hand = torch.stack([-((1 - row[label]) ** 2) * row[label].log() for row, label in zip(p, LABELS, strict=True)])
    assert_equal(focal(LOGITS, LABELS, gamma=2.0), by_hand)
    assert_equal(focal(LOGITS, SOFT, gamma=1.5), (SOFT * (1 - p) ** 1.5 * -p.log()).sum(1))


def test_focal_with_gamma_0_is_cross_entropy() -> None:
    assert_equal(focal(LOGITS, LABELS, gamma=0.0), cross_entropy(LOGITS, LABELS))
