"""Prepared data: splits that do not touch, exact statistics, shards that others can read."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
from cluster import until
from conftest import TINY, Run
from processes import begin, below

from bench.faults.launched import alive
from pipeline.data.datasets import DATASETS
from pipeline.data.images import pixels
from pipeline.stages.prepare import stratified


def facts(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "runs/tiny/prepare/manifest.json").read_text())["result"])


def shard(folder: Path, name: str) -> "datasets.Dataset":
    return datasets.Dataset.from_file(str(folder / "runs/tiny/prepare" / f"{name}-00000.arrow"))


def test_shards_hold_the_images_and_are_readable_by_datasets(run: Run, tmp_path: Path) -> None:
    assert run("data.validation=0", until="prepare").code == 0
    raw = DATASETS["synthetic"](Path(), train=200, test=57).load()
    read = shard(tmp_path, "train")
    assert read.features["label"].names == raw.classes
    np.testing.assert_array_equal(np.array(read["image"], np.uint8).reshape(-1, 3, 12, 12), np.asarray(raw.train.images))
    np.testing.assert_array_equal(read["label"], raw.train.labels)


def test_statistics_are_those_of_the_training_split_alone(run: Run, tmp_path: Path) -> None:
    run(until="prepare")
    images = np.array(shard(tmp_path, "train")["image"], np.float64).reshape(-1, 3, 12, 12) / 255
    np.testing.assert_allclose(facts(tmp_path)["mean"], images.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(facts(tmp_path)["std"], images.std((0, 2, 3)), rtol=1e-10)
    assert sum(facts(tmp_path)["histogram"]["train"]) == len(images)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_validation_is_a_fixed_share_of_each_class(fraction: float) -> None:
    labels = np.random.default_rng(0).integers(0, 5, 1000)
    chosen = stratified(labels, fraction, seed=3)
    np.testing.assert_array_equal(chosen, stratified(labels, fraction, seed=3))
    for k in range(5):
        assert chosen[labels == k].sum() == round(fraction * (labels == k).sum())


def test_validation_is_drawn_class_by_class_whatever_the_order_of_images() -> None:
    labels = np.random.default_rng(1).permutation(np.repeat([0, 2, 7], [400, 30, 1]))
    chosen = stratified(labels, 0.3, seed=3)
    for k in (0, 2, 7):
        members = np.flatnonzero(labels == k)
        drawn = np.random.Generator(np.random.Philox(key=[3, k])).permutation(members)[: round(0.3 * len(members))]
        np.testing.assert_array_equal(np.flatnonzero(chosen & (labels == k)), np.sort(drawn))


def write_noise(folder: Path, counts: dict[str, int]) -> None:
    """So many PNG of each of two classes in each split."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for k in range(count):
                image = rng.integers(0, 256, (12, 12, 3), np.uint8)
                PIL.Image.fromarray(image).save(folder / split / label / f"{k}.png")


def on_one_core(_: int) -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def decoding_for_ever(_: int) -> None:
    from pipeline.stages import prepare

    preparing = os.getpid()
    vars(prepare)["pixels"] = lambda *image: pixels(*image) if os.getpid() == preparing else time.sleep(100)


def test_the_shards_are_the_same_however_many_processes_decode(run: Run, tmp_path: Path) -> None:
    write_noise(tmp_path / "data", {"train": 60, "test": 4})
    words = ["data.source=folder", f"data.root={tmp_path}/data"]
    found = [run(*words, until="prepare", in_folder=place, before=how) for place, how in (("one", on_one_core), ("all", None))]
    assert [ended.code for ended in found] == [0, 0], found[0].output
    one, several = ((tmp_path / place / "runs/tiny/prepare/train-00000.arrow").read_bytes() for place in ("one", "all"))
    assert one == several


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core: there are no others to decode")
def test_those_that_decode_end_with_the_process_that_prepares(tmp_path: Path) -> None:
    write_noise(tmp_path / "data", {"train": 60, "test": 4})
    (process,) = begin(tmp_path, ["prepare", *TINY, "data.source=folder", f"data.root={tmp_path}/data"], before=decoding_for_ever)
    try:
        until(lambda: len(below(process.pid or 0)) > 1, 60, lambda: "no other process decodes")
        started = below(process.pid or 0)
    finally:
        process.kill()
        process.join()
    until(lambda: not any(map(alive, started)), 5, lambda: f"of {started} some have outlived their process")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="one core: there are no others to decode")
