"""The models to choose from, by name: each a function of (shape, classes) and its options.

Torch is imported only when a model is built, so that names and options are checked before.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from pipeline.config import Spec
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Field(ge=1)]
Shape = tuple[int, int, int]  # channels, height, width


def lenet(
    shape: Shape,
    classes: int,
    *,
    channels: tuple[Count, ...] = (6, 16),
    kernel: Count = 5,
    pool: Literal["max", "avg", "none"] = "max",
    hidden: tuple[Count, ...] = (120, 84),
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
) -> "nn.Module":
    """Convolutions (each with ReLU and a 2x2 pool), flattened into fully connected layers.

    After Y. LeCun et al., "Gradient-based learning applied to document recognition", 1998, as the
    field writes it today: ReLU for tanh, max pooling, no partial connections.
    """
    from pipeline.learning.networks import LeNet

    return LeNet(shape, classes, channels=channels, kernel=kernel, pool=pool, hidden=hidden, dropout=dropout)


def resnet18(shape: Shape, classes: int, *, width: Count = 64) -> "nn.Module":
    """ResNet-18 with the stem for small images: one 3x3 convolution, no pool.

    K. He et al., "Deep residual learning for image recognition", CVPR 2016, section 4.2 for the stem.
    """
    from pipeline.learning.networks import ResNet

    return ResNet(shape, classes, width=width, blocks=(2, 2, 2, 2))


MODELS: dict[str, Callable[..., "nn.Module"]] = {
    "lenet": lenet,
    "lenet5": functools.partial(lenet, channels=(6, 16), hidden=(120, 84)),  # 28x28: 256 features; 32x32: 400
    "cifar_tutorial": functools.partial(lenet, channels=(6, 16), hidden=(120, 84)),  # pytorch.org's CIFAR-10 tutorial
    "cifar_wide": functools.partial(lenet, channels=(16, 32), hidden=(120, 84)),
    "lenet3x3": functools.partial(lenet, channels=(6, 16), kernel=3, pool="none", hidden=(512, 64)),
    "resnet18": resnet18,
}


def build(spec: Spec, shape: Shape, classes: int) -> "nn.Module":
    """The model `spec` for images of `shape`, with PyTorch's initial weights from its global generator.

    Raises:
        ConfigError: the images are too small for it.
    """
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.options.items()}
    try:
        return MODELS[spec.name](shape, classes, **options)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"train.model: {spec.name} does not take images of {'x'.join(map(str, shape))}: {error}") from None
