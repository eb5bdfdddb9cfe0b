"""What a masked layer hands back to the optimizer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def pair(kind: Any) -> tuple[Any, Any]:
    """A masked layer and a plain one of the same weights."""
    layer = kind.layer()
    return layer, copy.deepcopy(layer.to_dense())


def distance(out: Tensor, expected: Tensor) -> float:
    return ((out.double() - expected.double()).norm() / expected.double().norm()).item()


def test_the_gradient_is_the_dense_one_and_exactly_zero_where_pruned(kind: Any) -> None:
    (layer, dense), inputs = pair(kind), kind.inputs()
    outs, given = [], []
    for module in (layer, dense):
        leaf = inputs.clone().requires_grad_()
        outs.append(module(leaf))
        outs[-1].square().sum().backward()
        given.append(leaf.grad)
    assert torch.equal(outs[0], outs[1])
    assert torch.equal(given[0], given[1])
    assert torch.equal(layer.bias.grad, dense.bias.grad)
    assert torch.equal(layer.weight.grad, dense.weight.grad * layer.mask)
    assert not layer.weight.grad[~layer.mask].signbit().any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_gradient_is_zero_where_pruned_also_in_a_diverged_step(kind: Any, value: float) -> None:
    layer = kind.layer()
    (layer(kind.inputs()) * value).sum().backward()
    assert not layer.weight.grad[layer.mask].isfinite().any()
    assert layer.weight.grad[~layer.mask].tolist() == [0.0] * int((~layer.mask).sum())


def test_gradients_accumulate_as_in_a_dense_layer(kind: Any) -> None:
    layer, dense = pair(kind)
    for _ in range(3):
        inputs = kind.inputs()
        for module in (layer, dense):
            module(inputs).square().sum().backward()
    assert torch.equal(layer.weight.grad, dense.weight.grad * layer.mask)


def test_clipping_sees_the_norm_of_the_survivors(kind: Any) -> None:
    (layer, dense), inputs = pair(kind), kind.inputs()
    for module in (layer, dense):
        module(inputs).square().sum().backward()
    dense.weight.grad.mul_(layer.mask)
    expected = nn.utils.clip_grad_norm_(dense.parameters(), 0.1)
    assert torch.equal(nn.utils.clip_grad_norm_(layer.parameters(), 0.1), expected)
    assert torch.equal(layer.weight.grad, dense.weight.grad)


def test_a_frozen_weight_gets_no_gradient(kind: Any) -> None:
    layer = kind.layer()
    layer.weight.requires_grad_(False)
    layer(kind.inputs()).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias.grad is not None


def test_a_gradient_penalty_is_that_of_the_masked_weight_and_zero_where_pruned(kind: Any) -> None:
    layer, inputs = kind.layer(), kind.inputs()
    mask = layer.mask

    def penalty(module: Any, leaf: Tensor) -> None:
        out = module(leaf).tanh().sum()
        gradients = torch.autograd.grad(out, (leaf, *module.parameters()), create_graph=True)
        torch.stack([gradient.square().sum() for gradient in gradients]).sum().backward()

    class Multiplied(nn.Module):
        """The definition: the weight times its mask, by autograd alone."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = copy.deepcopy(layer.to_dense()).double()

        def forward(self, leaf: Tensor) -> Tensor:
            weights = {"weight": self.layer.weight * mask, "bias": self.layer.bias}
            return torch.func.functional_call(self.layer, weights, (leaf,))

    expected = Multiplied()
    penalty(layer, inputs.clone().requires_grad_())
    penalty(expected, inputs.double().requires_grad_())
    assert distance(layer.weight.grad, expected.layer.weight.grad) <= 1e-5
    assert distance(layer.bias.grad, expected.layer.bias.grad) <= 1e-5
    assert layer.weight.grad[~mask].tolist() == [0.0] * int((~mask).sum())


def test_autocast_gives_the_outputs_and_gradients_of_a_dense_layer(kind: Any) -> None:
    (layer, dense), inputs = pair(kind), kind.inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = layer(inputs), dense(inputs)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    for result in (out, expected):
        result.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert torch.equal(layer.weight.grad, dense.weight.grad * layer.mask)
    assert torch.equal(layer.bias.grad, dense.bias.grad)


def test_autocast_sees_a_write_from_outside(kind: Any) -> None:
    layer, inputs = kind.layer(), kind.inputs()
    nn.init.ones_(layer.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(inputs)
        expected = layer.to_dense()(inputs)
    assert torch.equal(layer.weight, layer.mask.float())
    assert torch.equal(out, expected)


def test_recomputing_activations_gives_the_same_gradients(kind: Any) -> None:
    layer, inputs = kind.layer(), kind.inputs()
    layer(inputs).square().sum().backward()
    expected, layer.weight.grad = layer.weight.grad, None
    torch.utils.checkpoint.checkpoint(layer, inputs, use_reentrant=False).square().sum().backward()
    assert torch.equal(layer.weight.grad, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_several_gradients_at_a_time_are_those_of_one_after_the_other(kind: Any) -> None:
    layer, inputs = kind.layer(), kind.inputs().requires_grad_()
    output, wanted = layer(inputs), [inputs, layer.weight, layer.bias]
    given = torch.randn(3, *output.shape)
    together = torch.autograd.grad(output, wanted, given, is_grads_batched=True, retain_graph=True)
    one_by_one = zip(*[torch.autograd.grad(output, wanted, each, retain_graph=True) for each in given], strict=True)
    for found, expected in zip(together, one_by_one, strict=True):
        torch.testing.assert_close(found, torch.stack(expected))
    assert not together[1][:, ~layer.mask].any()
