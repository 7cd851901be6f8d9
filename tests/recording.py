"""A recorder for the CPU, as strict as a GPU's: what it has seen done it does again, operation by operation, on the same tensors."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.runtime import recorded

T = TypeVar("T")

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"}  # for values, to go on on the host


class Operations:
    """A `Recorder`. What is done while it is recorded is undone: a GPU would not have done it yet."""

    def __init__(self) -> None:
        self.done: list[tuple[Any, Any, Any, Any]] = []

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        yield

    def record(self, work: Callable[[], T]) -> T:
        generator = torch.default_generator.get_state()
        watch = Watch()
        try:
            with watch:
                return work()
        finally:
            for now, before in watch.before.values():
                if not torch.equal(now, before):  # the images are mapped memory, which cannot be written to
                    now.copy_(before)
            torch.default_generator.set_state(generator)
            self.done = watch.done

    @torch.no_grad()
    def replay(self) -> None:
        for operation, args, kwargs, found in self.done:
            again = operation(*args, **kwargs)
            if all(each.alias_info is None for each in operation._schema.returns):
                for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


class Watch(TorchDispatchMode):
    """Notes every operation, and what the storages held that it was given; refuses those that wait for the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # as bytes, by where they lie

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name.removeprefix("aten::") in WAITS:
            raise RuntimeError(f"{func._schema.name} waits for the device")
        for value in tree_leaves((args, kwargs)):  # some kernels write to what their schema says they only read
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.before:
                held = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
                self.before[value.untyped_storage().data_ptr()] = held, held.clone()
        found = func(*args, **kwargs)
        self.done.append((func, args, kwargs, found))
        return found


def on_the_cpu(rank: int) -> None:
    """Let this process record steps."""
    recorded.RECORDERS["cpu"] = Operations


def refusing_to_wait(rank: int) -> None:
    """Let this process fail where making a batch or an update waits for the device."""
    from pipeline.data.batches import TrainBatches
    from pipeline.stages import train

    def watched(plain: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **how: Any) -> Any:
            with Watch():
                return plain(*args, **how)

        return call

    for owner, name in ((train, "update"), (TrainBatches, "_batches")):
        setattr(owner, name, watched(getattr(owner, name)))
