"""`pipeline predict`: any image, from an export alone, told as `evaluate` saw it; and what is no image is named."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import PIL.Image
import pytest
from cluster import until
from conftest import TINY
from numpy.typing import NDArray
from processes import Ended, begin, launch
from safetensors.numpy import load_file
from terminal import NOT_CI, Terminal

from pipeline.runtime import checksums

Row = dict[str, Any]

CLASSES = ("a cat", "z", "дом")
WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # to import it fails
from pipeline.__main__ import main
sys.exit(main(sys.argv[1:]))
"""

CUT_SHORT = """
from pipeline.data.cores import cores

def struck(_):  # as by the handler of a signal, between two lines of `submit`
    raise KeyboardInterrupt

try:
    with cores(2, 1) as each:
        each.func.__self__._work_ids.put = struck
        each(abs, range(3))
except KeyboardInterrupt:
    print("ended")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a run has learnt from `data`, class folders of images of two sizes and kinds."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    looks = rng.integers(0, 256, (len(CLASSES), 12, 16, 3))
    for split, count in (("train", 30), ("test", 12)):
        for k, name in enumerate(CLASSES):
            (folder / "data" / split / name).mkdir(parents=True)
            for n in range(count):
                image = PIL.Image.fromarray((looks[k] * 0.6 + rng.integers(0, 100, looks[k].shape)).astype(np.uint8))
                image = image if n % 3 else image.resize((40, 24))
                image.save(folder / "data" / split / name / f"{n:02d}.{'png' if n % 2 else 'jpg'}")
    words = ["data.source=folder", "data.root=data", "data.size=12", "train.epochs=3", "export.formats=[int8]", "export.int8_loss=1"]
    ended = launch(folder, ["run", *TINY, *words])
    assert ended.code == 0, ended.output
    return folder


def predicted(place: Path, *words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pipeline", "predict", *map(str, words)]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)


def rows(place: Path, *words: object) -> list[Row]:
    ended = launch(place, ["predict", *map(str, words), "--format", "jsonl"])
    assert ended.code == 0, ended.output
    return [json.loads(line) for line in ended.output.splitlines()]


def picture(place: Path) -> PIL.Image.Image:
    with PIL.Image.open(place / "data/test/z/01.png") as image:
        return image.copy()


def shares(told: Sequence[Row]) -> NDArray[np.float64]:
    """[N, classes]: the probability of each class, where all were asked for."""
    found = [{one["class"]: one["probability"] for one in row["top"]} for row in told]
    return np.array([[share[name] for name in CLASSES] for share in found])


def test_images_are_seen_as_evaluate_saw_them(place: Path) -> None:
    measured = load_file(place / "runs/tiny/evaluate/predictions.safetensors")
    told = rows(place, "runs/tiny", "data/test", "--top", len(CLASSES))
    assert [row["image"] for row in told] == [str(p.relative_to(place)) for p in sorted(place.glob("data/test/*/*"))]
    assert [CLASSES.index(str(row["class"])) for row in told] == measured["test.predicted"].tolist()
    np.testing.assert_allclose(shares(told), measured["test.probabilities"], atol=2e-6)


def test_torch_is_not_needed_and_nothing_is_noted_for_the_makers_of_libraries(place: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "predict", "tiny", "data/test/z/01.png"]
    home = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")} | {"HOME": str(tmp_path)}
    ended = subprocess.run(command, cwd=place, env=home, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("image")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("export", ["runs/tiny", "runs/tiny/export", "tiny", "runs/tiny/export/model.onnx"])
def test_an_export_is_named_by_its_folder_or_its_run_or_its_file(place: Path, export: str) -> None:
    assert len(rows(place, export, "data/test/z/01.png")) == 1


@pytest.mark.parametrize("export", ["runs/tiny/export/model.int8.onnx", "tiny/model.int8.onnx"])
def test_a_file_in_8_bits_is_asked_where_it_is_named(place: Path, export: str) -> None:
    measured = load_file(place / "runs/tiny/evaluate/predictions.safetensors")
    told = rows(place, export, "data/test", "--top", len(CLASSES))
    right = np.array([CLASSES.index(str(row["class"])) for row in told]) == measured["test.labels"]
    made = json.loads((place / "runs/tiny/export/manifest.json").read_text())["result"]
    assert right.mean() == made["formats"]["int8"]["ran"]["accuracy"]
    assert not np.allclose(shares(told), measured["test.probabilities"], atol=2e-6), "it is not the float's answer"


@pytest.mark.parametrize("export", ["tiny/model.int4.onnx", "runs/tiny/export/model.safetensors", "data"])
def test_what_is_no_export_is_refused_in_one_line(place: Path, export: str) -> None:
    ended = launch(place, ["predict", export, "data/test/z/01.png"])
    ways = "the folder of a finished run or of an export, an .onnx file in it, or the name of a run in runs/"
    assert (ended.code, ended.output) == (2, f"pipeline: no export in {export}; give {ways}\n")


def test_more_classes_than_there_are_cannot_be_had(place: Path) -> None:
    ended = launch(place, ["predict", "tiny", "data", "--top", "99"])
    assert (ended.code, ended.output) == (2, "pipeline: predict: --top 99: there are 3 classes; give 3 at most\n")


def test_the_forms_say_the_same(place: Path) -> None:
    words = ["tiny", "data/test/дом", "data/test/z/01.png", "--top", "2"]
    lines = rows(place, *words)
    (place / "told.csv").write_text(launch(place, ["predict", *words, "--format", "csv"]).output)
    with (place / "told.csv").open() as file:
        for line, cells in zip(lines, csv.DictReader(file), strict=True):
            assert cells["image"] == line["image"]
            for best, number in zip(line["top"], ("", "_2"), strict=True):
                assert (cells[f"class{number}"], float(cells[f"probability{number}"])) == (best["class"], best["probability"])
            assert line["top"][0] == {name: line[name] for name in ("class", "probability")}
    head, *table = launch(place, ["predict", *words]).output.splitlines()
    assert head.split() == ["image", "class", "prob."]
    assert len({line.index(f"{row['probability']:.4f}") for line, row in zip(table, lines, strict=True)}) == 1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "turned"])
def test_a_picture_is_the_same_in_any_mode_and_orientation(place: Path, tmp_path: Path, mode: str) -> None:
    image = picture(place).quantize(200).convert("RGB")
    image.save(tmp_path / "plain.tif")
    if mode == "turned":
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # to be shown turned by 90 degrees
        image.transpose(PIL.Image.Transpose.ROTATE_90).save(tmp_path / "same.tif", exif=exif)
    else:
        same = image.quantize(200) if mode == "P" else image.convert(mode)
        same.save(tmp_path / "same.tif")
        assert same.mode == mode
    plain, same_row = rows(place, "tiny", tmp_path / "plain.tif", tmp_path / "same.tif")
    assert (same_row["class"], same_row["probability"]) == (plain["class"], plain["probability"])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "PA", "I;16"])
def test_grey_pictures_of_any_mode_are_taken(place: Path, tmp_path: Path, mode: str) -> None:
    grey = picture(place).convert("L").point(lambda value: 255 * (value > 128))
    grey.save(tmp_path / "grey.tif")
    same = PIL.Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert("LA").convert(mode)
    same.save(tmp_path / "same.tif")
    assert same.mode == mode
    plain, same_row = rows(place, "tiny", tmp_path / "grey.tif", tmp_path / "same.tif")
    assert (same_row["class"], same_row["probability"]) == (plain["class"], plain["probability"])


def test_what_is_no_image_is_named_and_skipped_and_the_rest_predicted(place: Path, tmp_path: Path) -> None:
    good = (place / "data/test/z/01.png").read_bytes()
    (tmp_path / "good.png").write_bytes(good)
    (tmp_path / "truncated.png").write_bytes(good[:100])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".hidden.png").touch()
    huge = PIL.Image.new("1", (20_000, 20_000))
    huge.save(tmp_path / "huge.png")
    ended = predicted(place, "tiny", tmp_path, "absent.png", "--format", "jsonl")
    assert ended.returncode == 3
    assert [json.loads(line)["image"] for line in ended.stdout.splitlines()] == [str(tmp_path / "good.png")]
    *refused, passed_over, counted = ended.stderr.splitlines()
    names = ["device.png", "empty.png", "huge.png", "loop.png", "pipe.png", "text.png", "truncated.png"]
    for line, name in zip(refused, [*(f"{tmp_path}/{name}" for name in names), "absent.png"], strict=True):
        assert line.startswith("pipeline: ")
        assert f" the image {name}" in line
    assert passed_over == f"pipeline: passed over, by their names no images: 1, the first {tmp_path}/notes.txt"
    assert counted == "pipeline: 8 of 9 could not be read"


def test_one_image_that_is_none_and_a_folder_without_any_end_with_3(place: Path, tmp_path: Path) -> None:
    for given in (tmp_path / "absent.png", tmp_path):
        ended = predicted(place, "tiny", given)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (3, "", 1), ended.stderr


def test_names_of_any_bytes_break_nothing(place: Path, tmp_path: Path) -> None:
    names = [b'a,"b".png', b"caf\xe9.png", b"new\nline.png", b"red\x1b[31m.png", b"token=abcdefgh.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes((place / "data/test/z/01.png").read_bytes())
    exact = [f"{tmp_path}/{name.decode(errors='backslashreplace')}" for name in names]
    assert [row["image"] for row in rows(place, "tiny", tmp_path)] == exact
    told = predicted(place, "tiny", tmp_path, "--format", "csv").stdout
    assert [cells["image"] for cells in csv.DictReader(told.splitlines(keepends=True))] == exact
    _, *table = predicted(place, "tiny", tmp_path).stdout.splitlines()
    assert len(table) == len(names)
    assert all(line.isprintable() for line in table)


def test_many_images_by_several_processes_are_told_as_each_by_itself(place: Path) -> None:
    every = sorted((place / "data").glob("*/*/*"))
    many = rows(place, "tiny", *every * 3, "--top", len(CLASSES))
    assert [row["image"] for row in many] == [*map(str, every * 3)]
    alone = rows(place, "tiny", *every[:20], "--top", len(CLASSES))
    for at in range(0, len(many), len(every)):
        np.testing.assert_allclose(shares(many[at : at + 20]), shares(alone), atol=2e-6)


def test_on_a_terminal_the_rows_stay_and_nothing_else_does(place: Path) -> None:
    with Terminal() as terminal:
        (process,) = begin(place, ["predict", "tiny", *["data/test"] * 3], before=terminal.before(), environment=NOT_CI)
        process.join(60)
    assert process.exitcode == 0, terminal.shown()
    *shown, last = terminal.shown()
    assert all(len(line.split()) >= 3 for line in shown)
    assert last.startswith("data/test/дом/11.png")


def test_a_reader_that_leaves_ends_it_quietly(place: Path) -> None:
    command = f"{sys.executable} -m pipeline predict tiny {'data ' * 30} | head -n 2"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=place, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_one_line_and_nobody_is_left(place: Path, number: signal.Signals, code: int) -> None:
    output = place / "output.txt"
    output.unlink(missing_ok=True)
    (process,) = begin(place, ["predict", "tiny", *["data"] * 400])
    until(lambda: output.exists() and output.read_text().count("\n") > 300, 60, lambda: "nothing was predicted")
    assert process.pid is not None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == code
    assert output.read_text().splitlines()[-1] == "pipeline: stopped"
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def test_a_signal_in_the_midst_of_handing_out_work_does_not_keep_it_waiting() -> None:
    ended = subprocess.run([sys.executable, "-c", CUT_SHORT], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ended\n", "")


def of_export(folder: Path, change: str) -> None:
    """An export whose digests are right and whose model is not."""
    (folder / "model.json").write_text(json.dumps({"shape": [3, 12, 12], "classes": ["a", "b"]}))
    values = onnx.helper.make_tensor_value_info
    kind, shape = onnx.TensorProto.FLOAT, [None, 2]
    of, to = values("images", onnx.TensorProto.UINT8, [None, 3, 12, 12]), values("probabilities", kind, shape)
    pooled: NDArray[np.float32] = np.full((432, 2 if change != "classes" else 5), np.nan if change == "numbers" else 1, np.float32)
    nodes = [
        onnx.helper.make_node("Cast", ["images"], ["cast"], to=kind),
        onnx.helper.make_node("Flatten", ["cast"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "w"], ["probabilities"]),
    ]
    to = to if change != "classes" else values("probabilities", kind, [None, 5])
    graph = onnx.helper.make_graph(nodes, "g", [of], [to], [onnx.numpy_helper.from_array(pooled, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    content = b"no model" if change == "junk" else model.SerializeToString()
    if change == "shape":
        (folder / "model.json").write_text(json.dumps({"shape": [1, 28, 28], "classes": ["a", "b"]}))
    if change == "json":
        (folder / "model.json").write_text("[]")
    (folder / "model.onnx").write_bytes(content)
    checksums.write(folder, ["model.onnx", "model.json"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("junk", "model.onnx: "),
        ("shape", "model.onnx: "),
        ("classes", "model.onnx does not give a probability for each of 2 classes"),
        ("numbers", "model.onnx does not give a probability for each of 2 classes"),
        ("json", "model.json does not say the shape"),
    ],
)
def test_an_export_that_is_whole_but_wrong_is_refused_in_one_line(place: Path, tmp_path: Path, change: str, said: str) -> None:
    of_export(tmp_path, change)
    ended: Ended = launch(tmp_path, ["predict", ".", str(place / "data/test/z/01.png")])
    assert (ended.code, len(ended.output.splitlines())) == (3, 1), ended.output
    assert ended.output.startswith(f"pipeline: the export in . is damaged: {said}")
