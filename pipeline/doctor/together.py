"""Sums over all processes, as training will ask for them: whether they are right, and how long they take."""

import datetime
import statistics
import time
from collections.abc import Iterator

import torch

from pipeline.config import Config
from pipeline.doctor.findings import Finding
from pipeline.runtime.launch import Launch, StopFlag
from pipeline.runtime.world import World

SMALL, LARGE = (4, 50), {"cpu": (16 << 20, 5), "cuda": (256 << 20, 10)}  # bytes, and how often; of a device


def summed(config: Config, launch: Launch, threads: int, seconds: float) -> list[Finding]:
    """By what training uses; and where that is the memory of the machine, by gloo as well, which carries what is told besides.

    Raises:
        PipelineError: the processes cannot be joined.
    """
    stop, wait = StopFlag(), datetime.timedelta(seconds=seconds)

    def join(strategy: str) -> World:
        run = config.run.model_copy(update={"strategy": strategy})
        return World(run, launch, stop, precision=config.train.precision, threads=threads, wait=wait)

    with join(config.run.strategy) as world:
        found = [*_timed(world)]
        if world.backend == "shared memory":
            found += _timed(join("ddp"))
    return found


def _timed(world: World) -> Iterator[Finding]:
    size, repeats = LARGE.get(world.device.type, LARGE["cpu"])
    right, large = _all_reduce(world, size, repeats)
    also, small = _all_reduce(world, *SMALL)
    value = f"{world.backend}: {small * 1e6:,.0f} µs for 4 bytes, {size >> 20} MB in {large * 1e3:,.1f} ms"
    value += f", {2 * (world.size - 1) / world.size * size / large / 1e9:.2f} GB/s each way"
    if right and also:
        yield Finding("all-reduce", value)
    else:
        cure = "sums are not to be trusted there: try run.strategy=ddp on CPUs, NCCL_P2P_DISABLE=1 on GPUs, and test the machine's memory"
        yield Finding("all-reduce", world.backend, "a wrong sum", cure)


def _all_reduce(world: World, size: int, repeats: int) -> tuple[bool, float]:
    """Whether it was right each time, and its median seconds; the first, which may have to connect, does not count for those."""
    mine = torch.full((size // 4,), float(world.rank + 1), device=world.device)
    whole = world.size * (world.size + 1) / 2
    right, seconds = True, []
    for _ in range(repeats + 1):
        world.synchronize()
        began = time.perf_counter()
        total = world.sum(mine)
        world.synchronize()
        seconds.append(time.perf_counter() - began)
        right &= bool((total == whole).all())
    return right, statistics.median(seconds[1:])
