from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lth_fast.nn import MaskedLinear

ARGUMENTS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "positions": ((7, 3), {}),
    "no bias by position": ((7, 3, False), {}),
    "names": ((), {"in_features": 7, "out_features": 3, "bias": False}),
    "dtype": ((7, 3), {"dtype": torch.float64}),
    "device": ((7, 3), {"device": "cpu"}),
}


@pytest.mark.parametrize("case", ARGUMENTS)
def test_it_takes_the_arguments_of_nn_linear_and_draws_the_same_weights(case: str) -> None:
    positional, named = ARGUMENTS[case]
    with torch.random.fork_rng():
        dense = nn.Linear(*positional, **named)
    masked = MaskedLinear(*positional, **named)
    assert [(name, value.dtype) for name, value in masked.state_dict().items()] == [
        (name, value.dtype) for name, value in dense.state_dict().items()
    ]
    for name, value in dense.state_dict().items():
        assert torch.equal(masked.state_dict()[name], value)
    inputs = torch.randn(4, 7, dtype=dense.weight.dtype)
    assert torch.equal(masked(inputs), dense(inputs))


@pytest.mark.parametrize("batch", [(), (4,), (0,), (2, 3)], ids=str)
def test_it_takes_any_number_of_leading_dimensions(batch: tuple[int, ...]) -> None:
    layer: Any = MaskedLinear(7, 3)
    layer.mask = torch.rand(3, 7) > 0.5
    dense = copy.deepcopy(layer.to_dense())
    inputs = torch.randn(*batch, 7)
    for module in (layer, dense):
        module(inputs).square().sum().backward()
    assert torch.equal(layer(inputs), dense(inputs))
    assert torch.equal(layer.weight.grad, dense.weight.grad * layer.mask)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
@pytest.mark.parametrize(("in_features", "out_features"), [(0, 3), (3, 0)])
def test_it_may_have_no_features(in_features: int, out_features: int) -> None:
    layer: Any = MaskedLinear(in_features, out_features)
    layer.mask = torch.ones(out_features, in_features, dtype=torch.bool)
    inputs = torch.randn(5, in_features, requires_grad=True)
    out = layer(inputs)
    assert out.shape == (5, out_features)
    out.sum().backward()
    assert layer.weight.grad.shape == (out_features, in_features)
    assert layer.bias.grad.tolist() == [5.0] * out_features
    assert inputs.grad is not None
    assert inputs.grad.count_nonzero() == 0


def test_an_input_of_other_features_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match=r"input must have shape \[..., 7\] for weight of shape \[3, 7\], got \[4, 6\]"
    ):
        MaskedLinear(7, 3)(torch.randn(4, 6))
