"""Loops that a good engineer writes by hand, each in a process of its own: python -m bench.gpu_peers NAME OPTIONS-AS-JSON

Nothing of ours is in them but the reader of the raw files. Each prints one JSON object as its last line.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def clock() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def raw(name: str, data: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """uint8 [N, C, H, W] and int64 [N], of the training split and of the test split."""
    from pipeline.data.datasets import DATASETS

    found = DATASETS[name](Path(data)).load()
    pairs = [(torch.from_numpy(np.array(s.images)), torch.from_numpy(s.labels)) for s in (found.train, found.test)]
    return *pairs[0], *pairs[1]


class Pictures(Dataset[tuple[Tensor, int]]):
    """CIFAR-10 as torchvision hands it out: PIL images, turned into tensors and normalised one by one."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        from torchvision import transforms

        self.images, self.labels = images.permute(0, 2, 3, 1).numpy(), labels.tolist()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[row])), self.labels[row]


def lenet(shape: tuple[int, int, int], features: int, first: int = 6, padding: int = 0) -> nn.Sequential:
    pooled = [
        nn.Conv2d(shape[0], first, 5, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(first, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    dense = [nn.Flatten(), nn.Linear(features, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*pooled, *dense)


def tutorial(data: str, steps: int, total: int, workers: int = 2) -> dict[str, Any]:
    """PyTorch's CIFAR-10 tutorial, with its loader, batch 4, and its `.item()`; `steps` of its `total`."""
    images, labels, _, _ = raw("cifar10", data)
    loader = DataLoader(Pictures(images, labels), batch_size=4, shuffle=True, num_workers=workers)
    net = lenet((3, 32, 32), 400).to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    running, began = 0.0, clock()
    for step, (inputs, targets) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(inputs.to(DEVICE)), targets.to(DEVICE))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        running += loss.item()
        if step == 50:
            began = clock()
        if step == 50 + steps:
            break
    return {"ms_a_step": (clock() - began) / steps * 1e3, "seconds": (clock() - began) / steps * total, "measured_steps": steps}


def mnist(data: str, epochs: float, batch: int = 128, lr: float = 0.05, seed: int = 0) -> dict[str, Any]:
    """LeNet-5 on images resident on the device: momentum and one cycle, by hand."""
    train_x, train_y, test_x, test_y = (each.to(DEVICE) for each in raw("mnist", data))
    train_x, test_x = ((each.float() / 255 - 0.1307) / 0.3081 for each in (train_x, test_x))
    torch.manual_seed(seed)
    net = lenet((1, 28, 28), 256).to(DEVICE)
    steps = int(epochs * len(train_x) / batch)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    order, began = torch.empty(0, dtype=torch.int64, device=DEVICE), clock()
    for _ in range(steps):
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(train_x), device=DEVICE)])
        rows, order = order[:batch], order[batch:]
        optimizer.zero_grad()
        F.cross_entropy(net(train_x[rows]), train_y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    seconds = clock() - began
    with torch.no_grad():
        accuracy = (net(test_x).argmax(1) == test_y).double().mean().item()
    return {"seconds": seconds, "accuracy": accuracy, "steps": steps}


def resnet(steps: int, batch: int = 512) -> dict[str, Any]:
    """Torchvision's ResNet-18 with a small stem, channels-last, bfloat16, in one CUDA graph; flip and crop not even counted."""
    from torchvision.models import resnet18

    net = resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    net = net.to(DEVICE, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True)
    images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
    labels = torch.randint(0, 10, (batch,), device=DEVICE)

    def step() -> None:
        inputs = images.float().sub_(128).mul_(1 / 64).contiguous(memory_format=torch.channels_last)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = F.cross_entropy(net(inputs), labels, label_smoothing=0.1)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    once: Callable[[], None] = step
    for _ in range(3):
        step()
    if CUDA:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        once = graph.replay
        for _ in range(10):
            once()
    began = clock()
    for _ in range(steps):
        once()
    return {"ms_a_step": (clock() - began) / steps * 1e3, "images_per_second": steps * batch / (clock() - began)}


LOOPS: dict[str, Callable[..., dict[str, Any]]] = {"tutorial": tutorial, "mnist": mnist, "resnet": resnet}

if __name__ == "__main__":
    print(json.dumps(LOOPS[sys.argv[1]](**json.loads(sys.argv[2]))))
