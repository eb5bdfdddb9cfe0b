"""After every step, pruned weights, their gradients and all that an optimizer remembers of them are exactly 0."""

from __future__ import annotations

import copy
import io
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from lth_fast import optim
from lth_fast.nn import convert, masked_layers, masks, restore, set_masks
from lth_fast.optim import apply_masks

NAMES = ("0.weight", "3.weight")
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": partial(SGD, lr=0.1),
    "SGD, momentum": partial(SGD, lr=0.1, momentum=0.9, dampening=0.1),
    "SGD, Nesterov, weight decay": partial(SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "SGD, fused": partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-2, fused=True),
    "SGD, foreach": partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-2, foreach=True),
    "Adam": partial(Adam, lr=1e-2, foreach=False),
    "Adam, weight decay, AMSGrad": partial(Adam, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "Adam, fused": partial(Adam, lr=1e-2, fused=True),
    "Adam, foreach": partial(Adam, lr=1e-2, foreach=True),
    "AdamW": partial(AdamW, lr=1e-2, weight_decay=1e-1, foreach=False),
    "AdamW, fused": partial(AdamW, lr=1e-2, weight_decay=1e-1, fused=True),
    "AdamW, foreach": partial(AdamW, lr=1e-2, weight_decay=1e-1, foreach=True),
    "RMSprop": partial(RMSprop, lr=1e-2, momentum=0.9, centered=True),
    "Adagrad": partial(Adagrad, lr=1e-2),
    "Adagrad, initial value": partial(Adagrad, lr=1e-2, initial_accumulator_value=0.1),
    "our SGD": partial(optim.SGD, lr=0.1, weight_decay=1e-2),
    "our SGD, Nesterov": partial(optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "our Adam": partial(optim.Adam, lr=1e-2),
    "our Adam, weight decay, AMSGrad": partial(optim.Adam, lr=1e-2, weight_decay=1e-2, amsgrad=True),
    "our AdamW": partial(optim.AdamW, lr=1e-2, weight_decay=1e-1),
}


@pytest.fixture(params=OPTIMIZERS)
def make_optimizer(request: pytest.FixtureRequest) -> Callable[..., Optimizer]:
    return OPTIMIZERS[request.param]


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 4 * 4, 5))


def random_masks(model: nn.Module, density: float = 0.5) -> dict[str, Tensor]:
    return {name: torch.rand(model.get_parameter(name).shape) < density for name in NAMES}


def train(model: nn.Module, optimizer: Optimizer, steps: int = 1) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 1, 6, 6)).square().sum().backward()
        optimizer.step()


def memory_of(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """Momentum, moments and whatever else there is one of per weight."""
    return [value for value in optimizer.state[parameter].values() if value.shape == parameter.shape]


def assert_pruned_places_are_zero(model: nn.Module, *optimizers: Optimizer) -> None:
    for layer in masked_layers(model).values():
        pruned = ~layer.mask
        assert pruned.any()
        kept = [layer.weight, *(value for optimizer in optimizers for value in memory_of(optimizer, layer.weight))]
        if layer.weight.grad is not None:
            kept.append(layer.weight.grad)
        for tensor in kept:
            assert tensor[pruned].count_nonzero() == 0


def assert_pruned_places_stay_zero(model: nn.Module, optimizer: Optimizer, steps: int = 4) -> None:
    for _ in range(steps):
        train(model, optimizer)
        assert_pruned_places_are_zero(model, optimizer)


def test_of_a_model_that_was_masked_before_its_optimizer_was_made(make_optimizer: Callable[..., Optimizer]) -> None:
    model = network()
    set_masks(model, random_masks(model))
    optimizer = make_optimizer(model.parameters())
    assert_pruned_places_stay_zero(model, optimizer)


def test_of_a_mask_that_is_set_while_the_optimizer_is_at_work(make_optimizer: Callable[..., Optimizer]) -> None:
    model = network()
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer, steps=3)
    set_masks(model, random_masks(model))
    assert_pruned_places_stay_zero(model, optimizer)