def test_when_one_of_those_that_decode_is_killed_a_line_says_so_and_nobody_waits_for_it(tmp_path: Path) -> None:
    write_noise(tmp_path / "data", {"train": 60, "test": 4})
    (process,) = begin(tmp_path, ["prepare", *TINY, "data.source=folder", f"data.root={tmp_path}/data"], before=decoding_for_ever)
    until(lambda: len(below(process.pid or 0)) > 1, 60, lambda: "no other process decodes")
    os.kill(below(process.pid or 0)[-1], signal.SIGKILL)
    process.join(60)
    assert process.exitcode == 1
    said = (tmp_path / "output.txt").read_text()
    assert "pipeline: a process that decodes images was killed" in said
    assert "Traceback" not in said


def test_equal_pictures_are_counted_within_and_across_splits(run: Run, tmp_path: Path) -> None:
    write_noise(tmp_path / "data", {"train": 8, "test": 4})
    first = (tmp_path / "data/train/a/0.png").read_bytes()
    (tmp_path / "data/train/a/1.png").write_bytes(first)
    (tmp_path / "data/test/b/3.png").write_bytes(first)
    ended = run("data.source=folder", f"data.root={tmp_path}/data", "data.validation=0", until="prepare")
    assert ended.code == 0, ended.output
    assert facts(tmp_path)["duplicates"] == {
        "train": 1,
        "validation": 0,
        "test": 0,
        "validation in train": 0,
        "test in train": 1,
        "test in validation": 0,
    }
    assert "images with equal pixels: 1 train, 1 test in train" in ended.output


def test_a_picture_of_the_samples_is_made(run: Run, tmp_path: Path) -> None:
    run(until="prepare")
    with PIL.Image.open(tmp_path / "runs/tiny/prepare/samples.png") as picture:
        assert picture.size[0] > 10 * 32
        assert len(picture.convert("L").getcolors() or []) > 50


def test_images_of_different_sizes_are_refused_unless_a_size_is_given(run: Run, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for k, label in enumerate(("a", "b")):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            PIL.Image.new("L", (12 + k, 12)).save(tmp_path / "data" / split / label / "x.png")
    words = ["data.source=folder", f"data.root={tmp_path}/data", "data.validation=0"]
    refused = run(*words, until="prepare")
    assert refused.code == 3
    assert "images differ, 1x12x12 and 1x12x13" in refused.output
    assert "set data.size" in refused.output
    assert run(*words, "data.size=12", until="prepare").code == 0


def test_a_data_set_that_cannot_be_learnt_is_refused(run: Run, tmp_path: Path) -> None:
    ended = run("data.source=folder", f"data.root={tmp_path}/nowhere", until="prepare")
    assert ended.code == 3
    assert ended.output.count("\n") == 2  # the stage, and why
    assert "nowhere is not there; give the folder" in ended.output


def test_altered_official_files_are_a_warning_that_is_kept(run: Run, tmp_path: Path) -> None:
    from test_datasets import cifar_files

    (tmp_path / "data/cifar-10-batches-py").mkdir(parents=True)
    for name, content in cifar_files().items():
        (tmp_path / "data/cifar-10-batches-py" / name).write_bytes(content)
    small = ["train.epochs=1", "train.model={name: lenet, kernel: 3, channels: [2], hidden: []}"]
    ended = run("data.source=cifar10", "data.root=data", *small, until="run")
    assert ended.code == 0, ended.output
    assert "prepare: warning: not the official files" in ended.output
    assert "not the official files" in facts(tmp_path)["notes"][0]
    assert "not the official files" in (tmp_path / "runs/tiny/report/index.html").read_text()
    assert "not the official files" in ended.summary["notes"][0]
