"""Optimizers, by name: each a function of the model and its options.

Every group of parameters has a "factor": its rate is `train.lr`, times the schedule, times the factor.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer


def _with_momentum(nesterov: bool, options: ValidationInfo) -> bool:
    if nesterov and not options.data.get("momentum"):
        raise ValueError("needs a momentum above 0")
    return nesterov


Share = Annotated[float, Field(ge=0, le=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(ge=0)]
Factor = Annotated[float, Field(gt=0)]
Nesterov = Annotated[bool, AfterValidator(_with_momentum)]  # its option comes after `momentum`
Decayed = Literal["all", "weights"]  # "weights": not the norms and biases, the parameters of fewer than two dimensions
Groups = list[dict[str, Any]]


def spare_compiler() -> None:
    """Let torch's optimizers be made and used without its compiler, whose import takes as long as that of torch.

    They would import it only to tell it to leave some of their methods alone; a step of ours is never compiled. What they
    ask for is an attribute of those methods (torch/_compile.py); of a torch that has no such thing nothing is changed.
    """
    from torch.optim import Optimizer

    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        method = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if method is not None:
            method.__dict__.setdefault("__dynamo_disable", method)


def sgd(
    model: "nn.Module",
    *,
    momentum: Share = 0.0,
    nesterov: Nesterov = False,
    weight_decay: Positive = 0.0,
    decay: Decayed = "all",
    bias_lr: Factor = 1.0,
) -> "tuple[Optimizer, ...]":
    """Norms and biases learn at `bias_lr` times the rate, and decay as the weights do.

    K. Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024, has 64 for the norms' biases.
    """
    return (_sgd(_groups(_trained(model), weight_decay, decay, bias_factor=bias_lr), momentum, nesterov),)


def adam(
    model: "nn.Module",
    *,
    beta1: Beta = 0.9,
    beta2: Beta = 0.999,
    eps: Positive = 1e-8,
    weight_decay: Positive = 0.0,
    decay: Decayed = "all",
) -> "tuple[Optimizer, ...]":
    """The decay is an L2 penalty, a part of the gradient; `adamw` decouples it."""
    import torch

    groups = _groups(_trained(model), weight_decay, decay)
    return (_resumable(torch.optim.Adam(groups, betas=(beta1, beta2), eps=eps, **_kernels(groups))),)


def adamw(
    model: "nn.Module",
    *,
    beta1: Beta = 0.9,
    beta2: Beta = 0.999,
    eps: Positive = 1e-8,
    weight_decay: Positive = 0.01,
    decay: Decayed = "all",
) -> "tuple[Optimizer, ...]":
    """I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", 2019."""
    return (_adamw(_groups(_trained(model), weight_decay, decay), beta1, beta2, eps),)


def rmsprop(
    model: "nn.Module",
    *,
    alpha: Share = 0.99,
    eps: Positive = 1e-8,
    momentum: Share = 0.0,
    centered: bool = False,
    weight_decay: Positive = 0.0,
    decay: Decayed = "all",
) -> "tuple[Optimizer, ...]":
    import torch

    groups = _groups(_trained(model), weight_decay, decay)
    return (_resumable(torch.optim.RMSprop(groups, alpha=alpha, eps=eps, momentum=momentum, centered=centered, foreach=True)),)


def lion(
    model: "nn.Module", *, beta1: Beta = 0.9, beta2: Beta = 0.99, weight_decay: Positive = 0.0, decay: Decayed = "all"
) -> "tuple[Optimizer, ...]":
    """X. Chen et al., "Symbolic discovery of optimization algorithms", 2023; the decay is decoupled. By timm."""
    try:
        from timm.optim.lion import Lion
    except ImportError:
        raise ConfigError("train.optimizer: lion is timm's, which is not installed; run ./setup timm") from None
    return (_resumable(Lion(_groups(_trained(model), weight_decay, decay), betas=(beta1, beta2), foreach=True)),)


