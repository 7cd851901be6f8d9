"""The presets have the layers that the field knows them by; a library's models take our images."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from pipeline.config import Spec, bind
from pipeline.errors import ConfigError
from pipeline.learning.layers import describe
from pipeline.learning.models import MODELS, build, head
from pipeline.learning.networks import FastCifar

COLOUR, GREY = (3, 32, 32), (1, 28, 28)
OURS = [name for name in MODELS if name not in ("torchvision", "timm", "wrn_28_10")]
LINEARS = {
    ("lenet5", (1, 28, 28)): [256, 120, 84, 10],
    ("lenet5", (1, 32, 32)): [400, 120, 84, 10],
    ("cifar_tutorial", (3, 32, 32)): [400, 120, 84, 10],
    ("cifar_wide", (3, 32, 32)): [800, 120, 84, 10],
    ("lenet3x3", (1, 32, 32)): [12544, 512, 64, 10],
    ("mlp", (3, 32, 32)): [3072, 256, 10],
}
PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet9": 6_573_120,
    "wrn_16_4": 2_748_890,
    "wrn_28_10": 36_479_194,
    "fast_cifar": 1_972_792,
}

ARCHS = torchvision.models.list_models(module=torchvision.models)
# Left out of the trial, as they cost a quarter of a second and more each: deeper or wider versions of nets that are in it.
SLOW = {
    *(f"densenet{depth}" for depth in (161, 169, 201)),
    *(f"efficientnet_b{k}" for k in range(1, 8)),
    *(f"regnet_{kind}_{size}gf" for kind in "xy" for size in ("1_6", "3_2", 8, 16, 32)),
    *("convnext_small", "convnext_base", "convnext_large", "efficientnet_v2_m", "efficientnet_v2_l", "mnasnet0_75", "mnasnet1_3"),
    *("resnet101", "resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2", "shufflenet_v2_x1_5", "shufflenet_v2_x2_0"),
    *("swin_s", "swin_b", "swin_v2_s", "swin_v2_b", "vit_l_16", "vit_l_32", "mobilenet_v3_large"),
}
REFUSED = {
    COLOUR: {"inception_v3", "maxvit_t", "vit_h_14"},
    GREY: {"inception_v3", "maxvit_t", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32"}
    | {f"vgg{depth}{norm}" for depth in (13, 16, 19) for norm in ("", "_bn")},
}
# At 28x28 and grey are tried, besides those that are refused, the quickest of each family.
QUICK = {
    *("alexnet", "convnext_tiny", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf"),
    *("resnet18", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1", "swin_t", "vgg11", "vit_h_14"),
}


def on_meta(name: str, shape: tuple[int, int, int], classes: int = 7, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return build(Spec(name=name, options=options), shape, classes)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("name", "shape"), LINEARS)
def test_a_net_has_its_linear_layers(name: str, shape: tuple[int, int, int]) -> None:
    linears = [m for m in on_meta(name, shape, 10).modules() if isinstance(m, nn.Linear)]
    assert [linears[0].in_features, *(layer.out_features for layer in linears)] == LINEARS[name, shape]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_parameters_of_its_paper(name: str) -> None:
    assert parameters(on_meta(name, COLOUR, 10)) == PARAMETERS[name]


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("shape", [GREY, COLOUR, (3, 17, 48)])
def test_every_model_gives_a_logit_a_class(name: str, shape: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        assert MODELS[name](shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", [*OURS, "torchvision"])
def test_every_model_is_made_with_its_options_written_out(name: str) -> None:
    bound = bind(MODELS, Spec(name=name), what="train.model")
    with torch.device("meta"):
        assert str(on_meta(name, GREY, **bound.options)) == str(MODELS[name](GREY, 7))


def test_names_and_options_are_known_without_torch() -> None:
    found = "import sys, pipeline.learning.models, pipeline.learning.inits; print({'torch', 'torchvision', 'timm'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("options", [{"pool": "avg"}, {"pool": "none"}, {"dropout": 0.5}, {"channels": [3]}, {"hidden": []}])
def test_a_lenet_can_be_cut_to_size(options: dict[str, Any]) -> None:
    assert build(Spec(name="lenet", options=options), (1, 28, 28), 10)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_a_perceptron_has_the_layers_asked_for() -> None:
    model = on_meta("mlp", (1, 4, 4), 3, hidden=[8, 5], dropout=0.5, activation="gelu")
    kinds = [nn.Flatten, nn.Linear, nn.GELU, nn.Dropout, nn.Linear, nn.GELU, nn.Dropout, nn.Linear]
    assert [type(layer) for layer in model.children()] == kinds


@pytest.mark.parametrize("depth", [18, 50])
def test_a_resnet_with_imagenets_stem_is_torchvisions(depth: int) -> None:
    torch.manual_seed(depth)
    ours = build(Spec(name=f"resnet{depth}", options={"stem": "imagenet"}), COLOUR, 10).double()
    torch.manual_seed(depth)
    theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=10).double()
    assert spread(ours) == pytest.approx(spread(theirs), rel=0.05)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    images = torch.rand(2, *COLOUR, dtype=torch.float64)
    assert torch.equal(ours(images), theirs(images))
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def spread(model: nn.Module) -> list[float]:
    """The standard deviation of each convolution's weights, where there are enough of them."""
    return [float(m.weight.detach().std()) for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() >= 8192]


