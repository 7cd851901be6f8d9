"""The ways in which weights begin, by name: each a function of the model and its options, changing it in place.

They act on the weights of convolutions and linear layers that learn, in the order of modules, with
draws from torch's global generator, and set the biases of these layers to zero. Everything else,
such as norms and position embeddings, stays as the model has it.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor, nn

Positive = Annotated[float, Field(gt=0)]


def default(model: "nn.Module") -> None:
    """As the model was built."""


def kaiming(model: "nn.Module", *, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Normal, for layers followed by ReLU. K. He et al., "Delving deep into rectifiers", 2015."""
    from torch.nn import init

    _fill(model, lambda weight: init.kaiming_normal_(weight, mode=mode, nonlinearity="relu"))


def xavier(model: "nn.Module", *, distribution: Literal["uniform", "normal"] = "uniform") -> None:
    """X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010."""
    from torch.nn import init

    _fill(model, init.xavier_uniform_ if distribution == "uniform" else init.xavier_normal_)


def orthogonal(model: "nn.Module", *, gain: Positive = 1.0) -> None:
    """A. M. Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2014."""
    from torch.nn import init

    _fill(model, lambda weight: init.orthogonal_(weight, gain))


def normal(model: "nn.Module", *, std: Positive = 0.02) -> None:
    from torch.nn import init

    _fill(model, lambda weight: init.normal_(weight, std=std))


def dirac(model: "nn.Module") -> None:
    """Convolutions begin as the identity on as many channels as there are; linear layers and biases stay as they are."""
    from torch.nn import init, modules

    for layer in _learning(model):
        if isinstance(layer, modules.conv._ConvNd):
            init.dirac_(layer.weight, layer.groups)


def _fill(model: "nn.Module", draw: Callable[["Tensor"], object]) -> None:
    from torch.nn import init

    for layer in _learning(model):
        draw(layer.weight)
        if layer.bias is not None:
            init.zeros_(layer.bias)


def _learning(model: "nn.Module") -> "Iterator[nn.modules.conv._ConvNd | nn.Linear]":
    from torch import nn

    for layer in model.modules():
        if isinstance(layer, nn.modules.conv._ConvNd | nn.Linear) and layer.weight.requires_grad:
            yield layer


INITS: dict[str, Callable[..., None]] = {
    "default": default,
    "kaiming": kaiming,
    "xavier": xavier,
    "orthogonal": orthogonal,
    "normal": normal,
    "dirac": dirac,
}
