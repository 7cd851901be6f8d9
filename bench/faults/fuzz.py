"""Files that are nearly whole, given to the readers in great number: python -m bench.faults.fuzz [--runs N] [--only TEXT]

Each is a whole file with some bytes changed, as drawn from its number. A reader gives something, or raises what its caller tells
in one line; it raises nothing else, does not crash, and takes no more than `MEMORY`.
"""

import argparse
import contextlib
import functools
import gzip
import io
import json
import os
import pickle
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from processes import CONTEXT

from bench.faults import report
from pipeline import config, reading
from pipeline.data import formats, shards
from pipeline.data.images import FORMATS, pixels
from pipeline.errors import PipelineError
from pipeline.learning import start
from pipeline.runtime import claims, files, foreign, journal
from pipeline.runtime.trackers.wandb import file as wandb_file

MEMORY = 2 << 30  # bytes beyond what the process has
AT_ONCE, SLOW = 1000, 10  # files that a process reads; and seconds for one
TELLING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
PLACE = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
LABELS = np.arange(20, dtype=np.uint8) % 10


@dataclass(frozen=True)
class Reader:
    whole: Callable[[], list[bytes]]
    read: Callable[[Path], object]
    name: str = "x"  # of the file
    tells: tuple[type[Exception], ...] = (PipelineError,)


def _idx() -> list[bytes]:
    content = struct.pack(">HBBI", 0, 8, 1, 20) + LABELS.tobytes()
    return [content, gzip.compress(content, mtime=0), struct.pack(">HBB3I", 0, 8, 3, 2, 4, 4) + bytes(32)]


def _pickles() -> list[bytes]:
    return [pickle.dumps({"data": np.zeros((3, 3072), np.uint8), "labels": [1, 2, 3]}, protocol) for protocol in range(6)]


def _tars() -> list[bytes]:
    found = []
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=form) as tar:
            for name in ("a/one", "two" * (40 if form != tarfile.USTAR_FORMAT else 1), "a/three"):
                member = tarfile.TarInfo(name)
                member.size = 600
                tar.addfile(member, io.BytesIO(bytes(600)))
        found += [content.getvalue(), gzip.compress(content.getvalue(), mtime=0)]
    return found


def _images() -> list[bytes]:
    Image.init()
    found, picture = [], Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8))
    for form in FORMATS:
        with contextlib.suppress(KeyError, OSError):  # this Pillow does not write it
            content = io.BytesIO()
            picture.save(content, form)
            found.append(content.getvalue())
    return found


def _shards() -> list[bytes]:
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        shards.write(Path(folder, "x"), np.zeros((5, 1, 4, 4), np.uint8), np.arange(5), list("abcde"))
        return [Path(folder, "x").read_bytes()]


def _weights(suffix: str) -> list[bytes]:
    import torch
    from safetensors.torch import save

    tensors = {"a.weight": torch.ones(3, 2), "a.bias": torch.zeros(3)}
    if suffix == ".safetensors":
        return [save(tensors)]
    found = []
    for zipped in (True, False):
        content = io.BytesIO()
        torch.save(tensors, content, _use_new_zipfile_serialization=zipped)
        found.append(content.getvalue())
    return found


def _manifest() -> list[bytes]:
    with tempfile.TemporaryDirectory(dir=PLACE) as folder:
        files.write_manifest(Path(folder), {"outputs": {"x": {"size": 1, "sha256": "0"}}, "step": 3, "history": [{"loss": 0.1}]})
        return [Path(folder, files.MANIFEST).read_bytes()]


def _wandb() -> list[bytes]:
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
    item = record.history.item.add()
    item.key, item.value_json = "loss", "0.5"
    content = record.SerializeToString()
    return [b":W&B\0\0\0" + (struct.pack("<IHB", 0, len(content), 1) + content) * 3]


def _yaml() -> list[bytes]:
    return [config.dump(config.Config()).encode(), b"a: &a {b: [1, 2.5, true, null, 2024-01-02, 0x1f]}\nc: {<<: *a}\nd: !!int 3\n"]


def _listed(path: Path) -> object:
    listed, _ = files.read_manifest(path.parent)
    return listed and files.damage(path.parent, listed["outputs"])