def test_width_scales_every_stage_of_a_resnet() -> None:
    convolutions = [m.out_channels for m in on_meta("resnet18", COLOUR, width=8).modules() if isinstance(m, nn.Conv2d)]
    assert sorted(set(convolutions)) == [8, 16, 32, 64]


def test_a_wide_block_projects_what_its_first_activation_gives() -> None:
    torch.manual_seed(0)
    block = build(Spec(name="wrn_16_4", options={"depth": 10, "widen": 2}), COLOUR, 7)[1].double()  # type: ignore[index]
    x = torch.randn(4, 16, 8, 8, dtype=torch.float64)
    weights = dict(block.named_parameters())
    active = nn.functional.batch_norm(x, None, None, training=True).relu()
    inner = nn.functional.conv2d(active, weights["conv1.weight"], padding=1)
    inner = nn.functional.conv2d(nn.functional.batch_norm(inner, None, None, training=True).relu(), weights["conv2.weight"], padding=1)
    torch.testing.assert_close(block(x), inner + nn.functional.conv2d(active, weights["shortcut.weight"]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_whitening_makes_the_filters_outputs_uncorrelated_and_of_unit_size(channels: int) -> None:
    model, conv, images = fast_cifar(channels)
    model.whiten(images, eps=0.0)
    covariance = conv.double()(images).transpose(0, 1).flatten(1).cov(correction=0)
    half = 4 * channels
    torch.testing.assert_close(covariance[:half, :half], torch.eye(half, dtype=torch.float64), rtol=0, atol=1e-5)
    assert torch.equal(conv.weight[half:], -conv.weight[:half])


def test_whitening_holds_down_directions_that_hardly_vary() -> None:
    model, conv, images = fast_cifar(1)
    images[:] = images.mean((2, 3), keepdim=True)  # of each patch only the brightness varies
    model.whiten(images, eps=0.25)
    brightness = 4 * float(images[:, 0, 0, 0].var(correction=0))
    lengths = torch.tensor([(brightness + 0.25) ** -0.5, 2, 2, 2])
    torch.testing.assert_close(conv.weight.flatten(1).norm(dim=1)[:4].detach(), lengths, rtol=1e-5, atol=0)


def test_of_the_fast_net_the_whitening_filters_and_the_scales_of_norms_do_not_learn() -> None:
    model, conv, images = fast_cifar(3)
    model.whiten(images)
    fixed = [p for p in model.parameters() if not p.requires_grad]
    assert fixed[0] is conv.weight
    assert all(torch.equal(p, torch.ones_like(p)) for p in fixed[1:])
    assert len(fixed) == 1 + 6


def test_the_convolutions_of_the_fast_net_begin_as_identities() -> None:
    model, _, _ = fast_cifar(3)
    first = next(m for m in list(model)[1:] if isinstance(m, nn.Conv2d))
    images = torch.rand(2, 24, 5, 5)
    assert torch.equal(first(images)[:, :24], images)


def fast_cifar(channels: int) -> tuple[FastCifar, nn.Conv2d, Tensor]:
    """The net, its first convolution, and images float64 [300, channels, 16, 16] with correlated pixels and channels."""
    torch.manual_seed(0)
    model = build(Spec(name="fast_cifar"), (channels, 16, 16), 10)
    assert isinstance(model, FastCifar)
    assert isinstance(model[0], nn.Conv2d)
    noise = torch.randn(300, channels, 17, 17, dtype=torch.float64) + 0.5
    return model, model[0], noise[..., 1:, 1:] + noise[..., :-1, :-1] + noise.mean(1, keepdim=True)[..., 1:, 1:]


@pytest.fixture
def _regnets_on_meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """RegNet computes its widths with tensors, which must have values."""
    params = torchvision.models.regnet.BlockParams
    computed = params.from_init_params

    def on_cpu(**options: Any) -> object:
        with torch.device("cpu"):
            return computed(**options)

    monkeypatch.setattr(params, "from_init_params", on_cpu)
    return iter(())


@pytest.mark.usefixtures("_regnets_on_meta")
@pytest.mark.parametrize("arch", [a for a in ARCHS if a not in SLOW | REFUSED[COLOUR]])
def test_torchvisions_models_take_small_colour_images(arch: str) -> None:
    with torch.device("meta"):
        assert MODELS["torchvision"](COLOUR, 7, arch=arch)(torch.zeros(2, *COLOUR)).shape == (2, 7)


@pytest.mark.usefixtures("_regnets_on_meta")
@pytest.mark.parametrize("arch", sorted(QUICK))
def test_torchvisions_models_take_small_grey_images(arch: str) -> None:
    with torch.device("meta"):
        assert MODELS["torchvision"](GREY, 7, arch=arch)(torch.zeros(2, *GREY)).shape == (2, 7)


@pytest.mark.parametrize(("shape", "arch"), [(shape, arch) for shape, archs in REFUSED.items() for arch in sorted(archs)])
def test_a_library_model_that_does_not_take_the_images_says_so(shape: tuple[int, int, int], arch: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.model: torchvision {arch} does not take images of {'x'.join(map(str, shape))}: .+"):
        on_meta("torchvision", shape, arch=arch)


def test_large_images_get_torchvisions_model_as_it_comes() -> None:
    torch.manual_seed(0)
    ours = build(Spec(name="torchvision", options={"arch": "resnet18"}), (3, 96, 96), 10)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=10)
    assert str(ours) == str(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))


def test_small_images_get_torchvisions_resnet_with_our_stem() -> None:
    theirs = build(Spec(name="torchvision"), COLOUR, 10)
    ours = build(Spec(name="resnet18"), COLOUR, 10)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.rand(4, *COLOUR)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


def test_a_stem_whose_kernel_stays_keeps_its_weights() -> None:
    torch.manual_seed(0)
    ours = build(Spec(name="torchvision", options={"arch": "mobilenet_v3_small"}), COLOUR, 10)
    torch.manual_seed(0)
    theirs = torchvision.models.mobilenet_v3_small(num_classes=10)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    assert next(m.stride for m in ours.modules() if isinstance(m, nn.Conv2d)) == (1, 1)


@pytest.mark.parametrize(("library", "near"), [("torchvision", "resnet18"), ("timm", "resnet18")])
def test_a_misspelt_architecture_is_told_the_nearest(library: str, near: str) -> None:
    if library == "timm":
        pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=rf"train\.model\.arch: no 'resnet81' in {library}.*; did you mean .*{near}"):
        on_meta(library, COLOUR, arch="resnet81")


