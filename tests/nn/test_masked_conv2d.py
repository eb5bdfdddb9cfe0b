from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lth_fast.nn import MaskedConv2d

PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": (1, 2)},
    "no padding by name": {"padding": "valid"},
    "same padding": {"padding": "same"},
    "same padding, even kernel": {"padding": "same", "kernel_size": (2, 4)},
    "same padding, even height": {"padding": "same", "kernel_size": (4, 3)},
    "same padding, even width": {"padding": "same", "kernel_size": (3, 4)},
    "same padding, dilation": {"padding": "same", "dilation": (2, 1)},
    "dilation": {"dilation": 2},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "out_channels": 8},
    "all of them": {"stride": 2, "padding": 1, "dilation": (1, 2), "groups": 2, "bias": False},
}


def layers(options: dict[str, Any]) -> tuple[Any, nn.Conv2d]:
    arguments = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, **options}
    layer: Any = MaskedConv2d(**arguments)
    layer.mask = torch.rand(layer.weight.shape) > 0.5
    dense = nn.Conv2d(**arguments)
    dense.load_state_dict(layer.state_dict())
    return layer, dense


def assert_same_layers(layer: Any, dense: nn.Conv2d, inputs: torch.Tensor) -> None:
    """Equal up to rounding: torch pads "same" inside the convolution and may sum in another order."""
    gradients = []
    for module in (layer, dense):
        leaf = inputs.clone().requires_grad_()
        module.zero_grad()
        out = module(leaf)
        gradient = torch.sin(torch.arange(float(out.numel()))).reshape(out.shape)
        out.backward(gradient.to(out.dtype))
        gradients.append([out, leaf.grad, *(parameter.grad for parameter in module.parameters())])
    ours, expected = gradients
    expected[2] = expected[2] * layer.mask
    assert ours[2][~layer.mask].count_nonzero() == 0
    for tensor, like in zip(ours, expected, strict=True):
        assert tensor.shape == like.shape
        assert (tensor - like).norm() <= 1e-6 * like.norm()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("case", OPTIONS)
def test_it_takes_the_arguments_of_nn_conv2d(case: str, padding_mode: str) -> None:
    layer, dense = layers({**OPTIONS[case], "padding_mode": padding_mode})
    assert_same_layers(layer, dense, torch.randn(2, 4, 9, 8))


@pytest.mark.parametrize(
    ("padding", "changes"),
    [
        (1, {"padding": 2}),
        (0, {"padding": "same"}),
        (1, {"padding": "valid"}),
        ("same", {"padding": (1, 2)}),
        ("same", {"dilation": 2}),
        (1, {"stride": 2}),
        (1, {"dilation": 2}),
    ],
    ids=str,
)
def test_arguments_that_are_changed_later_count_as_in_nn_conv2d(padding: Any, changes: dict[str, Any]) -> None:
    layer, dense = layers({"padding": padding})
    for argument, value in changes.items():
        setattr(layer, argument, value)
        setattr(dense, argument, value)
    assert_same_layers(layer, dense, torch.randn(2, 4, 9, 8))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_an_input_may_come_without_a_batch(padding_mode: str) -> None:
    layer, dense = layers({"padding": 1, "padding_mode": padding_mode})
    assert_same_layers(layer, dense, torch.randn(4, 9, 8))


@pytest.mark.parametrize("options", [{}, {"padding": "same"}], ids=["plain", "same padding"])
def test_a_batch_may_be_empty(options: dict[str, Any]) -> None:
    layer, dense = layers(options)
    assert_same_layers(layer, dense, torch.randn(0, 4, 9, 8))


def test_it_draws_the_weights_of_nn_conv2d() -> None:
    with torch.random.fork_rng():
        dense = nn.Conv2d(4, 6, 3)
    masked = MaskedConv2d(4, 6, 3)
    assert torch.equal(masked.weight, dense.weight)
    assert torch.equal(masked.bias, dense.bias)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("padding", [1, "same"])
def test_conversions_keep_the_padding(padding: Any, padding_mode: str) -> None:
    dense = nn.Conv2d(4, 6, 3, padding=padding, padding_mode=padding_mode)
    masked = MaskedConv2d.from_dense(dense)
    inputs = torch.randn(2, 4, 9, 8)
    expected = copy.deepcopy(dense)(inputs)
    assert (masked(inputs) - expected).norm() <= 1e-6 * expected.norm()
    assert torch.equal(masked.to_dense()(inputs), expected)


@pytest.mark.parametrize("shape", [(9, 8), (2, 1, 4, 9, 8), (2, 3, 9, 8)], ids=str)
def test_an_input_of_another_shape_is_refused_as_it_was_given(shape: tuple[int, ...]) -> None:
    given = str(list(shape)).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(RuntimeError, match=rf"input must have shape \[batch, 4, height, width\] .*, got {given}"):
        MaskedConv2d(4, 6, 3)(torch.randn(shape))
