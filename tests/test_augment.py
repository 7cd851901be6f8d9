"""Augmentations act on each image by itself; beside plain numpy, image by image."""

import numpy as np
import torch

from pipeline.data.augment import crop, flip
from pipeline.data.batches import AUGMENT, Draws, random

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 9, 7), np.uint8))


def draws() -> Draws:
    return Draws(random(1, 2, AUGMENT), 64, slice(0, 64), torch.device("cpu"))


def test_flip_mirrors_some_images_and_leaves_the_others() -> None:
    coins = draws().uniform().numpy() < 0.5
    flipped = flip(IMAGES, draws()).numpy()
    assert 0 < coins.sum() < 64
    for image, result, coin in zip(IMAGES.numpy(), flipped, coins, strict=True):
        np.testing.assert_array_equal(result, image[:, :, ::-1] if coin else image)


def test_crop_shifts_each_image_by_its_own_draw() -> None:
    shifts = draws().integers(-2, 3, 2).numpy()
    for mode, padding in (("reflect", "reflect"), ("zeros", "constant")):
        cropped = crop(IMAGES, draws(), padding=2, mode=mode).numpy()  # type: ignore[arg-type]
        for image, result, (down, right) in zip(IMAGES.numpy(), cropped, shifts, strict=True):
            padded = np.pad(image, ((0, 0), (2, 2), (2, 2)), mode=padding)  # type: ignore[call-overload]
            np.testing.assert_array_equal(result, padded[:, 2 + down : 11 + down, 2 + right : 9 + right])


def test_images_stay_bytes_of_the_same_shape() -> None:
    for result in (flip(IMAGES, draws()), crop(IMAGES, draws()), crop(IMAGES, draws(), padding=20)):
        assert (result.dtype, result.shape) == (torch.uint8, IMAGES.shape)
