"""Gradients that the layers leave to the optimizer's step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast import optim
from lth_fast.nn import masked_layers, set_masks
from lth_fast.optim import gradients_masked_by, mask_gradients

OURS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "Adam": partial(optim.Adam, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "AdamW": partial(optim.AdamW, lr=1e-2),
}


def masked_network(device: torch.device, channels_last: bool = False) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    if channels_last:
        model.to(memory_format=torch.channels_last)
    names = ("0.weight", "3.weight", "3.bias")
    return set_masks(model, {name: torch.rand(model.get_parameter(name).shape) < 0.5 for name in names}).to(device)


def backward(model: nn.Module, inputs: Tensor) -> None:
    model.zero_grad()
    model(inputs).square().sum().backward()


def pruned_gradients(model: nn.Module) -> Tensor:
    layers = masked_layers(model).values()
    return torch.cat([layer.weight.grad[~layer.mask] for layer in layers if layer.weight.grad is not None])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", OURS)
def test_the_steps_are_the_same_to_rounding_and_pruned_weights_and_moments_zero(
    name: str, channels_last: bool, device: torch.device
) -> None:
    models = [masked_network(device, channels_last)]
    models.append(copy.deepcopy(models[0]))
    optimizers = [OURS[name](model.parameters()) for model in models]
    for _ in range(5):
        inputs = torch.randn(4, 2, 6, 6, device=device)
        backward(models[0], inputs)
        optimizers[0].step()
        with gradients_masked_by(optimizers[1]):
            backward(models[1], inputs)
            assert pruned_gradients(models[1]).any()
            optimizers[1].step()
        for layer in masked_layers(models[1]).values():
            memory = [value for value in optimizers[1].state[layer.weight].values() if value.dim()]
            for value in (layer.weight, layer.weight.grad, *memory):
                assert value is not None
                assert not value[~layer.mask].any()
                assert value[layer.mask].any()
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", OURS)
def test_a_gradient_that_is_not_finite_where_it_is_pruned_is_of_no_consequence(
    name: str, value: float, device: torch.device
) -> None:
    model = masked_network(device)
    optimizer = OURS[name](model.parameters())
    with gradients_masked_by(optimizer):
        backward(model, torch.randn(4, 2, 6, 6, device=device))
        for layer in masked_layers(model).values():
            assert layer.weight.grad is not None
            layer.weight.grad[~layer.mask] = value
        optimizer.step()
    for parameter in model.parameters():
        assert parameter.isfinite().all()
    assert not pruned_gradients(model).any()


def test_one_pass_masks_the_gradients_for_whoever_reads_them(device: torch.device) -> None:
    model, inputs = masked_network(device), torch.randn(4, 2, 6, 6, device=device)
    optimizer = optim.Adam(model.parameters())
    backward(model, inputs)
    expected = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    with gradients_masked_by(optimizer):
        backward(model, inputs)
        mask_gradients(optimizer)
        assert not pruned_gradients(model).any()
        found = nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    assert torch.allclose(found, expected)


def test_a_step_has_no_other_operator_of_ours_than_the_optimizers(
    device: torch.device, own_operators_of: Callable[[Callable[[], Any]], list[str]]
) -> None:
    model = masked_network(device)
    set_masks(model, {"3.bias": torch.ones(5, dtype=torch.bool, device=device)})
    plain = nn.Sequential(*list(model)[:3])  # without the masked bias, a parametrization
    optimizer = optim.Adam(plain.parameters())
    backward(plain, torch.randn(4, 2, 6, 6, device=device))
    optimizer.step()

    def work() -> None:
        backward(plain, torch.randn(4, 2, 6, 6, device=device))
        optimizer.step()

    with gradients_masked_by(optimizer):
        assert own_operators_of(work) == ["adam_step_"]


@pytest.mark.parametrize("kind", ["torch's", "a subclass of ours"])
def test_for_any_other_optimizer_the_layers_go_on_masking(kind: str, device: torch.device) -> None:
    class Clipping(optim.Adam):
        """Reads gradients in its step."""

    model = masked_network(device)
    optimizer = (torch.optim.Adam if kind == "torch's" else Clipping)(model.parameters())
    with gradients_masked_by(optimizer):
        backward(model, torch.randn(4, 2, 6, 6, device=device))
        assert not pruned_gradients(model).any()


def test_a_layer_that_the_optimizer_does_not_hold_goes_on_masking(device: torch.device) -> None:
    model = masked_network(device)
    convolution, linear = masked_layers(model).values()
    with gradients_masked_by(optim.Adam(model[0].parameters())):
        backward(model, torch.randn(4, 2, 6, 6, device=device))
        assert linear.weight.grad is not None
        assert not linear.weight.grad[~linear.mask].any()
        assert convolution.weight.grad is not None
        assert convolution.weight.grad[~convolution.mask].any()


def test_a_block_inside_another_changes_nothing_and_the_outer_one_ends_both(device: torch.device) -> None:
    model, inputs = masked_network(device), torch.randn(4, 2, 6, 6, device=device)
    optimizer = optim.Adam(model.parameters())
    with gradients_masked_by(optimizer):
        with gradients_masked_by(optimizer):
            backward(model, inputs)
        assert pruned_gradients(model).any()
        backward(model, inputs)
        assert pruned_gradients(model).any()
    assert not pruned_gradients(model).any()
    backward(model, inputs)
    assert not pruned_gradients(model).any()


def test_a_copy_that_is_made_inside_masks_by_itself(device: torch.device) -> None:
    model = nn.Sequential(*list(masked_network(device))[:3])
    with gradients_masked_by(optim.Adam(model.parameters())):
        twin = copy.deepcopy(model)
        backward(twin, torch.randn(4, 2, 6, 6, device=device))
        assert not pruned_gradients(twin).any()


def test_after_an_error_the_layers_mask_again(device: torch.device) -> None:
    model = masked_network(device)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ZeroDivisionError), gradients_masked_by(optimizer):
        raise ZeroDivisionError
    backward(model, torch.randn(4, 2, 6, 6, device=device))
    assert not pruned_gradients(model).any()


HOOKS: dict[str, Callable[[Optimizer, Tensor, Any], Any]] = {
    "optimizer": lambda optimizer, weight, hook: optimizer.register_step_pre_hook(hook),
    "gradient": lambda optimizer, weight, hook: weight.register_hook(hook),
    "accumulated gradient": lambda optimizer, weight, hook: weight.register_post_accumulate_grad_hook(hook),
}


@pytest.mark.parametrize("name", HOOKS)
def test_where_a_hook_may_read_gradients_the_layers_go_on_masking(name: str, device: torch.device) -> None:
    model = masked_network(device)
    optimizer = optim.Adam(model.parameters())
    handle = HOOKS[name](optimizer, next(iter(masked_layers(model).values())).weight, lambda *_: None)
    inputs = torch.randn(4, 2, 6, 6, device=device)
    with gradients_masked_by(optimizer):
        backward(model, inputs)
        assert not pruned_gradients(model).any()
    handle.remove()
    with gradients_masked_by(optimizer):
        backward(model, inputs)
        assert pruned_gradients(model).any()