def test_of_a_mask_that_shrinks_again_and_again(make_optimizer: Callable[..., Optimizer]) -> None:
    model = network()
    optimizer = make_optimizer(model.parameters())
    for _ in range(3):
        before = masks(model)
        chosen = random_masks(model, 0.7)
        set_masks(model, {name: mask & before.get(name, mask) for name, mask in chosen.items()})
        assert_pruned_places_stay_zero(model, optimizer, steps=2)


def test_of_a_model_and_an_optimizer_that_were_copied_together(make_optimizer: Callable[..., Optimizer]) -> None:
    model = network()
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer, steps=2)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    set_masks(twin, random_masks(twin))
    assert_pruned_places_stay_zero(twin, twin_optimizer)
    train(model, optimizer)
    assert all(parameter.count_nonzero() == parameter.numel() for parameter in model.parameters())


def test_of_a_copy_that_is_made_between_the_mask_and_the_next_step(make_optimizer: Callable[..., Optimizer]) -> None:
    model = network()
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer, steps=2)
    set_masks(model, random_masks(model))
    for twin, twin_optimizer in (copy.deepcopy((model, optimizer)), (model, optimizer)):
        assert_pruned_places_stay_zero(twin, twin_optimizer, steps=2)


def test_of_a_model_and_an_optimizer_that_come_from_a_file(make_optimizer: Callable[..., Optimizer]) -> None:
    model = network()
    optimizer = make_optimizer(model.parameters())
    train(model, optimizer, steps=2)
    set_masks(model, random_masks(model))
    torch.save((model, optimizer), file := io.BytesIO())
    loaded, loaded_optimizer = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert_pruned_places_stay_zero(loaded, loaded_optimizer, steps=2)