@pytest.mark.parametrize(
    ("shape", "arch"), [(COLOUR, "resnet18"), (GREY, "resnet18"), (GREY, "vit_tiny_patch16_224"), (COLOUR, "convnext_atto")]
)
def test_timms_models_take_small_images(shape: tuple[int, int, int], arch: str) -> None:
    pytest.importorskip("timm")
    assert build(Spec(name="timm", options={"arch": arch}), shape, 7)(torch.zeros(2, *shape)).shape == (2, 7)


def test_without_timm_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"train\.model: timm is not installed; run ./setup timm"):
        on_meta("timm", COLOUR)


@pytest.mark.parametrize(("name", "options"), [("lenet5", {}), ("fast_cifar", {}), ("torchvision", {"arch": "squeezenet1_0"})])
def test_images_that_are_too_small_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"train\.model: {name}.* does not take images of 1x3x3: .+"):
        on_meta(name, (1, 3, 3), **options)


def test_images_that_shrink_to_one_pixel_are_taken() -> None:
    assert on_meta("resnet18", (3, 8, 8), stem="imagenet")(torch.zeros(2, 3, 8, 8, device="meta")).shape == (2, 7)


def test_trying_the_model_leaves_its_weights_and_the_generator_alone() -> None:
    torch.manual_seed(0)
    built = build(Spec(name="lenet", options={"dropout": 0.5}), GREY, 10)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    made = MODELS["lenet"](GREY, 10, dropout=0.5)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(a, b) for a, b in zip(built.state_dict().values(), made.state_dict().values(), strict=True))
    norms = [m for m in build(Spec(name="resnet9"), COLOUR, 10).modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(m.num_batches_tracked == 0 and not m.running_mean.any() for m in norms if m.running_mean is not None)


HEADS = [
    ("lenet5", {}, "11"),
    ("resnet18", {}, "fc"),
    ("fast_cifar", {}, "24"),
    ("torchvision", {"arch": "vit_b_16"}, "heads.head"),
    ("torchvision", {"arch": "mobilenet_v3_small"}, "classifier.3"),
    ("torchvision", {"arch": "squeezenet1_1"}, "classifier.1"),
    ("torchvision", {"arch": "densenet121"}, "classifier"),
]


@pytest.mark.parametrize(("name", "options", "path"), HEADS)
def test_the_head_is_the_layer_that_makes_the_logits(name: str, options: dict[str, Any], path: str) -> None:
    model = on_meta(name, COLOUR, **options)
    assert head(model) == head(model, 7) == path


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"LeNet has no linear layer or convolution with 9 outputs"):
        head(on_meta("lenet5", GREY), 9)


