"""Configurations, words, weights, run folders and artifacts made to harm."""

import functools
import io
import json
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from conftest import TINY
from processes import launch

from bench.faults.hostile import Case, canary
from bench.faults.hostile_data import PICKLES, nested, reduce, sparse
from pipeline.runtime import checksums, files

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML: dict[str, bytes] = {
    "a billion laughs": LAUGHS.encode(),
    "merges of merges": LAUGHS.replace("[", "{<<: [").replace("]", "]}").replace("x, " * 8 + "x", "{y: 1}").encode(),
    "an alias of itself": b"train: &a {model: *a}",
    "100,000 brackets": b"[" * 100_000,
    "!!python/object/apply": b"run: !!python/object/apply:os.system ['touch ../ran']",
    "!!python/name": b"run: {name: !!python/name:os.system }",
    "!!python/module": b"run: !!python/module:os",
    "a key twice": b"train: {seed: 1}\ntrain: {seed: 2}",
    "a month 13": b"run: {name: !!timestamp 2024-13-45}",
    "10^400": b"train: {seed: 1" + b"0" * 400 + b"}",
    "a number of 5,000 hexadecimal digits": b"train: {seed: 0x" + b"f" * 5000 + b"}",
    "a number in base 60, 100,000 digits": b"train: {seed: 1" + b":1" * 100_000 + b"}",
    "not UTF-8": b"run: {name: \xff\xfe}",
    "a control character": b'run: {name: "\x1b[2J"}',
    "an escaped one": b'run: {name: "\\e[2J\\nx"}',
    "a pickle": reduce("os", "system", "touch ../ran"),
}


def config(content: bytes, work: Path) -> None:
    (work / "x.yaml").write_bytes(content)


def strange_config(kind: str, work: Path) -> None:
    if kind == "a pipe":
        os.mkfifo(work / "x.yaml")
    elif kind == "a sparse terabyte":
        sparse(work / "x.yaml")
    else:
        (work / "x.yaml").symlink_to({"a device": "/dev/zero", "a loop": "x.yaml", "a folder": "."}[kind])


WORDS: dict[str, str] = {
    "../../x": "run.name=../../x",
    "an absolute path": "run.name=/tmp/x",
    "an option": "run.name=-rf",
    "a shell": "run.name=$(touch ../ran)",
    "a line break": "run.name=x\nrun.folder=/",
    "a directive of SLURM": "run.name=x\n--uid=0",
    "an escape": "run.name=x\x1b]0;title\x07",
    "a tag": "run.name=!!python/object/apply:os.system [touch ../ran]",
    "5,000 brackets": "data.source=" + "[" * 5_000,
    "brackets within each other": "data.source=" + "[" * 200 + "]" * 200,
    "a number of 5,000 digits": "train.seed=" + "9" * 5000,
    "1e400": "train.lr=1e400",
    "NUL": "data.source=x\0y",
    "half a letter": "run.name=\udcff",
    "a format string": "run.name={0.__class__}%s",
}


def zipped(content: Callable[[Path], bytes], work: Path, packed: int = zipfile.ZIP_STORED) -> None:
    """As torch writes weights."""
    with zipfile.ZipFile(work / "x.pth", "w", packed) as file:
        file.writestr("x/data.pkl", content(canary(work)))
        file.writestr("x/byteorder", "little")
        file.writestr("x/version", "3\n")


def weights(content: Callable[[Path], bytes], name: str, work: Path) -> None:
    (work / name).write_bytes(content(canary(work)))


