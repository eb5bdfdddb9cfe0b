"""Pruning models in which modules share a weight: it is counted, ranked and pruned once, in all of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast import prune
from lth_fast.nn import masks, set_masks
from lth_fast.prune import fetch_layers, from_torch_prune, prunable, prune_all, prune_by_score, sparsity

WORDS, FEATURES = 20, 10


def language_model() -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(WORDS, FEATURES), nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, WORDS))
    model[2].weight = model[0].weight
    return model


def two_linear() -> nn.Sequential:
    model = nn.Sequential(*(nn.Linear(FEATURES, FEATURES) for _ in range(4)))
    model[2].weight = model[0].weight
    return model


def survivors(model: nn.Module) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks(model).items()}


def test_a_shared_weight_is_one_of_the_prunable_ones() -> None:
    assert list(prunable(language_model())) == ["1.weight", "2.weight"]
    assert list(prunable(two_linear())) == ["1.weight", "2.weight", "3.weight"]
    model = two_linear()
    assert fetch_layers(model) == [(model[1], "weight"), (model[2], "weight"), (model[3], "weight")]


def test_it_is_one_also_where_one_of_its_masks_is_a_parametrization() -> None:
    class Subclass(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), Subclass(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES))
    model[1].weight = model[0].weight
    set_masks(model, {"0.weight": torch.rand(FEATURES, FEATURES) < 0.5})
    assert list(prunable(model)) == ["1.weight", "2.weight"]
    assert sparsity(model) == 50.0 * (1 - survivors(model)["1.weight"] / FEATURES**2)


def test_prune_all_prunes_it_once_at_the_rate_of_the_output_layer_if_it_is_that() -> None:
    assert survivors(prune_all(language_model(), 0.4)) == {"0.weight": 160, "1.weight": 60, "2.weight": 160}
    assert survivors(prune_all(two_linear(), 0.4)) == {f"{i}.weight": 80 if i == 3 else 60 for i in range(4)}


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_its_mask_is_removed_under_all_of_its_names_whichever_is_given(name: str) -> None:
    model = prune_all(language_model(), 0.4)
    weight, kept = model[0].weight, masks(model)["0.weight"]
    prune.remove(model, name)
    assert list(masks(model)) == ["1.weight"]
    assert model[0].weight is model[2].weight is weight
    assert not weight[~kept].any()


PRUNED_GLOBALLY: dict[str, Callable[[nn.Sequential], object]] = {
    "all names": lambda model: prune.global_unstructured(
        [(layer, "weight") for layer in model], stock.L1Unstructured, amount=100
    ),
    "by score": lambda model: prune_by_score(model, 1 / 3, scope="global"),
    "by score, all names": lambda model: prune_by_score(
        model, {f"{i}.weight": 1 / 3 for i in range(len(model))}, scope="global"
    ),
}


@pytest.mark.parametrize("how", PRUNED_GLOBALLY)
@pytest.mark.parametrize("make", [language_model, two_linear])
def test_one_threshold_counts_it_once(make: Callable[[], nn.Sequential], how: str) -> None:
    model = make()
    weights = {name: value.detach().clone() for name, value in model.named_parameters() if value.dim() > 1}
    assert sum(weight.numel() for weight in weights.values()) == 300
    PRUNED_GLOBALLY[how](model)
    found = masks(model)
    assert sum(int((~found[name]).sum()) for name in weights) == 100
    assert sparsity(model) == pytest.approx(100 / 3)
    highest = max(weights[name][~found[name]].abs().max() for name in weights)
    assert all((weights[name][found[name]].abs() >= highest).all() for name in weights)
    assert torch.equal(found["0.weight"], found["2.weight"])


def test_convolutions_pruned_globally_share_it_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3))
    model[1].weight = model[0].weight
    prune.prune_conv_globally(model, 0.5)
    assert sum(int((~mask).sum()) for name, mask in masks(model).items() if name != "0.weight") == 81
    assert torch.equal(masks(model)["0.weight"], masks(model)["1.weight"])


def test_a_stock_method_masks_every_module_and_is_taken_over_as_one_mask() -> None:
    model = prune_all(language_model(), 0.4, stock.l1_unstructured)
    assert torch.equal(model[0].weight_mask, model[2].weight_mask)
    from_torch_prune(model)
    assert survivors(model) == {"0.weight": 160, "1.weight": 60, "2.weight": 160}


def test_a_weight_that_stock_prunes_in_one_module_is_pruned_in_all_when_taken_over() -> None:
    model = language_model()
    stock.random_unstructured(model[2], "weight", 50)
    from_torch_prune(model)
    assert survivors(model) == {"0.weight": 150, "2.weight": 150}


def mask_differently(model: nn.Sequential) -> dict[str, Tensor]:
    for layer in (model[0], model[2]):
        stock.random_unstructured(layer, "weight", 50)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_two_stock_masks_on_one_weight_are_refused_and_nothing_is_changed() -> None:
    model = two_linear()
    before = mask_differently(model)
    with pytest.raises(ValueError, match=r"expected one mask for a Parameter that modules share, '2' has another one"):
        from_torch_prune(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert masks(model) == {}


def masked_differently(make: Callable[[], nn.Sequential]) -> tuple[nn.Sequential, Tensor]:
    """A model whose layers 0 and 2 were masked apart from each other, and where both masks keep their weight."""
    model = make()
    model[2].weight = nn.Parameter(model[0].weight.detach().clone())
    for layer in (model[0], model[2]):
        prune.random_unstructured(layer, "weight", 0.4)
    both = model[0].mask & model[2].mask
    model[2].weight = model[0].weight
    return model, both


PRUNED_AGAIN: dict[str, Callable[[nn.Sequential], object]] = PRUNED_GLOBALLY | {
    "prune_all": lambda model: prune_all(model, 0.4),
    "prune_all by another method": lambda model: prune_all(model, 0.4, prune.random_unstructured),
    "prune_fc": lambda model: prune.prune_fc(model, 0.4),
}


@pytest.mark.parametrize("how", PRUNED_AGAIN)
@pytest.mark.parametrize("make", [language_model, two_linear])
def test_no_weight_comes_back_that_one_of_several_masks_has_pruned(make: Callable[[], nn.Sequential], how: str) -> None:
    model, both = masked_differently(make)
    PRUNED_AGAIN[how](model)
    found = masks(model)
    assert torch.equal(found["0.weight"], found["2.weight"])
    assert not (found["0.weight"] & ~both).any()
    assert 0 < int(found["0.weight"].sum()) < int(both.sum())


@pytest.mark.parametrize("pruner", [prune.prune_conv, prune.prune_conv_globally])
def test_no_weight_of_a_convolution_comes_back_that_one_of_several_masks_has_pruned(
    pruner: Callable[[nn.Module, float], nn.Module],
) -> None:
    model, both = masked_differently(lambda: nn.Sequential(*(nn.Conv2d(3, 3, 3) for _ in range(3))))
    pruner(model, 0.1)  # less than the places that only one of the masks prunes, whose zeros would go first
    found = masks(model)
    assert torch.equal(found["0.weight"], found["2.weight"])
    assert not (found["0.weight"] & ~both).any()


@pytest.mark.parametrize("make", [language_model, two_linear])
def test_places_that_one_of_several_masks_has_pruned_are_no_survivors_to_count(
    make: Callable[[], nn.Sequential],
) -> None:
    model, both = masked_differently(make)
    total = sum(layer.weight.numel() for layer in prunable(model).values())
    assert sparsity(model) == pytest.approx(100 * int((~both).sum()) / total)
    prune_all(model, 0.5)
    last = 0.25 if make is language_model else 0.5
    assert int(masks(model)["2.weight"].sum()) == int(both.sum()) - round(last * int(both.sum()))


def test_a_mask_on_the_embedding_alone_holds_for_the_output_layer_when_that_is_pruned() -> None:
    model = language_model()
    prune.l1_unstructured(model[0], "weight", 0.5)
    assert sparsity(model) == pytest.approx(100 * 100 / 300)
    before = masks(model)["0.weight"]
    prune_all(model, 0.4)
    assert survivors(model) == {"0.weight": 80, "1.weight": 60, "2.weight": 80}
    assert not (masks(model)["2.weight"] & ~before).any()


# With the fewest and the most weights that it prunes of a mask that keeps the first one and none of the last row.
OF_ONE_LAYER: dict[str, tuple[Callable[[nn.Module], object], int, int]] = {
    "identity": (lambda layer: prune.identity(layer, "weight"), 0, 0),
    "l1_unstructured": (lambda layer: prune.l1_unstructured(layer, "weight", 10), 10, 10),
    "random_unstructured": (lambda layer: prune.random_unstructured(layer, "weight", 10), 10, 10),
    "ln_structured": (lambda layer: prune.ln_structured(layer, "weight", 1, n=2, dim=0), 1, FEATURES),
    "random_structured": (lambda layer: prune.random_structured(layer, "weight", 1, dim=0), 1, FEATURES),
    "custom_from_mask": (
        lambda layer: prune.custom_from_mask(layer, "weight", torch.arange(layer.weight.numel()).view_as(layer.weight)),
        1,
        1,
    ),
    "global_unstructured": (
        lambda layer: prune.global_unstructured([(layer, "weight")], stock.L1Unstructured, amount=10),
        10,
        10,
    ),
}


class Subclass(nn.Linear):
    """Masked through a parametrization."""


def tied_subclass() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.ReLU(), Subclass(FEATURES, FEATURES))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("how", OF_ONE_LAYER)
@pytest.mark.parametrize("make", [language_model, two_linear, tied_subclass])
def test_modules_pruned_one_after_the_other_prune_among_the_survivors_of_its_one_mask(
    make: Callable[[], nn.Sequential], how: str, first: int
) -> None:
    prune_it, fewest, most = OF_ONE_LAYER[how]
    model = make()
    kept = torch.rand_like(model[0].weight) < 0.5
    kept[0, 0], kept[-1] = True, False
    prune.custom_from_mask(model[first], "weight", kept)
    prune_it(model[2 - first])
    found = masks(model)
    assert torch.equal(found["0.weight"], found["2.weight"])
    assert not (found["0.weight"] & ~kept).any()
    assert fewest <= int(kept.sum()) - int(found["0.weight"].sum()) <= most


@pytest.mark.parametrize("name", ["0.weight", "2.weight"])
def test_a_gradient_ranks_it_under_each_of_its_names(name: str) -> None:
    model, inputs = two_linear(), torch.randn(8, FEATURES)
    (gradient,) = torch.autograd.grad(model(inputs).square().mean(), [model[0].weight])
    expected = (gradient * model[0].weight).abs().detach()
    gradients = prune.Gradients(model, lambda outputs, _: outputs.square().mean(), lambda: (inputs, None))
    prune_by_score(model, {name: 0.4}, "snip", gradients=gradients)
    for found in (masks(model)["0.weight"], masks(model)["2.weight"]):
        assert int(found.sum()) == 60
        assert expected[found].min() > expected[~found].max()


def test_two_rates_for_one_weight_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"rates: expected one rate for '0.weight' and '2.weight', which share a weight"
    ):
        prune_by_score(two_linear(), {"0.weight": 0.2, "2.weight": 0.3})
