"""The loop that a good engineer writes by hand: python -m bench.peers.by_hand DESCRIPTOR STEPS DATA SOURCE MODEL OPTIMIZER BATCH

The whole data set is in memory, as normalised floats; an epoch is a permutation of it; there is no loader. The model is
of our table, and the files are read by our reader; nothing else is ours. It learns for as long as it is given windows.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from bench.turns import Window
from pipeline.config import Spec, bind
from pipeline.data.datasets import DATASETS
from pipeline.learning.models import MODELS, build

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9),
    "fused_sgd": lambda net: torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, fused=True),
}


def read(source: str, data: Path) -> tuple[Tensor, Tensor]:
    """The training split: float32 [N, C, H, W], each channel with mean 0 and deviation 1; labels [N]."""
    raw = DATASETS[source](data).load()
    images = torch.from_numpy(np.asarray(raw.train.images)) / 255
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    return (images - mean) / std, torch.from_numpy(raw.train.labels)


def learn(window: Window, images: Tensor, labels: Tensor, net: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
    total = torch.zeros(())
    while True:
        order = torch.randperm(len(images))
        for start in range(0, len(images) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            optimizer.zero_grad()
            loss = F.cross_entropy(net(images[rows]), labels[rows])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.detach()
            window.step()


def main(descriptor: int, steps: int, data: str, source: str, model: str, optimizer: str, batch_size: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = read(source, Path(data))
    spec = bind(MODELS, Spec.model_validate(yaml.safe_load(model)), what="model")
    net = build(spec, tuple(images.shape[1:]), 10).train()  # type: ignore[arg-type]
    learn(Window(descriptor, steps), images, labels, net, OPTIMIZERS[optimizer](net), int(batch_size))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
