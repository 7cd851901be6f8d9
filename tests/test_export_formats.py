"""Every format is used by a process without this package, on the whole test split; what departs from the trained model is not kept."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import TINY, Run
from onnx import numpy_helper
from pickles import pickles
from processes import launch

from pipeline.config import ExportConfig, load
from pipeline.data import shards
from pipeline.errors import ConfigError, GateError, PipelineError, Stopped
from pipeline.plan import EVALUATE, EXPORT, PREPARE, TRAIN, check
from pipeline.runtime import manifests
from pipeline.runtime.launch import StopFlag
from pipeline.stages.evaluate import load as trained_model
from pipeline.stages.export import check as checks
from pipeline.stages.export import formats, stop, stranger
from pipeline.stages.export.check import Stranger, a_stranger
from pipeline.stages.export.net import Exported

FEW = "train.steps=60"


def artifact(folder: Path, stage: manifests.Stage[manifests.A]) -> manifests.A:
    place = folder / "runs/tiny" / stage.name
    manifest, broken = manifests.read(place)
    assert manifest is not None, broken
    return manifests.artifact(stage, place, manifest)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has exported ONNX, also in 8 bits."""
    folder = tmp_path_factory.mktemp("whole")
    ended = launch(folder, ["run", *TINY, FEW, "export.formats=int8", "export.int8_loss=1"])
    assert ended.code == 0, ended.output
    return folder


def compared(whole: Path, place: Path) -> dict[str, checks.Tally]:
    """What a stranger finds of the files in `place`, beside the model that `whole` has trained."""
    data, trained, report = artifact(whole, PREPARE), artifact(whole, TRAIN), artifact(whole, EVALUATE)
    source = formats.Source(Exported(trained_model(trained), trained.mean, trained.std).eval(), data, trained)
    never: Any = SimpleNamespace(stop=False)
    with a_stranger(place) as asked:
        checks.check_weights(asked, source)
        return checks.compare(asked, source, ["onnx", "int8"], checks.labels(report), ExportConfig(int8_loss=0.3), never)


def test_names_are_found_in_the_table_and_those_that_others_need_are_always_made() -> None:
    with pytest.raises(ConfigError, match=r"^export.formats.1: no 'int4'; did you mean 'int8'\?$"):
        check(load(None, ["export.formats=[onnx, int4]"]))
    made = [check(load(None, words)).export.formats for words in (["export.formats=int8"], ["export.formats=[int8, onnx, safetensors]"])]
    assert [spec.name for spec in made[0]] == ["safetensors", "onnx", "int8"]
    assert made[0] == made[1], "the order, and naming what is always made, changes nothing"
    with pytest.raises(ConfigError, match=r"^export.formats: int8 is calibrated on validation images"):
        check(load(None, ["export.formats=int8", "data.validation=0"]))
    assert formats.FORMATS.keys() == formats.FILES.keys() == stranger.OPEN.keys() | {"safetensors"}


def test_a_stranger_cannot_import_the_package_though_it_is_installed() -> None:
    tried = "import runpy, sys; sys.meta_path[:0] = [runpy.run_path({!r})['Refusal']()][:{}]; import pipeline.errors"
    with_it, without = (
        subprocess.run([sys.executable, "-P", "-c", tried.format(stranger.__file__, count)], capture_output=True, text=True, check=False)
        for count in (1, 0)
    )
    assert (with_it.returncode, without.returncode) == (1, 0)
    assert with_it.stderr.splitlines()[-1] == "ImportError: pipeline: an export is to be used without the package that made it"


def test_the_artifact_says_what_was_found_of_every_format(whole: Path) -> None:
    found, report = artifact(whole, EXPORT), artifact(whole, EVALUATE)
    assert {*found.formats} == {"safetensors", "onnx", "int8"}
    assert (found.images, found.accuracy, found.left_out) == (57, report.test["accuracy"], {})
    for name, made in found.formats.items():
        assert made.bytes == (found.dir / made.file).stat().st_size
        assert (made.ran is None) == (name == "safetensors")
        if made.ran:
            assert [*made.ran.latency] == [*made.ran.runs] == [1, 64]
            assert made.ran.images_per_second == pytest.approx(64_000 / made.ran.latency[64])
    onnx, int8 = found.formats["onnx"].ran, found.formats["int8"].ran
    assert onnx is not None
    assert int8 is not None
    assert (onnx.agreement, onnx.accuracy) == (1, found.accuracy)
    assert onnx.difference <= 1e-5 * found.largest_logit < int8.difference


