"""Sums over the processes of one host: through memory that they share, in an order that is always the same.

The memory is in no file system, so that no limit of /dev/shm counts and nothing is left behind by a
process that is killed. Single bytes over Unix sockets say that a process has come: whoever waits for
one sleeps, the kernel orders what was written before and is read after on every kind of processor,
and tells at once of a process that is gone.
"""

import mmap
import os
import secrets
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.runtime.elastic import in_pairs

SLOT = 4 << 20  # bytes of one process that are added up at once
SMALL = 1 << 20  # bytes of all processes, up to which each adds up everything itself, to save the second meeting
CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: of Linux's SO_PEERCRED


class Exchange:
    """One process's view of the shared memory: two rows of slots, one slot for each process, and one slot for the sum.

    The rows take turns. Who has come to a meeting has read what it wanted of the one before, so
    what was written then may be written over.
    """

    def __init__(self, rank: int, size: int, memory: mmap.mmap, peers: Sequence[socket.socket]) -> None:
        self._rank, self._size = rank, size
        self._peers = peers  # of the main process all others, of another the main one
        slots = torch.frombuffer(memory, dtype=torch.uint8).view(-1, SLOT)
        self._rows, self._whole = (slots[:size], slots[size:-1]), slots[-1]

    def close(self) -> None:
        for peer in self._peers:
            peer.close()

    @torch.no_grad()
    def sum(self, tensor: Tensor) -> None:
        """Let `tensor`, contiguous, be the sum over all processes, neighbours in pairs as `in_pairs` does; the same bits on each.

        Raises:
            RuntimeError: a process is gone.
        """
        for part in torch.split(tensor.view(-1), SLOT // tensor.element_size()):
            self._sum(part)

    def _sum(self, part: Tensor) -> None:
        row = self._rows[0][:, : part.nbytes].view(part.dtype)
        self._rows = self._rows[::-1]
        row[self._rank] = part
        self._meet()
        if row.nbytes <= SMALL:
            in_pairs(row.unbind(), out=part)
            return
        mine = slice(len(part) * self._rank // self._size, len(part) * (self._rank + 1) // self._size)
        whole = self._whole[: part.nbytes].view(part.dtype)
        in_pairs(row[:, mine].unbind(), out=whole[mine])
        self._meet()
        part.copy_(whole)

    def _meet(self) -> None:
        """Wait until all have come."""
        try:
            if self._rank:
                self._peers[0].send(b".")
            for peer in self._peers:
                if not peer.recv(1):
                    raise ConnectionResetError
            if not self._rank:
                for peer in self._peers:
                    peer.send(b".")
        except ConnectionError as error:
            raise RuntimeError("connection closed by another process") from error


class Gradients:
    """Those of a model laid end to end, to be summed as one; it has them from there afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self._learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
        lengths = [parameter.numel() for parameter in self._learnt]
        self._all = torch.zeros(sum(lengths) + len(lengths), dtype=self._learnt[0].dtype)
        *parts, self._used = torch.split(self._all, [*lengths, len(lengths)])
        self._views = [part.as_strided(p.shape, p.stride()) for part, p in zip(parts, self._learnt, strict=True)]

    @torch.no_grad()
    def average(self, exchange: Exchange, size: int) -> None:
        """Let each parameter have the mean over all processes; one that none of them has used stays without, as with one process."""
        found = [parameter.grad for parameter in self._learnt]
        self._used.copy_(torch.tensor([gradient is not None for gradient in found]))
        given = [torch.zeros_like(view) if gradient is None else gradient for view, gradient in zip(self._views, found, strict=True)]
        torch._foreach_copy_(self._views, given)
        exchange.sum(self._all)
        self._all /= size
        for view, parameter, used in zip(self._views, self._learnt, self._used.tolist(), strict=True):
            parameter.grad = view if used else None


def join(rank: int, size: int, *, agree: Callable[[Any], Any], any_: Callable[[bool], bool]) -> Exchange | None:
    """The exchange of all `size` processes; None, on each, if they are not on one host, or it is no Linux.

    `agree` gives each the main process's value, and `any_` whether one of them says so.
    """
    length = (2 * size + 1) * SLOT
    name = f"\0pipeline-{secrets.token_hex(16)}"  # in no file system either
    ours = _or_nothing(lambda: _listen(name, size, length)) if rank == 0 else None
    name = agree(name)
    if rank:
        ours = _or_nothing(lambda: _connect(name))
    if any_(ours is None):
        if ours is not None:
            ours[0].close()
        return None
    assert ours is not None
    peers, memory = _welcome(*ours, size) if rank == 0 else _enter(ours[0])
    shared = mmap.mmap(memory, length)
    os.close(memory)
    return Exchange(rank, size, shared, peers)


def _or_nothing(attempt: Callable[[], tuple[socket.socket, int]]) -> tuple[socket.socket, int] | None:
    try:
        return attempt() if sys.platform == "linux" else None
    except OSError:
        return None


def _listen(name: str, size: int, length: int) -> tuple[socket.socket, int]:
    """Where the others are to knock, and the memory."""
    memory = os.memfd_create("pipeline")
    os.ftruncate(memory, length)
    door = socket.socket(socket.AF_UNIX)
    door.bind(name)
    door.listen(size)
    return door, memory


def _connect(name: str) -> tuple[socket.socket, int]:
    peer = socket.socket(socket.AF_UNIX)
    peer.connect(name)
    return peer, -1


def _welcome(door: socket.socket, memory: int, size: int) -> tuple[list[socket.socket], int]:
    """The others, who have all knocked, each with the memory in hand; a stranger may have knocked too."""
    peers: list[socket.socket] = []
    with door:
        while len(peers) < size - 1:
            peer, _ = door.accept()
            _, user, _ = CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
            if user != os.getuid():
                peer.close()
                continue
            socket.send_fds(peer, [b"."], [memory])
            peers.append(peer)
    return peers, memory


def _enter(peer: socket.socket) -> tuple[list[socket.socket], int]:
    _, (memory,), _, _ = socket.recv_fds(peer, 1, 1)
    return [peer], memory
