"""What a sweep file stands for: W&B's own format, and the same trials every time."""

import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.search import DISTRIBUTIONS, Search, Trial, command_of, draw, read, trials
from pipeline.search import _space as space

SWEEP: dict[str, Any] = {
    "program": "launch/train.py",
    "command": ["${interpreter}", "${program}", "${args_no_hyphens}"],
    "method": "grid",
    "metric": {"name": "validation/accuracy", "goal": "maximize"},
    "parameters": {"train.lr": {"values": [0.1, 0.2]}, "train.epochs": {"value": 1}, "data.seed": {"min": 0, "max": 2}},
}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"method": "bayes"}, "method: bayes is W&B's service's: use `wandb sweep` and `wandb agent`, or here method: random"),
    ({"method": "gird"}, "method: no choice 'gird'; did you mean 'grid'?"),
    ({"metod": "grid"}, "metod: no such key; did you mean 'method'?"),
    ({"metric": {"name": "test/accuracy", "goal": "maximize"}}, "metric.name: test/accuracy would choose by the test split"),
    ({"metric": {"name": "validation/acuracy", "goal": "maximize"}}, "metric.name: no 'validation/acuracy'; did you mean"),
    ({"metric": {"name": "validation/accuracy"}}, "metric.goal: minimize takes the worst validation/accuracy; write goal: maximize"),
    ({"command": ["python", "${args}"]}, "command: ${args} is not understood here"),
    ({"command": ["python", "x.py"]}, "command: it has no ${args_no_hyphens}"),
    ({"program": None}, "program: the command has ${program}"),
]
WRONG_PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"distribution": "beta"}, "no 'beta'; choose from constant, categorical,"),
    ({"distribution": "log_unifrom_values", "min": 1.0, "max": 2.0}, "no 'log_unifrom_values'; did you mean 'log_uniform_values'?"),
    ({"distribution": "log_uniform_values", "min": 0.0, "max": 2.0}, "min: expected a number above 0"),
    ({"distribution": "normal", "sgima": 1}, "no such key; did you mean 'sigma'?"),
    ({"distribution": "uniform", "min": 1.0}, "max: it must be given"),
    ({"min": 1, "max": 2.0}, "give value, values, or min and max as two whole numbers or two with a point"),
    ({"min": "1e-3", "max": 1.0}, "give value, values, or min and max"),
    ({"min": 2, "max": 1}, "min is above max"),
    ({"values": []}, "values: expected 1 or more"),
    ({"values": [1, 2], "probabilities": [1]}, "as many probabilities as values"),
    ({"parameters": {"lr": {"value": 1}}}, "nested parameters are not understood here; write train.lr.<key>"),
]


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**SWEEP, **changes}))
    return path


def searched(**changes: Any) -> Search:
    return Search.model_validate({**SWEEP, **changes})