def test_a_stranger_answers_batches_of_every_size_and_has_nothing_of_ours(whole: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 3, 12, 12), np.uint8)
    with a_stranger(whole / "runs/tiny/export") as asked:
        asked.open("onnx")
        all_of_them = asked.run("onnx", images)
        for batch in (1, 2):
            for one, other in zip(asked.run("onnx", images[:batch]), all_of_them, strict=True):
                np.testing.assert_allclose(one, other[:batch], atol=1e-5)
        assert asked.imported() == []


def other_weights(place: Path) -> None:
    path = place / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_onnx(place: Path) -> None:
    scale(place / "model.onnx", 1 + 1e-3)


def blind_int8(place: Path) -> None:
    scale(place / "model.int8.onnx", 0)


def scale(path: Path, factor: float) -> None:
    """Matrices and convolutions times `factor`."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if len(tensor.dims) > 1:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))
    onnx.save(model, path)


def sigmoid(place: Path) -> None:
    model = onnx.load(place / "model.onnx")
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    softmax.op_type = "Sigmoid"
    del softmax.attribute[:]
    onnx.save(model, place / "model.onnx")


def no_protocol_buffer(place: Path) -> None:
    (place / "model.onnx").write_bytes(b"no protocol buffer")


def one_size(place: Path) -> None:
    model = onnx.load(place / "model.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 58  # one more than there are test images
    onnx.save(model, place / "model.onnx")


BEYOND_US = "cannot be used by a process without this package"
HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights, by a bit": (other_weights, r"model.safetensors: 1 of 8 tensors are not those that were trained, "),
    "a thousandth too much": (other_onnx, r"model.onnx differs from the trained model: \d+ of 57 classes, logits by [0-9.]+ where "),
    "probabilities that are no softmax": (sigmoid, r"model.onnx: its probabilities are not the softmax of its logits, by 0\.\d+$"),
    "not ONNX at all": (no_protocol_buffer, rf"model.onnx {BEYOND_US}: InvalidProtobuf: "),
    "batches of one size": (one_size, rf"model.onnx {BEYOND_US}: InvalidArgument: "),
    "eight bits that see nothing": (blind_int8, r"model.int8.onnx is right on \d+ of 57 test images, the trained model on \d+: more "),
}


def test_the_files_as_they_were_written_pass(whole: Path) -> None:
    tallies = compared(whole, whole / "runs/tiny/export")
    assert {name: tally.images for name, tally in tallies.items()} == {"": 57, "onnx": 57, "int8": 57}
    assert tallies[""].difference == 0


@pytest.mark.parametrize("harm", HARM)
def test_a_file_that_departs_from_the_trained_model_is_refused_by_how_much(whole: Path, tmp_path: Path, harm: str) -> None:
    do, said = HARM[harm]
    place = tmp_path / "export"
    shutil.copytree(whole / "runs/tiny/export", place)
    do(place)
    with pytest.raises(GateError, match=said) as told:
        compared(whole, place)
    assert "\n" not in str(told.value)


def test_a_stranger_that_is_killed_is_told_of(whole: Path) -> None:
    asked = Stranger(whole / "runs/tiny/export")
    asked._process.kill()
    with pytest.raises(PipelineError, match=r"^the process that tried model.onnx was ended by signal 9; the same command tries again$"):
        asked.open("onnx")
    asked.end()


def writing_another(_: int) -> None:
    write = formats.onnx

    def and_harm(source: formats.Source, path: Path) -> None:
        write(source, path)
        other_onnx(path.parent)

    formats.FORMATS["onnx"] = and_harm


def test_what_is_refused_ends_the_stage_with_4_and_is_not_kept(run: Run, tmp_path: Path) -> None:
    ended = run(FEW, before=writing_another)
    assert ended.code == 4, ended.output
    assert "pipeline: model.onnx differs from the trained model: " in ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "runs/tiny/export").exists()


def stopped_beside_a_stranger_that_hangs(_: int) -> None:
    open_ = Stranger.open

    def opened(self: Stranger, name: str) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)
        for pid in (self._process.pid, os.getpid()):  # as a scheduler does
            threading.Timer(0.1, os.kill, (pid, signal.SIGTERM)).start()
        Path("beside").write_text(str(self._process.pid))
        open_(self, name)

    Stranger.open = opened  # type: ignore[method-assign]


def compiling_for_ever(_: int) -> None:
    """Its compiler starts a process, as g++ does, and waits for it."""
    compiler = Path("compiler").absolute()
    compiler.write_text("#!/bin/sh\nsleep 600 &\necho $$ $! > begun && mv begun beside\nwait\n")
    compiler.chmod(0o755)
    os.environ["CXX"] = str(compiler)
    torch._inductor.config.cpp.cxx = (None, str(compiler))
    main = os.getpid()

    def tell() -> None:
        while not Path("beside").exists():
            time.sleep(0.01)
        os.kill(main, signal.SIGINT)

    threading.Thread(target=tell, daemon=True).start()


@pytest.mark.parametrize(("formats", "where"), [("[]", stopped_beside_a_stranger_that_hangs), ("aotinductor", compiling_for_ever)])
def test_a_stop_while_another_process_works_leaves_with_75_and_nobody_behind(
    run: Run, tmp_path: Path, formats: str, where: Callable[[int], None]
) -> None:
    ended = run(FEW, f"export.formats={formats}", before=where)
    assert ended.code == 75, ended.output
    assert ended.output.splitlines()[-1] == "pipeline: stopped while exporting; the trained model is kept, the same command goes on"
    deadline = time.monotonic() + 60
    for pid in (tmp_path / "beside").read_text().split():
        while Path(f"/proc/{pid}").exists():  # it was told to end, and is about to be gone
            assert time.monotonic() < deadline, "it was left behind"
            time.sleep(0.01)
    assert not (tmp_path / "runs/tiny/export").exists()
    if formats == "[]":
        again = run(FEW)
        assert again.code == 0, again.output
        assert "train: fresh" in again.output


SERVICE = """
import subprocess
input()
service = subprocess.Popen(["sleep", "600"])
print(service.pid, flush=True)
print(service.wait(), flush=True)
"""


def test_a_stop_leaves_alone_what_processes_from_before_have_begun_meanwhile() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVICE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as aside:
        assert aside.stdin
        assert aside.stdout
        with contextlib.suppress(Stopped), stop.interrupted_by(StopFlag()):
            print(file=aside.stdin, flush=True)
            service = int(aside.stdout.readline())
            os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(service, signal.SIGKILL)
        assert int(aside.stdout.readline()) == -signal.SIGKILL


def test_int8_is_calibrated_on_validation_images_and_needs_no_others(whole: Path, tmp_path: Path) -> None:
    data, found = artifact(whole, PREPARE), []
    for name in data.shards["validation"]:
        shutil.copy(data.dir / name, tmp_path / name)
    shutil.copy(whole / "runs/tiny/export/model.onnx", tmp_path / "model.onnx")
    unused: Any = None
    source = formats.Source(unused, data.model_copy(update={"dir": tmp_path}), unused)
    blank = np.zeros((data.counts["validation"], *data.shape), np.uint8)
    for black in (False, True):
        if black:
            shards.write(tmp_path / data.shards["validation"][0], blank, np.zeros(len(blank), np.int64), data.classes)
        formats.int8(source, tmp_path / "model.int8.onnx")
        found.append((tmp_path / "model.int8.onnx").read_bytes())
    assert found[0] == (whole / "runs/tiny/export/model.int8.onnx").read_bytes(), "no other split was there"
    assert found[0] != found[1], "of other images the ranges are others"


class Attending(torch.nn.Module):
    """Pixels [B, 3, 12, 12] as 12 tokens, each of which attends to all of them about alike."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.each, self.head = torch.nn.Linear(36, 24), torch.nn.Linear(96, 4)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        queries, keys, values = self.each(pixels.reshape(-1, 12, 36)).chunk(3, 2)
        found: torch.Tensor = self.head(((0.05 * queries @ keys.transpose(1, 2)).softmax(2) @ values).flatten(1))
        return found


