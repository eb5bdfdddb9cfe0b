from __future__ import annotations

import pytest
import torch

from lth_fast.data.augment import flip_and_crop


def variants(image, padding):
    """Every flip and crop of one image ``[C, H, W]``, by slicing."""
    channels, height, width = image.shape
    padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    windows = [
        padded[:, top : top + height, left : left + width]
        for top in range(2 * padding + 1)
        for left in range(2 * padding + 1)
    ]
    return torch.stack([window if not flip else window.flip(2) for flip in (False, True) for window in windows])


@pytest.mark.parametrize(
    ("shape", "padding"), [((3, 8, 8), 4), ((1, 5, 7), 2), ((2, 6, 3), 1), ((3, 4, 4), 0), ((1, 28, 28), 4)]
)
@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_each_result_is_a_flip_and_crop_of_its_image_with_a_black_border(shape, padding, seed):
    generator = torch.Generator().manual_seed(seed + padding)
    images = torch.randint(1, 256, (9, *shape), dtype=torch.uint8, generator=generator)
    for image, result in zip(images, flip_and_crop(images, seed, padding), strict=True):
        assert (variants(image, padding) == result).flatten(1).all(1).any()


def test_every_flip_and_shift_is_equally_likely():
    padding, count = 1, 18_000
    image = torch.arange(1, 31, dtype=torch.uint8).view(1, 5, 6)
    results = flip_and_crop(image.expand(count, 1, 5, 6), seed=11, padding=padding)
    seen = torch.stack([(results == variant).flatten(1).all(1).sum() for variant in variants(image, padding)])
    assert len(seen) == 18
    assert seen.sum() == count
    # 17 degrees of freedom: a fair draw exceeds 45 once in 4,000 seeds, and this seed is fixed.
    assert ((seen - count / 18).square() / (count / 18)).sum() < 45


def test_images_of_a_batch_are_treated_independently():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    assert len(flip_and_crop(image.repeat(64, 1, 1, 1), seed=3).flatten(1).unique(dim=0)) > 20


def test_the_seed_decides_and_the_global_generator_does_not():
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = flip_and_crop(images, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(flip_and_crop(images, 5), first)
    assert not torch.equal(flip_and_crop(images, 6), first)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_the_dtype_is_kept_and_the_input_unchanged(dtype):
    images = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(4)).to(dtype)
    copy = images.clone()
    assert flip_and_crop(images, 0).dtype == dtype
    assert torch.equal(images, copy)


@pytest.mark.gpu
def test_every_device_gives_the_same_result():
    images = torch.randint(0, 256, (128, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
    assert torch.equal(flip_and_crop(images.cuda(), 9).cpu(), flip_and_crop(images, 9))