def told(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        trials(read(path), None, 0)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_in_a_sweep_is_told_in_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = written(tmp_path, **changes)
    assert told(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize(("given", "message"), WRONG_PARAMETERS, ids=[message for _, message in WRONG_PARAMETERS])
def test_a_mistake_in_a_parameter_is_told_in_one_line(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    found = told(written(tmp_path, parameters={"train.lr": given}))
    assert found.startswith("parameters.train.lr")
    assert message in found


def test_what_has_no_end_is_refused(tmp_path: Path) -> None:
    assert "--count N, or run_cap" in told(written(tmp_path, method="random"))
    assert "a grid has no end in uniform" in told(written(tmp_path, parameters={"train.lr": {"min": 0.1, "max": 0.2}}))


def test_a_grid_is_walked_as_wandb_does_names_in_order_the_last_one_fastest() -> None:
    found = trials(searched(), None, 0)
    assert [(t.number, *t.parameters.values()) for t in found] == [
        (1, 0, 1, 0.1),
        (2, 0, 1, 0.2),
        (3, 1, 1, 0.1),
        (4, 1, 1, 0.2),
        (5, 2, 1, 0.1),
        (6, 2, 1, 0.2),
    ]
    assert list(found[0].parameters) == ["data.seed", "train.epochs", "train.lr"]
    assert trials(searched(), 4, 0) == found[:4] == trials(searched(run_cap=4), None, 0)


def test_a_grid_takes_steps_without_the_end_as_wandb_does() -> None:
    steps = {"distribution": "q_uniform", "min": 0, "max": 0.3, "q": 0.1}
    whole = {"distribution": "q_uniform", "min": 2, "max": 6, "q": 2}
    found = trials(searched(parameters={"a": steps, "b": whole}), None, 0)
    assert [tuple(t.parameters.values()) for t in found] == [(0, 2), (0, 4), (0.1, 2), (0.1, 4), (0.2, 2), (0.2, 4)]
    assert {type(t.parameters["b"]) for t in found} == {int}


def test_random_trials_depend_on_the_file_and_the_seed_alone() -> None:
    parameters = {"train.lr": {"distribution": "log_uniform_values", "min": 1e-3, "max": 1.0}, "train.seed": {"min": 0, "max": 9}}
    search = searched(method="random", parameters=parameters)
    ten = trials(search, 10, 0)
    assert trials(search, 20, 0)[:10] == ten
    assert trials(search, 10, 1) != ten
    more = searched(method="random", parameters={"data.seed": {"min": 0, "max": 9}, **parameters})
    assert [{**t.parameters, "data.seed": 0} for t in trials(more, 10, 0)] == [{**t.parameters, "data.seed": 0} for t in ten]
    assert len({t.parameters["train.lr"] for t in ten}) == 10


DRAWN: dict[str, tuple[dict[str, Any], float, float]] = {  # options, median and share below 1 of what is drawn
    "int_uniform": ({"min": 0, "max": 2}, 1, 1 / 3),
    "uniform": ({"min": 0.0, "max": 4.0}, 2, 1 / 4),
    "q_uniform": ({"min": 0.0, "max": 4.0, "q": 0.5}, 2, 0.75 / 4),
    "log_uniform": ({"min": -1.0, "max": 1.0}, 1, 1 / 2),
    "log_uniform_values": ({"min": 0.1, "max": 1000.0}, 10, 1 / 4),
    "q_log_uniform": ({"min": 0.0, "max": 2.0, "q": 1}, 3, 0),
    "q_log_uniform_values": ({"min": 1, "max": 100, "q": 2}, 10, 0),
    "normal": ({"mu": 1.0, "sigma": 2.0}, 1, 1 / 2),
    "q_normal": ({"mu": 3.0, "sigma": 1.0, "q": 1}, 3, 0.0062),
    "log_normal": ({"mu": 0.0, "sigma": 1.0}, 1, 1 / 2),
    "q_log_normal": ({"mu": 2.0, "sigma": 0.1, "q": 1}, 7, 0),
}


@pytest.mark.parametrize("name", DRAWN)
def test_what_is_drawn_is_distributed_as_it_says(name: str) -> None:
    options, median, below = DRAWN[name]
    drawn = [draw(space("a", {"distribution": name, **options}), str(k)) for k in range(1500)]
    assert statistics.median(drawn) == pytest.approx(median, rel=0.1)
    assert sum(value < 1 for value in drawn) / 1500 == pytest.approx(below, abs=0.04)
    if "uniform" in name:
        ends = [math.exp(options[end]) if name in ("log_uniform", "q_log_uniform") else options[end] for end in ("min", "max")]
        assert min(drawn) >= ends[0] - options.get("q", 0) / 2
        assert max(drawn) <= ends[1] * (1 + 1e-5) + options.get("q", 0) / 2


def test_values_are_drawn_as_often_as_they_are_to_be() -> None:
    alike = Counter(draw(space("a", {"values": ["x", None, True]}), str(k)) for k in range(3000))
    assert all(count == pytest.approx(1000, abs=120) for count in alike.values())
    weighed = Counter(draw(space("a", {"values": ["x", "y", "z"], "probabilities": [0.5, 0, 1.5]}), str(k)) for k in range(3000))
    assert weighed == {"x": pytest.approx(750, abs=120), "z": pytest.approx(2250, abs=120)}
    assert draw(space("a", {"value": 0.123456789}), "") == 0.123456789
    assert DISTRIBUTIONS.keys() - DRAWN.keys() == {"constant", "categorical", "categorical_w_probabilities"}


def test_a_command_is_that_which_the_agent_of_wandb_would_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    monkeypatch.setenv("PROCESSES", "4")
    command = ["${env}", "torchrun", "--nproc-per-node", "${envvar:PROCESSES}", "--id=${envvar:NONE}", "${program}", "${args_no_hyphens}"]
    values = {"train.clip": None, "train.optimizer": {"name": "sgd", "nesterov": True}, "train.lr": 1e-05, "train.augment": ["flip"]}
    ours = command_of(searched(command=[*command, 2]), Trial(1, values).words)
    args = create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    given = {"${env}": ["/usr/bin/env"], "${program}": [SWEEP["program"]], "${args_no_hyphens}": args["args_no_hyphens"]}
    theirs = [word for part in create_sweep_command([*command]) for word in given.get(part, [part])]
    assert ours == [*theirs, "2"]
