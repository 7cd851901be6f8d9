"""The release environment is pinned by hash, in step with pyproject.toml; needs no network."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
RELEASE = (ROOT / "requirements/release.txt").read_text()
PINNED = [Requirement(line) for line in re.findall(r"^([^\s#-].*?)(?: \\)?$", RELEASE, re.MULTILINE)]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [{"python_version": v, "python_full_version": f"{v}.1"} for v in ("3.11", "3.12", "3.13")]


def pins(name: str, python: dict[str, str]) -> list[str]:
    """The versions of a package that are installed on Linux under that Python."""
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", **python}
    chosen = [r for r in PINNED if canonicalize_name(r.name) == canonicalize_name(name) and (not r.marker or r.marker.evaluate(linux))]
    return [str(r.specifier).removeprefix("==") for r in chosen]


@pytest.mark.parametrize("python", PYTHONS, ids=lambda python: python["python_version"])
def test_every_dependency_is_pinned_to_one_version_within_its_bounds(python: dict[str, str]) -> None:
    for wanted in map(Requirement, PROJECT["dependencies"]):
        found = pins(wanted.name, python)
        assert len(found) == 1, f"{wanted.name}: {found or 'not in requirements/release.txt; CONTRIBUTING.md says how to make it again'}"
        assert wanted.specifier.contains(found[0], prereleases=True), f"{wanted}: {found[0]}"


def test_every_pin_is_exact_and_has_hashes() -> None:
    blocks = re.split(r"^(?=\S)", RELEASE, flags=re.MULTILINE)[1:]
    assert len(blocks) == len(PINNED)
    for block in blocks:
        assert re.match(r"[\w.-]+==\S+", block), block
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", block), block.splitlines()[0]


def test_the_pins_are_those_of_the_constraints() -> None:
    constraints = set((ROOT / "constraints.txt").read_text().splitlines())
    assert {str(r).replace(";", " ;").replace('"', "'") for r in PINNED} <= constraints


def test_nothing_in_either_file_names_a_host_or_a_folder() -> None:
    for line in [*RELEASE.splitlines(), *(ROOT / "constraints.txt").read_text().splitlines()]:
        assert "/" not in line, line
        assert not re.match(r"\s*--(?!hash)", line), line
        assert "@" not in line, line