def test_the_table_of_lenet5_is_that_of_its_arithmetic() -> None:
    lines = describe(build(Spec(name="lenet5"), GREY, 10), GREY).splitlines()
    rows = [line.split() for line in lines[1:-1]]
    assert [row for row in rows if row[3] != "0"] == [
        ["0", "Conv2d", "6x24x24", "156", f"{2 * 25 * 6 * 24 * 24:,}"],
        ["3", "Conv2d", "16x8x8", f"{6 * 25 * 16 + 16:,}", f"{2 * 6 * 25 * 16 * 8 * 8:,}"],
        ["7", "Linear", "120", f"{256 * 120 + 120:,}", f"{2 * 256 * 120:,}"],
        ["9", "Linear", "84", f"{120 * 84 + 84:,}", f"{2 * 120 * 84:,}"],
        ["11", "Linear", "10", "850", "1,680"],
    ]
    assert [row[1] for row in rows if row[3] == "0"] == ["ReLU", "MaxPool2d", "ReLU", "MaxPool2d", "Flatten", "ReLU", "ReLU"]
    flops = 2 * (25 * 6 * 24 * 24 + 6 * 25 * 16 * 8 * 8 + 256 * 120 + 120 * 84 + 840)
    assert lines[-1] == f"total: 44,426 parameters (44,426 trainable), {flops:,} FLOPs an image, 0.18 MB"


@pytest.mark.parametrize(("name", "options"), [("resnet18", {}), ("fast_cifar", {}), ("torchvision", {"arch": "vit_b_16"})])
def test_the_rows_of_a_table_add_up_to_its_total(name: str, options: dict[str, Any]) -> None:
    lines = describe(on_meta(name, COLOUR, **options), COLOUR).splitlines()
    parameters, flops = (sum(int(line.split()[k].replace(",", "")) for line in lines[1:-1]) for k in (-2, -1))
    assert lines[-1].startswith(f"total: {parameters:,} parameters (")
    assert f" {flops:,} FLOPs an image" in lines[-1]


def test_a_resnet18_of_32_pixels_costs_0_56_gigaflops_in_its_layers() -> None:
    """Two for each multiply-add: the literature's 0.56 G multiply-adds."""
    total = describe(on_meta("resnet18", COLOUR, 10), COLOUR).splitlines()[-1]
    blocks = [(64, 64, 32, 4), (64, 128, 16, 1), (128, 128, 16, 3), (128, 256, 8, 1), (256, 256, 8, 3), (256, 512, 4, 1), (512, 512, 4, 3)]
    convolutions = 3 * 9 * 64 * 32**2 + sum(a * b * 9 * side**2 * n for a, b, side, n in blocks)
    projections = sum(a * b * side**2 for a, b, side, _ in blocks if a != b)
    flops = 2 * (convolutions + projections + 5120)
    assert total == f"total: 11,173,962 parameters (11,173,962 trainable), {flops:,} FLOPs an image, 44.70 MB"


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {}), ("torchvision", {"arch": "squeezenet1_1"}), ("torchvision", {"arch": "vit_b_16"})]
)
def test_a_table_is_aligned_and_fits_100_columns(name: str, options: dict[str, Any]) -> None:
    lines = describe(on_meta(name, COLOUR, **options), COLOUR).splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1
    assert max(map(len, lines)) <= 100


def test_a_long_name_is_shortened_in_the_middle() -> None:
    deep = nn.Sequential()
    deep.add_module("first" + "x" * 200 + "last", nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    line = describe(deep, (1, 2, 2)).splitlines()[2]
    assert len(line) == 100
    assert line.startswith("firstx")
    assert "x...x" in line
    assert "xlast.1  Linear" in line


def test_the_table_counts_what_learns_apart() -> None:
    model = on_meta("lenet5", GREY, 10)
    for parameter in itertools.islice(model.parameters(), 2):
        parameter.requires_grad_(False)
    assert "44,426 parameters (44,270 trainable)" in describe(model, GREY)


def test_describing_a_model_does_not_change_it() -> None:
    model = build(Spec(name="resnet9", options={"width": 4}), COLOUR, 10)
    model[1].eval()  # type: ignore[index]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    describe(model, COLOUR)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