def test_survivors_train_as_under_the_stock_pruning_functions(make_optimizer: Callable[..., Optimizer]) -> None:
    model = network()
    theirs, chosen = copy.deepcopy(model), random_masks(model)
    set_masks(model, chosen)
    for name, mask in chosen.items():
        stock.custom_from_mask(theirs.get_submodule(name[0]), "weight", mask)
    optimizers = make_optimizer(model.parameters()), make_optimizer(theirs.parameters())
    for _ in range(3):
        inputs = torch.randn(4, 1, 6, 6)
        for module, optimizer in zip((model, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            module(inputs).square().sum().backward()
            optimizer.step()
    for name, mask in chosen.items():
        found, expected = model.get_parameter(name)[mask], theirs.get_parameter(f"{name}_orig")[mask]
        assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_of_a_gradient_that_was_there_before_the_mask() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(4, 1, 6, 6)).square().sum().backward()
    set_masks(model, random_masks(model))
    optimizer.step()
    assert_pruned_places_are_zero(model, optimizer)


def test_of_a_weight_that_two_optimizers_hold() -> None:
    model = network()
    first, second = (Adam(model.parameters(), lr=1e-2) for _ in range(2))
    for optimizer in (first, second):
        train(model, optimizer, steps=2)
    set_masks(model, random_masks(model))
    for optimizer in (first, second, first, second):
        train(model, optimizer)
        assert_pruned_places_are_zero(model, optimizer)
    assert_pruned_places_are_zero(model, first, second)


def test_of_layers_that_are_held_by_an_optimizer_each() -> None:
    model = network()
    optimizers = [SGD(model[index].parameters(), lr=0.1, momentum=0.9) for index in (0, 3)]
    for _ in range(2):
        model(torch.randn(4, 1, 6, 6)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    set_masks(model, random_masks(model))
    for optimizer in optimizers:  # the other one's step must not use up the news
        optimizer.step()
    for layer, optimizer in zip(masked_layers(model).values(), optimizers, strict=True):
        assert_pruned_places_are_zero(layer, optimizer)


def test_of_a_layer_in_a_parameter_group_that_is_added_later() -> None:
    model = network()
    optimizer = Adam(model[0].parameters(), lr=1e-2)
    train(model, optimizer)
    set_masks(model, random_masks(model))
    train(model, optimizer)
    optimizer.add_param_group({"params": model[3].parameters(), "lr": 1e-1})
    assert_pruned_places_stay_zero(model, optimizer)


def test_of_a_step_with_a_closure() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer)
    set_masks(model, random_masks(model))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(4, 1, 6, 6)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_pruned_places_are_zero(model, optimizer)


def test_a_loaded_optimizer_state_is_masked_on_request() -> None:
    model = network()
    optimizer = Adam(model.parameters(), lr=1e-2)
    train(model, optimizer, steps=2)
    dense_state = copy.deepcopy(optimizer.state_dict())
    set_masks(model, random_masks(model))
    train(model, optimizer)
    optimizer.load_state_dict(dense_state)
    for layer in masked_layers(model).values():
        nn.init.normal_(layer.weight)
        layer.weight.grad = torch.randn_like(layer.weight)
    apply_masks(optimizer)
    assert_pruned_places_are_zero(model, optimizer)
    assert_pruned_places_stay_zero(model, optimizer, steps=2)


def test_applying_masks_leaves_all_else_alone() -> None:
    model, other = network(), network()
    optimizer, other_optimizer = Adam(model.parameters(), lr=1e-2), Adam(other.parameters(), lr=1e-2)
    for module, its_optimizer in ((model, optimizer), (other, other_optimizer)):
        set_masks(module, random_masks(module))
        train(module, its_optimizer)
    weight: Any = model[0].weight
    optimizer.state[weight]["codes"] = torch.ones(weight.shape, dtype=torch.uint8)
    optimizer.state[weight]["rows"] = torch.ones(weight.shape[0])
    nn.init.normal_(other[0].weight)
    before = copy.deepcopy((optimizer.state_dict(), model.state_dict(), other.state_dict()))
    apply_masks(optimizer)
    after = optimizer.state_dict(), model.state_dict(), other.state_dict()
    torch.testing.assert_close(after, before, rtol=0.0, atol=0.0)


def test_a_step_masks_each_weight_once_and_the_forward_need_not(
    own_operators_of: Callable[[Callable[[], Any]], list[str]],
) -> None:
    model, plain = network(), network()
    optimizer, plain_optimizer = Adam(model.parameters(), lr=1e-2), Adam(plain.parameters(), lr=1e-2)
    set_masks(model, random_masks(model))
    train(model, optimizer)
    train(plain, plain_optimizer)
    assert own_operators_of(plain_optimizer.step) == []
    assert own_operators_of(optimizer.step) == ["masked_apply_"] * len(NAMES)
    assert own_operators_of(lambda: model(torch.randn(4, 1, 6, 6))) == ["masked_conv2d", "masked_linear"]
    set_masks(model, random_masks(model))
    assert own_operators_of(plain_optimizer.step) == []
    assert len(own_operators_of(optimizer.step)) > len(NAMES)
    assert own_operators_of(optimizer.step) == ["masked_apply_"] * len(NAMES)


def test_the_memory_of_an_unmasked_model_is_not_touched() -> None:
    plain, masked = network(), network()
    optimizer = Adam(plain.parameters(), lr=1e-2)
    train(plain, optimizer)
    optimizer.zero_grad()  # so that the step itself changes nothing
    state = [value for parameter in plain.parameters() for value in optimizer.state[parameter].values()]
    versions = [value._version for value in state]
    set_masks(masked, random_masks(masked))
    optimizer.step()
    assert [value._version for value in state] == versions


def test_an_optimizer_outlives_the_masks_of_its_model() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.1)
    chosen = random_masks(model)
    set_masks(model, chosen)
    restore(model)
    train(model, optimizer)
    apply_masks(optimizer)
    for name, mask in chosen.items():
        assert model.get_parameter(name)[~mask].count_nonzero() > 0