def muon(
    model: "nn.Module",
    *,
    momentum: Beta = 0.95,
    nesterov: Nesterov = True,
    ns_steps: Annotated[int, Field(ge=1, lt=100)] = 5,
    adjust_lr_fn: Literal["original", "match_rms_adamw"] = "match_rms_adamw",
    normalize: bool = False,
    weight_decay: Positive = 0.1,
    decay: Decayed = "all",
    rest: Literal["adamw", "sgd"] = "adamw",
    rest_lr: Factor = 1.0,
    rest_decay: Positive | None = None,
    rest_momentum: Share = 0.85,
    bias_lr: Factor | None = None,
    beta1: Beta = 0.9,
    beta2: Beta = 0.999,
    eps: Positive = 1e-8,
) -> "tuple[Optimizer, ...]":
    """Muon for the hidden weights (`hidden_weights` says which), AdamW or Nesterov's SGD for the rest, at `rest_lr` times their rate.

    With "match_rms_adamw" (J. Liu et al., "Muon is scalable for LLM training", 2025, section 2.2) both take AdamW's rate
    and decay; with "original" (K. Jordan et al., 2024) a rate of 0.02 goes with a `rest_lr` of 0.015. With `normalize`
    a hidden weight is scaled to the norm of as many unit rows before each update, as K. Jordan's CIFAR-10 records have it.
    Of the rest, norms and biases learn at `bias_lr` times the rate (as the others, if not given), and decay as these do.
    """
    from pipeline.learning.muon import Muon, hidden_weights

    hidden = hidden_weights(model)
    if not hidden:
        raise ConfigError("train.optimizer: muon is for hidden weights, and the model has none to train; choose adamw")
    chosen = {id(p) for p in hidden}
    others = [p for p in _trained(model) if id(p) not in chosen]
    options = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn, "normalize": normalize}
    first = _resumable(Muon(_groups(hidden, weight_decay, decay), **options))
    if not others:
        return (first,)
    groups = _groups(others, weight_decay if rest_decay is None else rest_decay, decay, factor=rest_lr, bias_factor=bias_lr or rest_lr)
    return first, (_adamw(groups, beta1, beta2, eps) if rest == "adamw" else _sgd(groups, rest_momentum, rest_momentum > 0))


def _sgd(groups: Groups, momentum: float, nesterov: bool) -> "Optimizer":
    import torch

    optimizer = torch.optim.SGD(groups, momentum=momentum, nesterov=nesterov, **_kernels(groups))
    for group in groups if momentum else ():
        for parameter in group["params"]:  # the fused kernel leaves it uninitialised if the first step overflows
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter, requires_grad=False)
    return _resumable(optimizer)


def keep_rates_on(device: "torch.device", optimizers: "Sequence[Optimizer]") -> bool:
    """Let the rate of every group be a tensor on `device`, to be changed in place, as a recorded step needs; False if one takes none.

    A GPU's kernels take float32.
    """
    import torch

    from pipeline.learning.muon import Muon

    if not all(isinstance(o, Muon | torch.optim.SGD | torch.optim.Adam | torch.optim.RMSprop) for o in optimizers):
        return False
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = torch.zeros((), dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
        if "capturable" in group and device.type != "cpu":  # torch refuses to be recorded without, and with it on a CPU
            group["capturable"] = True
    return True


def _adamw(groups: Groups, beta1: float, beta2: float, eps: float) -> "Optimizer":
    import torch

    return _resumable(torch.optim.AdamW(groups, betas=(beta1, beta2), eps=eps, **_kernels(groups)))


def _trained(model: "nn.Module") -> "list[Tensor]":
    trained: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ConfigError("train.freeze: no parameter is left to train; freeze fewer")
    return trained


def _groups(
    parameters: "Sequence[Tensor]", weight_decay: float, decay: str, *, factor: float = 1.0, bias_factor: float | None = None
) -> Groups:
    """Weights, then norms and biases at `bias_factor`, whose decay a step stays what it would be at `factor`."""
    bias_factor = factor if bias_factor is None else bias_factor
    small = [p for p in parameters if p.ndim < 2 and (decay == "weights" or bias_factor != factor)]
    apart = {id(p) for p in small}
    small_decay = 0.0 if decay == "weights" else weight_decay * factor / bias_factor
    kinds = (([p for p in parameters if id(p) not in apart], weight_decay, factor), (small, small_decay, bias_factor))
    return [{"params": p, "weight_decay": d, "factor": f} for p, d, f in kinds if p]


def _kernels(groups: Groups) -> dict[str, bool]:
    """One kernel for all parameters where there is one, two to four times faster on a CPU too; fused SGD has none for shards."""
    parameters = [p for group in groups for p in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and not hasattr(p, "placements") for p in parameters)
    return {"fused": True} if fused else {"foreach": True}


def _resumable(optimizer: "Optimizer") -> "Optimizer":
    import torch

    optimizer.register_load_state_dict_post_hook(_lay_out)
    step: Any = type(optimizer).step
    while hasattr(step, "__wrapped__"):  # hooks, a mark for profilers, and word to the compiler: half the time of a small step
        step = step.__wrapped__
    optimizer.step = torch.no_grad()(functools.partial(step, optimizer))  # type: ignore[method-assign]
    return optimizer


def _lay_out(optimizer: "Optimizer") -> None:
    """What is loaded gets the parameter's order in memory: torch's fused kernels on the CPU assume it and do not look."""
    import torch

    for parameter, kept in optimizer.state.items():
        for what, value in kept.items():
            if torch.is_tensor(value) and value.shape == parameter.shape and value.stride() != parameter.stride():
                kept[what] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


OPTIMIZERS: "dict[str, Callable[..., tuple[Optimizer, ...]]]" = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "rmsprop": rmsprop,
    "lion": lion,
    "muon": muon,
}
