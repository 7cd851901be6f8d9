"""Augmentations act on each image by itself; beside numpy and torchvision, image by image."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from pipeline.config import Spec, bind
from pipeline.data.augment import AUGMENTATIONS, MIXES, VIEWS, all_views
from pipeline.data.augment.colour import color_jitter
from pipeline.data.augment.geometry import affine, alternating_flip, crop, cutout, flip, progressive_resize
from pipeline.data.augment.mixes import cutmix, mixup
from pipeline.data.augment.policies import rand_augment, trivial_augment
from pipeline.data.augment.views import mirror, shift
from pipeline.data.batches import AUGMENT, random
from pipeline.data.draws import Draws
from pipeline.errors import ConfigError

COUNT = 64
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, 3, 9, 7), np.uint8))
GREY = IMAGES[:, :1]
CPU = torch.device("cpu")


def draws(progress: float = 0.3, count: int = COUNT, device: torch.device = CPU) -> Draws:
    rows = np.arange(count)
    return Draws(random(1, 2, AUGMENT), count, rows, device, progress, rows % 3, random(0, 0, 3).random(count, np.float32))


def part(rows: slice) -> Draws:
    whole = draws()
    assert whole.epochs is not None
    assert whole.fixed is not None
    return dataclasses.replace(whole, rows=whole.rows[rows], epochs=whole.epochs[rows], fixed=whole.fixed[rows])


def scenes(count: int, height: int, width: int) -> Tensor:
    """Images with large and small differences, grey patches, and every level."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 400 - 70
    images: Tensor = F.resize(coarse, [height, width]).clamp(0, 255).byte()
    images[:, :, : height // 4, : width // 4] = images[:, :1, : height // 4, : width // 4]
    return images


# What holds for all of them


@pytest.mark.parametrize("images", [IMAGES, GREY], ids=["colour", "grey"])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_part_of_the_batch_is_changed_as_in_the_whole(name: str, images: Tensor) -> None:
    augmentation = functools.partial(AUGMENTATIONS[name], **({"start": 5} if name == "progressive_resize" else {}))
    whole = augmentation(images, draws())
    assert whole.dtype == torch.uint8
    assert not torch.equal(whole, images)
    for rows in (slice(0, 5), slice(5, 6), slice(6, COUNT)):
        assert torch.equal(augmentation(images[rows], part(rows)), whole[rows])


@pytest.mark.parametrize("name", MIXES)
def test_a_part_of_the_batch_is_mixed_as_in_the_whole(name: str) -> None:
    images, partners = IMAGES.float(), IMAGES.float().flip(0)
    mixed, shares = MIXES[name](images, partners, draws())
    for rows in (slice(0, 5), slice(5, 6), slice(6, COUNT)):
        mixed_here, shares_here = MIXES[name](images[rows], partners[rows], part(rows))
        assert torch.equal(mixed_here, mixed[rows])
        assert torch.equal(shares_here, shares[rows])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_as_much_is_drawn_whatever_the_images(name: str) -> None:
    after = []
    for rows, images in ((slice(0, COUNT), IMAGES), (slice(3, 4), torch.zeros_like(GREY[:1]))):
        drawing = part(rows)
        AUGMENTATIONS[name](images, drawing)
        after.append(drawing.generator.random())
    assert after[0] == after[1]


@pytest.mark.parametrize("name", [*AUGMENTATIONS, *MIXES])
def test_nothing_waits_for_the_device(name: str) -> None:
    meta = torch.device("meta")  # it has no values to wait for, and says so
    images = torch.empty(COUNT, 3, 32, 32, dtype=torch.uint8, device=meta)
    if name in AUGMENTATIONS:
        assert AUGMENTATIONS[name](images, draws(device=meta)).device == meta
    else:
        assert MIXES[name](images.float(), images.float(), draws(device=meta))[0].device == meta


@pytest.mark.parametrize("table", [AUGMENTATIONS, MIXES, VIEWS])
def test_every_default_is_a_valid_option(table: dict[str, Callable[..., Any]]) -> None:
    for name in table:
        defaults = bind(table, Spec(name=name), what="here")
        assert bind(table, defaults, what="here") == defaults


# Where the pixels go


def test_flip_mirrors_some_images_and_leaves_the_others() -> None:
    coins = draws().uniform().numpy() < 0.5
    flipped = flip(IMAGES, draws()).numpy()
    assert 0 < coins.sum() < COUNT
    for image, result, coin in zip(IMAGES.numpy(), flipped, coins, strict=True):
        np.testing.assert_array_equal(result, image[:, :, ::-1] if coin else image)


def test_alternating_flip_shows_the_other_side_in_the_next_epoch() -> None:
    first, second, third = (alternating_flip(IMAGES, dataclasses.replace(draws(), epochs=np.full(COUNT, epoch))) for epoch in (0, 1, 2))
    assert torch.equal(first.flip(-1), second)
    assert torch.equal(first, third)
    assert 0 < (first == IMAGES).all((1, 2, 3)).sum() < COUNT


def test_crop_shifts_each_image_by_its_own_draw() -> None:
    shifts = draws().integers(-2, 3, 2).numpy()
    for mode, padding in (("reflect", "reflect"), ("zeros", "constant")):
        cropped = crop(IMAGES, draws(), padding=2, mode=mode).numpy()  # type: ignore[arg-type]
        for image, result, (down, right) in zip(IMAGES.numpy(), cropped, shifts, strict=True):
            padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode=padding)  # type: ignore[call-overload]
            np.testing.assert_array_equal(result, padded[:, 2 + down : 11 + down, 2 + right : 9 + right])


