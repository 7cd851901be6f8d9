"""What a run leaves is used by clients that nobody here wrote, which find what it was evaluated to be.

Node's takes `npm install onnxruntime-node` somewhere, and NODE_PATH to say where.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from numpy.typing import NDArray
from processes import launch
from safetensors.numpy import load_file

SHAPE = (3, 12, 12)
CLASSES = 4
NODE = """
const fs = require("fs"), onnxruntime = require("onnxruntime-node");
(async () => {
    const session = await onnxruntime.InferenceSession.create("model.onnx");
    const images = new onnxruntime.Tensor("uint8", fs.readFileSync("images.bin"), JSON.parse(process.argv[1]));
    const { logits, probabilities } = await session.run({ images });
    console.log(JSON.stringify({ dims: logits.dims, logits: [...logits.data], probabilities: [...probabilities.data] }));
})();
"""
NUMPY = """
import json, sys
from safetensors.numpy import load_file
found = load_file("model.safetensors")
assert not {"torch", "pipeline"} & {*sys.modules}
print(json.dumps({name: [list(value.shape), str(value.dtype), float(abs(value.astype("float64")).sum())] for name, value in found.items()}))
"""


@dataclass(frozen=True)
class Run:
    """The folder runs/tiny of one, and what was evaluated of its test split."""

    folder: Path

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        return np.asarray(load_file(self.folder / "evaluate/predictions.safetensors")["test.probabilities"])

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """[N, C, H, W], as `datasets` reads them."""
        import datasets

        return np.array(datasets.load_from_disk(str(self.folder / "prepare"))["test"]["image"], np.uint8).reshape(-1, *SHAPE)

    def normalised(self) -> Any:
        import torch

        facts = json.loads((self.folder / "train/manifest.json").read_text())["result"]
        mean, std = (torch.tensor(facts[name])[:, None, None] for name in ("mean", "std"))
        return (torch.from_numpy(self.images) / 255 - mean) / std


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(tmp_path_factory.mktemp("exported"), "run")


def made(folder: Path, until: str, *words: str) -> Run:
    ended = launch(folder, [until, *TINY, "train.epochs=1", *words])
    assert ended.code == 0, ended.output
    return Run(folder / "runs/tiny")


def test_datasets_loads_the_prepared_folder_as_it_is(exported: Run) -> None:
    import datasets

    found = datasets.load_from_disk(str(exported.folder / "prepare"))
    about = json.loads((exported.folder / "prepare/manifest.json").read_text())["result"]
    assert {split: len(rows) for split, rows in found.items()} == about["counts"]
    assert found["test"].features["label"].names == about["classes"]
    labels = load_file(exported.folder / "evaluate/predictions.safetensors")["test.labels"]
    assert found["test"]["label"][:] == labels.tolist()


def test_several_shards_are_one_split_to_it_and_an_empty_split_is_none(tmp_path: Path) -> None:
    import datasets

    from pipeline.data import shards

    rows = np.arange(6 * 12, dtype=np.uint8).reshape(6, 3, 2, 2)
    for k, part in enumerate(np.split(rows, 3)):
        shards.write(tmp_path / f"train-{k:05d}.arrow", part, np.full(2, k), ["a", "b", "c"])
    names = {"train": [f"train-{k:05d}.arrow" for k in range(3)], "validation": []}
    shards.introduce(tmp_path, names, (3, 2, 2), ["a", "b", "c"])
    found = datasets.load_from_disk(str(tmp_path))
    assert list(found) == ["train"]
    assert np.array_equal(np.array(found["train"]["image"], np.uint8).reshape(rows.shape), rows)
    assert found["train"]["label"][:] == [0, 0, 1, 1, 2, 2]


def test_onnxruntime_gives_what_was_evaluated(exported: Run) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(exported.folder / "export/model.onnx")
    (found,) = session.run(["probabilities"], {"images": exported.images})
    np.testing.assert_allclose(found, exported.probabilities, atol=1e-5)
    assert np.array_equal(np.argmax(found, 1), exported.probabilities.argmax(1))


def test_onnxruntime_in_node_gives_what_was_evaluated(exported: Run, tmp_path: Path) -> None:
    if why := no_node():
        pytest.skip(why)
    shutil.copy(exported.folder / "export/model.onnx", tmp_path)
    (tmp_path / "images.bin").write_bytes(exported.images.tobytes())
    words = ["node", "-e", NODE, json.dumps(exported.images.shape)]
    told = json.loads(subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert told["dims"] == list(exported.probabilities.shape)
    found = np.array(told["probabilities"]).reshape(told["dims"])
    np.testing.assert_allclose(found, exported.probabilities, atol=1e-5)
    assert np.array_equal(np.array(told["logits"]).reshape(told["dims"]).argmax(1), exported.probabilities.argmax(1))


def no_node() -> str:
    """Why there is no client for Node here; empty if there is."""
    if shutil.which("node") is None:
        return "node is not installed"
    found = subprocess.run(["node", "-e", 'require.resolve("onnxruntime-node")'], capture_output=True, check=False)
    return "NODE_PATH names no folder with onnxruntime-node" if found.returncode else ""


def test_safetensors_alone_reads_the_weights(exported: Run) -> None:
    words = [sys.executable, "-I", "-c", NUMPY]
    told = json.loads(subprocess.run(words, cwd=exported.folder / "export", capture_output=True, text=True, check=True).stdout)
    trained = load_file(exported.folder / "train/weights.safetensors")
    assert told == {name: [list(v.shape), str(v.dtype), float(np.abs(v.astype(np.float64)).sum())] for name, v in trained.items()}


def test_torchvisions_own_resnet_loads_the_weights_and_gives_what_was_evaluated(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file as load
    from torchvision.models import resnet18

    run = made(tmp_path, "evaluate", "train.model={name: torchvision, arch: resnet18, stem: imagenet}", "train.steps=2")
    model = resnet18(num_classes=CLASSES).eval()
    model.load_state_dict(load(run.folder / "train/weights.safetensors"), strict=True)
    with torch.no_grad():
        found = model(run.normalised()).softmax(1).numpy()
    np.testing.assert_allclose(found, run.probabilities, atol=1e-5)


def test_timms_loader_takes_the_weights_and_gives_what_was_evaluated(tmp_path: Path) -> None:
    import torch

    timm = pytest.importorskip("timm")
    run = made(tmp_path, "evaluate", "train.model={name: timm, arch: test_resnet}", "train.steps=2")
    model = timm.create_model("test_resnet", num_classes=CLASSES, checkpoint_path=str(run.folder / "train/weights.safetensors")).eval()
    with torch.no_grad():
        found = model(run.normalised()).softmax(1).numpy()
    np.testing.assert_allclose(found, run.probabilities, atol=1e-5)
