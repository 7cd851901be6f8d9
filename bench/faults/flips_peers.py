"""The same harm to the checkpoints of others: what they notice, and what they load without a word."""

import hashlib
import os
import pickle
import random
import signal
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # the children would each import it for their first optimizer
from accelerate import Accelerator
from torch import nn
from torch.distributed import checkpoint as dcp

from bench.faults import harms

PATIENCE = 30  # seconds, for one that does not come back from loading


def trained(steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small net and its optimizer after so many updates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 100, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(steps):
        model(torch.rand(4, 1, 12, 12)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def values(model: nn.Module, optimizer: torch.optim.Optimizer, rest: Any = None) -> bytes:
    """All that was loaded, to the bit."""
    return pickle.dumps([flat(model.state_dict()), flat(optimizer.state_dict()), flat(rest)])


def flat(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().numpy().tobytes(), tuple(value.shape)
    if isinstance(value, dict):
        return [(key, flat(each)) for key, each in value.items()]
    return [flat(each) for each in value] if isinstance(value, list | tuple) else repr(value)


def save_torch(folder: Path) -> bytes:
    model, optimizer = trained(3)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 30}, folder / "checkpoint.pt")
    return b""


def load_torch(folder: Path) -> bytes:
    model, optimizer = trained(0)
    loaded = torch.load(folder / "checkpoint.pt")
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    return values(model, optimizer, loaded["step"])


def save_accelerate(folder: Path) -> bytes:
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(*trained(3))
    accelerator.save_state(str(folder))
    return b""


def load_accelerate(folder: Path) -> bytes:
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*trained(0))
    accelerator.load_state(str(folder))
    drawn = [random.getstate(), [np.asarray(each).tobytes() for each in np.random.get_state()], torch.get_rng_state()]
    return values(accelerator.unwrap_model(model), optimizer, drawn)


def save_dcp(folder: Path) -> bytes:
    model, optimizer = trained(3)
    dcp.state_dict_saver.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 30}, checkpoint_id=folder, no_dist=True
    )
    return b""


def load_dcp(folder: Path) -> bytes:
    model, optimizer = trained(1)  # an optimizer with room for what is loaded
    loaded: dict[str, Any] = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 0}
    dcp.state_dict_loader.load(loaded, checkpoint_id=folder, no_dist=True)
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    return values(model, optimizer, loaded["step"])


PEERS: dict[str, tuple[Callable[[Path], bytes], Callable[[Path], bytes]]] = {
    "accelerate load_state": (save_accelerate, load_accelerate),
    "torch.load": (save_torch, load_torch),
    "torch DCP load": (save_dcp, load_dcp),
}
LOADED, REFUSED = 0, 2


def flips(numbers: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each peer."""
    return [_row(name, *both, numbers) for name, both in PEERS.items()]


def _row(name: str, save: Callable[[Path], bytes], load: Callable[[Path], bytes], numbers: Sequence[int]) -> dict[str, Any]:
    row: dict[str, Any] = {"what": name, "cases": len(numbers), "noticed": 0, "silently wrong": 0, "no difference": 0, "crashed or hung": 0}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        assert _apart(lambda: save(folder))[0] == LOADED, f"{name} cannot save"
        load(folder)  # here, for what it imports, which each child would
        random.seed(2), np.random.seed(2), torch.manual_seed(2)
        whole, good = _apart(lambda: load(folder))
        assert (LOADED, good) == _apart(lambda: load(folder)), f"{name} does not load the same twice: {whole}"
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        for number in numbers:
            with harms.undone(paths):
                harms.draw(random.Random(f"flips/{name}/{number}"), paths).do()
                code, found = _apart(lambda: load(folder))
            row[{LOADED: "no difference" if found == good else "silently wrong", REFUSED: "noticed"}.get(code, "crashed or hung")] += 1
    return row


def _apart(work: Callable[[], bytes]) -> tuple[int, bytes]:
    """The exit code of a child that does `work`, and the digest of what it gave: it may crash, hang, or leave things changed."""
    receiver, sender = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: none of them holds a lock
        child = os.fork()
    if child == 0:
        code = REFUSED
        try:
            signal.alarm(PATIENCE)
            warnings.simplefilter("default")  # a test has them raised
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            os.write(sender, hashlib.sha256(work()).digest())
            code = LOADED
        finally:
            os._exit(code)
    os.close(sender)
    with os.fdopen(receiver, "rb") as pipe:
        found = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), found
