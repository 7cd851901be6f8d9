"""A stage runs once for each distinct recipe and input, and always says why."""

from pathlib import Path

import pytest
from conftest import TINY, Run

from pipeline.config import Config, load
from pipeline.plan import check, status
from pipeline.runtime import files


def configuration(folder: Path, *overrides: str) -> Config:
    return check(load(None, [*TINY, *overrides, f"run.folder={folder}/runs", f"run.artifacts={folder}/artifacts"]))


def why(folder: Path, *overrides: str) -> dict[str, str]:
    return {name: look.why if look else "waits" for name, look in status(configuration(folder, *overrides)).items()}


def test_a_second_run_finds_everything_fresh(run: Run) -> None:
    first, second = run(), run()
    assert [first.code, second.code] == [0, 0]
    for stage in ("prepare", "train", "evaluate", "export"):
        assert f"{stage}: first time" in first.output
        assert f"{stage}: fresh" in second.output
    assert first.summary == second.summary


def test_each_stage_says_what_changed(run: Run, tmp_path: Path) -> None:
    run()
    assert set(why(tmp_path).values()) == {"fresh"}
    assert why(tmp_path, "train.lr=0.04") == {
        "prepare": "fresh",
        "train": "changed: train.lr",
        "evaluate": "waits",
        "export": "waits",
    }
    assert why(tmp_path, "evaluate.min_accuracy=0.1")["evaluate"] == "changed: evaluate.min_accuracy"
    assert why(tmp_path, "data.seed=1", "data.validation=0.2")["prepare"] == "changed: data.seed, data.validation"
    assert set(why(tmp_path, "run.log_every=3", "run.workers=2", "run.strategy=dp").values()) == {"fresh"}


def test_equal_data_made_in_another_way_keeps_the_rest_fresh(run: Run, tmp_path: Path) -> None:
    run()
    again = run("data.channels=3")  # as they are already
    assert "prepare: changed: data.channels" in again.output
    assert "train: fresh" in again.output


@pytest.mark.parametrize(
    "damaged",
    [
        "prepare/train-00000.arrow",
        pytest.param("prepare/samples.png", marks=pytest.mark.soak),
        pytest.param("train/metrics.jsonl", marks=pytest.mark.soak),
        "train/weights.safetensors",
        "evaluate/metrics.json",
        pytest.param("export/model.onnx", marks=pytest.mark.soak),
    ],
)
def test_a_damaged_artifact_is_noticed_named_and_made_again(run: Run, tmp_path: Path, damaged: str) -> None:
    whole = run()
    path = tmp_path / "runs/tiny" / damaged
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    again = run()
    assert again.code == 0, again.output
    stage, name = damaged.split("/")
    assert f"{stage}: damaged: {name} has changed; to be made again" in again.output
    assert again.summary["fingerprints"] == whole.summary["fingerprints"]  # the same content came of it


def test_the_newest_whole_checkpoint_is_gone_on_from(run: Run, tmp_path: Path) -> None:
    run(until="train", stop_at=25)
    newest = sorted(tmp_path.glob("artifacts/train/*/checkpoints/step-*"))[-1]
    (newest / "optimizer.safetensors").write_bytes(b"")
    ended = run(until="train")
    assert f"{newest.name} is damaged (optimizer.safetensors has the wrong size)" in ended.output
    assert "going on from step-000000020" in ended.output


def flip(path: Path, old: str, new: str) -> None:
    """Change a value of a JSON file so that it can be read as before."""
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def test_a_stage_whose_manifest_has_changed_is_made_again(run: Run, tmp_path: Path) -> None:
    whole = run()
    flip(tmp_path / "runs/tiny/train/manifest.json", '"steps": ', '"steps": 1')
    assert why(tmp_path)["train"] == "damaged: manifest.json has changed; to be made again"
    again = run()
    assert again.code == 0, again.output
    assert again.summary["steps"] == whole.summary["steps"]


def test_a_checkpoint_whose_manifest_has_changed_is_not_gone_on_from(run: Run, tmp_path: Path) -> None:
    run(until="train", stop_at=25)
    newest = sorted(tmp_path.glob("artifacts/train/*/checkpoints/step-*"))[-1]
    flip(newest / "manifest.json", '"step": 25,\n  "tallies"', '"step": 27,\n  "tallies"')
    ended = run(until="train")
    assert f"{newest.name} is damaged (manifest.json has changed); falling back" in ended.output
    assert "going on from step-000000020" in ended.output


def test_a_stage_can_be_forced(run: Run) -> None:
    run()
    assert "evaluate: forced" in run("--force", "evaluate").output


def test_code_that_changed_since_is_told(run: Run, tmp_path: Path) -> None:
    run(until="prepare")
    manifest, _ = files.read_manifest(tmp_path / "runs/tiny/prepare")
    assert manifest is not None
    manifest["code"]["pipeline.data.images"] = "another"
    files.write_manifest(tmp_path / "runs/tiny/prepare", manifest)
    assert "fresh (code changed since: pipeline.data.images; --force prepare makes it again)" in run(until="prepare").output


def test_a_comment_that_changed_since_is_no_change(run: Run, tmp_path: Path) -> None:
    """The files are others, what they say is the same."""
    run(until="prepare")
    manifest, _ = files.read_manifest(tmp_path / "runs/tiny/prepare")
    assert manifest is not None
    files.write_manifest(tmp_path / "runs/tiny/prepare", {**manifest, "sources": "others"})
    assert "prepare: fresh\n" in run(until="prepare").output


def test_how_a_file_is_checked_is_no_change_of_content(run: Run, tmp_path: Path) -> None:
    run(until="train")
    manifest, _ = files.read_manifest(tmp_path / "runs/tiny/prepare")
    assert manifest is not None
    for listed in manifest["outputs"].values():
        del listed["xxh3_128"]  # as of an artifact that was made before there was one
    files.write_manifest(tmp_path / "runs/tiny/prepare", manifest)
    assert "train: fresh\n" in run(until="train").output


def test_two_runs_at_once_make_it_once(run: Run, tmp_path: Path) -> None:
    from processes import begin

    words = ["prepare", *TINY, "data.source.train=20000", "run.trackers=[]"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    both = [begin(tmp_path / name, [*words, f"run.artifacts={tmp_path}/artifacts"])[0] for name in ("a", "b")]
    for process in both:
        process.join(60)
    outputs = [(tmp_path / name / "output.txt").read_text() for name in ("a", "b")]
    assert [p.exitcode for p in both] == [0, 0]
    assert sorted("prepare: fresh" in output for output in outputs) == [False, True], outputs
