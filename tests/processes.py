"""Runs the command line in real processes, forked from one that has torch imported: 0.1 s instead of 3."""

import contextlib
import json
import multiprocessing
import os
import random
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType
from typing import Any

HELD: list[contextlib.ExitStack] = []  # the UDP ports of the numbers that were given
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.export._trace",
        "torch.onnx",
        "onnxruntime",
        "onnxscript",
        "torchvision.models",
        "torchvision.transforms.v2",
        "pipeline.main",
        "pipeline.stages.prepare",
        "pipeline.stages.train",
        "pipeline.stages.evaluate",
        "pipeline.stages.export.card",
        "pipeline.stages.export.check",
        "pipeline.stages.export.net",
        "pipeline.stages.report.page",
        "tests.warm",  # if this is begun in the root of the repository
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a launch of one or several processes ended."""

    codes: list[int]
    output: str  # of the main process

    @property
    def code(self) -> int:
        assert len(set(self.codes)) == 1, f"{self.codes}\n{self.output}"
        return self.codes[0]

    @property
    def summary(self) -> dict[str, Any]:
        return dict(json.loads(self.output.splitlines()[-1]))


def launch(folder: Path, words: Sequence[str], **how: Any) -> Ended:
    """`pipeline WORDS` in `folder`, to its end; `how` as in `begin`."""
    started = begin(folder, words, **how)
    for process in started:
        process.join(200)
        assert process.exitcode is not None, "did not end"
    return Ended([int(p.exitcode or 0) for p in started], (folder / "output.txt").read_text())


def begin(
    folder: Path,
    words: Sequence[str],
    *,
    processes: int = 1,
    stop_at: int = 0,
    kill_at: int = 0,
    before: Callable[[int], None] | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[ForkServerProcess]:
    """`pipeline WORDS` in `folder` on so many processes, started; signalled, if asked, when it logs a step.

    Each calls `before(rank)` first: to break something in it.
    """
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if processes > 1 else {}
    started = []
    for rank in range(processes):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes} if processes > 1 else {}
        variables = {**environment, **meeting, **{name: str(value) for name, value in place.items()}}
        started.append(CONTEXT.Process(target=_child, args=(folder, list(words), rank, variables, stop_at, kill_at, before)))
    for process in started:
        process.start()
    return started


def in_processes(function: Callable[[int], dict[str, Any]], size: int) -> list[dict[str, Any]]:
    """What `function(rank)` gives in each of `size` processes joined by gloo."""
    receivers, started = [], []
    port = free_port()
    for rank in range(size):
        receiver, sender = CONTEXT.Pipe(duplex=False)
        receivers.append(receiver)
        started.append(CONTEXT.Process(target=_joined, args=(function, rank, size, port, sender)))
    for process in started:
        process.start()
    results = [receiver.recv() for receiver in receivers]
    for process in started:
        process.join(60)
        assert process.exitcode == 0
    return results


def _joined(function: Callable[[int], dict[str, Any]], rank: int, size: int, port: int, sender: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    found = function(rank)
    sender.send({name: value.numpy() if hasattr(value, "numpy") else value for name, value in found.items()})
    dist.barrier()
    dist.destroy_process_group()


def always_with_onednn(rank: int) -> None:
    """`before` of `begin`: let convolutions of all sizes be computed by the same kernels."""
    from pipeline.runtime import world

    world.SMALL_CONVOLUTIONS = 0.0


def below(pid: int) -> list[int]:
    """All that a process has started, and those in turn."""
    found = [int(child) for children in Path(f"/proc/{pid}/task").glob("*/children") for child in children.read_text().split()]
    return found + [further for child in found for further in below(child)]


def free_port() -> int:
    """From below those which the kernel hands out, so that no connection takes it; nor will another of us, while this process lives."""
    while True:
        number = random.randrange(15000, 32000)
        with contextlib.suppress(OSError), socket.socket() as s, contextlib.ExitStack() as held:
            held.enter_context(socket.socket(type=socket.SOCK_DGRAM)).bind(("127.0.0.1", number))
            s.bind(("127.0.0.1", number))
            HELD.append(held.pop_all())
            return number


def _child(
    folder: Path,
    words: list[str],
    rank: int,
    variables: dict[str, str],
    stop_at: int,
    kill_at: int,
    before: Callable[[int], None] | None,
) -> None:
    os.chdir(folder)
    os.environ |= variables
    output = os.open("output.txt" if rank == 0 else f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from pipeline.main import main

    _signal_when_logged(stop_at, kill_at)
    if before is not None:
        before(rank)
    sys.exit(main(words))


def _signal_when_logged(stop_at: int, kill_at: int) -> None:
    """Have this process signalled by the kernel when a step has been told to the trackers; several then look at each step."""
    import signal

    from pipeline.runtime import world
    from pipeline.runtime.mirror import Trackers

    log = Trackers.log
    if stop_at:
        world.POLL = 1

    def signalling(self: Trackers, step: int, values: Mapping[str, float]) -> None:
        log(self, step, values)
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        if step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    Trackers.log = signalling  # type: ignore[method-assign]
