"""Files are whole or absent, and damage is noticed before use."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from xxhash import xxh3_128

from pipeline import reading
from pipeline.runtime import files
from pipeline.runtime.journal import Journal, read


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "x", "old")
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "x", object())
    assert (tmp_path / "x").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


@pytest.mark.parametrize("digests", ["both", "sha256 alone, as of older ones"])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_damage_is_noticed_and_named(tmp_path: Path, harm: str, digests: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"0123456789" * 100)
    outputs = files.seal(tmp_path, ["a", "b"])
    for listed in outputs.values():
        assert listed.keys() == {"size", "sha256", "xxh3_128"}
        if digests != "both":
            del listed["xxh3_128"]
    assert files.damage(tmp_path, outputs) == ""
    content = bytearray((tmp_path / "b").read_bytes())
    if harm == "flip":
        content[500] ^= 1
        (tmp_path / "b").write_bytes(content)
    elif harm == "cut":
        (tmp_path / "b").write_bytes(content[:-1])
    else:
        (tmp_path / "b").unlink()
    assert files.damage(tmp_path, outputs).startswith("b")


def test_a_flip_of_any_bit_is_noticed(tmp_path: Path) -> None:
    content = bytearray(np.random.default_rng(0).bytes(1000))  # in XXH3's long form, with an end that fills no block
    (tmp_path / "a").write_bytes(content)
    outputs = files.seal(tmp_path, ["a"])
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        assert xxh3_128(content).hexdigest() != outputs["a"]["xxh3_128"]
        content[bit // 8] ^= 1 << bit % 8
    assert xxh3_128(content).hexdigest() == outputs["a"]["xxh3_128"]


def test_a_committed_folder_lists_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "x").write_text("x")
    files.commit_folder(tmp_path / "partial", tmp_path / "final", {"step": 3})
    manifest = files.read_json(tmp_path / "final" / files.MANIFEST)
    assert (manifest["step"], list(manifest["outputs"])) == (3, ["x"])
    assert not (tmp_path / "partial").exists()


def test_a_name_is_given_to_what_is_on_the_disk_and_the_name_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []  # in order: what is synced, by its name at the time, and what is renamed

    def fsync(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().relative_to(tmp_path.resolve())}")

    def noted(rename: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        def renamed(old: Path, new: Path) -> Path:
            done.append(f"rename {new.name}")
            return rename(old, new)

        return renamed

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", noted(Path.rename))
    monkeypatch.setattr(Path, "replace", noted(Path.replace))
    (tmp_path / "partial" / "deep").mkdir(parents=True)
    (tmp_path / "partial" / "deep" / "x").write_text("x")
    files.commit_folder(tmp_path / "partial", tmp_path / "final", {})
    content, named = done[:-2], done[-2:]
    assert sorted(content) == ["sync partial", "sync partial/deep", "sync partial/deep/x", "sync partial/manifest.json"]
    assert named == ["rename final", "sync ."]


def test_a_manifest_with_any_bit_flipped_is_not_believed(tmp_path: Path) -> None:
    values = {"outputs": {}, "step": 20, "seconds": 0.25, "history": [{"loss": float("inf")}], "journal": {"size": 3}, "scaler": {}}
    files.write_manifest(tmp_path, values)
    content = (tmp_path / files.MANIFEST).read_bytes()
    assert files.read_manifest(tmp_path) == (values, "")
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / files.MANIFEST).write_bytes(flipped)
        assert files.read_manifest(tmp_path) == (None, "manifest.json has changed")
    for other in (content[:-1], content + b" "):
        (tmp_path / files.MANIFEST).write_bytes(other)
        assert files.read_manifest(tmp_path) == (None, "manifest.json has changed")


def test_a_folder_without_a_manifest_is_not_damaged(tmp_path: Path) -> None:
    assert files.read_manifest(tmp_path) == (None, "")


def test_a_journal_opened_at_a_step_forgets_what_came_after(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", step=0)
    for step in (5, 10, 15):
        journal.append(step, {"loss": step / 3})
    journal.close()
    again = Journal(tmp_path / "j", step=10)
    again.append(12, {"loss": 0.0})
    again.close()
    assert [line["step"] for line in read(tmp_path / "j")] == [5, 10, 12]


def test_a_line_that_was_cut_short_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b'{"step": 5, "loss": 1.0}\n{"step": 10, "lo')
    assert [line["step"] for line in read(tmp_path / "j")] == [5]
    Journal(tmp_path / "j", step=10).close()
    assert (tmp_path / "j").read_bytes() == b'{"step": 5, "loss": 1.0}\n'


def test_a_manifest_of_another_program_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / files.MANIFEST).write_text('{"name": "an app"}')
    assert files.read_manifest(tmp_path) == (None, "")


def test_what_would_keep_its_reader_waiting_or_has_no_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(reading.LARGEST + 1)
    (tmp_path / "deep").write_text("[" * 100_000)
    for place in ("pipe", "large", "deep"):
        assert files.read_json(tmp_path / place) is None
    assert files.read_json(Path("/dev/zero")) is None
    assert "no regular file" in files.damage(tmp_path, {"pipe": {"size": 0, "sha256": ""}})


@pytest.mark.parametrize("name", ["../secret", "/dev/zero"])
def test_a_manifest_lists_files_of_its_folder_alone(tmp_path: Path, name: str) -> None:
    files.write_manifest(tmp_path, {"outputs": {name: {"size": 0, "sha256": ""}}})
    assert files.read_manifest(tmp_path) == (None, "manifest.json lists what is no file of the folder")
