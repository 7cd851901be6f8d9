"""A search as a sweep file of W&B has it, and the trials that it stands for.

The keys, the distributions and their options are those of "Sweep configuration options" in W&B's documentation. The trials are a
function of the file and a seed: each draw is keyed by the seed, the number of the trial and the name of the parameter, so that more
trials, or another parameter, leave the others as they were.
"""

import inspect
import itertools
import math
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict

from pipeline.config import Spec, bind, read_yaml, validated
from pipeline.errors import ConfigError
from pipeline.reading import Plain
from pipeline.wording import nearest

METRICS = {f"validation/{name}": "maximize" for name in ("accuracy", "top5", "balanced_accuracy", "macro_f1")}
METRICS["validation/loss"] = "minimize"
MACRO, VARIABLE = re.compile(r"\$\{(\w+)\}"), re.compile(r"\$\{envvar:(\w+)\}")
MOST = 10_000  # points of a grid
MACROS = ("env", "interpreter", "program", "args_no_hyphens")

Real = Annotated[float, Strict()]  # to W&B 1e-3 is text
Whole = Annotated[int, Strict()]
Positive = Annotated[Real, Field(gt=0)]
Sigma = Annotated[Real, Field(ge=0)]
Values = Annotated[list[Any], Field(min_length=1)]
Step = Annotated[Whole, Field(gt=0)] | Positive