def tensors(head: object, more: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file with that head."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + more


ONE: dict[str, Any] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
SAFETENSORS: dict[str, bytes] = {
    "a head of 2^63 bytes": tensors({}, size=2**63),
    "a head longer than the file": tensors({}, size=1000),
    "offsets beyond its end": tensors({"a": {**ONE, "data_offsets": [0, 2**40]}}, bytes(4)),
    "offsets that overlap": tensors({"a": ONE, "b": ONE}, bytes(4)),
    "a shape of 2^80": tensors({"a": {**ONE, "shape": [2**40, 2**40]}}, bytes(4)),
    "a negative shape": tensors({"a": {**ONE, "shape": [-1]}}, bytes(4)),
    "a name twice": tensors(b'{"a":%b,"a":%b}' % ((json.dumps(ONE).encode(),) * 2), bytes(8)),
    "a head of brackets": tensors(b'{"a":' + b"[" * 100_000),
    "an unknown type": tensors({"a": {**ONE, "dtype": "X9"}}, bytes(4)),
    "nothing": b"",
    "a pickle": reduce("os", "system", "touch ../ran"),
    "other tensors": tensors({"a": ONE}, bytes(4)),
}
PTH: dict[str, Callable[[Path], bytes]] = {
    **{name: content for name, content in PICKLES.items() if name in ("os.system", "builtins.exec", "subprocess.Popen", "a memo of 2^31")},
    "bytearray(8 GB)": PICKLES["bytearray(8 GB)"],
    "a hash of 2^60 steps": lambda ran: nested(60),
    "a Counter of such": lambda ran: b"ccollections\nCounter\n]" + nested(60)[:-1] + b"a\x85R.",
}


def weights_of_a_terabyte(work: Path) -> None:
    sparse(work / "x.safetensors")


def npy(work: Path) -> None:
    np.save(work / "x.npy", np.array([{}], object), allow_pickle=True)
    (work / "x.npy").rename(work / "x.pth")


@functools.cache
def made() -> Path:
    """A finished run and one that was stopped, to be copied."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-made-"))
    assert launch(folder, ["run", *TINY]).code == 0
    assert launch(folder, ["train", *TINY, "train.seed=9", "run.name=stopped"], stop_at=15).code == 75
    return folder


def copied(harm: Callable[[Path], None], work: Path) -> None:
    """Finished runs, of which `harm` is done to the folder `runs/tiny`."""
    shutil.copytree(made(), work, symlinks=True, dirs_exist_ok=True)
    harm(work / "runs" / "tiny")


def replaced(name: str, content: bytes | str, run: Path) -> None:
    """A file of a run in place of what was there; `pipe` for a pipe, a path for a link to it, a number for a sparse file."""
    path = run / name
    path.unlink(missing_ok=True)
    if content == "pipe":
        os.mkfifo(path)
    elif isinstance(content, str):
        path.symlink_to(content)
    else:
        path.write_bytes(content)


DEEP = b"[" * 200_000
RUNS: dict[str, tuple[str, bytes | str]] = {
    "config.yaml, a pipe": ("config.yaml", "pipe"),
    "config.yaml, a device": ("config.yaml", "/dev/zero"),
    "config.yaml, a loop": ("config.yaml", "config.yaml"),
    "config.yaml, 100,000 brackets": ("config.yaml", b"[" * 100_000),
    "config.yaml, a billion laughs": ("config.yaml", LAUGHS.encode()),
    "config.yaml, a tag": ("config.yaml", YAML["!!python/object/apply"]),
    "config.yaml, 10^400": ("config.yaml", b"train: {lr: 1" + b"0" * 400 + b", epochs: 1" + b"0" * 400 + b"}"),
    "status.json, a pipe": ("status.json", "pipe"),
    "status.json, brackets": ("status.json", DEEP),
    "status.json, a key twice, escapes": ("status.json", b'{"state": "x", "state": "failed", "message": "\\u001b[2J\\nforged", "at": 7}'),
    "status.json, 10^400": ("status.json", b'{"state": "running", "exit_code": 1' + b"0" * 400 + b"}"),
    "metrics.jsonl, a pipe": ("metrics.jsonl", "pipe"),
    "metrics.jsonl, a device": ("metrics.jsonl", "/dev/zero"),
    "metrics.jsonl, brackets": ("metrics.jsonl", DEEP),
    "job.json of another form": ("job.json", b'{"jobs": {"--help": 1}}'),
    ".run.claim-9/owner.json": (".run.claim-9", "/dev"),
}


def resealed(place: Path, change: Callable[[Path], None], **values: object) -> None:
    """Change an artifact or a checkpoint, and give it a manifest that is right, as who can write files can."""
    place = place.resolve()
    change(place)
    before, _ = files.read_manifest(place)
    assert before is not None
    outputs = files.seal(place, [name for name in before["outputs"] if (place / name).is_file()])
    files.write_manifest(place, {**before, "outputs": outputs, **values})


def shard(content: bytes, run: Path) -> None:
    resealed(run / "prepare", partial(replaced, "train-00000.arrow", content))


def arrow(columns: dict[str, Any], compression: str | None = None) -> bytes:
    import pyarrow as pa

    sink = io.BytesIO()
    table = pa.record_batch(list(columns.values()), names=list(columns))
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(table)
    return sink.getvalue()


def pixels(count: int, labels: int = 0, compression: str | None = None) -> bytes:
    import pyarrow as pa

    images = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(count * 432, np.uint8)), 432)
    return arrow({"image": images, "label": pa.array(np.full(count, labels, np.int64))}, compression)


def listing(outputs: dict[str, Any], run: Path) -> None:
    place = (run / "prepare").resolve()
    values, _ = files.read_manifest(place)
    assert values is not None
    files.write_manifest(place, {**values, "outputs": {**values["outputs"], **outputs}})


def checkpoint(name: str, content: bytes, run: Path) -> None:
    newest = max((run.parent.parent / "artifacts" / "train").glob("*.partial-*/checkpoints/step-*"))
    resealed(newest, partial(replaced, name, content))


def checkpoint_says(run: Path, **values: object) -> None:
    newest = max((run.parent.parent / "artifacts" / "train").glob("*.partial-*/checkpoints/step-*"))
    resealed(newest, lambda place: None, **values)


TRAIN = ("train", *TINY, "run.name=another", "train.seed=3")
GO_ON = ("train", *TINY, "train.seed=9", "run.name=stopped")
SHARDS: dict[str, Callable[[Path], None]] = {
    "other columns": partial(shard, arrow({"a": [1, 2]})),
    "labels out of range": partial(shard, pixels(180, labels=99)),
    "fewer images": partial(shard, pixels(3)),
    "compressed, 400 MB": partial(shard, pixels(1_000_000, compression="zstd")),
    "junk": partial(shard, b"\xff\xff\xff\xff\xff\xff\xff\x7f" + bytes(100)),
    "a pickle": partial(shard, pickle.dumps([1])),
}
CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "other tensors": partial(checkpoint, "weights.safetensors", tensors({"a": ONE}, bytes(4))),
    "a lying head": partial(checkpoint, "optimizer.safetensors", tensors({}, size=2**60)),
    "a pickle": partial(checkpoint, "weights.safetensors", reduce("os", "system", "touch ../ran")),
    "a step that is text": partial(checkpoint_says, step="x"),
    "tallies of another form": partial(checkpoint_says, tallies={"a": 1}),
}


def net(
    image: Any = "uint8", shape: tuple[Any, ...] = ("b", 3, 12, 12), classes: int = 4, more: Sequence[Any] = (), **weights: Any
) -> bytes:
    """A net of ONNX that looks like one of ours: it gives each class the same probability."""
    from onnx import TensorProto as Type
    from onnx import helper

    kind = {"uint8": Type.UINT8, "string": Type.STRING}[image]
    share = helper.make_tensor("share", Type.FLOAT, [1, classes], [1 / classes] * classes)
    share.MergeFrom(type(share)(**weights))
    if weights:
        share.ClearField("float_data")
    body = [
        helper.make_node("Shape", ["images"], ["size"], start=0, end=1),
        helper.make_node("Concat", ["size", "one"], ["grid"], axis=0),
        *more,
        helper.make_node("Expand", ["share", "grid"], ["probabilities"]),
    ]
    made = helper.make_graph(
        body,
        "net",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info("probabilities", Type.FLOAT, ["b", classes])],
        [share, helper.make_tensor("one", Type.INT64, [1], [1])],
    )
    known = [helper.make_opsetid("", 17), helper.make_opsetid("x", 1)]
    return bytes(helper.make_model(made, opset_imports=known, ir_version=8).SerializeToString())


def outside(place: str) -> bytes:
    """A net whose weights are to be read from another file."""
    from onnx import StringStringEntryProto as Entry
    from onnx import TensorProto as Type

    return net(data_location=Type.EXTERNAL, external_data=[Entry(key="location", value=place)])


def unknown() -> bytes:
    from onnx import helper

    return net(more=[helper.make_node("Run", ["images"], ["y"], domain="x")])


def about(**values: object) -> bytes:
    return json.dumps({"shape": [3, 12, 12], "classes": [*"abcd"], **values}).encode()


EXPORTS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "brackets": ("model.json", lambda: DEEP),
    "10^400": ("model.json", lambda: b'{"shape": [3, 1' + b"0" * 400 + b", 12]}"),
    "a shape of 2^62": ("model.json", lambda: about(shape=[3, 2**31, 2**31])),
    "a negative shape": ("model.json", lambda: about(shape=[3, -12, 12])),
    "classes that are a number": ("model.json", lambda: about(classes=7)),
    "five classes of four": ("model.json", lambda: about(classes=[*"abcde"])),
    "a list": ("model.json", lambda: b"[]"),
    "a pickle": ("model.json", lambda: reduce("os", "system", "touch ../ran")),
    "junk": ("model.onnx", lambda: b"\xff" * 1000),
    "nothing": ("model.onnx", lambda: b""),
    "a pickle for a net": ("model.onnx", lambda: reduce("os", "system", "touch ../ran")),
    "a net of texts": ("model.onnx", lambda: net(image="string")),
    "a net of other images": ("model.onnx", lambda: net(shape=("b", 1, 5, 5))),
    "a net of 9 classes": ("model.onnx", lambda: net(classes=9)),
    "weights above it": ("model.onnx", lambda: outside("../../../../secret")),
    "weights of the system": ("model.onnx", lambda: outside("/etc/passwd")),
    "weights of a device": ("model.onnx", lambda: outside("/dev/zero")),
    "an operator of its own": ("model.onnx", unknown),
}


def exported(file: str, content: Callable[[], bytes], run: Path) -> None:
    resealed(run / "export", lambda place: replaced(file, content(), place))
    checksums.write(run / "export", ["model.onnx", "model.json"])
    PIL.Image.new("RGB", (12, 12)).save(run.parent.parent / "x.png")


def as_it_should(run: Path) -> None:
    exported("model.onnx", net, run)


def piped(file: str, run: Path) -> None:
    replaced(file, "pipe", (run / "export").resolve())


def _train(name: str, reader: str, make: Callable[[Path], None], file: str) -> Case:
    return Case(name, reader, make, ("train", *TINY, f"train.init={file}"), 2, file)


def _yaml(name: str, make: Callable[[Path], None]) -> Case:
    return Case(name, "configuration", make, ("config", "x.yaml"), 2, "run.name" if name == "an escaped one" else "x.yaml")


def _run(name: str, reader: str, harm: Callable[[Path], None], words: tuple[str, ...], code: int, told: str) -> Case:
    return Case(name, reader, partial(copied, harm), words, code, told)


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    return partial(weights, lambda _: content, name)


PIPED = {
    ("predict", "tiny", "x.png"): ("model.onnx", "model.json", checksums.NAME),
    ("publish", "tiny", "hub:me/tiny", "--dry-run"): ("model.onnx", "model.json", "README.md"),
}
STRANGE = ("a pipe", "a device", "a loop", "a folder", "a sparse terabyte")
LISTED: dict[str, Any] = {"size": 0, "sha256": ""}
HERE = [
    *(_yaml(name, partial(config, content)) for name, content in YAML.items()),
    *(_yaml(name, partial(strange_config, name)) for name in STRANGE),
    *(Case(name, "words", lambda _: None, ("run", word), 2, word[:6]) for name, word in WORDS.items()),
    *(_train(name, "weights, .pth", partial(zipped, content), "x.pth") for name, content in PTH.items()),
    *(
        _train(f"{name}, as before torch 1.6", "weights, .pth", partial(weights, content, "x.pth"), "x.pth")
        for name, content in PTH.items()
    ),
    _train("a packed part of 1 GB", "weights, .pth", partial(zipped, lambda _: bytes(1 << 30), packed=zipfile.ZIP_DEFLATED), "x.pth"),
    _train("a .npy of objects", "weights, .pth", npy, "x.pth"),
    *(_train(name, "weights, safetensors", _file("x.safetensors", content), "x.safetensors") for name, content in SAFETENSORS.items()),
    _train("a sparse terabyte", "weights, safetensors", weights_of_a_terabyte, "x.safetensors"),
]
IN_RUNS = [
    *(_run(name, "run folders", partial(replaced, file, content), ("runs",), 0, "tiny") for name, (file, content) in RUNS.items()),
    *(
        _run(f"{name}, status", "run folders", partial(replaced, file, content), ("status", *TINY), 0, "next:")
        for name, (file, content) in RUNS.items()
        if "config" not in file and "claim" not in file
    ),
    *(
        _run(name, "shards", harm, TRAIN, 3, "images in train" if name == "fewer images" else "00000.arrow")
        for name, harm in SHARDS.items()
    ),
    *(_run(name, "checkpoints", harm, GO_ON, 3, "checkpoints/step-") for name, harm in CHECKPOINTS.items()),
    _run("a net that does no harm", "exports", as_it_should, ("predict", "tiny", "x.png"), 0, "0.25"),
    *(
        _run(f"{file}, {name}", "exports", partial(exported, file, content), ("predict", "tiny", "x.png"), 3, "export")
        for name, (file, content) in EXPORTS.items()
    ),
    *(
        _run(
            f"{file}, a pipe, {words[0]}",
            "exports",
            partial(piped, file),
            words,
            3,
            file,
        )
        for words, opened in PIPED.items()
        for file in opened
    ),
    *(
        _run(f"it lists {name}", "manifests", partial(listing, {name: LISTED}), ("status", *TINY), 0, "lists what is no file")
        for name in ("../../../secret", "/dev/zero")
    ),
]
CASES = [*HERE, *IN_RUNS]
