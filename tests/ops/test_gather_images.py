from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lth_fast.ops import gather_images
from lth_fast.ops.gather_images import reference

CHANNELS = [(1, 28, 28), (3, 5, 7), (2, 1, 1), (3, 40, 40)]


def images_of(count: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Images, and mean and gain of their channels."""
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8)
    return images, 255 * torch.rand(shape[0]), torch.rand(shape[0]) / 255


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("shape", CHANNELS)
def test_images_are_gathered_and_normalised_as_defined_bit_for_bit(shape: tuple[int, int, int]) -> None:
    images, mean, gain = images_of(300, shape)
    for count in (0, 1, 2, 60, 1000):
        indices = torch.randint(300, (count,))
        found = gather_images(images, indices, mean.view(-1, 1, 1), gain)
        assert found.dtype == torch.float32
        assert found.shape == (count, *shape)
        assert torch.equal(found, reference(images, indices, mean, gain))


@pytest.mark.usefixtures("kernels")
def test_every_byte_becomes_its_number() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    mean, gain = torch.tensor([33.25]), torch.tensor([0.0123])
    expected = (torch.arange(256, dtype=torch.float32) - 33.25) * gain
    assert torch.equal(gather_images(images, torch.tensor([0]), mean, gain).view(256), expected)


@pytest.mark.usefixtures("kernels")
def test_order_and_strides_of_the_indices_are_followed() -> None:
    images, mean, gain = images_of(9, (1, 4, 4))
    indices = torch.tensor([8, 3, 0, 3, 7, 5])[::2]
    assert torch.equal(gather_images(images, indices, mean, gain), reference(images, indices, mean, gain))


@pytest.mark.usefixtures("isa")
def test_the_number_of_threads_changes_no_bit() -> None:
    images, mean, gain = images_of(500, (3, 32, 32))
    indices = torch.randperm(500)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(gather_images(images, indices, mean, gain))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_no_images_at_all() -> None:
    images, mean, gain = images_of(0, (1, 3, 3))
    assert gather_images(images, torch.zeros(0, dtype=torch.int64), mean, gain).shape == (0, 1, 3, 3)


def test_opcheck() -> None:
    images, mean, gain = images_of(5, (3, 4, 4))
    torch.library.opcheck(torch.ops.lth_fast.gather_images.default, (images, torch.tensor([4, 0]), mean, gain))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", lambda images: images.float(), r"images must be uint8 \[N, C, H, W\] and contiguous, got Float"),
        ("images", lambda images: images[0], r"images must be uint8 .* of shape \[3, 4, 4\]"),
        ("images", lambda images: images.transpose(2, 3), "images must be uint8 .* with strides"),
        ("indices", lambda indices: indices.int(), r"indices must be int64 \[B\], got Int of shape \[2\]"),
        ("indices", lambda indices: indices.view(1, 2), r"indices must be int64 \[B\], got Long of shape \[1, 2\]"),
        ("mean", lambda mean: mean[:2], r"mean must be float32 with one number per channel \(3\), got Float"),
        ("gain", lambda gain: gain.double(), r"gain must be float32 with one number per channel \(3\), got Double"),
    ],
)
def test_bad_arguments_are_named(name: str, change, message: str) -> None:
    images, mean, gain = images_of(5, (3, 4, 4))
    arguments = {"images": images, "indices": torch.tensor([4, 0]), "mean": mean, "gain": gain}
    arguments[name] = change(arguments[name])
    with pytest.raises(RuntimeError, match=f"gather_images: {message}"):
        gather_images(**arguments)


@pytest.mark.parametrize("index", [-1, 5, 2**40])
def test_an_index_of_no_image_is_an_error(index: int) -> None:
    images, mean, gain = images_of(5, (3, 4, 4))
    with pytest.raises(IndexError, match=rf"gather_images: indices must be in 0..4, got {index}"):
        gather_images(images, torch.tensor([0, index]), mean, gain)
