from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lth_fast.nn import SparseConv2d

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
    "1x1": {"kernel_size": 1},
    "dilation": {"dilation": 2},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "out_channels": 8},
    "all of them": {"stride": 2, "padding": 1, "dilation": (1, 2), "groups": 2, "bias": False},
}


def arguments_of(options: dict[str, Any]) -> dict[str, Any]:
    return {"in_channels": 4, "out_channels": 6, "kernel_size": 3, **options}


def layers(options: dict[str, Any]) -> tuple[SparseConv2d, nn.Conv2d]:
    """A sparse layer, and a plain one with the same weights."""
    dense = nn.Conv2d(**arguments_of(options))
    mask = torch.rand(dense.weight.shape) < 0.5
    with torch.no_grad():
        dense.weight.mul_(mask)
    return SparseConv2d.from_dense(dense, mask), dense


def assert_same_layers(sparse: SparseConv2d, dense: nn.Conv2d, inputs: Tensor) -> None:
    """Output, gradient of the input and of the survivors, up to rounding."""
    results = []
    for module in (sparse, dense):
        leaf = inputs.clone().requires_grad_()
        module.zero_grad()
        out = module(leaf)
        gradient = torch.sin(torch.arange(float(out.numel()))).reshape(out.shape)
        out.backward(gradient)
        results.append([out, leaf.grad])
    assert sparse.values.grad is not None
    assert dense.weight.grad is not None
    results[0].append(sparse.values.grad)
    results[1].append(dense.weight.grad[sparse.mask])
    for tensor, like in zip(*results, strict=True):
        assert tensor.shape == like.shape
        assert (tensor - like).norm() <= 1e-6 * like.norm()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("case", OPTIONS)
def test_it_computes_what_nn_conv2d_with_these_arguments_computes(case: str, padding_mode: str) -> None:
    sparse, dense = layers({**OPTIONS[case], "padding_mode": padding_mode})
    assert_same_layers(sparse, dense, torch.randn(2, 4, 9, 8))


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
    sparse, dense = layers({"padding": padding})
    for argument, value in changes.items():
        setattr(sparse, argument, value)
        setattr(dense, argument, value)
    assert_same_layers(sparse, dense, torch.randn(2, 4, 9, 8))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_an_input_may_come_without_a_batch(padding_mode: str) -> None:
    sparse, dense = layers({"padding": 1, "padding_mode": padding_mode})
    assert_same_layers(sparse, dense, torch.randn(4, 9, 8))


@pytest.mark.parametrize("options", [{}, {"padding": "same"}], ids=["plain", "same padding"])
def test_a_batch_may_be_empty(options: dict[str, Any]) -> None:
    sparse, dense = layers(options)
    assert_same_layers(sparse, dense, torch.randn(0, 4, 9, 8))


def test_an_input_may_be_channels_last() -> None:
    sparse, dense = layers({"padding": 1})
    assert_same_layers(sparse, dense, torch.randn(2, 4, 9, 8).to(memory_format=torch.channels_last))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("padding", [1, "same"])
def test_to_dense_is_the_plain_layer_with_its_arguments(padding: Any, padding_mode: str) -> None:
    sparse, dense = layers({"padding": padding, "padding_mode": padding_mode, "groups": 2})
    plain = sparse.to_dense()
    assert type(plain) is nn.Conv2d
    assert repr(plain) == repr(dense)
    inputs = torch.randn(2, 4, 9, 8)
    assert torch.equal(plain(inputs), dense(inputs))


def test_repr_names_arguments_and_density() -> None:
    mask = torch.zeros(6, 2, 3, 3, dtype=torch.bool)
    mask[0, 0] = True
    layer = SparseConv2d(4, 6, 3, padding="same", groups=2, bias=False, mask=mask)
    assert repr(layer) == (
        "SparseConv2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=same, groups=2, bias=False, density=0.08333)"
    )


@pytest.mark.parametrize("shape", [(9, 8), (2, 1, 4, 9, 8), (2, 3, 9, 8)], ids=str)
def test_an_input_of_another_shape_is_refused_as_it_was_given(shape: tuple[int, ...]) -> None:
    given = str(list(shape)).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(RuntimeError, match=rf"input must have shape \[batch, 4, height, width\], got {given}"):
        SparseConv2d(4, 6, 3)(torch.randn(shape))
