"""Muon for every weight that is a matrix or can be read as one."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

OPTIONS = ("lr", "weight_decay", "momentum", "nesterov", "ns_steps", "adjust_lr_fn")


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon, for filters and for sharded parameters too.

    A filter [out, in, height, width] is updated as the matrix [out, in * height * width], in this order
    whatever its layout in memory; a sharded parameter is gathered, so that the update is that of one process.
    The update is orthogonalised in bfloat16, also that of float64 parameters.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **options: Any) -> None:
        super().__init__(groups, {"lr": 1e-3, **options})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "a gradient is there before the step"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, {name: group[name] for name in OPTIONS})

    def _update(self, parameters: list[Tensor], options: dict[str, Any]) -> None:
        matrices = [_matrix(p.detach()) for p in parameters]
        torchs = torch.optim.Muon(matrices, **options)
        for parameter, matrix in zip(parameters, matrices, strict=True):
            assert parameter.grad is not None
            matrix.grad = _matrix(parameter.grad)
            kept = self.state[parameter]
            if not kept:
                kept["momentum_buffer"] = torch.zeros_like(parameter)
            torchs.state[matrix]["momentum_buffer"] = _matrix(kept["momentum_buffer"])
        torchs.step()  # type: ignore[no-untyped-call]
        for parameter, matrix in zip(parameters, matrices, strict=True):
            _put(parameter, matrix)
            _put(self.state[parameter]["momentum_buffer"], torchs.state[matrix]["momentum_buffer"])


def hidden_weights(model: nn.Module) -> list[Tensor]:
    """The weights that Muon is for: matrices and filters, without embeddings and without the last layer.

    K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024: embeddings, the final layer,
    gains and biases are left to AdamW; filters are flattened. Those of the first convolution count as hidden.
    """
    owners = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    left_out = {id(m.weight) for m in [*owners[-1:], *(m for m in model.modules() if isinstance(m, nn.Embedding))]}
    return [p for p in model.parameters() if p.requires_grad and p.ndim >= 2 and 1 < len(p) < p.numel() and id(p) not in left_out]


def _matrix(tensor: Tensor) -> Tensor:
    """[out, ...] -> [out, the rest], whole; it shares memory where it can."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).flatten(1)


def _put(tensor: Tensor, matrix: Tensor) -> None:
    """The reverse of `_matrix`."""
    whole = matrix.view_as(tensor)
    if isinstance(tensor, DTensor):
        whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)
    elif whole.data_ptr() == tensor.data_ptr():  # its memory was shared, and is up to date
        return
    tensor.copy_(whole)
