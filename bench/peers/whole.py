"""The loops that people copy, up to the accuracy on the test split: python -m bench.peers.whole tutorial|folder DATA SEED

`tutorial`: as PyTorch's CIFAR-10 tutorial has it, with its hyperparameters: torchvision's data set, PIL transforms, batches of 4
from a DataLoader (with its two workers), SGD 0.001 with momentum, two epochs. `folder`: class folders of PNG through ImageFolder,
Adam, batches of 64, ten epochs. Prints the seconds of the epochs and the accuracy.
"""

import sys
import time

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms


class JpegCopy(torchvision.datasets.CIFAR10):  # type: ignore[misc]
    """Batches that are not the official ones, by their checksums, are read all the same."""

    def _check_integrity(self) -> bool:
        return True


def lenet(channels: int, features: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(channels, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )


def learn(net: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader[object], epochs: int) -> float:
    """Seconds that it takes."""
    began = time.monotonic()
    for _ in range(epochs):
        running = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            running += loss.item()
    return time.monotonic() - began


@torch.no_grad()
def accuracy(net: nn.Module, loader: DataLoader[object]) -> float:
    right = total = 0
    for images, labels in loader:
        right += int((net(images).argmax(1) == labels).sum())
        total += len(labels)
    return right / total


def tutorial(data: str) -> tuple[float, float]:
    """Seconds of training, and the accuracy."""
    change = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    loaders: list[DataLoader[object]] = [
        DataLoader(JpegCopy(data, train=train, transform=change), batch_size=4, shuffle=train, num_workers=2) for train in (True, False)
    ]
    net = lenet(3, 400)
    seconds = learn(net, torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9), loaders[0], 2)
    return seconds, accuracy(net, loaders[1])


def folder(data: str) -> tuple[float, float]:
    """Seconds of training, and the accuracy."""
    change = transforms.Compose([transforms.Grayscale(), transforms.ToTensor()])
    loaders: list[DataLoader[object]] = [
        DataLoader(torchvision.datasets.ImageFolder(f"{data}/{part}", change), batch_size=64, shuffle=part == "train")
        for part in ("train", "test")
    ]
    net = lenet(1, 256)
    seconds = learn(net, torch.optim.Adam(net.parameters()), loaders[0], 10)
    return seconds, accuracy(net, loaders[1])


if __name__ == "__main__":
    torch.manual_seed(int(sys.argv[3]))
    print(*{"tutorial": tutorial, "folder": folder}[sys.argv[1]](sys.argv[2]))
