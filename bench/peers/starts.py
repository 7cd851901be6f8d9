"""From nothing to the second training step, LeNet on MNIST: python -m bench.peers.starts DESCRIPTOR hand|accelerate|lightning DATA

The time of that step, by the clock that all processes share, is told on DESCRIPTOR; then the process ends.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

BATCH = 64


def tell_the_second(step: int) -> None:
    """`step` counts from 1."""
    if step == 2:
        os.write(int(sys.argv[1]), f"{time.monotonic()}\n".encode())
        os._exit(0)


def mnist(data: Path) -> tuple[Tensor, Tensor]:
    """float32 [N, 1, 28, 28] with mean 0 and deviation 1, and labels [N], from the two IDX files."""
    images, labels = (
        np.fromfile(data / "MNIST" / "raw" / f"train-{name}-ubyte", np.uint8)[skip:]
        for name, skip in (("images-idx3", 16), ("labels-idx1", 8))
    )
    return (torch.from_numpy(images).view(-1, 1, 28, 28) / 255 - 0.1307) / 0.3081, torch.from_numpy(labels).long()


def lenet() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(256, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def hand(images: Tensor, labels: Tensor) -> None:
    net = lenet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for step, rows in enumerate(torch.split(torch.randperm(len(images)), BATCH), 1):
        optimizer.zero_grad()
        F.cross_entropy(net(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tell_the_second(step)


def accelerate(images: Tensor, labels: Tensor) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    net = lenet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1000)
    loader = DataLoader(TensorDataset(images, labels), BATCH, shuffle=True)
    net, optimizer, loader, schedule = accelerator.prepare(net, optimizer, loader, schedule)
    for step, (batch, targets) in enumerate(loader, 1):
        optimizer.zero_grad()
        accelerator.backward(F.cross_entropy(net(batch), targets))
        optimizer.step()
        schedule.step()
        tell_the_second(step)


def lightning(images: Tensor, labels: Tensor) -> None:
    import lightning as framework

    class Classifier(framework.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = lenet()

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

        def on_train_batch_end(self, outputs: object, batch: object, number: int) -> None:
            tell_the_second(number + 1)

    trainer = framework.Trainer(max_epochs=1, accelerator="cpu", devices=1)
    trainer.fit(Classifier(), DataLoader(TensorDataset(images, labels), BATCH, shuffle=True))


if __name__ == "__main__":
    {"hand": hand, "accelerate": accelerate, "lightning": lightning}[sys.argv[2]](*mnist(Path(sys.argv[3])))
