"""How a model is spread over devices, and how its tensors are whole again: the same names under every strategy."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DataParallel, DistributedDataParallel

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs

Total = Callable[[Tensor], Tensor]  # elementwise over all processes
SHARD = 1_000_000  # parameters a part of the model has to have to be gathered by itself


def bare(model: nn.Module) -> nn.Module:
    """`model` without its wrapper: the same keys everywhere."""
    return model.module if isinstance(model, DataParallel | DistributedDataParallel) else model


def shard(model: nn.Module, image: Tensor) -> nn.Module:
    """`model` with its parameters cut over all processes (FSDP2), each large part gathered only while it is used.

    `image` [1, C, H, W] shows which parts are called, and which are only looked into by another.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(image.device.type, (dist.get_world_size(),))
    for part in large_parts(model, image):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def large_parts(model: nn.Module, image: Tensor) -> list[nn.Module]:
    """Those that are called, with `SHARD` parameters or more, of which no part has as many."""
    called: set[nn.Module] = set()
    hooks = [part.register_forward_pre_hook(lambda part, _: called.add(part)) for part in model.modules()]
    modes = {part: part.training for part in model.modules()}
    with torch.no_grad():
        model.eval()(image)
    for part, training in modes.items():
        part.training = training
    for hook in hooks:
        hook.remove()

    def within(whole: nn.Module) -> Iterator[nn.Module]:
        for part in whole.children():
            if sum(p.numel() for p in part.parameters()) >= SHARD:
                inner = list(within(part))
                yield from inner or ([part] if part in called else [])

    return list(within(model))


def synchronise_when(last: bool, model: nn.Module) -> None:
    """Let a sharded model exchange gradients in the next backward pass, or not yet."""
    if _is_sharded(model):
        model.set_requires_gradient_sync(last)


def forget_whole(model: nn.Module) -> None:
    """Drop what a sharded model has gathered of its parameters and would use again: they are about to change."""
    for part in model.modules():
        if _is_sharded(part):
            part.reshard()


