from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lth_fast.ops import sparse_conv2d_pattern
from lth_fast.ops.sparse_conv2d_pattern import coordinates, reference

# [out_channels, in_channels / groups, height, width] and groups.
SHAPES = [
    ((1, 1, 1, 1), 1),
    ((6, 4, 3, 3), 1),
    ((6, 4, 3, 2), 3),
    ((8, 1, 5, 5), 8),
    ((70, 40, 3, 3), 2),
    ((0, 3, 3, 3), 1),
    ((3, 0, 3, 3), 1),
]


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_the_pattern_is_that_of_the_reference(shape: tuple[int, ...], groups: int, density: float) -> None:
    mask = torch.rand(shape) < density
    built, expected = sparse_conv2d_pattern(mask, groups), reference(mask, groups)
    for name, part, like in zip(built._fields, built, expected, strict=True):
        assert part.dtype == torch.int32, name
        assert torch.equal(part, like), name


def test_coordinates_find_the_survivors_in_row_major_order() -> None:
    mask = torch.rand(6, 4, 3, 3) < 0.4
    weight = torch.randn(6, 4, 3, 3)
    assert torch.equal(weight.flatten(1)[coordinates(sparse_conv2d_pattern(mask))], weight[mask])


def test_the_permutation_takes_row_major_order_to_the_order_of_input_channels() -> None:
    mask = torch.rand(6, 2, 3, 3) < 0.4
    pattern = sparse_conv2d_pattern(mask, groups=2)
    channel = torch.arange(2).view(1, 2, 1, 1).expand(mask.shape) + 2 * (torch.arange(6) // 3).view(6, 1, 1, 1)
    owners = torch.arange(4).repeat_interleave(pattern.input_starts.diff().long())
    assert torch.equal(channel[mask][pattern.permutation.long()], owners)


def test_a_mask_in_any_memory_order_is_read_by_its_logical_order() -> None:
    mask = torch.rand(6, 4, 3, 3) < 0.4
    strange = mask.to(memory_format=torch.channels_last)
    assert not strange.is_contiguous()
    for built, expected in zip(sparse_conv2d_pattern(strange), sparse_conv2d_pattern(mask), strict=True):
        assert torch.equal(built, expected)


def test_a_bool_of_any_byte_but_zero_is_a_survivor() -> None:
    bytes_ = torch.arange(256, dtype=torch.uint8)[torch.randperm(256)].view(16, 4, 2, 2)
    found, expected = sparse_conv2d_pattern(bytes_.view(torch.bool)), sparse_conv2d_pattern(bytes_ != 0)
    for built, like in zip(found, expected, strict=True):
        assert torch.equal(built, like)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_pattern_does_not_depend_on_the_number_of_threads(
    groups: int, on_threads: Callable[[int, Callable[[], Tensor]], Tensor]
) -> None:
    mask = torch.rand(256, 256, 3, 3) < 0.1

    def everything() -> Tensor:
        return torch.cat(list(sparse_conv2d_pattern(mask, groups)))

    assert torch.equal(on_threads(1, everything), on_threads(2, everything))


def test_wrong_arguments_are_named_with_what_was_expected_and_given() -> None:
    with pytest.raises(RuntimeError, match="mask must be bool, got Float"):
        sparse_conv2d_pattern(torch.ones(3, 4, 3, 3))
    with pytest.raises(RuntimeError, match=r"mask must have 4 dimensions .* got \[2, 3, 4\]"):
        sparse_conv2d_pattern(torch.ones(2, 3, 4, dtype=torch.bool))
    for groups in (0, 2):
        with pytest.raises(
            RuntimeError, match=f"groups must be positive and divide the 3 output channels, got {groups}"
        ):
            sparse_conv2d_pattern(torch.ones(3, 4, 3, 3, dtype=torch.bool), groups)
    with pytest.raises(RuntimeError, match=r"groups must be at most 536870911 for a mask of shape \[0, 4, 3, 3\], got"):
        sparse_conv2d_pattern(torch.ones(0, 4, 3, 3, dtype=torch.bool), 2**62)


def test_opcheck_accepts_the_operator() -> None:
    torch.library.opcheck(torch.ops.lth_fast.sparse_conv2d_pattern.default, (torch.rand(4, 3, 3, 3) < 0.4, 2))
