"""What is recorded of the code that ran: the commit of its checkout, if it is part of one, and what differs from it."""

import subprocess
from pathlib import Path

import pytest
from conftest import Run

from pipeline.runtime import origin
from pipeline.runtime.origin import checkout


def git(folder: Path, *words: str) -> str:
    as_somebody = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(["git", *as_somebody, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a fresh repository, with one commit."""
    place = tmp_path / "repository" / "package"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("one\n")
    git(place, "init", "-q")
    git(place, "add", ".")
    git(place, "commit", "-q", "-m", "first")
    return place


def test_a_clean_checkout_is_its_commit(package: Path) -> None:
    assert checkout(package) == (git(package, "rev-parse", "HEAD"), "")


def test_what_differs_is_told_and_what_is_new_is_named(package: Path) -> None:
    (package / "__init__.py").write_text("two\n")
    (package / "new.py").write_text("not shown")
    (package.parent / "outside.txt").write_text("of no interest")
    commit, diff = checkout(package)
    assert commit == git(package, "rev-parse", "HEAD")
    assert "-one\n+two\n" in diff
    assert diff.endswith("untracked: new.py\n")


def test_a_long_difference_is_cut(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "LONGEST", 50)
    (package / "__init__.py").write_text("two\n" * 100)
    assert "\n... cut here, at 50 of " in checkout(package)[1]


def test_a_package_that_is_installed_in_a_repository_is_not_part_of_it(package: Path) -> None:
    installed = package.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("one\n")
    assert checkout(installed) == ("", "")


def test_a_hooks_variables_do_not_mislead(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert checkout(package)[0]


def test_without_git_nothing_is_known(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert checkout(package) == ("", "")


def test_a_manifest_says_what_ran_where(run: Run, tmp_path: Path) -> None:
    assert run(until="prepare").code == 0
    from pipeline.runtime.manifests import read

    manifest, _ = read(tmp_path / "runs/tiny/prepare")
    assert manifest is not None
    assert {"command", "cpu", "cores", "host", "python", "torch", "pillow"} <= manifest.environment.keys()
    if "commit" in manifest.environment:
        assert (tmp_path / "runs/tiny/prepare/code.diff").is_file() == manifest.environment["dirty"]