def test_8_bits_do_not_spoil_attention(whole: Path, tmp_path: Path) -> None:
    data = artifact(whole, PREPARE)
    unused: Any = None
    source = formats.Source(Exported(Attending(), data.mean, data.std).eval(), data, unused)
    for name in ("onnx", "int8"):
        formats.FORMATS[name](source, tmp_path / formats.FILES[name])
    images = np.array(data.open("test").images[0])
    with a_stranger(tmp_path) as asked:
        for name in ("onnx", "int8"):
            asked.open(name)
        (plain, _), (eight, _) = (asked.run(name, images) for name in ("onnx", "int8"))
    assert np.abs(eight - plain).max() < 0.1 * np.abs(plain).max()


def test_calibration_images_are_spread_over_all_shards() -> None:
    parts = [np.arange(0, 30, dtype=np.uint8), np.arange(30, 100, dtype=np.uint8)]
    assert formats._spread(parts, 10).tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    assert formats._spread(parts, 1000).tolist() == [*range(100)]
    assert len(formats._spread([], 10)) == 0


def no_compiler(_: int) -> None:
    os.environ["CXX"] = "no-such-compiler"


def test_without_a_compiler_machine_code_is_left_out_and_that_is_said(run: Run, tmp_path: Path) -> None:
    ended = run("export.formats=aotinductor", FEW, before=no_compiler)
    assert ended.code == 0, ended.output
    assert "export: aotinductor is left out: there is no C++ compiler no-such-compiler here" in ended.output
    assert artifact(tmp_path, EXPORT).left_out == {"aotinductor": "there is no C++ compiler no-such-compiler here"}
    assert "`aotinductor` was left out" in (tmp_path / "runs/tiny/export/README.md").read_text()


