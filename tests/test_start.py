"""How training begins: drawn, or from the weights of something that was trained before; and what stays as it is."""

from pathlib import Path

import pytest
import torch
from conftest import Run
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.config import Spec
from pipeline.errors import ConfigError, DataError
from pipeline.learning.models import build
from pipeline.learning.start import Beginning, beginning, find, freeze, train_mode, weights
from pipeline.runtime import files

LENET = Spec(name="lenet", options={"kernel": 3, "channels": [4, 8], "hidden": [16]})


def lenet(classes: int = 4, channels: int = 3, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build(LENET, (channels, 12, 12), classes)


def saved(model: nn.Module, path: Path) -> str:
    save_file(model.state_dict(), path)
    return str(path)


def test_all_weights_are_those_of_the_file(tmp_path: Path) -> None:
    before, model = lenet(seed=1), lenet()
    weights(model, path=saved(before, tmp_path / "a.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True))


@pytest.mark.parametrize(("classes", "head"), [(7, "auto"), (4, "new")], ids=["other classes", "asked for"])
def test_the_head_is_new(tmp_path: Path, classes: int, head: str) -> None:
    before, model, drawn = lenet(seed=1), lenet(classes), lenet(classes)
    weights(model, path=saved(before, tmp_path / "a.safetensors"), head=head)  # type: ignore[arg-type]
    kept = {n: torch.equal(v, before.state_dict()[n]) for n, v in model.state_dict().items() if v.shape == before.state_dict()[n].shape}
    assert [n for n, same in kept.items() if not same] == ([] if classes == 7 else ["9.weight", "9.bias"])
    assert torch.equal(model.state_dict()["9.weight"], drawn.state_dict()["9.weight"])


def test_a_grey_model_takes_the_sum_over_colours(tmp_path: Path) -> None:
    before, model = lenet(), lenet(channels=1)
    weights(model, path=saved(before, tmp_path / "a.safetensors"))
    assert torch.equal(model.state_dict()["0.weight"], before.state_dict()["0.weight"].sum(1, keepdim=True))


def test_a_file_of_torch_with_the_prefix_of_a_wrapper_will_do(tmp_path: Path) -> None:
    before, model = lenet(seed=1), lenet()
    torch.save({"state_dict": {f"module.{n}": v for n, v in before.state_dict().items()}}, tmp_path / "a.pth")
    weights(model, path=str(tmp_path / "a.pth"))
    assert torch.equal(model.state_dict()["0.weight"], before.state_dict()["0.weight"])


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("ran"),))  # type: ignore[return-value]


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"0.weight": Code()}, tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="no file of tensors alone"):
        weights(lenet(), path=str(tmp_path / "a.pth"))
    assert not Path("ran").exists()


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = saved(build(Spec(name="mlp"), (3, 12, 12), 4), tmp_path / "a.safetensors")
    with pytest.raises(ConfigError, match=r"train\.init: .* has no 0\.weight; choose the train\.model that it was made with"):
        weights(lenet(), path=path)


@pytest.mark.parametrize("harmed", ["model.safetensors", "manifest.json"])
def test_weights_that_are_not_as_their_manifest_says_are_refused(tmp_path: Path, harmed: str) -> None:
    saved(lenet(), tmp_path / "model.safetensors")
    files.write_manifest(tmp_path, {"outputs": files.seal(tmp_path, ["model.safetensors"])})
    assert find(str(tmp_path)) == tmp_path / "model.safetensors"
    content = (tmp_path / harmed).read_bytes()
    (tmp_path / harmed).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    for place in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(DataError, match=rf"train\.init: .* is damaged: {harmed} has changed"):
            find(str(place))


