"""Training reads a copy of the data on a disk of the machine's own: checked, shared, and of no consequence."""

from pathlib import Path

import pytest
from cluster import until
from conftest import TINY, Run
from processes import begin

SHARDS = ["train-00000.arrow", "validation-00000.arrow"]


def copies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("local/*/*")}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_processes_share_a_copy_that_changes_no_bit(run: Run, tmp_path: Path, processes: int) -> None:
    assert run(until="train", processes=processes, in_folder="plain").code == 0
    ended = run("run.scratch=local", until="train", processes=processes, in_folder="copied")
    assert ended.code == 0, ended.output
    plain, copied = (tmp_path / name / "runs/tiny" for name in ("plain", "copied"))
    said = [ended.output, *(log.read_text() for log in copied.glob("logs/*"))]  # whichever of them was first
    assert sum(text.count("train: copying 0.1 MB to local/") for text in said) == 1
    assert copies(tmp_path / "copied") == {name: (plain / "prepare" / name).read_bytes() for name in SHARDS}
    for name in ("metrics.jsonl", "train/weights.safetensors"):
        assert (plain / name).read_bytes() == (copied / name).read_bytes()


def test_it_is_read_in_place_of_the_original(tmp_path: Path) -> None:
    (process,) = begin(tmp_path, ["train", *TINY, "run.scratch=local", "train.epochs=2000"])
    until(lambda: any(tmp_path.glob("artifacts/train/*/checkpoints/step-*")), 60, lambda: "no checkpoint was written")
    maps = Path(f"/proc/{process.pid}/maps").read_text()
    process.terminate()
    process.join(60)
    assert f"{tmp_path}/local/" in maps
    assert f"{tmp_path}/artifacts/prepare" not in maps


def test_a_copy_that_was_harmed_is_made_again_and_a_whole_one_is_not(run: Run, tmp_path: Path) -> None:
    assert run("run.scratch=local", until="train").code == 0
    whole = copies(tmp_path)
    assert "copying" not in run("run.scratch=local", "train.seed=1", until="train").output
    (harmed,) = tmp_path.glob("local/*/train-00000.arrow")
    harmed.write_bytes(harmed.read_bytes()[:-1] + b"x")
    ended = run("run.scratch=local", "train.seed=2", until="train")
    assert "train: copying" in ended.output
    assert copies(tmp_path) == whole


def test_a_folder_by_a_variable_is_that_of_the_machine_and_has_to_be_set(run: Run, tmp_path: Path) -> None:
    assert run("run.scratch=$PLACE/x", until="train", environment={"PLACE": str(tmp_path / "local")}).code == 0
    assert len([*tmp_path.glob("local/x/*/*.arrow")]) == 2
    ended = run("run.scratch=$NO_PLACE/x", "train.seed=1", until="train")
    assert (ended.code, "run.scratch: $NO_PLACE/x is not set on" in ended.output) == (2, True), ended.output