class Metric(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    goal: Literal["minimize", "maximize"] = "minimize"  # as to W&B


class Search(BaseModel):
    """What a sweep file says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    program: str | None = None
    command: tuple[Annotated[str, BeforeValidator(str)], ...]
    method: Literal["grid", "random", "bayes"]
    metric: Metric
    parameters: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    name: str | None = None
    run_cap: int | None = Field(None, ge=1)  # trials, at most
    early_terminate: dict[str, Any] | None = None  # the service's alone
    project: str | None = None  # these are for people, and the service
    entity: str | None = None
    description: str | None = None


@dataclass(frozen=True)
class Trial:
    number: int  # from 1
    parameters: Mapping[str, Any]

    @property
    def words(self) -> list[str]:
        """`name=value`, as W&B's agent writes `${args_no_hyphens}`."""
        return [f"{name}={value}" for name, value in self.parameters.items()]


def read(path: Path) -> Search:
    """The sweep file, read as W&B's client reads it.

    Raises:
        ConfigError: it is none, or wants what is not to be had here; in one line, with what to write instead.
    """
    tree = read_yaml(path, "sweep", Plain)
    if not isinstance(tree, dict) or "parameters" not in tree:
        raise ConfigError(f"{path} is no sweep: it has no parameters; see configs/sweep.yaml")
    search = validated(Search, tree, f"{path}: ")
    if wrong := _wrong(search):
        raise ConfigError(f"{path}: {wrong}")
    return search


def trials(search: Search, count: int | None, seed: int) -> list[Trial]:
    """At most `count` of them, or as many as the file says: of a grid all, in the order in which W&B's own search takes them.

    Raises:
        ConfigError: a distribution that there is not, wrong options of one, or no end.
    """
    spaces = {name: _space(name, search.parameters[name]) for name in sorted(search.parameters)}
    if search.method == "grid":
        values = [_grid(name, spec) for name, spec in spaces.items()]
        if not count and math.prod(map(len, values)) > MOST:
            raise ConfigError(f"the grid has {math.prod(map(len, values)):,} points; say how many of them: --count N")
        drawn: Iterator[Mapping[str, Any]] = (dict(zip(spaces, chosen, strict=True)) for chosen in itertools.product(*values))
    elif (count or search.run_cap) is None:
        raise ConfigError("method: random has no end; say how many trials: --count N, or run_cap in the file")
    else:
        drawn = ({name: draw(spec, f"{seed}/{k}/{name}") for name, spec in spaces.items()} for k in itertools.count(1))
    return [Trial(k, parameters) for k, parameters in enumerate(itertools.islice(drawn, count or search.run_cap), 1)]


def draw(spec: Spec, key: str) -> Any:
    """One value of a distribution. Of a real one, six digits: so a bound of no more is kept, and the command can be read."""
    value = DISTRIBUTIONS[spec.name](random.Random(key).random(), **spec.options)  # noqa: S311 (a search, no secret)
    given = spec.options.keys() & {"value", "values"}
    return float(f"{value:.6g}") if isinstance(value, float) and not given else value


def command_of(search: Search, words: Sequence[str]) -> list[str]:
    """What to start for the trial of those `words`; the macros as W&B's agent has them, but this interpreter."""
    given = {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": [search.program or ""], "args_no_hyphens": words}
    parts = [given[macro[1]] if (macro := MACRO.fullmatch(word)) else [_filled(word)] for word in search.command]
    return [word for part in parts for word in part]


def _filled(word: str) -> str:
    return VARIABLE.sub(lambda name: os.environ.get(name[1], name[1]), word)


def _wrong(search: Search) -> str:
    metric, macros = search.metric, [macro[1] for word in search.command if (macro := MACRO.fullmatch(word))]
    if search.method == "bayes":
        return "method: bayes is W&B's service's: use `wandb sweep` and `wandb agent`, or here method: random"
    if metric.name.startswith("test"):
        return f"metric.name: {metric.name} would choose by the test split, which is to measure what was chosen; take validation/accuracy"
    if metric.name not in METRICS:
        return f"metric.name: no {metric.name!r}{nearest(metric.name, METRICS)}"
    if metric.goal != METRICS[metric.name]:
        return f"metric.goal: {metric.goal} takes the worst {metric.name}; write goal: {METRICS[metric.name]}"
    if strange := next((macro for macro in macros if macro not in MACROS), None):
        return f"command: ${{{strange}}} is not understood here; what a trial is given is ${{args_no_hyphens}}, as train.lr=0.1"
    if "args_no_hyphens" not in macros:
        return "command: it has no ${args_no_hyphens}, the place of a trial's parameters"
    if "program" in macros and not search.program:
        return "program: the command has ${program}, so give one, as launch/train.py"
    return ""


def _space(name: str, given: Mapping[str, Any]) -> Spec:
    """A parameter's distribution, named or, as by W&B, inferred from what is given; with its options, checked."""
    what, options = f"parameters.{name}", {key: value for key, value in given.items() if key != "distribution"}
    if "parameters" in given:
        raise ConfigError(f"{what}: nested parameters are not understood here; write {name}.<key> as a name of its own")
    ends = [type(options.get(end)) for end in ("min", "max")]
    if "distribution" in given:
        kind = str(given["distribution"])
    elif "values" in given:
        kind = "categorical_w_probabilities" if "probabilities" in given else "categorical"
    elif "value" in given:
        kind = "constant"
    elif ends in ([int, int], [float, float]):
        kind = "int_uniform" if ends[0] is int else "uniform"
    else:
        raise ConfigError(f"{what}: give value, values, or min and max as two whole numbers or two with a point (got {dict(given)})")
    spec = bind(DISTRIBUTIONS, Spec(name=kind, options=options), what=what)
    if spec.options.get("min", 0) > spec.options.get("max", math.inf):
        raise ConfigError(f"{what}: min is above max")
    if "probabilities" in spec.options and len(spec.options["probabilities"]) != len(spec.options["values"]):
        raise ConfigError(f"{what}: as many probabilities as values, please")
    return spec


def _grid(name: str, spec: Spec) -> list[Any]:
    """All values of a parameter, each once."""
    options, parts = spec.options, len(spec.options.get("values", ()))
    if {"min", "max"} <= options.keys():
        parts = math.ceil((options["max"] - options["min"]) / options.get("q", 1))
    if parts > MOST:
        raise ConfigError(f"parameters.{name}: a grid of {parts:,} values; give {MOST:,} or fewer")
    match spec.name:
        case "constant":
            return [options["value"]]
        case "categorical":
            return [value for k, value in enumerate(options["values"]) if value not in options["values"][:k]]
        case "int_uniform":
            return list(range(options["min"], options["max"] + 1))
        case "q_uniform":  # without max, as W&B's
            first, q = options["min"], options["q"]
            values = [_plain(first + k * q) for k in range(math.ceil((options["max"] - first) / q - 1e-9))]
            return [int(value) for value in values] if isinstance(q, int) and first == int(first) else values
    raise ConfigError(f"parameters.{name}: a grid has no end in {spec.name}; give values, or method: random")


def _plain(value: float) -> float:
    """Without the 4 of 0.30000000000000004."""
    return float(f"{value:.12g}")


def constant(_: float, *, value: Any) -> Any:
    return value


def categorical(at: float, *, values: Values) -> Any:
    return values[int(at * len(values))]


def categorical_w_probabilities(at: float, *, values: Values, probabilities: list[Sigma]) -> Any:
    sums = list(itertools.accumulate(probabilities))
    return next((value for value, sum_ in zip(values, sums, strict=True) if at * sums[-1] < sum_), values[-1])


def int_uniform(at: float, *, min: Whole, max: Whole) -> int:
    return min + int(at * (max - min + 1))


def uniform(at: float, *, min: Real, max: Real) -> float:
    return min + at * (max - min)


def log_uniform(at: float, *, min: Real, max: Real) -> float:
    """`min` and `max` are exponents of e; those who mean the values themselves take log_uniform_values."""
    return math.exp(uniform(at, min=min, max=max))


def log_uniform_values(at: float, *, min: Positive, max: Positive) -> float:
    return log_uniform(at, min=math.log(min), max=math.log(max))


def normal(at: float, *, mu: Real = 0.0, sigma: Sigma = 1.0) -> float:
    return mu + sigma * NormalDist().inv_cdf(at or 2**-54)


def log_normal(at: float, *, mu: Real = 0.0, sigma: Sigma = 1.0) -> float:
    return math.exp(normal(at, mu=mu, sigma=sigma))


def _in_steps(distribution: Callable[..., float]) -> Callable[..., float]:
    """`distribution`, rounded to multiples of the further option `q`."""

    def rounded(at: float, *, q: Step = 1, **options: Any) -> float:
        count = round(distribution(at, **options) / q)
        return count * q if isinstance(q, int) else _plain(count * q)

    own = inspect.signature(distribution)
    step = inspect.signature(rounded).parameters["q"]
    rounded.__signature__ = own.replace(parameters=[*own.parameters.values(), step])  # type: ignore[attr-defined]
    return rounded


DISTRIBUTIONS: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "categorical": categorical,
    "categorical_w_probabilities": categorical_w_probabilities,
    "int_uniform": int_uniform,
    "uniform": uniform,
    "log_uniform": log_uniform,
    "log_uniform_values": log_uniform_values,
    "normal": normal,
    "log_normal": log_normal,
    "q_uniform": _in_steps(uniform),
    "q_log_uniform": _in_steps(log_uniform),
    "q_log_uniform_values": _in_steps(log_uniform_values),
    "q_normal": _in_steps(normal),
    "q_log_normal": _in_steps(log_normal),
}