@pytest.mark.parametrize("kind", ["Muon", "LBFGS", "with noise"])
def test_of_optimizers_that_do_not_map_zeros_to_zeros(kind: str) -> None:
    class WithNoise(SGD):
        def step(self, closure: Any = None) -> Any:
            loss = super().step(closure)
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.add_(torch.randn_like(parameter), alpha=0.01)
            return loss

    class Subclass(nn.Linear):
        """Masked through a parametrization."""

    model = nn.Sequential(nn.Linear(12, 8, bias=False), nn.Tanh(), Subclass(8, 6, bias=False))
    makers = {
        "Muon": lambda weights: torch.optim.Muon(weights, lr=0.1),
        "LBFGS": lambda weights: torch.optim.LBFGS(weights, lr=0.1, line_search_fn="strong_wolfe"),
        "with noise": partial(WithNoise, lr=0.1),
    }
    optimizer = makers[kind](list(model.parameters()))
    inputs = torch.randn(4, 12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (model(inputs) - 1).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    set_masks(model, {name: torch.rand(weight.shape) < 0.5 for name, weight in model.named_parameters()})
    for _ in range(4):
        optimizer.step(closure)
        for weight, mask in zip(model.parameters(), masks(model).values(), strict=True):
            assert not weight[~mask].any()


def test_of_a_parameter_group_that_is_added_later_to_one_that_does_not_map_zeros_to_zeros() -> None:
    model = nn.Sequential(nn.Linear(12, 8, bias=False), nn.Linear(8, 6, bias=False))
    set_masks(model, {name: torch.rand(weight.shape) < 0.5 for name, weight in model.named_parameters()})
    optimizer = torch.optim.Muon(list(model[0].parameters()), lr=0.1)
    for later in ([], list(model[1].parameters())):
        if later:
            optimizer.add_param_group({"params": later})
        model(torch.randn(4, 12)).square().sum().backward()
        optimizer.step()
        for weight, mask in zip(model.parameters(), masks(model).values(), strict=True):
            assert not weight[~mask].any()


def test_of_a_weight_that_the_loss_reads_around_its_layer_in_a_step_with_a_closure() -> None:
    model: Any = nn.Sequential(nn.Linear(6, 5))
    start = torch.randn(5, 6)
    set_masks(model, {"0.weight": torch.rand(5, 6) < 0.5})
    model[0].read_directly = True
    model[0].mask = model[0].mask
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.randn(4, 6)).square().sum() + (model[0].weight - start).square().sum()
        loss.backward()
        return loss

    for given in ((closure,), ()):
        for _ in range(2):
            loss = optimizer.step(*given) if given else optimizer.step(closure=closure)
            assert loss > 0
            pruned = ~model[0].mask
            for values in (model[0].weight, model[0].weight.grad, optimizer.state[model[0].weight]["momentum_buffer"]):
                assert not values[pruned].any()


@pytest.mark.parametrize("kind", [SGD, Adam, optim.SGD])
def test_a_weight_may_be_read_before_the_forward_of_its_layer(kind: type[Optimizer]) -> None:
    model = network()
    set_masks(model, random_masks(model))
    optimizer = kind(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        penalty = sum(weight.square().sum() for weight in model.parameters())
        (model(torch.randn(4, 1, 6, 6)).square().sum() + 0.1 * penalty).backward()
        optimizer.step()
    assert_pruned_places_are_zero(model, optimizer)


def test_an_optimizer_of_parameters_that_convert_replaced_says_so_once() -> None:
    model = network()
    set_masks(model, random_masks(model))
    optimizer = SGD(model.parameters(), lr=0.1)
    train(model, optimizer)
    convert(model, form="sparse")
    model(torch.randn(2, 1, 6, 6)).sum().backward()
    with pytest.warns(UserWarning, match="SGD steps 2 of its 4 parameters in vain"):
        optimizer.step()
    optimizer.step()
    new = SGD(model.parameters(), lr=0.1)
    train(model, new)
    restore(model)
    with pytest.warns(UserWarning, match="SGD steps 2 of its 4 parameters in vain"):
        new.step()


def test_threads_may_train_and_prune_models_of_their_own_at_a_time() -> None:
    errors: list[BaseException] = []
    stop = threading.Event()

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        try:
            while not stop.is_set():
                model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(20)])
                set_masks(model, {f"{i}.weight": torch.rand(4, 4, generator=generator) < 0.5 for i in range(20)})
                optimizer = SGD(model.parameters(), lr=0.1)
                model(torch.ones(2, 4)).sum().backward()
                optimizer.step()
        except BaseException as error:
            errors.append(error)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    try:
        for thread in threads:
            thread.start()
        time.sleep(1.5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(switch)
    assert errors == []
