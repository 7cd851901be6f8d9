"""The configuration: what is computed (fingerprinted) and how it is run (not).

A choice from a table is written as its name, or as a mapping with the name and its options:

    train:
      model: lenet5
      optimizer: {name: sgd, momentum: 0.9}
"""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from pipeline.errors import ConfigError
from pipeline.reading import YAML, Plain, parsed, read
from pipeline.wording import nearest, one_line, shown

M = TypeVar("M", bound=BaseModel)
PLAINLY = {  # what is said of a mistake in YAML, by what the library says of it; the rest keeps its words
    r".*for the tag 'tag:yaml.org,2002:(.*)'.*": r"the tag !!\1 means nothing here; leave it out",
    r".*for the tag '(.*)'.*": r"the tag \1 means nothing here; leave it out",
    r".*alphabetic or numeric character.*": "what begins with * or & is to have a name; put text that does into quotes",
    r".*undefined alias '(.*)'": r"*\1 stands for what no &\1 has named; put text that begins with * into quotes",
    r".*unhashable key": "a list or mapping cannot be a key",
    r".*mapping values are not allowed here": "a second ':' in a line; put text that has one into quotes",
    r"(.*'\\t'.*)": r"\1; indent with spaces",
    r"found character '(.)' that cannot start any token": r"no value begins with \1; put text that does into quotes",
    r"expected <block end>.*": "it is indented in another way than the lines above",
    r".*unacceptable character (#x\w+).*": r"it holds the character \1, which text has not",
}


class _Loader(Plain):
    """YAML 1.2's booleans: true and false. To YAML 1.1 `train.precision=no` is false, and `run.name=on` true.

    And as Python writes them, True, False and None: so does the agent of a sweep of W&B. Nor is 1:30 the number 90, or 0777 511, or
    2026-01-01 more than text. A key that is there twice is refused: YAML 1.1 would take the last.
    """


_BOOL, _INT, _FLOAT, _TIME = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "timestamp"))
_Loader.yaml_implicit_resolvers = {
    k: [r for r in v if r[0] not in (_BOOL, _INT, _FLOAT, _TIME)] for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_BOOL, re.compile("^(?:true|false|True|False)$"), list("tfTF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^None$"), ["N"])
