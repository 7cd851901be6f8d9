"""The networks that the table of models builds."""

from collections.abc import Sequence

from torch import Tensor, nn

POOLS: dict[str, type[nn.Module] | None] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d, "none": None}


class LeNet(nn.Sequential):
    """[B, C, H, W] -> logits [B, classes]; see `models.lenet`."""

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
    ) -> None:
        before, height, width = shape
        layers: list[nn.Module] = []
        for after in channels:
            layers += [nn.Conv2d(before, after, kernel), nn.ReLU()]
            before, height, width = after, height - kernel + 1, width - kernel + 1
            if (pooling := POOLS[pool]) is not None:
                layers.append(pooling(2))
                height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise ValueError(f"nothing is left after the convolution with {after} channels")
        layers.append(nn.Flatten())
        features = before * height * width
        for after in hidden:
            layers += [nn.Linear(features, after), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
            features = after
        super().__init__(*layers, nn.Linear(features, classes))


class ResNet(nn.Sequential):
    """[B, C, H, W] -> logits [B, classes]; see `models.resnet18`."""

    def __init__(self, shape: tuple[int, int, int], classes: int, *, width: int, blocks: Sequence[int]) -> None:
        layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
        for stage, count in enumerate(blocks):
            after = width * 2**stage
            for k in range(count):
                layers.append(Residual(before, after, stride=2 if stage and k == 0 else 1))
                before = after
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, projected where the shape changes."""

    def __init__(self, before: int, after: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = before == after and stride == 1
        project = [nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*project)
        self.activation = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        joined: Tensor = self.activation(self.body(images) + self.shortcut(images))
        return joined
