"""The models to choose from, by name: each a function of (shape, classes) and its options.

Torch is imported only when a model is built, so that names and options are checked before.
"""

import contextlib
import copy
import difflib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipeline.config import Spec
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

Count = Annotated[int, Field(ge=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Scale = Annotated[float, Field(gt=0)]
Shape = tuple[int, int, int]  # channels, height, width
LARGE = 20_000_000  # parameters


def lenet(
    shape: Shape,
    classes: int,
    *,
    channels: tuple[Count, ...] = (6, 16),
    kernel: Count = 5,
    pool: Literal["max", "avg", "none"] = "max",
    hidden: tuple[Count, ...] = (120, 84),
    dropout: Dropout = 0.0,
) -> "nn.Module":
    """Convolutions (each with ReLU and a 2x2 pool), flattened into fully connected layers.

    After Y. LeCun et al., "Gradient-based learning applied to document recognition", 1998, as the
    field writes it today: ReLU for tanh, max pooling, no partial connections.
    """
    from pipeline.learning.networks import LeNet

    return LeNet(shape, classes, channels=channels, kernel=kernel, pool=pool, hidden=hidden, dropout=dropout)


def mlp(
    shape: Shape,
    classes: int,
    *,
    hidden: tuple[Count, ...] = (256,),
    dropout: Dropout = 0.0,
    activation: Literal["relu", "gelu", "tanh"] = "relu",
) -> "nn.Module":
    """Fully connected layers on the pixels."""
    from pipeline.learning.networks import LeNet

    return LeNet(shape, classes, channels=(), kernel=1, pool="none", hidden=hidden, dropout=dropout, activation=activation)


def resnet(
    shape: Shape, classes: int, *, depth: Literal[18, 34, 50] = 18, width: Count = 64, stem: Literal["small", "imagenet"] = "small"
) -> "nn.Module":
    """K. He et al., "Deep residual learning for image recognition", CVPR 2016; the stem for small images is that of section 4.2.

    That stem is one 3x3 convolution; ImageNet's is 7x7 with stride 2, and a max pool. The names of parameters and
    the distribution of initial weights are torchvision's, so that its weights can be loaded.
    """
    from pipeline.learning.networks import BasicBlock, Bottleneck, ResNet

    block = Bottleneck if depth == 50 else BasicBlock
    blocks = (2, 2, 2, 2) if depth == 18 else (3, 4, 6, 3)
    return ResNet(shape[0], classes, block=block, blocks=blocks, width=width, small=stem == "small")


def resnet9(shape: Shape, classes: int, *, width: Count = 64, scale: Scale = 0.125) -> "nn.Module":
    """The net with which David Page won DAWNBench on CIFAR-10 ("How to train your ResNet", myrtle.ai, 2018).

    Its logits are multiplied by `scale`.
    """
    from pipeline.learning.networks import ResNet9

    return ResNet9(shape[0], classes, width=width, scale=scale)


def _of_wide_resnet(depth: int) -> int:
    if depth < 10 or (depth - 4) % 6:
        raise ValueError("a wide ResNet has 6n + 4 layers; take 10, 16, 22, 28 or 40")
    return depth


def wide_resnet(
    shape: Shape, classes: int, *, depth: Annotated[Count, AfterValidator(_of_wide_resnet)] = 16, widen: Count = 4, dropout: Dropout = 0.0
) -> "nn.Module":
    """WRN-depth-widen of S. Zagoruyko, N. Komodakis, "Wide residual networks", BMVC 2016; dropout between the convolutions of a block."""
    from pipeline.learning.networks import WideResNet

    return WideResNet(shape[0], classes, blocks=(depth - 4) // 6, widen=widen, dropout=dropout)


def fast_cifar(shape: Shape, classes: int, *, widths: tuple[Count, Count, Count] = (64, 256, 256), scale: Scale = 1 / 9) -> "nn.Module":
    """The net of K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024.

    Its first convolution does not learn: `whiten`, a method of the model, sets it from training images.
    Three groups of two 3x3 convolutions follow, which begin as identities. Logits are multiplied by `scale`.
    """
    from pipeline.learning.networks import FastCifar

    return FastCifar(shape[0], classes, widths=widths, scale=scale)


def torchvision(shape: Shape, classes: int, *, arch: str = "resnet18", stem: Literal["auto", "small", "imagenet"] = "auto") -> "nn.Module":
    """A classifier of torchvision.models by its name there, for images of any number of channels.

    With the stem for small images (auto: those under 96 pixels) the first convolution has stride 1, and 3x3 instead of 7x7 or
    more, and a max pool that follows it is dropped. Nets whose weights depend on the size of images keep their stem.
    """
    from torchvision import models as library

    _check_arch(arch, library.list_models(module=library), "torchvision.models")
    channels, height, width = shape
    options: dict[str, Any] = {}
    if arch.startswith("vit_"):
        if height != width:
            raise ValueError("its images are square")
        options = {"image_size": height}
    elif arch.startswith("maxvit_"):
        options = {"input_size": (height, width)}
    elif arch in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    model: nn.Module = library.get_model(arch, weights=None, num_classes=classes, **options)
    small = stem == "small" or (stem == "auto" and min(height, width) < 96)
    _adapt_stem(model, channels, small=small and not arch.startswith(("vit_", "maxvit_")))
    return model


def _adapt_stem(model: "nn.Module", channels: int, *, small: bool) -> None:
    from torch import nn

    leaves = [(name, layer) for name, layer in model.named_modules() if not any(layer.children())]
    at, name, first = next((k, name, layer) for k, (name, layer) in enumerate(leaves) if isinstance(layer, nn.Conv2d))
    window: dict[str, Any] = {"kernel_size": first.kernel_size, "stride": first.stride, "padding": first.padding}
    if shrink := small and max(first.kernel_size) >= 7:
        window = {"kernel_size": 3, "padding": 1}
    if shrink or channels != first.in_channels:
        first = nn.Conv2d(channels, first.out_channels, **window, bias=first.bias is not None)
        model.set_submodule(name, first)
    if not small:
        return
    first.stride = (1, 1)
    name, follower = next((name, layer) for name, layer in leaves[at + 1 :] if isinstance(layer, nn.MaxPool2d | nn.Conv2d | nn.Linear))
    if isinstance(follower, nn.MaxPool2d):
        model.set_submodule(name, nn.Identity())


def timm(shape: Shape, classes: int, *, arch: str = "resnet18", drop_rate: Dropout = 0.0, drop_path_rate: Dropout = 0.0) -> "nn.Module":
    """A model of timm by its name there (without a tag), for images of any number of channels; no weights are downloaded."""
    try:
        import timm as library
    except ModuleNotFoundError:
        raise ConfigError("train.model: timm is not installed; run ./setup timm") from None
    _check_arch(arch, library.list_models(), "timm")
    options: dict[str, Any] = {k: v for k, v in {"drop_rate": drop_rate, "drop_path_rate": drop_path_rate}.items() if v}
    published = library.get_pretrained_cfg(arch)
    if published and published.fixed_input_size:
        options["img_size"] = shape[1:]
    try:
        model: nn.Module = library.create_model(arch, pretrained=False, num_classes=classes, in_chans=shape[0], **options)
    except TypeError as error:
        raise ConfigError(f"train.model: timm's {arch} is not made with these options: {error}") from None
    return model


def _check_arch(arch: str, names: Iterable[str], library: str) -> None:
    names = list(names)
    if arch not in names:
        near = " or ".join(difflib.get_close_matches(arch, names))
        raise ConfigError(f"train.model.arch: no {arch!r} in {library}; {f'did you mean {near}?' if near else 'see its list_models()'}")


MODELS: dict[str, Callable[..., "nn.Module"]] = {
    "lenet": lenet,
    "lenet5": functools.partial(lenet, channels=(6, 16), hidden=(120, 84)),  # 28x28: 256 features; 32x32: 400
    "cifar_tutorial": functools.partial(lenet, channels=(6, 16), hidden=(120, 84)),  # pytorch.org's CIFAR-10 tutorial
    "cifar_wide": functools.partial(lenet, channels=(16, 32), hidden=(120, 84)),
    "lenet3x3": functools.partial(lenet, channels=(6, 16), kernel=3, pool="none", hidden=(512, 64)),
    "mlp": mlp,
    "resnet18": functools.partial(resnet, depth=18),
    "resnet34": functools.partial(resnet, depth=34),
    "resnet50": functools.partial(resnet, depth=50),
    "resnet9": resnet9,
    "wrn_16_4": functools.partial(wide_resnet, depth=16, widen=4),
    "wrn_28_10": functools.partial(wide_resnet, depth=28, widen=10),
    "fast_cifar": fast_cifar,
    "torchvision": torchvision,
    "timm": timm,
}


def build(spec: Spec, shape: Shape, classes: int) -> "nn.Module":
    """The model `spec` for images of `shape`, with its initial weights from PyTorch's global generator.

    Raises:
        ConfigError: it does not take such images, or its options do not fit together.
    """
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.options.items()}
    with _taking(spec, shape):
        model = MODELS[spec.name](shape, classes, **options)
        _try(model, shape, classes)
    return model


def refuse_size(model: "nn.Module", spec: Spec, shape: Shape, classes: int) -> None:
    """See that `model`, built for other images, takes those of `shape` too.

    Raises:
        ConfigError: it does not.
    """
    with _taking(spec, shape, "train.augment"):
        _try(model, shape, classes)


def refuse_one(model: "nn.Module", spec: Spec, shape: Shape, classes: int) -> None:
    """See that `model` can learn from one image at a time: a BatchNorm that sees a single value a channel cannot.

    Raises:
        ConfigError: it cannot.
    """
    try:
        _try(model, shape, classes, images=1)
    except ValueError as error:
        raise ConfigError(
            f"train.batch_size: {spec.name} cannot learn from parts of one image ({error}); "
            "raise it, or use a smaller train.accumulate or fewer processes (or train.shards)"
        ) from None


@contextlib.contextmanager
def _taking(spec: Spec, shape: Shape, what: str = "train.model") -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # a library's net may raise anything on images that are too small
        if short := re.search(r"can't allocate memory: you tried to allocate (\d+) bytes", str(error)):  # torch's words, on a CPU
            raise ConfigError(f"{what}: {spec.name} has not room in memory: {int(short[1]):,} bytes; make it smaller") from None
        name, size = f"{spec.name} {spec.options.get('arch', '')}".strip(), "x".join(map(str, shape))
        raise ConfigError(f"{what}: {name} does not take images of {size}: {' '.join(str(error).split())}") from None


def _try(model: "nn.Module", shape: Shape, classes: int, images: int = 2) -> None:
    """A forward that draws nothing and changes nothing; of a large model without values.

    Of two images, as BatchNorm refuses to train on one that has shrunk to a single pixel. For tensors without
    values torch imports its compiler, which takes as long as torch itself: a small model is sooner done with them.
    """
    import torch

    from pipeline.learning.layers import on_meta

    large = sum(p.numel() for p in model.parameters()) > LARGE
    twin = on_meta(model) if large else copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        logits = twin(torch.zeros(images, *shape, device=next(twin.parameters()).device))
    if not isinstance(logits, torch.Tensor) or logits.shape != (images, classes):
        raise ValueError(f"it does not give {classes} logits an image")


def head(model: "nn.Module", classes: int | None = None) -> str:
    """The name of the layer that makes the logits: the last linear layer or convolution, of those with `classes` outputs if given."""
    from torch import nn

    name = ""
    for path, layer in model.named_modules():
        outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels if isinstance(layer, nn.Conv2d) else None
        if outputs is not None and classes in (None, outputs):
            name = path
    if not name:
        raise ConfigError(f"train.model: {type(model).__name__} has no linear layer or convolution with {classes or 'any'} outputs")
    return name
