"""Muon for every weight that is a matrix or can be read as one."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pipeline.runtime import strategies

A, B, C = 3.4445, -4.7750, 2.0315  # of the quintic iteration, chosen for its slope at zero: K. Jordan et al., 2024
EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon, for filters and for sharded parameters too; matrices of one shape are orthogonalised together.

    A filter [out, in, height, width] is updated as the matrix [out, in * height * width], in this order
    whatever its layout in memory; the update of a sharded parameter is gathered, so that it is that of one process.
    It is orthogonalised in bfloat16, also that of float64 parameters. The rate of a group may be a tensor.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, {"lr": 1e-3, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "a gradient is there before the step"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            alike: dict[Any, list[Tensor]] = {}
            for parameter in parameters:
                alike.setdefault((len(parameter), parameter.numel(), parameter.dtype, parameter.device), []).append(parameter)
            for several in alike.values():
                self._step(several, group)

    def _step(self, parameters: Sequence[Tensor], group: dict[str, Any]) -> None:
        """Of `parameters` that are matrices of one shape."""
        updates = [self._wanted(p, group["momentum"], group["nesterov"]) for p in parameters]
        whole = orthogonal(torch.stack([_whole(update).flatten(1) for update in updates]), group["ns_steps"])
        rate, decay = group["lr"], group["weight_decay"]
        scale = -rate * _factor(whole[0], group["adjust_lr_fn"])
        for parameter, matrix in zip(parameters, whole.to(parameters[0].dtype), strict=True):
            if group["normalize"]:
                parameter.mul_(math.sqrt(len(parameter)) / _norm(parameter))
            update = strategies.like(matrix.view(parameter.shape), parameter)
            parameter.mul_(1 - rate * decay)
            if isinstance(scale, Tensor):
                parameter.add_(update * scale)
            else:
                parameter.add_(update, alpha=scale)

    def _wanted(self, parameter: Tensor, momentum: float, nesterov: bool) -> Tensor:
        """The direction of the update, before it is made orthogonal."""
        gradient, kept = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not kept:
            kept["momentum_buffer"] = torch.zeros_like(parameter)
        average: Tensor = kept["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum) if nesterov else average


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """[N, rows, columns] -> bfloat16 of the same shape: each with singular values near 1, by `steps` of a Newton-Schulz iteration."""
    x = matrices.to(torch.bfloat16)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=EPS)  # no singular value is above 1
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """The weights that Muon is for: matrices and filters, without embeddings and without the last layer.

    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024: embeddings, the final layer,
    gains and biases are left to AdamW; filters are flattened. Those of the first convolution count as hidden.
    """
    owners = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    left_out = {id(m.weight) for m in [*owners[-1:], *(m for m in model.modules() if isinstance(m, nn.Embedding))]}
    return [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and 1 < len(p) < p.numel() and id(p) not in left_out]


def _factor(matrix: Tensor, adjust: str) -> float:
    """Of the rate, by the shape [rows, columns]: see `optim.muon`."""
    rows, columns = matrix.shape
    return math.sqrt(max(1, rows / columns)) if adjust == "original" else 0.2 * math.sqrt(max(rows, columns))


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _norm(parameter: Tensor) -> Tensor:
    """Of the whole parameter, in an order of addition that its layout in memory does not change."""
    found: Tensor = torch.linalg.vector_norm(_whole(parameter).flatten())
    return found
