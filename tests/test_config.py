"""Configuration: names are found before anything runs, and a mistake costs one line."""

from pathlib import Path

import pytest

from pipeline.config import Config, Spec, dump, load
from pipeline.errors import ConfigError
from pipeline.plan import check

MISTAKES = {
    "run.trackers=[wandb, {name: wandb, project: other}]": "run.trackers: wandb is named twice",
    "train.epohcs=3": "train.epohcs: no such key; did you mean 'epochs'?",
    "trian.lr=1": "trian: no such key; did you mean 'train'?",
    "train.precision=bf61": "train.precision: no choice 'bf61'; did you mean 'bf16'?",
    "run.strategy=dpd": "run.strategy: no choice 'dpd'; did you mean 'dp'?",
    "train.lr=big": "train.lr: input should be a valid number",
    "train.lr=-1": "train.lr: input should be greater than 0",
    "train.lr=.inf": "train.lr: input should be a finite number",
    "train.batch_size=1.5": "train.batch_size: input should be a valid integer",
    "data.validation=1": "data.validation: input should be less than 1",
    "run.name=../up": "run.name: string should match pattern",
    "train.model=lenet55": "train.model: no 'lenet55'; did you mean 'lenet5'?",
    "train.model.kernal=3": "train.model.kernal: no such key; did you mean 'kernel'?",
    "train.model.kernel=big": "train.model.kernel: input should be a valid integer",
    "train.model.pool=maxx": "train.model.pool: no choice 'maxx'; did you mean 'max'?",
    "train.optimizer=adma": "train.optimizer: no 'adma'; did you mean 'adam'?",
    "train.schedule=onecycle": "train.schedule: no 'onecycle'; did you mean 'one_cycle'?",
    "train.augment=[flop]": "train.augment.0: no 'flop'; did you mean 'flip'?",
    "train.loss=entropy": "train.loss: no 'entropy'; did you mean 'cross_entropy'?",
    "data.source=minst": "data.source: no 'minst'; did you mean 'mnist'?",
    "run.trackers=[wanbd]": "run.trackers.0: no 'wanbd'; did you mean 'wandb'?",
    "run.trackers.mode=offline": "'run.trackers.mode=offline': trackers is [\"wandb\"], which has no keys; give it a value as a whole",
    "train.lr.x=3": "'train.lr.x=3': lr is 0.02, which has no keys; give it a value as a whole",
    "train.model={name: lenet, options: {kernel: 3}, dropout: 0.5}": "train.model.dropout: no such key",
    "train.schedule={name: step, every: 0}": "train.schedule.every: input should be greater than 0",
    "train.augment={name: crop}": "train.augment: input should be a valid tuple",
    "train.augment=[{name: crop, padding: -1}]": "train.augment.0.padding: input should be greater than or equal to 0",
    "train.model.kernel=0": "train.model.kernel: input should be greater than or equal to 1",
    "train.batch_size=all images": "train.batch_size: input should be a valid integer, unable to parse string as an integer, or 'all'",
    "train.batch_norm=synk": "train.batch_norm: input should be 'sync' or 'local', or a valid integer",
    "run.time_limit=2x": "run.time_limit: a duration is written as 90s, 45m, 1h30m or 2d (got '2x')",
    "run.time_limit=0s": "run.time_limit: input should be greater than",
    "train.init=kaimin": "train.init: no 'kaimin'; did you mean 'kaiming'?",
    "train.mix=mixupp": "train.mix.0: no 'mixupp'; did you mean 'mixup'?",
    "train.average={name: ema, decay: 2}": "train.average.decay: input should be less than",
    "train.optimizer={name: sgd, nesterov: true}": "train.optimizer.nesterov: needs a momentum above 0",
    "train.metric=acuracy": "train.metric: no choice 'acuracy'; did you mean 'accuracy'?",
    "evaluate.views=[miror]": "evaluate.views.0: no 'miror'; did you mean 'mirror'?",
    "run.compile=yes": "run.compile: no choice 'yes'; choose from no, inductor, aot_eager",
    "mine.yaml": "'mine.yaml': the configuration file goes first, and there is one",
    "lr=3": "'lr=3' is neither a configuration file nor section.key=value",
    "train.=3": "'train.=3' is neither a configuration file nor section.key=value",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_told_in_one_line_with_the_nearest_name(override: str) -> None:
    with pytest.raises(ConfigError) as told:
        check(load(None, [override]))
    assert str(told.value).startswith(MISTAKES[override])
    assert "\n" not in str(told.value)


def test_overrides_are_applied_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {lr: 1e-3, batch_size: 64}\n")
    config = load(tmp_path / "mine.yaml", ["train.batch_size=8"])
    assert (config.train.lr, config.train.batch_size, config.train.seed) == (0.001, 8, 0)


def test_a_run_is_named_after_its_file_unless_it_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("run: {log_every: 7}\n")
    assert load(tmp_path / "mine.yaml").run.name == "mine"
    assert load(tmp_path / "mine.yaml", ["run.name=other"]).run.name == "other"


def test_a_choice_and_its_options_come_in_any_order() -> None:
    assert load(None, ["train.model.width=32", "train.model=resnet18"]).train.model == Spec(name="resnet18", options={"width": 32})


def test_an_option_is_added_to_the_default_choice() -> None:
    assert load(None, ["train.model.kernel=3"]).train.model == Spec(name="lenet5", options={"kernel": 3})
    assert load(None, ["train.optimizer=adam"]).train.optimizer == Spec(name="adam")


def test_checked_choices_have_all_their_options() -> None:
    assert check(Config()).train.optimizer.options == {
        "momentum": 0.9,
        "nesterov": False,
        "weight_decay": 0.003,
        "decay": "all",
        "bias_lr": 1.0,
    }


def test_no_is_a_name_and_on_is_one_too() -> None:
    config = load(None, ["train.precision=no", "run.name=on", "train.optimizer={name: sgd, nesterov: true, momentum: 0.9}"])
    assert (config.train.precision, config.run.name, check(config).train.optimizer.options["nesterov"]) == ("no", "on", True)


def test_words_as_python_writes_them_are_understood() -> None:
    config = check(load(None, ["train.clip=None", "train.optimizer={'name': 'sgd', 'momentum': 0.9, 'nesterov': True}"]))
    assert (config.train.clip, config.train.optimizer.options["nesterov"]) == (None, True)


def test_a_resolved_configuration_can_be_loaded_again(tmp_path: Path) -> None:
    config = check(Config())
    (tmp_path / "resolved.yaml").write_text(dump(config))
    assert check(load(tmp_path / "resolved.yaml")) == config


def test_how_a_run_is_run_is_not_among_the_reasons() -> None:
    assert {reason.split(".")[0] for section in (Config().data, Config().train) for reason in section.reasons()} == {"data", "train"}
    assert "data.root" not in Config().data.reasons()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: [1, 2]", "expected sections"),
        ("a: {b: c", "is not YAML"),
        ("train: !!python/object/apply:os.system [true]", "is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        load(tmp_path / "x.yaml")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "mnist.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"minst\.yaml: No such file or directory; did you mean '.*mnist\.yaml'\?"):
        load(tmp_path / "minst.yaml")


def test_every_shipped_configuration_is_valid() -> None:
    for path in Path(__file__).parent.parent.glob("configs/*.yaml"):
        if path.stem != "sweep":  # which is a search among them
            check(load(path))