_Loader.add_implicit_resolver(_INT, re.compile("^[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _duration(value: Any) -> Any:
    """`1h30m` as ISO 8601 has it, which pydantic reads."""
    if not isinstance(value, str) or value.startswith("P"):
        return value
    parts = re.fullmatch(r"(?:(\d+)d)?((?:\d+h)?(?:\d+m)?(?:\d+s)?)", value.strip())
    if parts is None:
        raise ValueError("a duration is written as 90s, 45m, 1h30m or 2d")
    return f"P{parts[1] or 0}DT{parts[2] or '0s'}".upper()


Duration = Annotated[timedelta, BeforeValidator(_duration), Field(gt=timedelta(0))]


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("shards are halved over and over, so take a power of two, as 4 or 8")
    return value


class Spec(BaseModel):
    """A choice from a table: `name`, and keyword options for what it names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_name_or_mapping(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, Mapping | Spec) or (isinstance(value, Mapping) and not isinstance(value.get("name"), str)):
            raise ValueError("expected a name, or {name: ..., option: ...}")
        if isinstance(value, Mapping) and "options" not in value:
            return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
        return value

    @model_serializer
    def _to_name_or_mapping(self) -> Any:
        return {"name": self.name, **self.options} if self.options else self.name


class Checked(BaseModel):
    """Whatever is written by hand. To pydantic true is the number 1; here it is none."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _numbers_are_no_booleans(cls, value: Any, about: ValidationInfo) -> Any:
        kinds = _kinds(cls.model_fields[str(about.field_name)].annotation)
        if kinds & {int, float, timedelta} and bool not in kinds:
            within = value if isinstance(value, list | tuple) else (value,)
            if any(isinstance(each, bool) for each in within):
                raise ValueError(f"expected a {'duration, as 45m' if timedelta in kinds else 'number'}, not true or false")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """The types that an annotation allows, also in a list, and those of the values of a Literal."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return {type(value) for value in inner}
    if get_origin(annotation) is Annotated:
        return _kinds(inner[0])
    return set().union(*(_kinds(each) for each in inner)) if inner else {annotation}


def _a_path(value: Path) -> Path:
    if "\0" in str(value):
        raise ValueError("expected a path, in which no character is NUL")
    return value


def _a_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError("a name is of letters, digits and . _ -, of which the first is a letter or digit, and at most 100 long")
    return value


Place = Annotated[Path, AfterValidator(_a_path)]


class Section(Checked):
    """One part of the configuration. `reasons` is what a fingerprint sees of it."""

    model_config = ConfigDict(frozen=True)
    section: ClassVar[str]
    unseen: ClassVar[frozenset[str]] = frozenset()  # keys that say where, not what
    lists: ClassVar[frozenset[str]] = frozenset()  # keys of which one value stands for a list of one

    @model_validator(mode="before")
    @classmethod
    def _one_stands_for_a_list_of_one(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {k: (v,) if k in cls.lists and isinstance(v, str | int | float) else v for k, v in value.items()}

    def reasons(self) -> dict[str, Any]:
        values = self.model_dump(mode="json", exclude=set(self.unseen))
        return {f"{self.section}.{k}": v for k, v in values.items()}


class DataConfig(Section):
    section = "data"
    unseen = frozenset({"root"})  # the files are known by their content, not by their place

    source: Spec = Spec(name="digits")
    root: Place = Path("data")  # where the raw files are, or are downloaded to
    size: int | None = Field(None, ge=1, le=8192)  # pixels a side; None: as the source has them
    channels: Literal[1, 3] | None = None  # None: as the source has them
    validation: float = Field(0.1, ge=0, lt=1)  # share of the training images, stratified
    seed: int = Field(0, ge=0, lt=2**32)


class TrainConfig(Section):
    section = "train"
    lists = frozenset({"augment", "mix", "freeze", "mean", "std"})

    model: Spec = Spec(name="lenet5")
    init: Spec = Spec(name="default")  # how the weights begin: drawn, or those of an export, a run, an artifact, a file
    freeze: tuple[str, ...] = ()  # patterns of the names of parameters that stay as they begin
    batch_norm: Literal["sync", "local"] | Annotated[int, Field(ge=2)] = "sync"  # over the batch, a process's part, or groups of images
    loss: Spec = Spec(name="cross_entropy")
    optimizer: Spec = Spec(name="sgd", options={"momentum": 0.9, "weight_decay": 0.003})
    lr: float = Field(0.02, gt=0)  # the rate that the schedule scales
    schedule: Spec = Spec(name="one_cycle")
    lr_by: Literal["step", "epoch"] = "step"  # how often the schedule is looked at
    warmup: float = Field(0, ge=0)  # epochs of a linear rise, in front of the schedule
    clip: float | None = Field(None, gt=0)  # the norm of the whole gradient, at most
    nonfinite: Literal["stop", "skip", "restore"] = (
        "stop"  # where a loss or gradient is no number: leave the step out, now or from the last checkpoint
    )
    epochs: float = Field(45, gt=0)  # passes over the training split
    steps: int | None = Field(None, ge=1)  # updates; if given, instead of epochs
    batch_size: Annotated[int, Field(ge=1)] | Literal["all"] = 32  # images an update, over all processes
    accumulate: int | None = Field(None, ge=1)  # parts into which a process cuts its share of a batch; None: 1, or as many as "all" needs
    augment: tuple[Spec, ...] = (Spec(name="crop", options={"padding": 2}),)
    mix: tuple[Spec, ...] = ()  # of two images and their labels; of several, each image draws one
    average: Spec | None = None  # of the weights of many steps: these are validated and kept
    mean: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)] | None = (
        None  # a channel, of pixels in [0, 1]; None: the training split's
    )
    std: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] | None = None
    precision: Literal["no", "tf32", "bf16", "fp16", "fp64"] = "no"  # fp64 is for proving things
    determinism: Literal["resume", "elastic"] = "resume"  # the same bits on as many processes; elastic: on 1, 2, 4, ... up to `shards`
    # Of `elastic`: into how many a batch is cut, whoever computes them. Eight, as a machine has GPUs; more would only make them smaller.
    shards: Annotated[int, Field(ge=1), AfterValidator(_power_of_two)] = 8
    validate_every: float = Field(1.0, gt=0)  # epochs
    metric: Literal["accuracy", "loss", "top5", "balanced_accuracy", "macro_f1"] = "accuracy"  # on the validation split: what is best
    select: Literal["best", "last"] = "best"  # the weights to keep
    patience: int | None = Field(None, ge=1)  # validations without a better one, after which training ends
    seed: int = Field(0, ge=0, lt=2**32)


class EvaluateConfig(Section):
    section = "evaluate"
    lists = frozenset({"views"})

    min_accuracy: float = Field(0.0, ge=0, le=1)  # on the test split; below it the stage fails
    views: tuple[Spec, ...] = ()  # test-time augmentation: measured besides


class ExportConfig(Section):
    section = "export"
    lists = frozenset({"formats"})

    formats: tuple[Spec, ...] = (Spec(name="safetensors"), Spec(name="onnx"))  # these two are always made
    tolerance: float = Field(1e-5, gt=0)  # of a format's logits against those of the trained model, as a share of the largest logit
    int8_loss: float = Field(0.01, ge=0, le=1)  # of accuracy on the test split, that 8 bits may cost


class RunConfig(Section):
    """How and where, not what: nothing here may change a result, so nothing here is fingerprinted."""

    section = "run"
    lists = frozenset({"trackers"})

    name: Annotated[str, AfterValidator(_a_name)] = "digits"  # the folder under `folder`
    folder: Place = Path("runs")
    artifacts: Place = Path("artifacts")
    device: Literal["auto", "cpu"] = "auto"
    strategy: Literal["auto", "ddp", "dp", "fsdp"] = "auto"
    compile: Literal["no", "inductor", "aot_eager"] = "no"  # by torch.compile, with this backend
    channels_last: bool | None = None  # None: where it pays, with bf16 and fp16, and on a CPU but for small steps
    cuda_graph: Literal["auto", "no"] = "auto"  # record a step on a GPU and launch it as one, where that is possible
    time_limit: Duration | None = None  # of this start, as in 45m or 1h30m; then it stops with a checkpoint
    hang_timeout: Duration | None = timedelta(minutes=10)  # without progress in a loop; longer than any step, compilation and all
    processes: int | None = Field(None, ge=1)  # if given, fewer or more are an error
    threads: int | None = Field(None, ge=1, le=1024)  # a process, on the CPU; None: the cores shared out
    scratch: str | None = None  # a folder of each machine's own, as $TMPDIR, to which the data are copied for training
    workers: int = Field(0, ge=0, le=1024)  # processes that read ahead, for data larger than the device
    eval_batch_size: int = Field(1000, ge=1)
    log_every: int = Field(50, ge=1)  # steps
    checkpoint_every: int = Field(500, ge=1)  # steps
    keep: int = Field(2, ge=1)  # checkpoints
    trackers: tuple[Spec, ...] = (Spec(name="wandb"),)


class Config(BaseModel):
    """One experiment. The default trains a LeNet on the digits that ship with scikit-learn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    run: RunConfig = RunConfig()


def load(path: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, or start from the defaults, and apply `section.key=value` overrides.

    The run is named after the file unless `run.name` says otherwise.

    Raises:
        ConfigError: in one line, with the nearest valid name.
    """
    tree = _read(path) if path else {}
    if path and "name" not in (tree.get("run") or {}):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")[:100]
        tree["run"] = {**(tree.get("run") or {}), **({"name": name} if name else {})}
    for override in sorted(overrides, key=lambda word: word.partition("=")[0].count(".")):  # a choice before its options
        _apply(tree, override)
    try:
        return validated(Config, tree)
    except ConfigError as error:
        if empty := next((word for word in overrides if word.endswith("=") and str(error).startswith(f"{word[:-1]}:")), ""):
            raise ConfigError(f"{empty[:-1]}: nothing stands behind '='; give a value, or leave it out") from None
        raise


def typed(words: Sequence[str], root: Path | None = None) -> Config:
    """What was typed: perhaps a file first, then overrides, as of `load`; `root`, if given, is data.root."""
    path = Path(words[0]) if words and "=" not in words[0] else None
    config = load(path, words[1 if path else 0 :])
    return config if root is None else config.model_copy(update={"data": config.data.model_copy(update={"root": root})})


def validated(schema: type[M], tree: Any, prefix: str = "") -> M:
    """`tree` as `schema` has it.

    Raises:
        ConfigError: in one line that begins with `prefix`, with the nearest valid name.
    """
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(one_line(error, schema, prefix)) from None


def dump(config: Config, only: set[str] | None = None) -> str:
    """`config` as YAML that `load` reads; of it, the sections `only`."""
    return yaml.safe_dump(config.model_dump(mode="json", include=only), sort_keys=False)


def bind(table: Mapping[str, Callable[..., Any]], spec: Spec, *, what: str) -> Spec:
    """`spec` with its name found in `table`, and its options checked and completed.

    The keyword-only parameters of what the table holds are the options: their annotations the
    types, their defaults the defaults; without one an option must be given.

    Raises:
        ConfigError: an unknown name or option, or a value of the wrong type.
    """
    if spec.name not in table:
        raise ConfigError(f"{what}: no {spec.name!r}{nearest(spec.name, table)}")
    options = validated(options_of(table[spec.name]), spec.options, f"{what}.")
    return Spec(name=spec.name, options=options.model_dump(mode="json"))


@functools.cache
def options_of(choice: Callable[..., Any]) -> type[Checked]:
    """The options of what a table holds, as a schema."""
    parameters = inspect.signature(choice).parameters.values()
    fields: dict[str, Any] = {
        p.name: (p.annotation, ... if p.default is p.empty else p.default) for p in parameters if p.kind is p.KEYWORD_ONLY
    }
    return create_model("Options", __base__=Checked, **fields)


def read_yaml(path: Path, what: str = "configuration", loader: type[Plain] = _Loader) -> Any:
    """What the YAML file `path` holds, which is to be a `what`.

    Raises:
        ConfigError: it cannot be read, or is no YAML.
    """
    try:
        return parsed(read(path, YAML).decode("utf-8-sig"), loader)
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read the {what} {path}: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror}{_instead(path)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {_place_and_problem(error)}") from None


def _instead(path: Path) -> str:
    """What could have been meant by a file that is not there."""
    if run := next((place / "config.yaml" for place in (path, Path("runs") / path) if (place / "config.yaml").is_file()), None):
        return f"; that of the run is {run}"
    if path.exists():
        return ""
    if path.is_symlink():
        return f"; it is a link to {path.readlink()}"
    there = {p.stem: p for p in path.parent.glob("*.y*ml") if p.is_file()}
    if near := difflib.get_close_matches(path.stem, there, n=1):
        return f"; did you mean {str(there[near[0]])!r}?"
    return "" if path.suffix in (".yaml", ".yml") else "; a setting is written as section.key=value, without spaces"


def _place_and_problem(error: yaml.YAMLError) -> str:
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if not problem or not mark:
        return _plainly(" ".join(str(error).split()))
    if problem.startswith("but "):
        problem = f"{error.context}, {problem}"  # type: ignore[attr-defined]
    return f"line {mark.line + 1}, column {mark.column + 1}: {_plainly(problem)}"


def _plainly(problem: str) -> str:
    return next((re.sub(known, told, problem) for known, told in PLAINLY.items() if re.search(known, problem)), problem)


def _read(path: Path) -> dict[str, Any]:
    tree = read_yaml(path)
    expected = f"expected sections ({', '.join(Config.model_fields)}) of key: value"
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path}: {expected} (got {shown(tree)})")
    for section, values in (tree or {}).items():
        if not isinstance(values, dict | None):
            raise ConfigError(f"{path}: {expected} (got {section}: {shown(values)})")
    return {k: v for k, v in (tree or {}).items() if v is not None}


def _apply(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    *sections, key = dotted.split(".")
    if not equals and override.endswith((".yaml", ".yml")):
        raise ConfigError(f"{override!r}: the configuration file goes first, and there is one")
    if not equals or not sections or not all((*sections, key)):
        of = [f"{name}.{dotted}" for name, kind in Config.model_fields.items() if dotted in _keys(kind.annotation)]
        of += [f"{dotted}.KEY=VALUE"] if dotted in Config.model_fields else []
        meant = f"; did you mean {' or '.join(of)}?" if of else ""
        raise ConfigError(f"{override!r} is neither a configuration file nor section.key=value{meant}")
    node = tree
    for section in sections:
        below = node.get(section)
        if below is None and section == sections[-1] and len(sections) > 1:
            below = _default(sections)
        if not isinstance(below, dict | str | None):
            raise ConfigError(f"{override!r}: {section} is {shown(below)}, which has no keys; give it a value as a whole")
        node[section] = {"name": below} if isinstance(below, str) else dict(below or {})
        node = node[section]
    try:
        node[key] = parsed(text, _Loader)
    except yaml.YAMLError:
        node[key] = text


def _keys(section: Any) -> Sequence[str]:
    return list(section.model_fields)


def _default(path: Sequence[str]) -> Any:
    """What `train.model` is before `train.model.kernel=3` adds an option to it."""
    node: Any = Config().model_dump(mode="json")
    for name in path:
        node = node.get(name) if isinstance(node, dict) else None
    return node
