"""What a device does alike in every step: recorded once, then launched as one.

A launch costs the host about 5 microseconds and the device 1 to 3, whatever it does: a step of a small net is a hundred of them,
and nothing but them. Only what the device does is recorded. What the host computes, a rate or a draw, has to be put into a
tensor that stays where it is; a tensor whose shape depends on such a number cannot be.
"""

import contextlib
import random
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pipeline.runtime.console import say

WARM_UP = 3  # calls before one is recorded: in them libraries choose their kernels, and optimizers make what they keep

T = TypeVar("T")


class Recorder(Protocol):
    """Does again what it has seen done."""

    def aside(self) -> contextlib.AbstractContextManager[None]:
        """Where work is done that is to be recorded later."""

    def record(self, work: Callable[[], T]) -> T:
        """Let `work` say what is to be done, which is not done yet; what it gives holds values after `replay`."""

    def replay(self) -> None: ...


class Varies(RuntimeError):
    """What differs from step to step and cannot be recorded."""


class CudaGraph:
    """One launch of all the kernels of a function."""

    def __init__(self) -> None:
        self._graph, self._stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """On the stream that is recorded later: a graph of gradients made on another one could not be gone on with."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, work: Callable[[], T]) -> T:
        drawn = torch.default_generator.get_state(), random.getstate()
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):  # other threads write checkpoints
            found = work()
        if not (torch.equal(torch.default_generator.get_state(), drawn[0]) and random.getstate() == drawn[1]):
            torch.default_generator.set_state(drawn[0])
            random.setstate(drawn[1])
            raise Varies("the model draws random numbers on the host")
        return found

    def replay(self) -> None:
        self._graph.replay()


class Recorded(Generic[T]):
    """`work` of tensors, done plainly `WARM_UP` times, then recorded and from there on replayed.

    All else that it reads or writes has to stay where it is. What a replay gives lies in the same tensors each time: it is
    valid until the next call. If it cannot be recorded that is said, and it is done plainly for good, after `forget`.
    """

    def __init__(self, work: Callable[..., T], recorder: Recorder, device: torch.device, *, forget: Callable[[], None], what: str) -> None:
        self._work, self._recorder, self._device, self._forget, self._what = work, recorder, device, forget, what
        self._plain_calls: float = WARM_UP
        self._inputs: list[Tensor] = []
        self._found: Any = None

    @property
    def is_recorded(self) -> bool:
        """Whether it is replayed from here on."""
        return bool(self._inputs)

    def __call__(self, *inputs: Tensor) -> T:
        if self._plain_calls:
            self._plain_calls -= 1
            with self._recorder.aside():
                return self._work(*(to_device(given, self._device) for given in inputs))
        if not self._inputs and not self._recorded([to_device(given, self._device) for given in inputs]):
            return self(*inputs)
        for own, given in zip(self._inputs, inputs, strict=True):
            if own is not given:
                own.copy_(pinned(given, self._device), non_blocking=True)
        self._recorder.replay()
        found: T = self._found
        return found

    def _recorded(self, inputs: list[Tensor]) -> bool:
        try:
            self._found = self._recorder.record(lambda: self._work(*inputs))
        except RuntimeError as error:  # of whatever library refuses to be recorded
            say(f"train: {self._what} is launched piece by piece, not as one: {str(error).partition(chr(10))[0]}")
            self._plain_calls = float("inf")
            self._forget()
            return False
        self._inputs = inputs
        return True


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` there, without anybody waiting for it."""
    return pinned(tensor, device).to(device, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, or a copy that a GPU fetches by itself; its memory is not used again before that is done."""
    return tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor


RECORDERS: dict[str, Callable[[], Recorder]] = {"cuda": CudaGraph}  # by the type of the device
