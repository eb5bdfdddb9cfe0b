from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lth_fast.nn import MaskedConv2d, MaskedLinear
from lth_fast.prune import identity, ln_structured, random_structured


def linear(rows: list[list[float]]) -> MaskedLinear:
    layer = nn.Linear(len(rows[0]), len(rows))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer  # type: ignore[return-value]  (becomes one when it is pruned)


def test_the_channels_of_the_smallest_norm_go_whole() -> None:
    layer = linear([[3.0, 0.1], [1.0, 1.0], [0.0, 2.5]])
    assert ln_structured(layer, "weight", 1, 1, 0) is layer
    assert layer.mask.tolist() == [[True, True], [False, False], [True, True]]
    layer = linear([[3.0, 0.1], [1.0, 1.0], [0.0, 2.5]])
    ln_structured(layer, "weight", 1, math.inf, dim=-1)
    assert layer.mask.tolist() == [[True, False]] * 3


def test_of_channels_of_equal_norm_the_first_goes() -> None:
    layer = linear([[1.0, 2.0], [2.0, 1.0], [-2.0, 1.0]])
    ln_structured(layer, "weight", 2, 2, 0)
    assert layer.mask.any(1).tolist() == [False, False, True]


def test_further_calls_count_and_prune_the_channels_that_are_left() -> None:
    layer = nn.Conv2d(2, 8, 3)
    left = []
    for _ in range(3):
        random_structured(layer, "weight", 0.5, 0)
        left.append(int(layer.mask.flatten(1).any(1).sum()))
    assert isinstance(layer, MaskedConv2d)
    assert left == [4, 2, 1]
    with pytest.raises(ValueError, match="amount must be between 0 and the 1 channels that have survivors, got 2"):
        ln_structured(layer, "weight", 2, 2, 0)


def test_channels_in_both_dimensions_can_go() -> None:
    layer = linear([[1.0, 5.0, 6.0], [4.0, 2.0, 9.0]])
    ln_structured(layer, "weight", 1, 2, 1)
    ln_structured(layer, "weight", 1, 2, 0)
    assert layer.mask.tolist() == [[False, False, False], [False, True, True]]


def test_other_scores_can_give_the_norms() -> None:
    layer = linear([[9.0, 9.0], [1.0, 1.0]])
    ln_structured(layer, "weight", 1, 2, 0, importance_scores=torch.tensor([[0.0, 1.0], [2.0, 2.0]]))
    assert layer.mask.any(1).tolist() == [False, True]


def test_the_nuclear_norm_ranks_the_matrices_of_a_convolution_over_sequences() -> None:
    layer = nn.Conv1d(4, 5, 3)
    norms = torch.linalg.matrix_norm(layer.weight.detach(), "nuc")
    ln_structured(layer, "weight", 2, "nuc", 0)
    gone = (layer.weight == 0).flatten(1).all(1)
    assert set(gone.nonzero().squeeze(1).tolist()) == set(norms.argsort()[:2].tolist())


def test_identity_sets_a_mask_of_ones_and_keeps_one_that_is_there() -> None:
    layer = linear([[1.0, 2.0], [3.0, 4.0]])
    assert identity(layer, "weight") is layer
    assert layer.density == 1.0
    ln_structured(layer, "weight", 1, 2, 0)
    identity(layer, "weight")
    assert layer.density == 0.5


@pytest.mark.parametrize(
    ("arguments", "error", "complaint"),
    [
        (
            ("bias", 1, 2, 0),
            ValueError,
            "name: channels are pruned in parameters of two dimensions or more, bias has 1",
        ),
        (("weight", 1, 2, 2), IndexError, "dim must be between -2 and 1 for weight, got 2"),
        (("weight", 1, 2, -3), IndexError, "dim must be between -2 and 1 for weight, got -3"),
        (("weight", 1.5, 2, 0), ValueError, r"amount must be a share in \[0, 1\] or a number of weights, got 1.5"),
        (
            ("weight", 1, "nuc", 0),
            ValueError,
            "n: the nuclear norm needs a parameter of three dimensions, got one of 2",
        ),
        (("weight", 1, "L2", 0), ValueError, "n: expected a number, 'fro' or 'nuc', got 'L2'"),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(
    arguments: tuple[str, float, float, int], error: type[Exception], complaint: str
) -> None:
    layer = nn.Linear(4, 3)
    with pytest.raises(error, match=complaint):
        ln_structured(layer, *arguments)
    assert type(layer) is nn.Linear
