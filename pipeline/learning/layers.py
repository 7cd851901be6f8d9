"""The layers of a model, and what each costs."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

COLUMNS = 100


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without values: its forward computes shapes alone, at no cost and with no draws from a generator on the CPU."""
    memo: dict[int, Any] = {id(t): nn.Parameter(t.detach().to("meta")) for t in model.parameters()}
    memo |= {id(t): t.to("meta") for t in model.buffers()}
    return copy.deepcopy(model, memo)


def describe(model: nn.Module, shape: tuple[int, int, int]) -> str:
    """A table of the layers of `model` for images of `shape` [C, H, W], at most 100 columns wide.

    A row for each module without children, and for those that have parameters or FLOPs of their
    own besides. FLOPs are those of matrix products and convolutions for one image, with two for a
    multiplication and an addition; the size is that of the parameters in float32.
    """
    from torch.utils.flop_counter import FlopCounterMode  # which imports Triton

    twin = on_meta(model).eval()
    shapes: dict[nn.Module, str] = {}
    for module in twin.modules():
        module.register_forward_hook(_noting(shapes))
    with FlopCounterMode(display=False) as counter:  # with gradients, as attention's fast path would go uncounted
        twin(torch.zeros(1, *shape, device="meta"))
    root = type(twin).__name__
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    rows: list[tuple[str, ...]] = [("layer", "type", "output", "parameters", "FLOPs")]
    for name, module in twin.named_modules():
        path = f"{root}.{name}" if name else root
        flops = counts.get(path, 0) - sum(counts.get(f"{path}.{child}", 0) for child, _ in module.named_children())
        parameters = sum(p.numel() for p in module.parameters(recurse=False))
        if parameters or flops or not any(module.children()):
            rows.append((name or "(model)", type(module).__name__, shapes.get(module, "-"), f"{parameters:,}", f"{flops:,}"))
    return "\n".join([*_aligned(rows), _total(model, counter.get_total_flops())])


def _noting(shapes: dict[nn.Module, str]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple | list) else output
        if isinstance(first, Tensor):
            shapes[module] = "x".join(map(str, first.shape[1:]))

    return hook


def _total(model: nn.Module, flops: int) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"total: {parameters:,} parameters ({trainable:,} trainable), {flops:,} FLOPs an image, {4 * parameters / 1e6:.2f} MB"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Words to the left, numbers to the right; names give way where the line would be too long."""
    kind, *numbers = (max(len(row[k]) for row in rows) for k in range(1, 5))
    kind = min(kind, 24)
    name = min(max(len(row[0]) for row in rows), COLUMNS - kind - sum(numbers) - 2 * 4)
    widths = [name, kind, *numbers]
    lines = []
    for row in rows:
        cells = [_short(row[0], name), _short(row[1], kind), *row[2:]]
        lines.append("  ".join(c.ljust(w) if k < 3 else c.rjust(w) for k, (c, w) in enumerate(zip(cells, widths, strict=True))))
    return lines


def _short(name: str, width: int) -> str:
    if len(name) <= width:
        return name
    head = (width - 3) // 2
    return f"{name[:head]}...{name[len(name) - (width - 3 - head) :]}"
