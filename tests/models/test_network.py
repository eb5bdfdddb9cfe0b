"""What the networks share."""

from __future__ import annotations

import pytest
import torch

from lth_fast import models
from lth_fast.models.network import pad_to_cifar_size


def test_smaller_images_get_a_centred_border_of_zeros() -> None:
    image = torch.randn(1, 2, 28, 9, generator=torch.Generator().manual_seed(0))
    padded = pad_to_cifar_size((2, 28, 9))(image)
    assert padded.shape == (1, 2, 32, 32)
    assert torch.equal(padded[:, :, 2:30, 11:20], image)
    assert padded.count_nonzero() == image.count_nonzero()


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 40, 64)])
def test_larger_images_stay_as_they_are(shape: tuple[int, int, int]) -> None:
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pad_to_cifar_size(shape)(image), image)


@pytest.mark.parametrize("name", ["vgg11", "resnet20"])
def test_a_small_image_gives_the_logits_of_its_padded_self(name: str) -> None:
    small = models.build(name, (1, 28, 28)).eval()
    large = models.build(name, (1, 32, 32)).eval()
    large.load_state_dict(small.state_dict())
    image = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(image), large(torch.nn.functional.pad(image, (2, 2, 2, 2))))


def test_the_loss_of_a_network_can_be_replaced() -> None:
    model = models.build("lenet")
    model.criterion = torch.nn.MSELoss()
    assert isinstance(model.criterion, torch.nn.MSELoss)