def _is_sharded(part: nn.Module) -> "TypeGuard[FSDPModule]":
    """Of a run that shards nothing, the modules that would know are never imported: it takes half as long as torch itself."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(part, fsdp.FSDPModule)


def is_distributed(tensor: Tensor) -> "TypeIs[DTensor]":
    """Whether this process holds but a part of it."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and isinstance(tensor, distributed.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of `tensor`."""
    return tensor.to_local() if is_distributed(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """With the parts of all processes, each of which has to ask."""
    return tensor.full_tensor() if is_distributed(tensor) else tensor


def gather(tensors: Mapping[str, Tensor], wanted: bool, into: Mapping[str, Tensor] = MappingProxyType({})) -> dict[str, Tensor]:
    """Whole copies on the CPU where `wanted`, else nothing; every process has to ask.

    What `into` has under the same name is written over: to fill fresh memory takes ten times as long.
    """
    whole = ((name, value.full_tensor() if is_distributed(value) else value) for name, value in tensors.items())
    return {name: _copied(value.detach(), into.get(name)) for name, value in whole if wanted}


def _copied(value: Tensor, into: Tensor | None) -> Tensor:
    if into is None or into.shape != value.shape or into.dtype != value.dtype:
        into = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return into.copy_(value)


def like(value: Tensor, target: Tensor) -> Tensor:
    """The whole `value`, cut and placed as `target` is, if that is its shape."""
    if not is_distributed(target) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device, target.dtype), target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy whole `weights` into the bare model of the same names."""
    targets = bare(model).state_dict()
    assert targets.keys() == weights.keys(), targets.keys() ^ weights.keys()
    for name, target in targets.items():
        target.copy_(like(weights[name], target))


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def over_all(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def normalise_over(model: nn.Module, images: str | int, size: int, device: torch.device, total: Total = over_all) -> nn.Module:
    """`model` whose BatchNorms use the statistics of all processes ("sync"), of their own ("local") or of groups of `images`.

    `total` sums over all processes; on CUDA NCCL does.
    """
    if isinstance(images, int):
        return _converted(model, GroupBatchNorm, images)
    if images == "sync" and size > 1:
        return _converted(model, nn.SyncBatchNorm) if device.type == "cuda" else _converted(model, SyncBatchNorm, total)
    return model


def _converted(model: nn.Module, kind: Callable[..., _BatchNorm], *arguments: Any) -> nn.Module:
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, _BatchNorm):
                ours = kind(*arguments, norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
                if type(norm).forward is not _BatchNorm.forward:  # timm's goes on with a dropout and an activation
                    drop, activation = getattr(norm, "drop", None), getattr(norm, "act", None)
                    if drop is None or activation is None:
                        raise ConfigError(f"train.batch_norm: {type(norm).__name__} knows only local; use that")
                    ours.register_forward_hook(functools.partial(_go_on, drop, activation))
                ours.weight, ours.bias, ours.training = norm.weight, norm.bias, norm.training
                ours.running_mean, ours.running_var = norm.running_mean, norm.running_var
                ours.num_batches_tracked = norm.num_batches_tracked
                setattr(parent, name, ours)
    return model


def _go_on(drop: nn.Module, activation: nn.Module, norm: nn.Module, _: Any, normalised: Tensor) -> Tensor:
    activated: Tensor = activation.train(norm.training)(drop.train(norm.training)(normalised))
    return activated


class SyncBatchNorm(_BatchNorm):
    """`torch.nn.SyncBatchNorm` for any device: torch's own runs on CUDA alone."""

    def __init__(self, total: Total, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.total = total

    def _check_input_dim(self, images: Tensor) -> None: ...

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, ...] -> same; mean and variance over the images of all processes, however many each has."""
        if not self.training:
            return super().forward(images)
        values = images.to(torch.promote_types(images.dtype, torch.float32)).transpose(0, 1).flatten(1)
        count = _sum(values.new_tensor(values.shape[1]), self.total)
        mean = _sum(values.sum(1), self.total) / count
        variance = _sum((values - mean[:, None]).square().sum(1), self.total) / count
        _track(self, mean.detach(), variance.detach() * count / (count - 1))
        shape = (-1, *[1] * (images.dim() - 2))
        normalised = (images - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(images.dtype)


class GroupBatchNorm(_BatchNorm):
    """Statistics of `group` consecutive images, whatever process has them ("ghost" batch normalisation).

    E. Hoffer, I. Hubara, D. Soudry, "Train longer, generalize better", NeurIPS 2017.
    """

    def __init__(self, group: int, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.group = group

    def _check_input_dim(self, images: Tensor) -> None: ...

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, ...] -> same; B is a multiple of the group."""
        if not self.training:
            return super().forward(images)
        groups, channels, rest = len(images) // self.group, images.shape[1], images.shape[2:]
        beside = images.view(groups, self.group, channels, *rest).transpose(0, 1).reshape(self.group, groups * channels, *rest)
        mean, variance = images.new_zeros(2, groups * channels, dtype=torch.promote_types(images.dtype, torch.float32))
        weight, bias = (self.weight.repeat(groups), self.bias.repeat(groups)) if self.affine else (None, None)
        normalised = F.batch_norm(beside, mean, variance, weight, bias, training=True, momentum=1.0, eps=self.eps)
        _track(self, mean.view(groups, channels).mean(0), variance.view(groups, channels).mean(0))
        return normalised.view(self.group, groups, channels, *rest).transpose(0, 1).reshape_as(images)


@torch.no_grad()
def _track(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics, as torch does."""
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked += 1
    share = 1 / norm.num_batches_tracked if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


def _sum(tensor: Tensor, total: Total) -> Tensor:
    return cast(Tensor, _Sum.apply(tensor, total))


class _Sum(torch.autograd.Function):
    """Over all processes, forwards and backwards: each one's loss depends on the statistics of all."""

    @staticmethod
    def forward(context: Any, tensor: Tensor, total: Total) -> Tensor:
        context.total = total
        return total(tensor)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return context.total(gradient), None


def refuse_parts(model: nn.Module, images: str | int, batch_size: int, parts: int) -> None:
    """See that BatchNorm finds its groups whole, when a global batch is cut into `parts`.

    Raises:
        ConfigError: a part is no multiple of the group.
    """
    if isinstance(images, int) and batch_norms(model) and batch_size % (parts * images):
        raise ConfigError(
            f"train.batch_norm: a batch of {batch_size} in {parts} parts (processes times train.accumulate) "
            f"cannot be cut into groups of {images}; make train.batch_size a multiple of {parts * images}"
        )
