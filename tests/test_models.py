"""The presets have the layers that the field knows them by."""

import pytest
import torch

from pipeline.config import Spec
from pipeline.errors import ConfigError
from pipeline.learning.models import MODELS, build

LINEARS = {
    ("lenet5", (1, 28, 28)): [256, 120, 84, 10],
    ("lenet5", (1, 32, 32)): [400, 120, 84, 10],
    ("cifar_tutorial", (3, 32, 32)): [400, 120, 84, 10],
    ("cifar_wide", (3, 32, 32)): [800, 120, 84, 10],
    ("lenet3x3", (1, 32, 32)): [12544, 512, 64, 10],
}


@pytest.mark.parametrize(("name", "shape"), LINEARS)
def test_a_lenet_has_its_layers(name: str, shape: tuple[int, int, int]) -> None:
    linears = [m for m in build(Spec(name=name), shape, 10).modules() if isinstance(m, torch.nn.Linear)]
    assert [linears[0].in_features, *(layer.out_features for layer in linears)] == LINEARS[name, shape]


def test_resnet18_has_the_parameters_of_the_cifar_one() -> None:
    assert sum(p.numel() for p in build(Spec(name="resnet18"), (3, 32, 32), 10).parameters()) == 11_173_962


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_every_model_gives_a_logit_a_class(name: str, shape: tuple[int, int, int]) -> None:
    assert build(Spec(name=name), shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("options", [{"pool": "avg"}, {"pool": "none"}, {"dropout": 0.5}, {"channels": [3]}, {"hidden": []}])
def test_a_lenet_can_be_cut_to_size(options: dict[str, object]) -> None:
    assert build(Spec(name="lenet", options=options), (1, 28, 28), 10)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.model: lenet5 does not take images of 1x8x8"):
        build(Spec(name="lenet5"), (1, 8, 8), 10)
