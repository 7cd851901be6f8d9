"""What can be asked of torch and the network before the processes are joined to a world, each answer within seconds."""

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from pipeline.config import RunConfig
from pipeline.errors import Lost, PipelineError
from pipeline.runtime.launch import Launch

TRY, POLL, WAIT = 0.2, 0.002, 1.0  # seconds between two attempts to connect; between two looks for a word; of a wait for hours
BRIEF = 10.0  # seconds
NVIDIA = Path("/proc/driver/nvidia")


class Meeting(Protocol):
    """Where processes leave word for one another under a name that is used once, in JSON; nobody waits longer than it says."""

    def tell(self, name: str, value: Any) -> None: ...

    def hear(self, name: str, ranks: Sequence[int], seconds: float) -> dict[int, Any]:
        """What those of `ranks` told that did within so many seconds."""
        ...


class Alone:
    """Of a process that has nobody to meet."""

    def __init__(self) -> None:
        self._told: dict[str, Any] = {}

    def tell(self, name: str, value: Any) -> None:
        self._told[name] = value

    def hear(self, name: str, ranks: Sequence[int], seconds: float) -> dict[int, Any]:
        return dict.fromkeys(ranks, self._told[name])


class Store:
    """By torch's store, where the processes of a run meet: that of the launcher's agent, or else one that the main process serves.

    The latter is the one that a world finds later on.
    """

    def __init__(self, launch: Launch, seconds: float) -> None:
        """Reach it.

        Raises:
            PipelineError: it cannot be had within so many seconds; in one line, with a cure.
        """
        address, port = place()
        serves = launch.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        _see_free(port) if serves else _reach(address, port, seconds, UNREACHED)
        wait = timedelta(seconds=seconds)
        try:
            here = "127.0.0.1" if serves else address  # where torch cannot reach itself it fills the terminal
            store = TCPStore(here, port, launch.size, serves, wait, wait_for_workers=False, multi_tenant=True)
        except (RuntimeError, ValueError) as error:
            raise PipelineError(f"{address}:{port} answers, but not as rank 0 does ({_first(error)}); {ANOTHER}") from None
        if serves:
            _reach(address, port, seconds / 4, f"this is {socket.gethostname()}, which should be reached so; {UNREACHED}")
        self._rank = launch.rank
        self._store = PrefixStore(f"doctor/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)

    def tell(self, name: str, value: Any) -> None:
        with _still_there():
            self._store.set(f"{name}/{self._rank}", json.dumps(value))

    def hear(self, name: str, ranks: Sequence[int], seconds: float) -> dict[int, Any]:
        end = time.monotonic() + seconds
        found: dict[int, Any] = {}
        while True:  # to ask for it, since to wait for it in vain makes torch complain on the terminal
            with _still_there():
                for rank in ranks:
                    if rank not in found and self._store.check([f"{name}/{rank}"]):
                        found[rank] = json.loads(self._store.get(f"{name}/{rank}"))
            if len(found) == len(ranks) or time.monotonic() > end:
                return dict(sorted(found.items()))
            time.sleep(POLL)


@contextlib.contextmanager
def _still_there() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PipelineError(f"rank 0 was reached, but is gone ({_first(error)}); what it printed says more") from None


def place() -> tuple[str, int]:
    """Where the launcher says that the processes are to meet.

    Raises:
        PipelineError: it says nothing of use.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise PipelineError(
            f"MASTER_ADDR={address!r} and MASTER_PORT={port!r} say nowhere to meet; "
            "start with torchrun, accelerate or slurm/train.sbatch, or set both to the host of rank 0 and a free port"
        )
    return address, int(port)


def _is_free(port: int) -> bool:
    with contextlib.suppress(PipelineError):
        _see_free(port)
        return True
    return False


def _see_free(port: int) -> None:
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise PipelineError(
            f"port {port} is taken or refused ({os.strerror(error.errno or 0)}); set MASTER_PORT, or --master-port, to another"
        ) from None


def _reach(address: str, port: int, seconds: float, cure: str) -> None:
    """Connect, until it succeeds: the main process may come later."""
    end = time.monotonic() + seconds
    while error := refusal(address, port, max(TRY, end - time.monotonic())):
        if time.monotonic() + TRY > end:
            raise _unreached(address, port, seconds, error, cure)
        time.sleep(TRY)


def refusal(address: str, port: int, seconds: float) -> OSError | None:
    """Why no connection is to be had, within so many seconds; None if one is."""
    try:
        with socket.create_connection((address, port), timeout=seconds) as reached:
            alone = reached.getsockname() == reached.getpeername()  # drawn for its own end, and so met nobody
    except OSError as error:
        return error
    return ConnectionRefusedError() if alone else None


def wait_for_main(seconds: float, look: Callable[[], None], *, is_main: bool) -> None:
    """Until the main process listens, which may have data to look at first; calls `look` meanwhile, about once a second.

    The main process itself only has to be where the others look for it, and its port free: connections may have it for a moment.

    Raises:
        PipelineError: its host has not answered for so many seconds.
    """
    address, port = place()
    began = answered = time.monotonic()
    while error := refusal(address, port, WAIT):
        if isinstance(error, ConnectionRefusedError):
            if is_main and (_is_free(port) or time.monotonic() - began > BRIEF):
                return
            answered = time.monotonic()
        elif time.monotonic() - answered > seconds:
            raise _unreached(address, port, seconds, error, UNREACHED)
        look()
        time.sleep(min(WAIT, POLL + (time.monotonic() - began) / 10))


def _unreached(address: str, port: int, seconds: float, error: OSError, cure: str) -> Lost:
    return Lost(f"cannot reach {address}:{port} within {seconds:.0f} s: {error.strerror or error}; {cure}")


ANOTHER = "set MASTER_PORT to a port that nobody else has"
UNREACHED = "MASTER_ADDR must be the host of rank 0 as other hosts know it, rank 0 be running, and no firewall close MASTER_PORT"


def _first(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def devices(run: RunConfig) -> dict[str, Any]:
    """What this process would compute on: `kind`, and of a GPU its name, identity, memory and driver; how many the machine gives."""
    given = int(os.environ.get("SLURM_GPUS_ON_NODE") or len([*(NVIDIA / "gpus").glob("*")]))
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        given = 0
    seen = torch.cuda.device_count()
    index = int(os.environ.get("LOCAL_RANK", 0))
    facts: dict[str, Any] = {"kind": "cpu", "given": given, "seen": seen, "index": index}
    if run.device == "cpu" or not torch.cuda.is_available():
        mps = run.device != "cpu" and torch.backends.mps.is_available()
        return facts | {"kind": "mps"} if mps else facts | {"name": torch.backends.cpu.get_cpu_capability()}
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
    facts |= {"kind": "cuda", "driver": _driver(), "cuda": torch.version.cuda, "nccl": nccl}
    if index >= seen:
        return facts
    free, total = torch.cuda.mem_get_info(index)
    properties = torch.cuda.get_device_properties(index)
    return facts | {"name": properties.name, "uuid": str(properties.uuid), "free": free, "total": total}


def _driver() -> str:
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", (NVIDIA / "version").read_text())
    except OSError:
        found = None
    return found[1] if found else "unknown"
