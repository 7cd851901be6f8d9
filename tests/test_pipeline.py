"""The main job, end to end, as a new user has it."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import PIL.Image
from conftest import Run
from processes import launch
from safetensors.numpy import load_file

from pipeline.config import Config
from pipeline.summary import closing_words


def test_the_default_reads_real_digits_and_is_right_98_times_in_100(tmp_path: Path) -> None:
    ended = launch(tmp_path, ["run", "run.trackers=[]", "--json"])
    assert ended.code == 0, ended.output
    summary = ended.summary
    assert summary["test_accuracy"] >= 0.98
    assert summary["validation_accuracy"] >= 0.96
    assert summary["counts"] == {"train": 1299, "validation": 143, "test": 355}
    assert (summary["world_size"], summary["strategy"], summary["device"]) == (1, "single", "cpu")
    assert summary["onnx_agreement"] == 1
    assert summary == json.loads((tmp_path / "runs/digits/summary.json").read_text())
    for what in ("model", "report", "metrics"):
        assert Path(summary["paths"][what]).is_file()
    assert json.loads((tmp_path / "runs/digits/status.json").read_text())["state"] == "done"
    assert re.search(r"^  model +runs/digits/export/model.onnx$", ended.output, re.MULTILINE)
    assert "next: pipeline predict" in ended.output
    page = (tmp_path / "runs/digits/report/index.html").read_text()
    assert page.count("<svg") == 8
    assert 'src="http' not in page

    from sklearn.datasets import load_digits

    zero = PIL.Image.fromarray(np.rint(load_digits().images[0] * 255 / 16).astype(np.uint8))
    zero.save(tmp_path / "zero.png")
    told = launch(tmp_path, ["predict", "runs/digits", "zero.png"])
    name, answer, probability = told.output.splitlines()[1].split()
    assert (told.code, name, answer) == (0, "zero.png", "0")
    assert float(probability) > 0.9


def three_classes_are_many(_: int) -> None:
    from pipeline.stages import evaluate

    evaluate.MANY = evaluate.FEW = 3


def test_what_is_to_be_typed_next_can_be_typed_as_it_is() -> None:
    words = closing_words(Config(), "export", Path("my runs/digits"), ["pipeline", "run.folder=my runs"], {}, [])
    said = [shlex.split(line.partition(": ")[2]) for line in words.splitlines()[-2:]]
    assert said[0] == ["pipeline", "predict", "my runs/digits", "IMAGE.png"]
    assert said[1][:3] == ["pipeline", "run", "run.folder=my runs"]


def test_a_report_on_very_many_classes_has_no_matrix_of_them_and_keeps_no_probability_of_each(run: Run, tmp_path: Path) -> None:
    assert run(until="evaluate", before=three_classes_are_many).code == 0
    measured = json.loads((tmp_path / "runs/tiny/evaluate/metrics.json").read_text())["test"]
    assert "confusion" not in measured
    assert {name.split(".")[1] for name in load_file(tmp_path / "runs/tiny/evaluate/predictions.safetensors")} == {
        "labels",
        "predicted",
        "confidence",
    }
    assert sum(row["images"] for row in measured["per_class"]) == 57
    assert sum(row["correct"] for row in measured["per_class"]) == round(57 * measured["accuracy"])
    assert "Of 4 classes no matrix is drawn." in (tmp_path / "runs/tiny/report/index.html").read_text()