def test_a_crop_may_be_shifted_further_than_the_image_is_long() -> None:
    assert crop(IMAGES, draws(), padding=20).shape == IMAGES.shape


@pytest.mark.parametrize(("size", "fill"), [(4, 0), (3, 128), (30, 255)])
def test_cutout_fills_a_square_of_each_image(size: int, fill: int) -> None:
    drawn = draws()
    rows, columns = drawn.integers(0, 9).tolist(), drawn.integers(0, 7).tolist()
    result = cutout(IMAGES, draws(), size=size, fill=fill)
    for k, (row, column) in enumerate(zip(rows, columns, strict=True)):
        expected = IMAGES[k].clone()
        top, left = row - size // 2, column - size // 2
        expected[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = fill
        assert torch.equal(result[k], expected)


@pytest.mark.parametrize(
    ("progress", "size"), [(0.0, (24, 32)), (0.1, (28, 36)), (0.3, (32, 44)), (0.45, (36, 48)), (0.6, (42, 56)), (0.99, (42, 56))]
)
def test_the_sides_grow_with_the_training_by_multiples_to_those_of_the_image(progress: float, size: tuple[int, int]) -> None:
    images = scenes(2, 42, 56)
    resized = progressive_resize(images, draws(progress, 2), start=24, until=0.6, multiple=4)
    assert torch.equal(resized, F.resize(images, list(size), antialias=True))


def test_images_smaller_than_the_start_stay_as_they_are() -> None:
    assert torch.equal(progressive_resize(IMAGES, draws(), start=24), IMAGES)


# What their pixels become


def color_jitter_by_torchvision(image: Tensor, drawn: list[float], most: dict[str, float]) -> Tensor:
    adjust = {"brightness": F.adjust_brightness, "contrast": F.adjust_contrast, "saturation": F.adjust_saturation}
    for uniform, name in zip(drawn, adjust, strict=False):
        if name in most:
            least = max(0.0, 1 - most[name])
            image = adjust[name](image, least + (1 + most[name] - least) * uniform)
    return F.adjust_hue(image, (2 * drawn[3] - 1) * most["hue"]) if "hue" in most else image


@pytest.mark.parametrize("most", [{"brightness": 1.5}, {"contrast": 1.5}, {"saturation": 1.5}, {"hue": 0.5}])
@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_is_torchvisions_with_factors_of_each_images_own(most: dict[str, float], channels: int) -> None:
    images = scenes(COUNT, 16, 17)[:, :channels]
    result = color_jitter(images, draws(), **{"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, **most})
    expected = [color_jitter_by_torchvision(image, drawn.tolist(), most) for image, drawn in zip(images, draws().uniform(4), strict=True)]
    assert_at_most_ties(result, torch.stack(expected))


def test_the_order_is_brightness_contrast_saturation_hue() -> None:
    images, most = scenes(COUNT, 16, 17), {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    expected = [color_jitter_by_torchvision(image, drawn.tolist(), most) for image, drawn in zip(images, draws().uniform(4), strict=True)]
    assert_at_most_ties(color_jitter(images, draws()), torch.stack(expected), levels=3)  # a level, as the next three see it


def assert_at_most_ties(result: Tensor, expected: Tensor, levels: int = 1) -> None:
    """Equal, but for two values in a thousand that are a level apart: sums next to a whole level are rounded otherwise."""
    apart = (result.int() - expected.int()).abs()
    assert apart.max() <= levels
    assert (apart > 0).double().mean() < 0.002


# Policies


def by_torchvision(policy: Any, images: Tensor, kinds: list[str], magnitudes: list[float]) -> Tensor:
    return torch.stack(
        [
            policy._apply_image_or_video_transform(image, kind, magnitude, interpolation=v2.InterpolationMode.NEAREST, fill=policy._fill)
            for image, kind, magnitude in zip(images, kinds, magnitudes, strict=True)
        ]
    )


def drawn_by(policy: Any, drawn: Draws, size: tuple[int, int], bins: int, levels: list[int]) -> tuple[list[str], list[float]]:
    """The name of each image's operation, and its magnitude, by torchvision's table."""
    space = policy._AUGMENTATION_SPACE
    kinds = [""] * drawn.batch_size
    for name, group in zip(space, drawn.groups(len(space)), strict=True):
        for k in group.tolist():
            kinds[k] = name
    magnitudes = []
    for name, row in zip(kinds, drawn.integers(0, 2 * len(levels)).tolist(), strict=True):
        values, signed = space[name][0](bins, *size), space[name][1]
        magnitude = 0.0 if values is None else float(values[levels[row % len(levels)]])
        magnitudes.append(-magnitude if signed and row >= len(levels) else magnitude)
    return kinds, magnitudes


MOVED = {"ShearX", "ShearY", "Rotate"}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (20, 30)])
def test_trivial_augment_changes_each_image_as_torchvision(channels: int, size: tuple[int, int]) -> None:
    images = scenes(1000, *size)[:, :channels]
    kinds, magnitudes = drawn_by(v2.TrivialAugmentWide(), draws(count=1000), size, 31, list(range(31)))
    expected = by_torchvision(v2.TrivialAugmentWide(), images, kinds, magnitudes)
    result = trivial_augment(images, draws(count=1000))
    assert set(kinds) == set(v2.TrivialAugmentWide._AUGMENTATION_SPACE)
    still = torch.tensor([kind not in MOVED for kind in kinds])
    assert_at_most_ties(result[still], expected[still])
    assert (result != expected).double().mean() < 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_rand_augment_changes_each_image_in_turn_as_torchvision(channels: int) -> None:
    images, drawn, policy = scenes(1000, 32, 32)[:, :channels], draws(count=1000), v2.RandAugment()
    expected = images
    for _ in range(2):
        expected = by_torchvision(policy, expected, *drawn_by(policy, drawn, (32, 32), 31, [9]))
    result = rand_augment(images, draws(count=1000), count=2, magnitude=9, bins=31)
    assert (result != expected).double().mean() < 1e-3


@pytest.mark.parametrize("degrees", [-135.0, -40.5, -4.5, 13.5, 45.0, 90.0, 121.5])
def test_a_pixel_comes_from_where_torchvision_takes_it_unless_two_are_as_near(degrees: float) -> None:
    height, width, turn = 30, 20, np.deg2rad(degrees)
    images = torch.arange(1, height * width + 1).view(1, 1, height, width).float()
    matrix = torch.tensor([[np.cos(turn), -np.sin(turn), 0, np.sin(turn), np.cos(turn), 0]]).float()
    y, x = np.mgrid[:height, :width] - np.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    columns, rows = np.cos(turn) * x - np.sin(turn) * y + (width - 1) / 2, np.sin(turn) * x + np.cos(turn) * y + (height - 1) / 2
    tied = np.minimum(abs(columns % 1 - 0.5), abs(rows % 1 - 0.5)) < 1e-4
    differs = (affine(images, matrix) != F.rotate(images, degrees))[0, 0].numpy()
    assert tied[differs].all()
    assert differs.mean() < 0.05


@pytest.mark.parametrize("kernel", [F.autocontrast, F.equalize])
def test_torchvisions_kernels_act_on_each_image_of_a_batch_by_itself(kernel: Callable[[Tensor], Tensor]) -> None:
    images = torch.cat([scenes(20, 16, 17) // 2 + 30, torch.full((1, 3, 16, 17), 7, dtype=torch.uint8)])
    assert torch.equal(kernel(images), torch.stack([kernel(image) for image in images]))


def test_a_magnitude_outside_its_bins_is_refused_with_the_configuration() -> None:
    bind(AUGMENTATIONS, Spec(name="rand_augment", options={"magnitude": 30}), what="train.augment.0")
    for options in ({"magnitude": 31}, {"magnitude": 9, "bins": 9}):
        with pytest.raises(ConfigError, match=r"train\.augment\.0\.bins: .*the magnitude \d+, counted from 0, needs \d+ bins or more"):
            bind(AUGMENTATIONS, Spec(name="rand_augment", options=options), what="train.augment.0")


# Mixes


def test_mixup_is_the_weighted_mean_with_each_images_weight_as_its_share() -> None:
    images, partners = IMAGES.double(), IMAGES.double().flip(0)
    mixed, shares = mixup(images, partners, draws(), alpha=0.4)
    expected = draws().beta(0.4).double()
    assert torch.equal(shares, expected)
    for image, partner, result, weight in zip(images, partners, mixed, expected.tolist(), strict=True):
        torch.testing.assert_close(result, weight * image + (1 - weight) * partner, rtol=1e-12, atol=1e-12)


def test_cutmix_puts_torchvisions_box_of_the_partner_in_and_counts_what_is_kept() -> None:
    images = torch.zeros(COUNT, 3, 30, 21, dtype=torch.float64)
    drawn = draws()
    uncut, rows, columns = drawn.beta(1.0).tolist(), drawn.integers(0, 30).tolist(), drawn.integers(0, 21).tolist()
    mixed, shares = cutmix(images, images + 1, draws(), alpha=1.0)
    for k in range(COUNT):
        reach = 0.5 * np.sqrt(1 - uncut[k])  # as torchvision.transforms.v2.CutMix.make_params has it
        down, right = int(reach * 30), int(reach * 21)
        box = torch.zeros(3, 30, 21)
        box[:, max(rows[k] - down, 0) : rows[k] + down, max(columns[k] - right, 0) : columns[k] + right] = 1
        assert torch.equal(mixed[k], box.double())
        assert shares[k].item() == pytest.approx(1 - box.double().mean().item(), abs=1e-12)


# Views


def test_mirror_shows_both_sides() -> None:
    assert torch.equal(torch.stack(mirror(IMAGES)), torch.stack([IMAGES, IMAGES.flip(-1)]))


def test_shift_moves_up_left_and_down_right_with_reflected_edges() -> None:
    images = IMAGES.float()
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    same, up_left, down_right = shift(images, pixels=2)
    assert torch.equal(same, images)
    np.testing.assert_array_equal(up_left, padded[:, :, 4:, 4:])
    np.testing.assert_array_equal(down_right, padded[:, :, :9, :7])


def test_views_are_combined_and_the_first_is_the_image() -> None:
    images = IMAGES.float()
    views = all_views(images, [mirror, shift])
    assert len(views) == 6
    assert torch.equal(torch.stack(views[3:]), torch.stack(shift(images.flip(-1))))
    assert torch.equal(views[0], images)
    assert all_views(images, []) == [images]


def test_a_shift_may_be_longer_than_the_image() -> None:
    images = torch.arange(12.0).view(1, 1, 3, 4)
    assert [view.shape for view in shift(images, pixels=50)] == [images.shape] * 3
