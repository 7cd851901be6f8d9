"""An export is proven equal to the trained model, and needs nothing of ours."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import Run
from processes import launch
from safetensors.numpy import load_file

from pipeline.errors import DataError
from pipeline.predict.exported import Exported
from pipeline.runtime import checksums, files

STRANGER = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
images = np.load("images.npy")
logits, probabilities = session.run(None, {"images": images})
assert "torch" not in sys.modules and "pipeline" not in sys.modules
print(json.dumps([logits.argmax(1).tolist(), probabilities.sum(1).tolist(), len(session.run(None, {"images": images[:1]})[0])]))
"""


def test_a_stranger_gets_the_evaluated_accuracy_from_raw_pixels(run: Run, tmp_path: Path) -> None:
    import datasets

    ended = run()
    assert ended.code == 0, ended.output
    test = datasets.Dataset.from_file(str(tmp_path / "runs/tiny/prepare/test-00000.arrow"))
    export = tmp_path / "runs/tiny/export"
    np.save(export / "images.npy", np.array(test["image"], np.uint8).reshape(-1, 3, 12, 12))
    told = subprocess.run([sys.executable, "-I", "-c", STRANGER], cwd=export, capture_output=True, text=True, check=True)
    classes, sums, one = json.loads(told.stdout)
    right = np.mean(np.array(classes) == np.array(test["label"]))
    assert right == ended.summary["test_accuracy"]
    np.testing.assert_allclose(sums, 1, atol=1e-6)
    assert one == 1


def test_the_exported_weights_are_the_trained_ones(run: Run, tmp_path: Path) -> None:
    run()
    exported, trained = (load_file(tmp_path / "runs/tiny" / name) for name in ("export/model.safetensors", "train/weights.safetensors"))
    assert exported.keys() == trained.keys()
    assert all((exported[k] == trained[k]).all() for k in trained)


def test_an_export_that_disagrees_is_refused_on_every_process(run: Run, tmp_path: Path) -> None:
    ended = run("export.tolerance=1e-12", processes=2)
    assert ended.code == 4, ended.output
    assert "model.onnx differs from the trained model: " in ended.output
    assert json.loads((tmp_path / "runs/tiny/status.json").read_text())["exit_code"] == 4
    assert not (tmp_path / "runs/tiny/export").exists()


def test_a_score_below_the_gate_fails_with_4(run: Run) -> None:
    ended = run("evaluate.min_accuracy=1", "train.steps=1", processes=2)
    assert ended.code == 4
    assert "is below evaluate.min_accuracy=1.0" in ended.output


