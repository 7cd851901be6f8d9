"""Weights begin as torch.nn.init draws them, in the order of modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import init

from pipeline.config import Spec, bind
from pipeline.errors import ConfigError
from pipeline.learning.inits import INITS

REFERENCES: list[tuple[str, dict[str, Any], Callable[[Tensor], Tensor]]] = [
    ("kaiming", {}, lambda w: init.kaiming_normal_(w, mode="fan_in", nonlinearity="relu")),
    ("kaiming", {"mode": "fan_out"}, lambda w: init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu")),
    ("xavier", {}, init.xavier_uniform_),
    ("xavier", {"distribution": "normal"}, init.xavier_normal_),
    ("orthogonal", {}, init.orthogonal_),
    ("orthogonal", {"gain": 1.5}, lambda w: init.orthogonal_(w, 1.5)),
    ("normal", {}, lambda w: init.normal_(w, std=0.02)),
    ("normal", {"std": 0.5}, lambda w: init.normal_(w, std=0.5)),
]


def network() -> nn.Sequential:
    """Of every kind of layer, with values that no initialisation gives."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 8, 3, groups=2, bias=False),
        nn.Conv1d(4, 6, 1),
        nn.LayerNorm(5),
        nn.Linear(5, 4),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(1, 2, parameter.numel()).view_as(parameter))
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(("name", "options", "reference"), REFERENCES)
def test_an_initialisation_draws_what_torch_draws(name: str, options: dict[str, Any], reference: Callable[[Tensor], Tensor]) -> None:
    ours, theirs = network(), network()
    torch.manual_seed(1)
    INITS[name](ours, **options)
    torch.manual_seed(1)
    for layer in theirs:
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            reference(layer.weight)
            if layer.bias is not None:
                init.zeros_(layer.bias)
    assert same(ours, theirs)


def test_default_leaves_the_weights_as_they_are() -> None:
    model = network()
    INITS["default"](model)
    assert same(model, network())


def test_dirac_makes_identities_of_convolutions_and_of_nothing_else() -> None:
    ours, theirs = network(), network()
    INITS["dirac"](ours)
    for layer in theirs:
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            init.dirac_(layer.weight, layer.groups)
    assert same(ours, theirs)


@pytest.mark.parametrize("name", INITS)
def test_layers_that_do_not_learn_stay_as_they_are(name: str) -> None:
    model = network().requires_grad_(False)
    INITS[name](model)
    assert same(model, network())


@pytest.mark.parametrize("spec", [Spec(name=name, options=options) for name, options, _ in REFERENCES])
def test_the_options_are_those_of_the_table(spec: Spec) -> None:
    assert bind(INITS, spec, what="train.init").options.items() >= spec.options.items()


@pytest.mark.parametrize(("name", "options"), [("kaiming", {"mode": "fan_avg"}), ("normal", {"std": 0}), ("orthogonal", {"gain": -1})])
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"^train\.init\.{next(iter(options))}: "):
        bind(INITS, Spec(name=name, options=options), what="train.init")