READERS = {
    "IDX": Reader(_idx, formats.read_idx),
    "CIFAR-10, pickle": Reader(_pickles, lambda path: formats.read_cifar_pickle(path.read_bytes(), "x")),
    "CIFAR-10, binary": Reader(lambda: [bytes(3073 * 2)], lambda path: formats.read_cifar_binary(path.read_bytes(), "x")),
    "tar": Reader(_tars, lambda path: formats.read_members(path, ["one", "three"])),
    "images": Reader(_images, lambda path: pixels(path, 3, (8, 8))),
    "shards": Reader(_shards, lambda path: shards.read([path], (1, 4, 4), 5)),
    "weights, .pth": Reader(lambda: _weights(".pth"), start._read, "x.pth"),
    "weights, safetensors": Reader(lambda: _weights(".safetensors"), start._read, "x.safetensors"),
    "manifests": Reader(_manifest, _listed, files.MANIFEST),
    "JSON": Reader(_manifest, foreign.json_in),
    "journals": Reader(lambda: [b'{"step": 1, "train/loss": 0.5}\n' * 20], lambda path: (journal.read(path), foreign.tail(path, 100))),
    "owners": Reader(lambda: [json.dumps({"host": "a", "pid": 1}).encode()], lambda path: claims._read(path.parent), claims.OWNER),
    "configurations": Reader(lambda: _yaml()[:1], config.load),
    "overrides": Reader(
        lambda: [b"train.optimizer={name: sgd, momentum: 0.9}", b"run.name=x", b"train.lr=1e-3"],
        lambda path: config.load(None, [path.read_bytes().decode(errors="surrogateescape")]),
    ),
    "YAML of runs": Reader(_yaml, lambda path: reading.parsed(reading.read(path), reading.Fast), tells=(yaml.YAMLError,)),
    "W&B's log": Reader(_wandb, lambda path: list(wandb_file.history(path)), tells=(ValueError,)),
}


def changed(chance: random.Random, content: bytes) -> bytes:
    """`content` with one to four of its parts changed."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(found) + 1), chance.choice((1, 2, 4, 8, chance.randint(1, 64)))
        how = chance.randrange(7)
        if how == 0 and at < len(found):
            found[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            found[at : at + length] = chance.randbytes(length)
        elif how == 2:
            form = chance.choice(("<I", ">I", "<H", ">H", "<Q", ">Q", "B"))
            value = chance.choice(TELLING)
            found[at : at + struct.calcsize(form)] = struct.pack(form, value % 256 ** struct.calcsize(form))
        elif how == 3:
            del found[at : at + length]
        elif how == 4:
            found[at:at] = found[chance.randrange(len(found) + 1) :][: 4 * length]
        elif how == 5:
            found[at:at] = bytes([chance.choice(found or b"\0")]) * (length * length)
        elif chance.random() < 0.2:
            del found[at:]
    return bytes(found)


def hunt(name: str, first: int, count: int, noted: Path) -> None:
    """Read files number `first` and after, and note which is being read, and what goes wrong, in a file."""
    reader, place = READERS[name], Path(tempfile.mkdtemp(dir=PLACE))
    whole, path = reader.whole(), place / reader.name
    for content in whole:  # which must be read
        path.write_bytes(content)
        reader.read(path)
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 2)  # what decoders warn of
    data = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, ((data << 10) + MEMORY, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with noted.open("w", buffering=1) as notes, contextlib.suppress(FileNotFoundError):
        for number in range(first, first + count):
            chance = random.Random(f"fuzz/{name}/{number}")
            path.write_bytes(changed(chance, chance.choice(whole)))
            notes.write(f"{number}\n")
            signal.alarm(SLOW)
            try:
                reader.read(path)
            except reader.tells:
                pass
            except Exception as error:
                notes.write(f"{number}: {type(error).__name__}: {' '.join(str(error).split())[:200]}\n")
            signal.alarm(0)
        notes.write("done\n")
    path.unlink(missing_ok=True)
    place.rmdir()


def hunted(name: str, first: int, count: int) -> list[str]:
    """What goes wrong among so many files, in a process of their own, so that one that crashes is known too."""
    with tempfile.TemporaryDirectory() as folder:
        noted = Path(folder, "noted")
        process = CONTEXT.Process(target=functools.partial(hunt, name, first, count, noted))
        process.start()
        process.join()
        lines = noted.read_text().splitlines() if noted.exists() else ["no whole file is read"]
    wrong = [f"{name}, file {line}" for line in lines if ": " in line]
    return wrong if lines[-1] == "done" else [*wrong, f"{name}, file {lines[-1]}: ended by {process.exitcode}"]


def campaign(runs: int, only: str = "", first: int = 0) -> Iterator[report.Row]:
    """So many files in all, shared out evenly."""
    names = [name for name in READERS if only in name]
    each = -(-runs // len(names))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for name in names:
            began = time.monotonic()
            starts = range(first, first + each, AT_ONCE)
            counts = [min(AT_ONCE, first + each - start) for start in starts]
            failures = [line for found in pool.map(functools.partial(hunted, name), starts, counts) for line in found]
            seconds = round(time.monotonic() - began, 1)
            yield {"reader": name, "files": each, "wrong": len(failures), "seconds": seconds, "failures": failures[:20]}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--only", default="")
    options = parser.parse_args(arguments)
    rows = []
    for row in campaign(options.runs, options.only):
        print(row, flush=True)
        rows.append(row)
    return report.report("fuzz", rows, allowed_MiB=MEMORY >> 20)


if __name__ == "__main__":
    sys.exit(main())