def test_the_card_tells_results_and_use(run: Run, tmp_path: Path) -> None:
    import yaml

    summary = run().summary
    card = (tmp_path / "runs/tiny/export/README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["model-index"][0]["results"][0]["metrics"][0]["value"] == summary["test_accuracy"]
    assert 'onnxruntime.InferenceSession("model.onnx")' in card


def test_predict_names_what_is_wrong(run: Run, tmp_path: Path) -> None:
    no_run = launch(tmp_path, ["predict", "runs/none", "x.png"])
    assert (no_run.code, no_run.output.count("\n")) == (2, 1)
    assert no_run.output.startswith("pipeline: no export in runs/none; give the folder of a finished run or of an export, ")
    run()
    (tmp_path / "x.png").write_bytes(b"no image")
    broken = launch(tmp_path, ["predict", "runs/tiny", "x.png"])
    assert broken.code == 3
    assert broken.output.startswith("pipeline: cannot read the image x.png")
    missing = launch(tmp_path, ["predict", "runs/tiny", "y.png"])
    assert missing.code == 3
    PIL.Image.new("L", (50, 40)).save(tmp_path / "x.png")
    assert launch(tmp_path, ["predict", "runs/tiny/export", "x.png"]).output.splitlines()[1].startswith("x.png  class ")
    about = tmp_path / "runs/tiny/export/model.json"
    about.write_text(about.read_text().replace('"class 0"', '"class 1"'))
    changed = launch(tmp_path, ["predict", "runs/tiny", "x.png"])
    assert (changed.code, len(changed.output.splitlines())) == (3, 1)
    assert "the export in runs/tiny/export is damaged: model.json is not as SHA256SUMS says; `pipeline export`" in changed.output


def test_images_that_are_not_square_and_classes_with_odd_names_go_all_the_way(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["$x_$", "<b>|&", "ключ"]
    for split in ("train", "test"):
        for name in names:
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for k in range(6):
                PIL.Image.fromarray(rng.integers(0, 256, (12, 15), np.uint8)).save(tmp_path / "data" / split / name / f"{k}.png")
    ended = run("data.source=folder", "data.root=data", "train.epochs=1")
    assert ended.code == 0, ended.output
    told = launch(tmp_path, ["predict", "runs/tiny", f"data/test/{names[0]}/0.png"])
    assert told.code == 0, told.output
    assert any(f" {name} " in told.output for name in names)
    (tmp_path / "runs/tiny/export/model.onnx").unlink()
    damaged = launch(tmp_path, ["predict", "runs/tiny", f"data/test/{names[0]}/0.png"])
    assert (damaged.code, "Traceback" in damaged.output) == (3, False)
    assert "the export in runs/tiny/export is damaged: model.onnx" in damaged.output


NAMES = ("model.onnx", "model.json")


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    """What is needed of an export, to be predicted with."""
    for name in NAMES:
        (tmp_path / name).write_text('{"shape": [3, 12, 12], "classes": ["a", "b"]}')
    checksums.write(tmp_path, NAMES)
    return tmp_path


def test_what_lists_the_files_is_what_sha256sum_takes(alone: Path) -> None:
    subprocess.run(["sha256sum", "-c", "--strict", checksums.NAME], cwd=alone, check=True, capture_output=True)
    assert Exported.of(alone).about.classes == ["a", "b"]


@pytest.mark.parametrize("harmed", NAMES)
def test_a_file_that_is_opened_is_checked_before(alone: Path, harmed: str) -> None:
    path = alone / harmed
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    with pytest.raises(DataError, match=f"is damaged: {harmed} is not as SHA256SUMS says; get it again from where it was published"):
        Exported.of(alone)
    path.unlink()
    with pytest.raises(DataError, match=f"is damaged: {harmed}: No such file"):
        Exported.of(alone)


def test_of_an_export_that_was_made_here_it_says_how_to_make_it_again(alone: Path) -> None:
    (alone / checksums.NAME).unlink()
    files.write_manifest(alone, {"stage": "export", "outputs": {}})
    with pytest.raises(DataError, match="is damaged: SHA256SUMS is missing; `pipeline export`, as it was made, makes it again"):
        Exported.of(alone)


ZEROS = "0" * 64
FORM = "SHA256SUMS is not one line `<sha256>  <name>` for each file"
LISTS: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "nothing": (lambda text: "", FORM),
    "a line missing": (lambda text: text[text.index("\n") + 1 :], "SHA256SUMS does not list model.onnx"),
    "a line cut": (lambda text: text[:-2], FORM),
    "the end of a line": (lambda text: text[:-1], FORM),
    "a name twice": (lambda text: text + text[: text.index("\n") + 1], FORM),
    "a name with another digest": (lambda text: f"{text}{ZEROS}  model.onnx\n", FORM),
    "a name above": (lambda text: f"{text}{ZEROS}  ../../secret\n", FORM),
    "an absolute name": (lambda text: f"{text}{ZEROS}  /etc/passwd\n", FORM),
    "a byte that is no text": (lambda text: text.encode() + b"\xff\n", FORM),
    "an escape": (lambda text: f"{text}{ZEROS}  \x1b[2J\n", FORM),
    "very much": (lambda text: text + "\n" * (16 << 20), "SHA256SUMS: it has more than 16,777,216 bytes"),
    "another's digest": (lambda text: text.replace(text[:64], ZEROS, 1), "model.onnx is not as SHA256SUMS says"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_that_is_none_is_refused_and_named(alone: Path, kind: str) -> None:
    change, said = LISTS[kind]
    path = alone / checksums.NAME
    changed = change(path.read_text())
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(DataError, match=f"is damaged: {re.escape(said)}"):
        Exported.of(alone)
