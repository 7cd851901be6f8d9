"""Configuration: names are found before anything runs, and a mistake costs one line."""

from pathlib import Path

import pytest

from pipeline.config import Config, Spec, dump, load
from pipeline.errors import ConfigError
from pipeline.plan import check


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


@pytest.mark.parametrize(
    ("file", "name"), [("_base.yaml", "base"), ("äpfel.yaml", "pfel"), (f"{'long' * 30}.yaml", "long" * 25), ("é.yaml", "digits")]
)
def test_a_run_is_named_after_its_file_whatever_that_is_called(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text("train: {steps: 2}\n")
    assert load(tmp_path / file).run.name == name
