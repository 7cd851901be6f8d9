"""The processes of this run and the devices they own: the only user of Accelerate.

What Accelerate would get wrong is not asked of it: no loader, scheduler, optimizer or checkpoint
is prepared, only the model. See docs/architecture.md.
"""

import contextlib
import datetime
import hashlib
import logging
import warnings
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, Stopped
from pipeline.runtime.launch import Launch, StopFlag

WAIT = datetime.timedelta(hours=2)  # others wait this long while process 0 prepares the data
ONE_THREAD_FLOPS = 1e9  # forward, a process and step; below it a second thread costs more than it brings
POLL = 10  # steps between asking all processes whether to stop


class World:
    """One process's view of the run. A single CPU process is a world of size one."""

    def __init__(self, run: RunConfig, launch: Launch, stop: StopFlag, *, precision: str, threads: int) -> None:
        """Join the other processes; waits until all have come.

        Raises:
            ConfigError: the strategy does not fit the processes, or other processes came than were launched.
        """
        self.strategy = _strategy(run.strategy, launch.size)
        cpu = run.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        logging.getLogger("accelerate").setLevel(logging.ERROR)
        torch.set_num_threads(threads)
        self._fit_threads = cpu and run.threads is None
        self._accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",  # autocast is entered in `forward`, where DataParallel sees it too
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=WAIT),
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            ],
        )
        self._stop, self._precision = stop, precision
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes
        self.is_main: bool = self.rank == 0
        self.device: torch.device = self._accelerator.device
        self._generators = [torch.default_generator]
        if self.device.type == "cuda":
            self._use_cuda()
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        if self._accelerator.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            kind = self._accelerator.distributed_type.value
            raise ConfigError(f"accelerate is configured for {kind}, which is not offered; run `accelerate config` for DDP")
        if self.size != launch.size:
            raise ConfigError(f"{launch.size} processes were launched, but {self.size} came together")

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if dist.is_initialized():
            if error is None or isinstance(error, Stopped):
                dist.barrier()  # a launcher ends the others when one has left; the main one may still be writing
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    def __str__(self) -> str:
        processes = "1 process" if self.size == 1 else f"{self.size} processes"
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' * (count > 1)} each" if self.device.type == "cpu" else ""
        return f"{processes} ({self.strategy}) on {name}{threads}"

    def _use_cuda(self) -> None:
        """The device by its number, its generators, and kernels that give the same bits each time."""
        torch.cuda.init()  # type: ignore[no-untyped-call]  # there are no generators before
        self.device = torch.device("cuda", torch.cuda.current_device())
        ours = slice(None) if self.strategy == "dp" else slice(self.device.index, self.device.index + 1)
        self._generators += list(torch.cuda.default_generators)[ours]
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False  # `no` is float32

    def wrap(self, model: nn.Module, shape: tuple[int, ...], batch_size: int) -> nn.Module:
        """Place and parallelise `model`, for global batches of images of `shape`: the one place that chooses a strategy."""
        model = model.to(self.device, self.dtype)
        if self._fit_threads and self._flops(model, shape) * batch_size / self.size < ONE_THREAD_FLOPS:
            torch.set_num_threads(1)
        if self.strategy == "dp":
            return nn.DataParallel(model)
        return self._distributed(model, shape) if self.strategy == "ddp" else model

    def _flops(self, model: nn.Module, shape: tuple[int, ...]) -> int:
        """Of one image's way forward."""
        training = model.training
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.zeros(1, *shape, dtype=self.dtype, device=self.device))
        model.train(training)
        return int(counter.get_total_flops())

    def _distributed(self, model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        """DDP with its buckets settled.

        It lays them out anew after the first pass, and with three or more processes another layout
        adds in another order. Two passes that leave no trace make a resumed run equal to the bit.
        """
        with warnings.catch_warnings():  # `broadcast_buffers` has another name in newer torch, not in the oldest we support
            warnings.simplefilter("ignore", FutureWarning)
            wrapped: nn.Module = self._accelerator.prepare_model(model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        for _ in range(2):
            self.forward(wrapped, torch.zeros(2, *shape, dtype=self.dtype, device=self.device)).sum().backward()  # type: ignore[no-untyped-call]
        wrapped.zero_grad()
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
        return wrapped

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether they take less than half of the memory that is free on the device."""
        return self.device.type != "cuda" or 2 * sum(t.nbytes for t in tensors) < torch.cuda.mem_get_info(self.device)[0]

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def seed(self, seed: int, step: int) -> None:
        """Make what the model draws in this step (dropout) a function of (seed, step, rank)."""
        for k, generator in enumerate(self._generators):  # torch.manual_seed would keep a stack trace a call, without CUDA
            digest = hashlib.blake2b(f"{seed}/{step}/{self.rank}/{k}".encode(), digest_size=7).digest()
            generator.manual_seed(int.from_bytes(digest))

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits in the dtype of this world, computed in the chosen precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._precision == "bf16"):
            logits: Tensor = model(images)
        return logits.to(self.dtype)

    @contextlib.contextmanager
    def micro_batch(self, model: nn.Module, *, last: bool) -> Iterator[None]:
        """Forward and backward of one part of a batch; the gradient exchange waits for the last."""
        with contextlib.nullcontext() if last else self._accelerator.no_sync(model):
            yield

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise over all processes; the same bits on each."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """That of each process, [size, ...]; the same bits on each."""
        if self.size == 1:
            return tensor[None]
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the running statistics of process 0, the ones that are saved."""
        for buffer in model.buffers() if self.size > 1 else ():
            dist.broadcast(buffer, src=0)

    def any(self, flag: bool) -> bool:
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def stopping(self, step: int) -> bool:
        """Whether any process was told to stop, the same answer on each; several ask every `POLL` steps."""
        return (self.size == 1 or step % POLL == 0) and self.any(bool(self._stop))

    def agree(self, value: Any) -> Any:
        """The main process's value, on every process."""
        return broadcast_object_list([value])[0] if self.size > 1 else value

    def barrier(self) -> None:
        self._accelerator.wait_for_everyone()

    def synchronize(self) -> None:
        """Wait until the device has done what it was given: before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _strategy(asked: str, size: int) -> str:
    if asked == "dp" and size > 1:
        raise ConfigError(f"run.strategy: dp is one process with several GPUs, but {size} were started; use ddp or auto")
    if asked == "ddp" and size == 1:
        raise ConfigError("run.strategy: ddp needs several processes; start with torchrun, accelerate or srun, or use auto")
    if asked == "auto":
        return "ddp" if size > 1 else "single"
    return asked
