"""The networks that the table of models builds: [B, C, H, W] -> logits [B, classes]."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POOLS: dict[str, type[nn.Module] | None] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d, "none": None}
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class LeNet(nn.Sequential):
    """See `models.lenet`, and, without convolutions, `models.mlp`."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        *,
        channels: Sequence[int],
        kernel: int,
        pool: str,
        hidden: Sequence[int],
        dropout: float,
        activation: str = "relu",
    ) -> None:
        active = ACTIVATIONS[activation]
        before, height, width = shape
        layers: list[nn.Module] = []
        for after in channels:
            layers += [nn.Conv2d(before, after, kernel), active()]
            before, height, width = after, height - kernel + 1, width - kernel + 1
            if (pooling := POOLS[pool]) is not None:
                layers.append(pooling(2))
                height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise ValueError(f"nothing is left after the convolution with {after} channels")
        layers.append(nn.Flatten())
        features = before * height * width
        for after in hidden:
            layers += [nn.Linear(features, after), active(), *([nn.Dropout(dropout)] if dropout else [])]
            features = after
        super().__init__(*layers, nn.Linear(features, classes))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    expansion = 1

    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(before, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        body = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        joined: Tensor = self.relu(body + self.downsample(x))
        return joined


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut, with the stride on the 3x3 as torchvision has it."""

    expansion = 4

    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        after = planes * self.expansion
        self.conv1 = nn.Conv2d(before, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        body = self.relu(self.bn1(self.conv1(x)))
        body = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(body)))))
        joined: Tensor = self.relu(body + self.downsample(x))
        return joined


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))


class ResNet(nn.Sequential):
    """See `models.resnet`; the names of parameters are torchvision's."""

    def __init__(
        self, channels: int, classes: int, *, block: type[BasicBlock | Bottleneck], blocks: Sequence[int], width: int, small: bool
    ) -> None:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = nn.Conv2d(channels, width, 3 if small else 7, stride=1 if small else 2, padding=1 if small else 3, bias=False)
        layers["bn1"] = nn.BatchNorm2d(width)
        layers["relu"] = nn.ReLU(inplace=True)
        if not small:
            layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
        before = width
        for stage, count in enumerate(blocks):
            planes = width * 2**stage
            after = planes * block.expansion
            first = block(before, planes, stride=2 if stage else 1)
            layers[f"layer{stage + 1}"] = nn.Sequential(first, *(block(after, planes, stride=1) for _ in range(count - 1)))
            before = after
        layers["avgpool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(before, classes)
        super().__init__(layers)
        _kaiming(self)


class WideBlock(nn.Module):
    """Norm, ReLU, convolution, twice, beside a shortcut; a projection sees the activated input."""

    def __init__(self, before: int, after: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.shortcut = None if before == after and stride == 1 else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        body: Tensor = self.conv2(self.dropout(F.relu(self.bn2(self.conv1(active)))))
        return body + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Sequential):
    """See `models.wide_resnet`."""

    def __init__(self, channels: int, classes: int, *, blocks: int, widen: int, dropout: float) -> None:
        layers: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
        before = 16
        for group in range(3):
            after = 16 * widen * 2**group
            for k in range(blocks):
                layers.append(WideBlock(before, after, stride=2 if group and k == 0 else 1, dropout=dropout))
                before = after
        layers += [nn.BatchNorm2d(before), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes)]
        super().__init__(*layers)
        _kaiming(self)


def _kaiming(model: nn.Module) -> None:
    """K. He et al., "Delving deep into rectifiers", 2015, for the convolutions, in the backward direction as in torchvision."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = x + self.body(x)
        return joined


class GlobalMaxPool(nn.Module):
    """[B, C, H, W] -> [B, C]; unlike AdaptiveMaxPool2d's, its gradient is deterministic on CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:.4g}"


class ResNet9(nn.Sequential):
    """See `models.resnet9`."""

    def __init__(self, channels: int, classes: int, *, width: int, scale: float) -> None:
        def conv(before: int, after: int) -> list[nn.Module]:
            return [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]

        w1, w2, w4, w8 = width, 2 * width, 4 * width, 8 * width
        super().__init__(
            *conv(channels, w1),
            *(*conv(w1, w2), nn.MaxPool2d(2), Residual(*conv(w2, w2), *conv(w2, w2))),
            *(*conv(w2, w4), nn.MaxPool2d(2)),
            *(*conv(w4, w8), nn.MaxPool2d(2), Residual(*conv(w8, w8), *conv(w8, w8))),
            *(GlobalMaxPool(), nn.Linear(w8, classes, bias=False), Scale(scale)),
        )


class FastCifar(nn.Sequential):
    """See `models.fast_cifar`. The first convolution is drawn like any other until `whiten` sets it."""

    def __init__(self, channels: int, classes: int, *, widths: Sequence[int], scale: float) -> None:
        before = 2 * channels * 2 * 2
        whitening = nn.Conv2d(channels, before, 2)
        whitening.weight.requires_grad_(False)
        nn.init.zeros_(whitening.get_parameter("bias"))
        layers: list[nn.Module] = [whitening, nn.GELU()]
        for after in widths:
            layers += [_dirac_conv(before, after), nn.MaxPool2d(2), _shift_norm(after), nn.GELU()]
            layers += [_dirac_conv(after, after), _shift_norm(after), nn.GELU()]
            before = after
        super().__init__(*layers, GlobalMaxPool(), nn.Linear(before, classes, bias=False), Scale(scale))

    @torch.no_grad()
    def whiten(self, images: Tensor, *, eps: float = 5e-4) -> None:
        """Set the first convolution so that its outputs on patches like those of `images` are uncorrelated.

        Its filters are the eigenvectors of the covariance of 2x2 patches, each over the root of its
        eigenvalue + `eps`, the largest first; then their negatives, which GELU does not waste.

        Args:
            images: floats [N, C, H, W], normalised as in training; some thousands are enough.
            eps: keeps directions that hardly vary from being blown up.
        """
        conv = self[0]
        assert isinstance(conv, nn.Conv2d)
        covariance = _patch_covariance(images)
        values, vectors = torch.linalg.eigh(covariance)  # ascending; a column is a vector
        filters = (vectors / (values + eps).sqrt()).T.flip(0).reshape(-1, images.shape[1], 2, 2)
        conv.weight.copy_(torch.cat([filters, -filters]))


def _patch_covariance(images: Tensor) -> Tensor:
    """[N, C, H, W] -> float64 [4C, 4C]; a few images at a time, as the patches are four times as large."""
    features = images.shape[1] * 4
    total, products = images.new_zeros(features, dtype=torch.float64), images.new_zeros(features, features, dtype=torch.float64)
    for part in torch.split(images, 256):
        patches = F.unfold(part.double(), 2).transpose(1, 2).flatten(0, 1)
        total += patches.sum(0)
        products += patches.T @ patches
    count = images.shape[0] * (images.shape[2] - 1) * (images.shape[3] - 1)
    mean = total / count
    return products / count - mean.outer(mean)


def _dirac_conv(before: int, after: int) -> nn.Conv2d:
    """3x3, beginning as the identity from its inputs to as many of its outputs."""
    conv = nn.Conv2d(before, after, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:before])
    return conv


def _shift_norm(channels: int) -> nn.BatchNorm2d:
    """With a learnt shift and no learnt scale."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
