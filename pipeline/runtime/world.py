"""The processes of this run and the devices they own: the only user of Accelerate.

What Accelerate would get wrong is not asked of it: no loader, scheduler, optimizer or checkpoint
is prepared, only the model. See docs/architecture.md.
"""

import contextlib
import datetime
import hashlib
import logging
import resource
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.modules.conv import _ConvNd

from pipeline.config import RunConfig
from pipeline.errors import ConfigError, Stopped, TakenOver
from pipeline.runtime import exchange, strategies
from pipeline.runtime.console import say
from pipeline.runtime.elastic import Reduction, in_pairs
from pipeline.runtime.exchange import Exchange, Gradients
from pipeline.runtime.launch import Launch, StopFlag, check_strategy
from pipeline.runtime.recorded import RECORDERS, Recorder, Varies, to_device
from pipeline.runtime.watch import Marks

WAIT = datetime.timedelta(hours=2)  # others wait this long while process 0 prepares the data
ONE_THREAD_FLOPS = 1e9  # forward, a process and step; below it a second thread costs more than it brings
SMALL_CONVOLUTIONS = 5e6  # FLOPs forward, of a process's batch; below it oneDNN's preparations cost more than its speed brings
POLL = 10  # steps, at most, between asking all processes whether to stop
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class World:
    """One process's view of the run. A single CPU process is a world of size one.

    What depends on the number of processes is told in virtual ones: `shards`, the ranks that this
    process plays, of `virtual` in all. That is its own rank of `size`, unless training is elastic.
    """

    def __init__(
        self,
        run: RunConfig,
        launch: Launch,
        stop: StopFlag,
        *,
        precision: str,
        threads: int,
        shards: int | None = None,
        wait: datetime.timedelta = WAIT,
    ) -> None:
        """Join the other processes, to play `shards` virtual ones together if given; waits until all have come, at most for `wait`.

        Raises:
            ConfigError: the strategy does not fit the processes, or other processes came than were launched.
        """
        strategy = check_strategy(run.strategy, launch.size)
        self.strategy = strategy if shards is None else "elastic"
        cpu = run.device == "cpu" or not (torch.cuda.is_available() or torch.backends.mps.is_available())
        logging.getLogger("accelerate").setLevel(logging.ERROR)
        torch.set_num_threads(threads)
        self._fit_threads = cpu and run.threads is None
        self._asked, self._ask_at, self._asked_last = 0, 1, time.monotonic()
        self._accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no",  # autocast is entered in `forward`, where DataParallel sees it too
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=wait),
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            ],
        )
        self._stop, self._precision, self._run = stop, precision, run
        self._exchange: Exchange | None = None
        self._gradients: Gradients | None = None
        self.marks = Marks()
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes
        self.virtual: int = shards or self.size
        played = self.virtual // self.size
        self.shards = range(self.rank * played, (self.rank + 1) * played)
        self._reduction = None if shards is None else Reduction()
        self.is_main: bool = self.rank == 0
        self.device: torch.device = self._accelerator.device
        faster = precision in AUTOCAST or (self.device.type == "cpu" and precision != "fp64" and run.compile == "no")
        self._channels_last = faster if run.channels_last is None else run.channels_last
        self._channels_last &= strategy != "fsdp"  # which shards contiguous parameters only
        self._small = False
        self.channels_last = self._now_channels_last = self._channels_last  # of training steps, and of what comes next
        self._generators = [torch.default_generator]
        self._seeded: tuple[int, int, int] | None = None
        if self.device.type == "cuda":
            self._use_cuda()
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        if self._accelerator.distributed_type not in ("NO", "MULTI_CPU", "MULTI_GPU"):
            kind = self._accelerator.distributed_type.value
            raise ConfigError(f"accelerate is configured for {kind}, which is not offered; run `accelerate config` for DDP")
        if self.device.type == "cuda" and launch.local_size > torch.cuda.device_count():
            raise ConfigError(
                f"{launch.local_size} processes were started on a machine with {torch.cuda.device_count()} GPUs; start one each"
            )
        if self.device.type == "mps" and precision == "fp64":
            raise ConfigError("train.precision: this GPU has no float64; use run.device=cpu")
        if self.size != launch.size:
            raise ConfigError(f"{launch.size} processes were launched, but {self.size} came together")
        if self.size > 1 and self.device.type == "cpu" and run.strategy == "auto":
            self._share_memory(one_machine=launch.local_size == self.size)

    def __enter__(self) -> "World":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if dist.is_initialized():
            if error is None or isinstance(error, Stopped):
                with contextlib.suppress(RuntimeError) if error else contextlib.nullcontext():  # who stops may have left already
                    dist.barrier()  # a launcher ends the others when one has left; the main one may still be writing
            dist.destroy_process_group()
        if self._exchange is not None:
            self._exchange.close()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()

    @property
    def backend(self) -> str:
        """What carries sums between processes."""
        return "shared memory" if self._exchange is not None else str(dist.get_backend())

    @property
    def environment(self) -> dict[str, Any]:
        """What changes the last digits of a result."""
        gpu = self.device.type == "cuda"
        return {
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if gpu else torch.backends.cpu.get_cpu_capability(),
            **({"processes": self.size} if self._reduction is None else {}),
            "strategy": self.strategy,
            **({} if gpu else {"threads": torch.get_num_threads()}),
            **({"compile": self._run.compile} if self._run.compile != "no" else {}),
            **({"channels_last": True} if self.channels_last else {}),
            **({"onednn": False} if self._small else {}),
        }

    def __str__(self) -> str:
        processes = "1 process" if self.size == 1 else f"{self.size} processes"
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        count = torch.get_num_threads()
        threads = f", {count} thread{'s' * (count > 1)} each" if self.device.type == "cpu" else ""
        compiled = "" if self._run.compile == "no" else ", compiled"
        computed = "" if self._precision == "no" else f", in {self._precision}"
        layout = ", no oneDNN" if self._small else ", channels last" if self.channels_last else ""
        return f"{processes} ({self.strategy}{compiled}) on {name}{threads}{computed}{layout}"

    def _share_memory(self, *, one_machine: bool) -> None:
        """Sum through the memory of the machine from now on, if all processes are on one."""
        self._exchange = exchange.join(self.rank, self.size, agree=self.agree, any_=self.any)
        if self._exchange is None and one_machine:
            say("the processes of this machine cannot share memory, as in containers of their own; sums go over the network (DDP), slower")
        if self._exchange is not None and self._reduction is None:
            self.strategy = "shared"

    def _use_cuda(self) -> None:
        """The device by its number, its generators, and kernels that give the same bits each time."""
        torch.cuda.init()  # type: ignore[no-untyped-call]  # there are no generators before
        self.device = torch.device("cuda", torch.cuda.current_device())
        ours = slice(None) if self.strategy == "dp" else slice(self.device.index, self.device.index + 1)
        self._generators += list(torch.cuda.default_generators)[ours]
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = self._precision == "tf32"  # `no` is float32
        torch.set_float32_matmul_precision("high" if self._precision == "tf32" else "highest")

    def wrap(self, model: nn.Module, shape: tuple[int, ...], batch_size: int, *, batch_norm: str | int = "sync") -> nn.Module:
        """Place and parallelise `model`, for global batches of images of `shape`: the one place that chooses a strategy."""
        model = model.to(self.device, self.dtype)
        if self._exchange is not None:
            for tensor in model.state_dict().values():  # DDP does so by itself
                dist.broadcast(tensor, 0)
        convolutions, linear = self._flops(model, shape)
        self._small = self._is_small(convolutions * batch_size / self.virtual)
        self.channels_last = self._channels_last and not self._small and bool(convolutions or self._run.channels_last)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        if self._fit_threads and (convolutions + linear) * batch_size / self.size < ONE_THREAD_FLOPS:
            torch.set_num_threads(1)
        if self._reduction is not None and batch_norm == "sync" and strategies.batch_norms(model):
            raise ConfigError("train.batch_norm: shards of determinism=elastic know nothing of each other; use train.batch_norm=local")
        compiled = self._run.compile != "no"  # which knows how to go around torch's sum, and nobody else's
        model = strategies.normalise_over(model, batch_norm, self.size, self.device, strategies.over_all if compiled else self.sum)
        averages = self._reduction is None and self.size > 1 and batch_norm != "sync"
        self._averaged = strategies.batch_norms(model) if averages else []
        if self._run.compile != "no":
            model.compile(backend=self._run.compile, dynamic=False)  # a program for each size; one for all takes minutes to find
        if self.strategy == "dp":
            return self._data_parallel(model, batch_norm)
        if self.strategy == "fsdp":
            return strategies.shard(model, torch.zeros(1, *shape, dtype=self.dtype, device=self.device))
        if self.strategy == "shared":
            self._gradients = Gradients(model)
        images = batch_norm if isinstance(batch_norm, int) else 2  # a pass has to have
        return self._distributed(model, shape, images) if self.strategy == "ddp" else model

    def _is_small(self, flops: float) -> bool:
        """Whether a step with so many in convolutions, forward, goes faster as written than by oneDNN and in its layout."""
        plain = self._precision in ("no", "tf32") and self._run.compile == "no" and not self._run.channels_last
        switches = self.device.type == "cpu" and not self.can_record  # a recorded step could not
        return plain and switches and 0 < flops <= SMALL_CONVOLUTIONS

    def _data_parallel(self, model: nn.Module, batch_norm: str | int) -> nn.Module:
        wrapped = nn.DataParallel(model)
        if len(wrapped.device_ids) > 1:
            if self._run.compile != "no":
                raise ConfigError("run.compile: DataParallel's replicas cannot be compiled; use run.strategy=ddp")
            if self._precision in AUTOCAST:
                raise ConfigError(f"train.precision: DataParallel's replicas do not know of {self._precision}; use run.strategy=ddp")
            if batch_norm != "local" and strategies.batch_norms(model):
                raise ConfigError("train.batch_norm: DataParallel's replicas know only local; use that, or run.strategy=ddp")
        return wrapped

    def _flops(self, model: nn.Module, shape: tuple[int, ...]) -> tuple[int, int]:
        """Of one image's way forward, in convolutions and in linear layers; torch's counter takes as long to import as Triton does."""
        found = {_ConvNd: 0, nn.Linear: 0}

        def count(kind: type[nn.Module], layer: nn.Module, output: Tensor) -> None:
            weight = layer.get_parameter("weight")
            found[kind] += 2 * output.numel() * weight.numel() // len(weight)

        hooks = [
            layer.register_forward_hook(lambda layer, _, output, kind=kind: count(kind, layer, output))
            for layer in model.modules()
            for kind in found
            if isinstance(layer, kind)
        ]
        training = model.training
        with torch.no_grad():
            model.eval()(torch.zeros(1, *shape, dtype=self.dtype, device=self.device))
        model.train(training)
        for hook in hooks:
            hook.remove()
        return found[_ConvNd], found[nn.Linear]

    def _distributed(self, model: nn.Module, shape: tuple[int, ...], images: int) -> nn.Module:
        """DDP with its buckets settled.

        It lays them out anew after the first pass, and with three or more processes another layout
        adds in another order. Two passes that leave no trace make a resumed run equal to the bit.
        """
        with warnings.catch_warnings():  # `broadcast_buffers` has another name in newer torch, not in the oldest we support
            warnings.simplefilter("ignore", FutureWarning)
            wrapped: nn.Module = self._accelerator.prepare_model(model)
        self._accelerator._models.clear()  # which it would keep alive
        for _ in range(2):
            self._rehearse(wrapped, shape, images)
        return wrapped

    def _rehearse(self, wrapped: nn.Module, shape: tuple[int, ...], count: int) -> None:
        """Forward and backward of `count` blank images, that leave no trace."""
        before = {name: buffer.clone() for name, buffer in wrapped.named_buffers()}
        try:
            self.forward(wrapped, torch.zeros(count, *shape, dtype=self.dtype, device=self.device)).sum().backward()  # type: ignore[no-untyped-call]
        finally:
            wrapped.zero_grad()
            for name, buffer in wrapped.named_buffers():
                buffer.copy_(before[name])

    def parts(self, wrapped: nn.Module, shape: tuple[int, ...], count: int, parts: int) -> int:
        """Into how many, at least `parts`, this process's `count` images must be cut to fit into the memory of the device.

        Tried before the first step with blank images, and room for the optimizer's state, so that
        all processes take the same number. A CPU never says that it is out of memory; models with
        BatchNorm would give another result, and a sharded model cannot fail on one process alone.
        """
        if self.device.type == "cpu" or strategies.batch_norms(wrapped) or self.strategy == "fsdp":
            return parts

        def attempt(images: int) -> None:
            torch.cuda.empty_cache()
            sums = 0 if self._reduction is None else self.virtual.bit_length()
            room = [torch.empty_like(p) for p in wrapped.parameters() for _ in range(2 + sums)]
            with self.micro_batch(wrapped, last=False):
                self._rehearse(wrapped, shape, images)
            del room

        return fewest_parts(attempt, count, parts, self.any)

    def fits(self, tensors: list[Tensor]) -> bool:
        """Whether they take less than half of the memory that is free on the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what an earlier stage has left counts as taken
        return self.device.type != "cuda" or 2 * sum(t.nbytes for t in tensors) < torch.cuda.mem_get_info(self.device)[0]

    def to_device(self, tensor: Tensor) -> Tensor:
        return to_device(tensor, self.device)

    @property
    def can_record(self) -> bool:
        """Whether a step can be launched as one: not where several processes meet in it, or the rate has to be a float64."""
        alone = self.strategy == "single" and self.virtual == 1
        return self.device.type in RECORDERS and alone and self._precision not in ("fp64", "fp16")

    def recorder(self) -> Recorder | None:
        """A new one, if this device has one and it is wanted.

        Raises:
            Varies: a step cannot be recorded here.
        """
        if self.device.type not in RECORDERS or self._run.cuda_graph == "no":
            return None
        if not self.can_record:
            what = f"run.strategy={self.strategy}" if self.strategy != "single" else f"train.precision={self._precision}"
            raise Varies(f"{what} cannot be recorded")
        return RECORDERS[self.device.type]()

    def seed(self, shard: int, *, seed: int, step: int) -> None:
        """Let what the model draws (dropout) be a function of (seed, step, shard); the seed is nothing that a recorded step holds."""
        if self._seeded == (seed, step, shard):
            return
        self.marks.step = step
        for k, generator in enumerate(self._generators):  # torch.manual_seed would keep a stack trace a call, without CUDA
            digest = hashlib.blake2b(f"{seed}/{step}/{shard}/{k}".encode(), digest_size=7).digest()
            generator.manual_seed(int.from_bytes(digest))
        self._seeded = seed, step, shard

    @contextlib.contextmanager
    def playing(self, shard: int, model: nn.Module, *, seed: int, step: int) -> Iterator[None]:
        """Be the virtual process `shard` in this step."""
        self.seed(shard, seed=seed, step=step)
        self._seeded = None  # the numbers are used up
        if self._reduction is not None:
            self._reduction.begin(model)
        self._now_channels_last = self.channels_last
        if self._small:
            torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
        try:
            yield
        finally:
            self._now_channels_last = self._channels_last
            if self._small:
                torch.backends.mkldnn.enabled = True  # type: ignore[assignment]
        if self._reduction is not None:
            self._reduction.take()

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Logits in the dtype of this world, computed in the chosen precision."""
        self.marks.at("forward")
        if self._now_channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if self._precision not in AUTOCAST:
            return model(images)  # type: ignore[no-any-return]
        with torch.autocast(self.device.type, AUTOCAST[self._precision]):
            logits: Tensor = model(images)
        return logits.to(self.dtype)

    def scaler(self) -> GradScaler:
        """Keeps small gradients of float16 above zero; for other precisions it does nothing."""
        return GradScaler(self.device.type, enabled=self._precision == "fp16")

    def micro_batch(self, model: nn.Module, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Forward and backward of one part of a batch; the gradient exchange waits for the last."""
        strategies.synchronise_when(last, model)
        return contextlib.nullcontext() if last else self._accelerator.no_sync(model)

    def backward(self, losses: Tensor, weights: Tensor) -> None:
        """Of the sum of `losses` [B] times `weights` [B]."""
        self.marks.at("backward")
        losses.backward(weights)  # type: ignore[no-untyped-call]

    def agree_on_overflow(self, scaler: GradScaler, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """A step in which one optimizer, or one process's shard, has overflowed is one that all skip."""
        if not scaler.is_enabled():
            return
        found = [each for optimizer in optimizers for each in scaler._found_inf_per_device(optimizer).values()]
        any_found = torch.stack(found).amax()
        if self.strategy == "fsdp":
            dist.all_reduce(any_found, dist.ReduceOp.MAX)
        for each in found:
            each.copy_(any_found)

    def exchange(self) -> None:
        """What DDP and FSDP leave to do when all shards have been played.

        If elastic all of it: gradients and running statistics become the mean over all shards. Where
        memory is shared the gradients become that over processes; and so, where each has normalised
        by its own, do BatchNorm's running statistics.
        """
        self.marks.at("exchange")
        if self._gradients is not None and self._exchange is not None:
            self._gradients.average(self._exchange, self.size)
        if self._reduction is not None:
            self._reduction.end(self.total, self.virtual)
        if not self._averaged:
            return
        running = [b for norm in self._averaged for b in (norm.running_mean, norm.running_var) if b is not None]
        means = self.sum(torch.cat(running)) / self.size
        for buffer, mean in zip(running, torch.split(means, [len(b) for b in running]), strict=True):
            buffer.copy_(mean)

    def sum(self, tensor: Tensor) -> Tensor:
        """Elementwise over all processes; the same bits on each."""
        self.marks.at("exchange")
        if self.size > 1:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            if self._exchange is None:
                dist.all_reduce(tensor)
            else:
                self._exchange.sum(tensor)
        return tensor

    def total(self, mine: Sequence[Tensor]) -> Tensor:
        """The sum over all virtual processes, of which this one has `mine`; if elastic, the same bits on any number of processes."""
        branch = in_pairs(mine)
        adds_in_pairs = self._reduction is None or self._exchange is not None
        return self.sum(branch) if adds_in_pairs else in_pairs(list(self.gather(branch)))

    def gather(self, tensor: Tensor) -> Tensor:
        """That of each process, [size, ...]; the same bits on each."""
        self.marks.at("exchange")
        if self.size == 1:
            return tensor[None]
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    def any(self, flag: bool) -> bool:
        return flag if self.size == 1 else bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def stopping(self) -> bool:
        """Whether any process is to stop, the same answer on each.

        To ask costs an exchange: several processes do so when they are first asked, then once in
        `POLL` times, or as often as makes it once a second.
        """
        if self.size == 1:
            return self._told_to(bool(self._stop))
        self._asked += 1
        if self._asked < self._ask_at:
            return False
        now = time.monotonic()
        told = torch.tensor([float(bool(self._stop)), (now - self._asked_last) / self._asked], device=self.device)
        stop, seconds = self.sum(told).tolist()
        self._asked, self._asked_last = 0, now
        self._ask_at = max(1, min(POLL, int(self.size / max(seconds, 1e-9))))
        return self._told_to(bool(stop > 0))

    def _told_to(self, stop: bool) -> bool:
        """`stop`, unless another life has taken this run over: then there is nothing to keep, and every process leaves at once."""
        if stop and (lost := self.agree(self._stop.lost)):
            raise TakenOver(lost)
        return stop

    def agree(self, value: Any) -> Any:
        """The main process's value, on every process."""
        self.marks.at("exchange")
        return broadcast_object_list([value])[0] if self.size > 1 else value

    def barrier(self) -> None:
        self.marks.at("exchange")
        self._accelerator.wait_for_everyone()

    def peak_memory(self) -> int:
        """Bytes that this process has had at most: of its GPU, or of the machine."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def synchronize(self) -> None:
        """Wait until the device has done what it was given: before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def fewest_parts(attempt: Callable[[int], None], count: int, parts: int, any_: Callable[[bool], bool]) -> int:
    """`parts`, or twice, four times, ... as many, so that no process's `attempt` with its share of `count` images runs out of memory.

    Raises:
        ConfigError: not even one image fits.
    """
    while True:
        short = False
        try:
            attempt(-(-count // parts))
        except torch.OutOfMemoryError:
            short = True  # to be told to the others outside, where the frames that hold the memory are gone
        if not any_(short):
            return parts
        if parts >= count:
            raise ConfigError("train.model: not even one image fits into the memory of the device; choose a smaller model or images")
        parts = min(2 * parts, count)
        say(f"train: out of memory; a batch is cut into {parts} parts")
