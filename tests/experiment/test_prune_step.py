"""A pruning function of the user's own, in the ways people write them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as stock

from lth_fast.experiment.prune_step import PruneStep
from lth_fast.nn import set_masks
from lth_fast.prune import fetch_layers, l1_unstructured, prune_all


def model_and_state(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10))
    return model, model.state_dict()


def everything(model):
    return {f"{name}.weight": torch.ones_like(model.get_submodule(name).weight, dtype=torch.bool) for name in "13"}


def density(masks):
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def with_stock(model):
    for layer, name in fetch_layers(model):
        stock.l1_unstructured(layer, name=name, amount=0.11)


def with_ours(model):
    for layer, name in fetch_layers(model):
        l1_unstructured(layer, name=name, amount=0.11)


def with_stock_at_random(model):
    for layer, name in fetch_layers(model):
        stock.random_unstructured(layer, name=name, amount=0.11)


def with_stock_globally(model):
    stock.global_unstructured(fetch_layers(model), pruning_method=stock.L1Unstructured, amount=0.11)
    return model


def returning_the_model(model):
    return prune_all(model, rate=0.11, prune_method=lambda layer, name, amount: l1_unstructured(layer, name, 0.11))


def prune_repeatedly(prune_net, levels, *, restart=False):
    model, state = model_and_state()
    masks = [everything(model)]
    step = PruneStep(prune_net)
    for level in range(levels):
        step = PruneStep(prune_net) if restart else step
        masks.append(step(model, state, masks[-1], seed=level))
    return masks


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    "prune_net", [with_stock, with_ours, with_stock_at_random, with_stock_globally, returning_the_model]
)
def test_repeated_pruning_prunes_among_the_survivors(prune_net, restart):
    masks = prune_repeatedly(prune_net, 6, restart=restart)
    for level, found in enumerate(masks):
        assert density(found) == pytest.approx(0.89**level, abs=2e-3)
        assert not any((found[name] & ~masks[max(level - 1, 0)][name]).any() for name in found)


def test_stock_and_ours_leave_the_same_masks():
    for one, other in zip(prune_repeatedly(with_stock, 5), prune_repeatedly(with_ours, 5), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("prune_net", [with_stock, with_ours, with_stock_at_random, returning_the_model])
def test_going_on_after_a_restart_gives_the_same_masks(prune_net):
    whole, restarted = prune_repeatedly(prune_net, 5), prune_repeatedly(prune_net, 5, restart=True)
    for one, other in zip(whole, restarted, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_random_pruning_follows_the_seed():
    model, state = model_and_state()
    first, again, other = (PruneStep(with_stock_at_random)(model, state, everything(model), seed) for seed in (1, 1, 2))
    assert torch.equal(first["1.weight"], again["1.weight"])
    assert not torch.equal(first["1.weight"], other["1.weight"])


@pytest.mark.parametrize("prune", [stock.l1_unstructured, l1_unstructured])
def test_the_function_is_called_once_per_level_so_that_it_may_follow_a_schedule(prune):
    amounts = iter([0.5, 0.2, 0.1])

    def following_a_schedule(model):
        amount = next(amounts)
        for layer, name in fetch_layers(model):
            prune(layer, name=name, amount=amount)

    densities = [density(masks) for masks in prune_repeatedly(following_a_schedule, 3)]
    assert densities == pytest.approx([1, 0.5, 0.4, 0.36], abs=2e-3)


def test_what_was_pruned_by_ours_stays_pruned_where_the_function_goes_on_with_stocks():
    model, state = model_and_state()
    turns = iter([with_ours, with_ours, with_stock_at_random])
    step = PruneStep(lambda model: next(turns)(model))
    masks = [everything(model)]
    for seed in range(3):
        masks.append(step(model, state, masks[-1], seed))
    for before, after in itertools.pairwise(masks):
        assert not any((after[name] & ~before[name]).any() for name in before)
        assert density(after) < density(before)


def test_weights_that_come_back_are_said():
    model, state = model_and_state()
    masks = {name: mask.clone() for name, mask in everything(model).items()}
    masks["1.weight"][:, :15] = False
    later = torch.zeros_like(masks["1.weight"])
    later[:, 12:] = True
    step = PruneStep(lambda net: set_masks(net, {"1.weight": later}))
    with pytest.warns(UserWarning, match=r"prune_net: expected masks that prune further, got 60 weights of 1\.weight "):
        found = step(model, state, masks, seed=0)
    assert torch.equal(found["1.weight"], later) and found["3.weight"].all()
    step(model, state, found, seed=0)  # prunes nothing more: no warning, which would be an error


def test_the_function_sees_the_weights_at_the_end_of_the_level():
    model, state = model_and_state()
    trained = {name: value + 1 for name, value in state.items()}
    seen = []

    def looking(model):
        seen.append(model[1].weight.detach().clone())
        return prune_all(model, rate=0.2)

    PruneStep(looking)(model, trained, everything(model), seed=0)
    assert torch.equal(seen[0], trained["1.weight"])


def test_what_stock_prunes_under_any_name_of_a_shared_weight_is_pruned():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    first, second = (torch.rand(6, 6, generator=torch.Generator().manual_seed(seed)) < 0.7 for seed in (1, 2))

    def prune_net(net):
        stock.custom_from_mask(net[0], "weight", first)
        stock.custom_from_mask(net[1], "weight", second)

    masks = PruneStep(prune_net)(model, model.state_dict(), {"1.weight": torch.ones(6, 6, dtype=torch.bool)}, seed=0)
    assert list(masks) == ["1.weight"]
    assert torch.equal(masks["1.weight"], first & second)


def test_a_layer_that_is_not_pruned_keeps_its_mask_and_counts():
    model, state = model_and_state()

    def first_layer_only(model):
        stock.l1_unstructured(model[1], "weight", amount=0.5)

    step = PruneStep(first_layer_only)
    masks = step(model, state, step(model, state, everything(model), 0), 1)
    assert float(masks["1.weight"].float().mean()) == pytest.approx(0.25)
    assert masks["3.weight"].all()


def test_a_survivor_that_is_zero_stays_a_survivor():
    model, state = model_and_state()
    state = {name: torch.zeros_like(value) for name, value in state.items()}
    masks = PruneStep(with_stock)(model, state, everything(model), 0)
    assert density(masks) == pytest.approx(0.89, abs=2e-3)


def test_the_model_it_is_given_is_left_as_it_was():
    model, state = model_and_state()
    PruneStep(with_stock)(model, state, everything(model), 0)
    PruneStep(with_ours)(model, state, everything(model), 0)
    assert [type(layer) for layer in model] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]
    assert not stock.is_pruned(model)


def setting_nothing(model):
    return model


def writing_zeros(model):
    with torch.no_grad():
        model[1].weight[model[1].weight.abs() < 0.1] = 0


def making_it_permanent(model):
    with_stock(model)
    for layer, name in fetch_layers(model):
        stock.remove(layer, name)


@pytest.mark.parametrize("prune_net", [setting_nothing, writing_zeros, making_it_permanent])
def test_a_function_that_sets_no_mask_is_refused(prune_net):
    model, state = model_and_state()
    with pytest.raises(ValueError, match="prune_net set no mask: prune with lth_fast"):
        PruneStep(prune_net)(model, state, everything(model), 0)


def test_a_function_that_returns_something_else_is_refused():
    model, state = model_and_state()
    with pytest.raises(TypeError, match="prune_net: expected it to return the pruned model or None, got int"):
        PruneStep(lambda model: 3)(model, state, everything(model), 0)
