"""Masks on parameters that are not the weight of a plain Linear or Conv2d: through a parametrization."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lth_fast import prune
from lth_fast.nn import MaskedLinear, dense_state, load_dense_state, masks, restore, set_masks


class Special(nn.Linear):
    """A subclass may do anything with its weight, so it does not become a MaskedLinear."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), Special(5, 3))


PRUNED = {
    "0.weight": torch.rand(5, 6, generator=torch.Generator().manual_seed(1)) < 0.5,
    "0.bias": torch.tensor([True, False, True, True, False]),
    "1.weight": torch.tensor([False, True, True, True, True]),
    "3.weight": torch.rand(3, 5, generator=torch.Generator().manual_seed(2)) < 0.5,
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    generator = torch.Generator().manual_seed(5)
    model(torch.randn(8, 6, generator=generator)).square().sum().backward()
    optimizer.step()


def assert_pruned_places_are_zero(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    plain = dense_state(model)
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for name, mask in masks(model).items():
        assert (plain[name][~mask] == 0).all()
        (parameter,) = [p for p in held if p.data_ptr() == plain[name].data_ptr()]
        for value in (parameter.grad, *optimizer.state[parameter].values()):
            if value.shape == mask.shape:
                assert (value[~mask] == 0).all()


def test_masks_are_read_and_set_by_the_plain_names():
    model = set_masks(network(), PRUNED)
    found = masks(model)
    assert set(found) == set(PRUNED)
    assert all(torch.equal(found[name], mask) for name, mask in PRUNED.items())
    set_masks(model, {"0.bias": ~PRUNED["0.bias"]})
    assert torch.equal(masks(model)["0.bias"], ~PRUNED["0.bias"])


def test_the_layer_with_a_masked_bias_is_a_masked_layer_too():
    assert isinstance(set_masks(network(), PRUNED)[0], MaskedLinear)


def test_a_masked_network_computes_what_one_with_zeros_there_computes():
    zeroed, masked = network(), set_masks(network(), PRUNED)
    with torch.no_grad():
        for name, mask in PRUNED.items():
            zeroed.get_parameter(name).mul_(mask)
    inputs = torch.randn(7, 6, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(masked(inputs), zeroed(inputs), atol=1e-6)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_pruned_values_and_what_the_optimizer_keeps_of_them_stay_zero(kind):
    model = network()
    optimizer = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    for _ in range(3):
        step(model, optimizer)
    set_masks(model, PRUNED)
    for _ in range(3):
        step(model, optimizer)
        assert_pruned_places_are_zero(model, optimizer)
    model, optimizer = copy.deepcopy((model, optimizer))
    set_masks(model, {"0.bias": torch.zeros(5, dtype=torch.bool)})
    step(model, optimizer)
    assert_pruned_places_are_zero(model, optimizer)


def test_the_dense_state_has_the_plain_keys_and_loads_into_the_plain_network():
    model = set_masks(network(), PRUNED)
    plain = network()
    assert set(dense_state(model)) == set(plain.state_dict())
    plain.load_state_dict(dense_state(model))
    for name, mask in PRUNED.items():
        assert (plain.get_parameter(name)[~mask] == 0).all()


def test_the_dense_state_loads_into_a_network_under_masks_which_hold():
    model = set_masks(network(), PRUNED)
    given = {name: torch.ones_like(value) for name, value in dense_state(model).items()}
    load_dense_state(model, given)
    held = dense_state(model)
    assert set(held) == set(given)
    for name, value in held.items():
        assert torch.equal(value, masks(model)[name].to(value) if name in masks(model) else given[name])
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*Unexpected key"):
        load_dense_state(model, {"other": torch.ones(1)})


def test_restoring_gives_the_plain_network_back_with_the_same_parameters():
    model = network()
    before = {id(parameter) for parameter in model.parameters()}
    restore(set_masks(model, PRUNED))
    assert [type(module) for module in model] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, Special]
    assert {id(parameter) for parameter in model.parameters()} == before
    assert not masks(model)
    assert (model[3].weight[~PRUNED["3.weight"]] == 0).all()


@pytest.mark.parametrize("order", [("weight", "bias"), ("bias", "weight")])
@pytest.mark.parametrize("back", [("weight", "bias"), ("bias", "weight")])
def test_restoring_gives_the_parameters_back_in_their_order(order, back):
    """An optimizer's state goes by it."""
    model = nn.Sequential(Special(5, 3), nn.LayerNorm(3))
    expected = [name for name, _ in model.named_parameters()]
    for name in order:
        set_masks(model, {f"0.{name}": torch.rand(model[0].get_parameter(name).shape) < 0.5})
    for name in back:
        prune.remove(model[0], name)
    assert [name for name, _ in model.named_parameters()] == expected


def test_restoring_a_copy_leaves_the_original_masked():
    model = set_masks(network(), PRUNED)
    inputs = torch.randn(8, 6)
    expected = model(inputs)
    copied = restore(copy.deepcopy(model))
    model.load_state_dict(model.state_dict())
    assert set(masks(model)) == set(PRUNED)
    assert torch.equal(model(inputs), expected)
    assert copied[3].weight is not model[3].weight
    restore(model)
    assert [type(module) for module in model] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, Special]


def test_masking_one_more_parameter_of_a_copy_leaves_the_original_as_it_is():
    model = set_masks(network(), {name: mask for name, mask in PRUNED.items() if name != "0.bias"})
    inputs = torch.randn(8, 6)
    expected = model(inputs)
    one_more = {"1.bias": PRUNED["1.weight"], "3.bias": torch.tensor([True, False, True])}
    copied = set_masks(copy.deepcopy(model), one_more)
    assert torch.equal(model(inputs), expected)
    assert set(masks(copied)) == {"0.weight", "1.weight", "1.bias", "3.weight", "3.bias"}
    restore(copied)
    assert torch.equal(model(inputs), expected)


def test_removing_the_mask_of_one_parameter_leaves_the_others():
    model = set_masks(network(), PRUNED)
    prune.remove(model[0], "bias")
    assert set(masks(model)) == set(PRUNED) - {"0.bias"}
    assert isinstance(model[0], MaskedLinear)


def test_the_pruning_functions_take_any_parameter_and_prune_among_survivors():
    model = network()
    prune.l1_unstructured(model[1], "weight", 2)
    prune.random_unstructured(model[1], "weight", 1)
    prune.l1_unstructured(model[3], "weight", 0.2)
    assert int(masks(model)["1.weight"].sum()) == 2
    assert int(masks(model)["3.weight"].sum()) == 12


def test_recurrent_layers_are_refused_for_they_read_around_any_mask():
    recurrent = nn.LSTM(3, 4)
    with pytest.raises(TypeError, match=r"masks\['weight_ih_l0'\]: a LSTM reads its parameters around any mask"):
        set_masks(recurrent, {"weight_ih_l0": torch.ones(16, 3, dtype=torch.bool)})


def test_a_mask_set_in_inference_mode_serves_a_later_training_step():
    layer = nn.Linear(6, 5)
    with torch.inference_mode():
        prune.l1_unstructured(layer, "bias", 2)
    layer(torch.randn(3, 6)).sum().backward()
    assert layer.parametrizations.bias.original.grad.count_nonzero() == 3


def test_a_functional_call_with_a_parameter_of_another_model_leaves_it_alone():
    plain = network()
    model = set_masks(copy.deepcopy(plain), PRUNED)
    before = plain[0].bias.detach().clone()
    given = {"0.parametrizations.bias.original": plain[0].bias}
    out = torch.func.functional_call(model, given, (torch.randn(8, 6),))
    out.square().sum().backward()
    assert torch.equal(plain[0].bias, before)
    assert (plain[0].bias.grad[~PRUNED["0.bias"]] == 0).all() and (plain[0].bias.grad != 0).any()


def test_a_parameter_that_is_replaced_stays_under_its_mask():
    model = network()
    set_masks(model, PRUNED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step(model, optimizer)
    model.load_state_dict({name: torch.ones_like(value) for name, value in model.state_dict().items()}, assign=True)
    plain = dense_state(model)
    for name, mask in PRUNED.items():
        assert torch.equal(plain[name], mask.float())


def assigned_from_the_meta_device(layer: nn.Module) -> None:
    state = layer.state_dict()
    layer.to("meta").load_state_dict(state, assign=True)


def test_memory_without_values_another_type_and_the_meta_device_leave_the_mask_as_a_masked_layer_has_it():
    mask = PRUNED["0.bias"]
    for change in (
        lambda layer: layer.to_empty(device="cpu"),
        lambda layer: layer.type(torch.float64),
        lambda layer: layer.to("meta").to_empty(device="cpu"),
        assigned_from_the_meta_device,
    ):
        layer = nn.Linear(6, 5)
        set_masks(layer, {"bias": mask})
        change(layer)
        assert torch.equal(masks(layer)["bias"], mask)
        layer(torch.randn(2, 6, dtype=layer.weight.dtype))


def test_what_was_written_from_outside_gives_weight_decay_no_momentum_where_pruned():
    model = set_masks(network(), PRUNED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(1.0)
        step(model, optimizer)
        assert_pruned_places_are_zero(model, optimizer)


def test_what_a_state_dict_writes_is_masked_at_once():
    model = set_masks(network(), PRUNED)
    load_dense_state(model, {name: torch.ones_like(value) for name, value in dense_state(model).items()})
    written = model.state_dict()
    for name in ("0.bias", "1.weight", "3.weight"):
        layer, _, parameter = name.partition(".")
        assert torch.equal(written[f"{layer}.parametrizations.{parameter}.original"], PRUNED[name].float())