MODELS = {
    "lenet, grey": ["data.channels=1"],
    "resnet18": ["train.model={name: resnet18, width: 4}"],
    "resnet18, grey, two processes": ["train.model={name: resnet18, width: 4}", "data.channels=1"],
    "a transformer": ["train.model={name: timm, arch: test_vit}", "data.size=32", "train.steps=60", "export.int8_loss=0"],
    "torchvision, bfloat16": ["train.model={name: torchvision, arch: squeezenet1_1}", "data.size=32", "train.precision=bf16"],
    "a convnet of timm": ["train.model={name: timm, arch: test_resnet}", "data.size=32"],
    "dropout, float64": ["train.model={name: wrn_16_4, depth: 10, widen: 1, dropout: 0.3}", "train.precision=fp64"],
}


COMPILED = ("lenet, grey", "resnet18", "a transformer")  # it takes long


@pytest.mark.soak
@pytest.mark.parametrize("model", MODELS)
def test_every_format_of_every_kind_of_model_agrees(run: Run, tmp_path: Path, model: str) -> None:
    every = "export.formats=[int8, pt2, aotinductor]" if model in COMPILED else "export.formats=[int8, pt2]"
    ended = run(every, "train.steps=3", "export.int8_loss=1", *MODELS[model], processes=2 if "two processes" in model else 1)
    assert ended.code == 0, ended.output
    found = artifact(tmp_path, EXPORT)
    made = set(formats.FORMATS) - {*found.left_out} - ({"aotinductor"} if model not in COMPILED else set())
    assert {*found.formats} == made >= {"safetensors", "onnx", "int8", "pt2"}
    for name in made - {"safetensors", "int8"}:
        ran = found.formats[name].ran
        assert ran is not None
        assert ran.difference <= 1e-5 * found.largest_logit
    assert {path.name: some for path in found.dir.iterdir() if (some := pickles(path.read_bytes()))} == {}
    if "aotinductor" in made:
        card = (found.dir / "README.md").read_text()
        code = next(block for block in re.findall(r"```python\n(.*?)```", card, re.DOTALL) if "aoti_load_package" in block)
        subprocess.run([sys.executable, "-I", "-c", code + REFUSES], cwd=found.dir, check=True)


REFUSES = """
import json

_, channels, height, width = shape = (1, *json.load(open("model.json"))["shape"])
wrong = [
    torch.zeros(shape), torch.zeros(1, channels, height - 1, width, dtype=torch.uint8), torch.zeros(shape[1:], dtype=torch.uint8),
    torch.zeros(1, height, width, channels + 1, dtype=torch.uint8)[..., 1:].permute(0, 3, 1, 2),
]
for images in wrong:
    try:
        program(images)
    except RuntimeError:
        continue
    raise SystemExit(f"takes {images.dtype} of {images.shape}, strides {images.stride()}")
"""
