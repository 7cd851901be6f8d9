"""Models of the time of a step: one whose parameters are fitted to what was measured here, and one of stated figures of GPUs.

Here, P processes of a host with b images each, a gradient of G bytes, in seconds:

    step = (f + b c) (1 + k (P - 1)) + exposed
    shared memory: exposed = a m (P - 1) + P v / w    m meetings; v bytes that a process reads and writes, see `moved`
    gloo:          exposed = e - o min(s e, 2/3 compute),  e = 2 (P - 1) a' + 2 (P - 1) G / w'    a ring

f (fixed) and c (an image) are a net's own; k says how much slower each process computes for every other one beside it; o is the share
of what could overlap with the backward pass that does, s the share of the bytes that are ready before the last bucket of DDP. The rates w
are those of the host, whose memory its processes share: so bytes are those of all of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from pipeline.runtime.exchange import SMALL

BACKWARD = 2 / 3  # of the time of forward and backward
BUCKET = 25 * 2**20  # bytes: torch's DDP, `bucket_cap_mb`
SHARED, GLOO = "shared memory", "gloo"


@dataclass(frozen=True)
class Point:
    """One number of processes that trained one net on batches of one size; `early` is s above."""

    net: str
    images: int  # of a process and step
    processes: int
    exchange: str
    bytes: int  # of the gradient
    early: float
    seconds: float  # a step


SHARED_PARAMETERS = ("slowing", "meeting", "memory rate", "message", "gloo rate", "overlap")  # k, a, 1/w, a', 1/w', o
START = {"slowing": 0.05, "meeting": 2e-5, "memory rate": 2e-10, "message": 1e-4, "gloo rate": 1e-9, "overlap": 0.5}
Parameters = Mapping[str, float]


def moved(count: int, processes: int) -> tuple[float, int]:
    """Bytes that a process reads and writes, and meetings, for a gradient of `count` bytes in shared memory (runtime/exchange.py)."""
    if count * processes <= SMALL:
        return count * (1 + processes), 1
    return count * (3 + 1 / processes), 2


def predicted(point: Point, of: Parameters) -> float:
    """Seconds a step."""
    others = point.processes - 1
    slower = 1 + of["slowing"] * others
    compute = point.images * of[f"{point.net}: image"] * slower
    alone = of[f"{point.net}: fixed"] * slower + compute
    if others == 0:
        return alone
    if point.exchange == SHARED:
        count, meetings = moved(point.bytes, point.processes)
        return alone + of["meeting"] * meetings * others + point.processes * count * of["memory rate"]
    exchange = 2 * others * of["message"] + 2 * others * point.bytes * of["gloo rate"]
    return alone + exchange - of["overlap"] * min(point.early * exchange, BACKWARD * compute)


def fitted(points: Sequence[Point]) -> dict[str, float]:
    """The parameters with the least squares of relative errors; none is negative, and no more than all overlaps."""
    start = dict(START)
    for net in dict.fromkeys(point.net for point in points):
        ones = [point for point in points if point.net == net and point.processes == 1]
        start[f"{net}: image"] = min(point.seconds / point.images for point in ones)
        start[f"{net}: fixed"] = min(point.seconds for point in ones) / 4
    names, first = [*start], np.array([*start.values()])

    def errors(values: NDArray[np.float64]) -> list[float]:
        of = dict(zip(names, values * first, strict=True))
        return [math.log(max(predicted(point, of), 1e-9) / point.seconds) for point in points]

    most = [1 / value if name == "overlap" else np.inf for name, value in start.items()]
    found = least_squares(errors, np.ones(len(names)), bounds=(0, most), loss="soft_l1", f_scale=0.1)
    return {name: float(value) for name, value in zip(names, found.x * first, strict=True)}


# What follows is computed from stated figures; their sources are in docs/scaling.md.

PEAK, UTILISED = 989e12, 0.08  # FLOP/s of an H100 SXM, bfloat16, dense; the share that a convolutional net is said to reach
LAUNCH, KERNELS = 10e-6, 4  # seconds of the host for a kernel; kernels of a layer in a step
NODE = 8  # GPUs
NVLINK = 450e9  # bytes a second and direction, of a GPU
REACHED = 0.8  # of a line's rate
STORE, DISK = 100e9, 10e9  # bytes a second: a file system that all nodes share, in all; a node's own disks
NORM = 8192  # bytes that SyncBatchNorm exchanges for a layer, about


@dataclass(frozen=True)
class Net:
    name: str
    flops: float  # of an image, forward and backward
    bytes: int  # of the gradient, float32
    layers: int
    norms: int  # of them
    image: int  # bytes that are read for one; 0 where all images are on the GPU
    batch: int  # a GPU

    def compute(self, images: int) -> float:
        """Seconds, as long as the host keeps up."""
        return max(images * self.flops / (PEAK * UTILISED), self.layers * KERNELS * LAUNCH)


@dataclass(frozen=True)
class Line:
    """Between nodes."""

    name: str
    rate: float  # bytes a second and direction, of a node
    hop: float  # seconds, of a small message


LINES = (Line("InfiniBand, 8 x 400 Gb/s a node", 400e9, 5e-6), Line("Ethernet, 100 Gb/s a node", 12.5e9, 25e-6))


def all_reduce(gpus: int, count: float, line: Line) -> float:
    """Seconds: the fastest of NCCL's ring (Simple) and tree (Simple and LL), by the formulas and latencies of its own tuning."""
    if gpus == 1:
        return 0.0
    nodes, here = max(1, gpus // NODE), min(gpus, NODE)
    rate = REACHED * (NVLINK if nodes == 1 else min(NVLINK, line.rate))
    far, slow = nodes - 1, line.hop / 5e-6  # NCCL's latencies are those of InfiniBand
    ring = 8.4e-6 + 2 * (gpus - 1 - far) * 3.4e-6 + 2 * far * 9.6e-6 * slow + 2 * (gpus - 1) / gpus * count / rate
    depth = math.log2(nodes)
    tree = 2 * ((here - 1) * 28e-6 + depth * 50e-6 * slow) + 2 * count / (0.9 * rate)
    low = 4.4e-6 + 2 * ((here - 1) * 0.52e-6 + depth * 5e-6 * slow) + 2 * count / (0.9 * rate / 3.8)
    return min(ring, tree, low)


@dataclass(frozen=True)
class How:
    """What may be chosen."""

    sync: bool = True  # BatchNorm over the global batch
    accumulate: int = 1  # batches an update
    larger: int = 1  # times the batch of a GPU
    sharded: bool = False  # FSDP: gathers twice, scatters once
    local: bool = False  # images on each node's own disks


def step(net: Net, gpus: int, line: Line, how: How = How(), images: int | None = None) -> dict[str, float]:
    """Seconds of an update, by parts; `images` of a GPU and batch are the net's own if not given."""
    count = (net.batch if images is None else images) * how.larger
    compute, times = net.compute(count), how.accumulate
    volume = net.bytes * (1.5 if how.sharded else 1)
    whole, last = all_reduce(gpus, volume, line), all_reduce(gpus, min(volume, BUCKET), line)
    exposed = max(last, whole - BACKWARD * compute)
    norms = 2 * net.norms * all_reduce(gpus, NORM, line) * times if how.sync else 0.0
    nodes = -(-gpus // NODE)
    rate = DISK * nodes if how.local else min(STORE, DISK * nodes)
    reading = gpus * count * times * net.image / rate
    busy = times * compute + exposed + norms
    return {"compute": times * compute, "gradients": exposed, "norms": norms, "input": max(0.0, reading - busy), "all": max(busy, reading)}


def efficiency(net: Net, gpus: int, line: Line, how: How = How(), total: int | None = None) -> float:
    """Of `gpus` beside one: with the net's batch for each, or if given with `total` images shared out."""
    if total is None:
        return step(net, 1, line, how)["all"] / step(net, gpus, line, how)["all"]
    return step(net, 1, line, how, total)["all"] / gpus / step(net, gpus, line, how, total // gpus)["all"]
