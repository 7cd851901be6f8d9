"""YAML that anybody may have written is small in memory, and means one thing."""

from pathlib import Path

import pytest
import yaml

from pipeline.config import load
from pipeline.errors import ConfigError
from pipeline.reading import Fast, Plain, parsed

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    LAUGHS: "stands for more than 100,000 values",
    LAUGHS.replace("[", "{<<: [").replace("]", "]}").replace("x, " * 8 + "x", "{y: 1}"): "stands for more than 100,000 values",
    "a: &a [*a]": "holds itself",
    "[" * 60 + "]" * 60: "nested too deeply",
    "[" * 100_000: ".",
    "a: {b: 1, b: 2}": "b is there twice",
    "a: 2024-13-45": "month must be in 1..12",
    "a: 0x" + "f" * 5000: "a number of 5,002 digits",
    "a: !!python/object/apply:os.system [touch x]": "could not determine a constructor",
    "a: !!timestamp x": ".",
    "a: !!bool x": ".",
}


@pytest.mark.parametrize("loader", [Plain, Fast])
@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_is_larger_than_it_looks_or_means_two_things_is_refused(text: str, why: str, loader: type[Plain]) -> None:
    with pytest.raises(yaml.YAMLError, match=why):
        parsed(text, loader)


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_a_configuration_of_it_is_refused_in_a_line_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml( is not YAML)?: ") as told:
        load(tmp_path / "x.yaml")
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("loader", [Plain, Fast])
def test_aliases_and_merges_are_understood(loader: type[Plain]) -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a"
    assert parsed(text, loader) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}
