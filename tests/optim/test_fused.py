"""What our optimizers do for masked layers beyond what any optimizer does (test_masks.py)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast import optim
from lth_fast.nn import MaskedLinear, masked_layers, restore, set_masks

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "Adam": partial(optim.Adam, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "AdamW": partial(optim.AdamW, lr=1e-2),
}


@pytest.fixture(params=OPTIMIZERS)
def make_optimizer(request: pytest.FixtureRequest) -> Callable[..., Optimizer]:
    return OPTIMIZERS[request.param]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 5))


def masked_network() -> nn.Sequential:
    model = network()
    set_masks(model, {name: torch.rand(model.get_parameter(name).shape) < 0.5 for name in ("0.weight", "3.weight")})
    return model


def train(model: nn.Module, optimizer: Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 6, 6)).square().sum().backward()
        optimizer.step()


def assert_zero_where_pruned(weight: Tensor, mask: Tensor, optimizer: Optimizer) -> None:
    memory = [value for value in optimizer.state[weight].values() if value.shape == weight.shape]
    for tensor in (weight, *memory):
        assert tensor[mask].count_nonzero() > 0
        assert tensor[~mask].count_nonzero() == 0


def test_a_step_is_one_native_call_per_group(
    make_optimizer: Callable[..., Optimizer], own_operators_of: Callable[[Callable[[], Any]], list[str]]
) -> None:
    model = masked_network()
    optimizer = make_optimizer([{"params": model[0].parameters()}, {"params": model[3].parameters()}])
    train(model, optimizer)
    assert own_operators_of(optimizer.step) in (["adam_step_"] * 2, ["sgd_step_"] * 2)


def test_the_layers_need_not_look_at_their_weights_again(
    make_optimizer: Callable[..., Optimizer], own_operators_of: Callable[[Callable[[], Any]], list[str]]
) -> None:
    model = masked_network()
    train(model, make_optimizer(model.parameters()))
    assert sorted(own_operators_of(lambda: model(torch.randn(4, 1, 6, 6)))) == ["masked_conv2d", "masked_linear"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1.0])
def test_gradients_at_pruned_places_are_of_no_consequence(
    make_optimizer: Callable[..., Optimizer], value: float
) -> None:
    model = masked_network()
    optimizer = make_optimizer(model.parameters())
    for _ in range(3):
        train(model, optimizer)
        for layer in masked_layers(model).values():
            assert layer.weight.grad is not None
            layer.weight.grad[~layer.mask] = value
        optimizer.step()
        for layer in masked_layers(model).values():
            assert_zero_where_pruned(layer.weight, layer.mask, optimizer)
            assert layer.weight.isfinite().all()


def test_a_weight_in_channels_last_order_is_masked_at_its_places(make_optimizer: Callable[..., Optimizer]) -> None:
    model = nn.Sequential(nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    model.to(memory_format=torch.channels_last)
    set_masks(model, {"0.weight": torch.rand(3, 4, 3, 3) < 0.5})
    layer: Any = model[0]
    optimizer = make_optimizer(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(2, 4, 6, 6)).square().sum().backward()
        layer.weight.grad[~layer.mask] = 1.0
        optimizer.step()
        assert layer.weight.is_contiguous(memory_format=torch.channels_last)
        assert_zero_where_pruned(layer.weight, layer.mask, optimizer)


def test_weights_outside_of_our_layers_have_no_mask(make_optimizer: Callable[..., Optimizer]) -> None:
    model = masked_network()
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer)
    masks = {name: layer.mask for name, layer in masked_layers(model).items()}
    restore(model)
    train(model, optimizer)
    for name, mask in masks.items():
        assert model.get_parameter(name)[~mask].count_nonzero() > 0


def test_a_weight_that_two_masked_layers_share_survives_where_both_keep_it(
    make_optimizer: Callable[..., Optimizer],
) -> None:
    first = MaskedLinear(6, 6, bias=False)
    first.mask = torch.rand(6, 6) < 0.7
    second = MaskedLinear.from_dense(first, torch.rand(6, 6) < 0.7)
    optimizer = make_optimizer(first.parameters())
    for _ in range(3):
        first.weight.grad = torch.ones(6, 6)
        optimizer.step()
    assert_zero_where_pruned(first.weight, first.mask & second.mask, optimizer)


def test_a_weight_that_took_the_place_of_another_is_not_under_the_mask_of_the_old_one(
    make_optimizer: Callable[..., Optimizer],
) -> None:
    layer = MaskedLinear(6, 6, bias=False)
    old = layer.weight
    layer.mask = torch.zeros(6, 6, dtype=torch.bool)
    optimizer = make_optimizer([old])
    old.grad = torch.ones(6, 6)
    optimizer.step()
    assert old.count_nonzero() == 0
    layer.weight = nn.Parameter(torch.ones(6, 6))
    old.grad = torch.ones(6, 6)
    optimizer.step()
    assert old.count_nonzero() == 36


def test_an_optimizer_keeps_no_layer_alive(make_optimizer: Callable[..., Optimizer]) -> None:
    layer = MaskedLinear(6, 6, bias=False)
    weight = layer.weight
    optimizer = make_optimizer([weight])
    weight.grad = torch.ones(6, 6)
    optimizer.step()
    watched = weakref.ref(layer)
    del layer
    gc.collect()
    assert watched() is None
    optimizer.step()