def test_of_a_run_the_weights_are_those_last_trained(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "export").mkdir()
    for place in ("train/weights", "export/model"):
        (tmp_path / f"{place}.safetensors").touch()
    assert find(str(tmp_path)) == tmp_path / "train/weights.safetensors", "the export may be of an earlier training"


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"root:x:0:0:root:/root:/bin/bash"])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"train\.init: .*a\.(safetensors|pth)"):
        weights(lenet(), path=str(tmp_path / name))


def test_a_name_that_is_no_choice_is_a_place() -> None:
    assert beginning(Spec(name="kaiming")) == Spec(name="kaiming")
    assert beginning(Spec(name="kaimin")) == Spec(name="kaimin"), "a misspelt choice, to be told"
    assert beginning(Spec(name="runs/a")).options == {"path": "runs/a"}


def test_what_training_depends_on_is_the_content_not_the_place(tmp_path: Path) -> None:
    def reasons(path: str) -> object:
        return Beginning(Spec(name="weights", options={"path": path, "head": "auto"})).reasons()

    one, same, other = (saved(lenet(seed=s), tmp_path / f"{n}.safetensors") for s, n in ((0, "a"), (0, "b"), (1, "c")))
    assert reasons(one) == reasons(same) != reasons(other)


def test_frozen_parameters_and_statistics_stay_while_training(run: Run, tmp_path: Path) -> None:
    model = "train.model={name: resnet18, width: 2}"
    assert run(model, "train.epochs=1", "run.name=first").code == 0
    begun = ["train.init=runs/first", "train.freeze=[conv1.*, bn1.*, layer1.*]", "run.name=second", "train.epochs=1", "train.seed=1"]
    for name in ("first", "first/export", "first/train", "first/export/model.safetensors"):
        begun[0] = f"train.init=runs/{name}"
        ended = run(model, *begun, until="train")
        assert ended.code == 0, ended.output
    assert f"train: {'fresh'}" in ended.output, "the same weights, wherever they are found"
    before, after = (load_file(tmp_path / f"runs/{name}/train/weights.safetensors") for name in ("first", "second"))
    stayed = {name for name in before if torch.equal(before[name], after[name])}
    assert {n for n in before if n.startswith(("conv1", "bn1", "layer1"))} <= stayed
    assert not any(n.startswith(("layer2", "fc")) and n.endswith("weight") for n in stayed)


def test_without_weights_it_says_where_it_looked(run: Run) -> None:
    ended = run("train.init=runs/none")
    assert ended.code == 2
    assert "train.init: no weights in runs/none; give a run, an export, or a .safetensors or .pth file" in ended.output


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.freeze: no parameter is named 'layer1\.\*'; among them are 0\.weight"):
        freeze(lenet(), ("layer1.*",))
    with pytest.raises(ConfigError, match=r"train\.freeze: no parameter is left to learn"):
        freeze(lenet(), ("*",))


def test_only_frozen_norms_stay_in_evaluation_mode() -> None:
    model = build(Spec(name="resnet18", options={"width": 2}), (3, 12, 12), 4)
    freeze(model, ("bn1.*",))
    train_mode(model)
    modes = {name: module.training for name, module in model.named_modules()}
    assert [name for name, training in modes.items() if not training] == ["bn1"]


def test_weights_of_torchvision_begin_a_model_for_other_classes_and_grey_images(tmp_path: Path) -> None:
    from torchvision import models

    torch.manual_seed(1)
    published = models.resnet18()  # as its file has it: 1,000 classes, colours
    torch.save(published.state_dict(), tmp_path / "resnet18.pth")
    model = build(Spec(name="torchvision", options={"arch": "resnet18", "stem": "imagenet"}), (1, 64, 64), 10)
    weights(model, path=str(tmp_path / "resnet18.pth"))
    theirs, ours = published.state_dict(), model.state_dict()
    assert torch.equal(ours["conv1.weight"], theirs["conv1.weight"].sum(1, keepdim=True))
    assert [name for name in ours if ours[name].shape != theirs[name].shape] == ["conv1.weight", "fc.weight", "fc.bias"]
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("layer"))
