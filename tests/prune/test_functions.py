from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast.nn import MaskedConv2d, MaskedLinear, SparseLinear, masks
from lth_fast.prune import (
    custom_from_mask,
    global_unstructured,
    is_pruned,
    l1_unstructured,
    ln_structured,
    random_structured,
    random_unstructured,
    remove,
)


def distinct(shape: torch.Size) -> Tensor:
    """Random numbers of either sign, no two of the same magnitude."""
    magnitudes = (torch.randperm(shape.numel()) + 1.0).reshape(shape) / shape.numel()
    return magnitudes * torch.where(torch.rand(shape) > 0.5, 1.0, -1.0)


def random_layer() -> nn.Module:
    if torch.rand(()) > 0.5:
        return nn.Linear(*torch.randint(1, 30, (2,)).tolist())
    return nn.Conv2d(*torch.randint(1, 9, (3,)).tolist())


def random_amount(survivors: int) -> float:
    return torch.rand(()).item() if torch.rand(()) > 0.5 else int(torch.randint(0, survivors + 1, ()))


def test_masks_are_those_of_the_stock_function_over_repeated_rounds() -> None:
    for _ in range(200):
        ours: Any = random_layer()
        theirs: Any = copy.deepcopy(ours)
        for _ in range(3):
            amount = random_amount(int(theirs.weight.count_nonzero()))
            weight = distinct(ours.weight.shape)
            for parameter in (ours.weight, getattr(theirs, "weight_orig", theirs.weight)):
                with torch.no_grad():
                    parameter.copy_(weight)
            for hook in theirs._forward_pre_hooks.values():
                hook(theirs, None)  # stock ranks the weight of the last forward
            assert l1_unstructured(ours, "weight", amount) is ours
            stock.l1_unstructured(theirs, "weight", amount)
            assert torch.equal(ours.mask, theirs.weight_mask.bool()), amount
            assert torch.equal(ours.weight, theirs.weight)


@pytest.mark.parametrize(("layer", "twin"), [(nn.Linear(5, 4), MaskedLinear), (nn.Conv2d(2, 3, 3), MaskedConv2d)])
def test_the_layer_becomes_masked_in_place_and_keeps_its_parameter(layer: Any, twin: type) -> None:
    weight = layer.weight
    l1_unstructured(layer, name="weight", amount=0.5)
    assert type(layer) is twin
    assert layer.weight is weight
    assert layer.density == 0.5


def test_the_smallest_magnitudes_go_whatever_their_sign() -> None:
    layer: Any = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-3.0, 0.5, 2.0, -1.0]]))
    l1_unstructured(layer, "weight", 2)
    assert layer.weight.tolist() == [[-3.0, 0.0, 2.0, 0.0]]


def test_a_share_is_one_of_the_survivors_rounded_to_the_nearest_count_and_halves_to_even() -> None:
    layer: Any = nn.Linear(10, 1)
    counts = []
    for amount in (0.25, 0.5, 0.0, 0.25, 1.0):  # of 10: 2.5; of 8: 4; of 4: 0; of 4: 1; of 3: 3
        l1_unstructured(layer, "weight", amount)
        counts.append(layer.survivors)
    assert counts == [8, 4, 4, 3, 0]


def test_a_count_is_taken_as_it_is() -> None:
    layer: Any = nn.Linear(10, 1)
    l1_unstructured(layer, "weight", 1)
    assert layer.survivors == 9
    l1_unstructured(layer, "weight", 9)
    assert layer.survivors == 0


def test_other_scores_can_rank_the_weights() -> None:
    layer: Any = nn.Linear(3, 1)
    l1_unstructured(layer, "weight", 1, importance_scores=torch.tensor([[2.0, 3.0, 1.0]]))
    assert layer.mask.tolist() == [[True, True, False]]


def test_whole_numbers_rank_the_weights_by_their_magnitude() -> None:
    layer: Any = nn.Linear(4, 1)
    l1_unstructured(layer, "weight", 2, importance_scores=torch.tensor([[-7, 3, 2**40, -1]]))
    assert layer.mask.tolist() == [[True, False, True, False]]


def test_random_pruning_draws_what_stock_draws_for_weights_in_double_precision() -> None:
    ours: Any = nn.Linear(30, 20, dtype=torch.float64)
    theirs: Any = copy.deepcopy(ours)
    torch.manual_seed(3)
    random_unstructured(ours, "weight", 0.3)
    torch.manual_seed(3)
    stock.random_unstructured(theirs, "weight", 0.3)
    assert torch.equal(ours.mask, theirs.weight_mask.bool())


@pytest.mark.parametrize("pruned_before", [False, True])
def test_a_given_mask_of_another_shape_is_refused_also_where_it_could_be_broadcast(pruned_before: bool) -> None:
    layer: Any = nn.Linear(4, 3)
    if pruned_before:
        l1_unstructured(layer, "weight", 0.5)
    before = masks(layer)
    with pytest.raises(ValueError, match=r"mask must have the shape of weight \[3, 4\], got \[4\]"):
        custom_from_mask(layer, "weight", torch.tensor([0, 1, 1, 1]))
    assert masks(layer).keys() == before.keys()
    assert all(torch.equal(mask, before[name]) for name, mask in masks(layer).items())


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "share above one": ({"amount": 1.1}, ValueError, r"amount must be a share in \[0, 1\] .*, got 1\.1"),
    "negative share": ({"amount": -0.1}, ValueError, r"amount must be a share in \[0, 1\] .*, got -0\.1"),
    "NaN": ({"amount": float("nan")}, ValueError, "amount must be a share .*, got nan"),
    "more than there are": ({"amount": 13}, ValueError, "amount must be between 0 and the 12 survivors, got 13"),
    "negative count": ({"amount": -1}, ValueError, "amount must be between 0 and the 12 survivors, got -1"),
    "truth": ({"amount": True}, TypeError, "amount must be a share .*, got True"),
    "text": ({"amount": "half"}, TypeError, "amount must be a share .*, got 'half'"),
    "scores of another shape": (
        {"amount": 1, "importance_scores": torch.rand(4, 3)},
        ValueError,
        r"importance_scores must have .*shape \[3, 4\], got \[4, 3\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused_and_change_nothing(case: str) -> None:
    arguments, error, complaint = WRONG[case]
    layer = nn.Linear(4, 3)
    weight = layer.weight.detach().clone()
    with pytest.raises(error, match=complaint):
        l1_unstructured(layer, **{"name": "weight", **arguments})
    assert type(layer) is nn.Linear
    assert torch.equal(layer.weight, weight)


def test_after_a_rewind_pruned_weights_rank_as_zeros_before_any_forward_has_masked_them() -> None:
    layer: Any = nn.Linear(2, 3, bias=False)
    start = {"weight": torch.tensor([[9.0, 1.0], [2.0, 2.0], [3.0, 3.0]])}
    layer.load_state_dict(start)
    custom_from_mask(layer, "weight", torch.tensor([[0, 1], [1, 1], [1, 1]]))
    layer.load_state_dict(start)
    ln_structured(layer, "weight", 1, 2, dim=0)
    assert layer.mask.any(1).tolist() == [False, True, True]


def test_the_weight_of_a_sparse_layer_is_sent_to_convert_and_its_bias_is_pruned() -> None:
    layer = SparseLinear.from_dense(nn.Linear(4, 3), torch.rand(3, 4) > 0.5)
    with pytest.raises(TypeError, match=r'got a SparseLinear; lth_fast\.nn\.convert\(model, form="masked"\)'):
        l1_unstructured(layer, "weight", 0.5)
    l1_unstructured(layer, "bias", 1)
    assert int(masks(layer)["bias"].sum()) == 2


@pytest.mark.parametrize("name", ["bias", "wieght", "in_features", "forward", "places"])
def test_a_parameter_that_is_not_there_is_refused_by_name(name: str) -> None:
    layer = nn.Linear(3, 3, bias=False)
    layer.register_buffer("places", torch.rand(3))
    expected = f"name: this Linear has no parameter '{name}'"
    with pytest.raises(ValueError, match=expected):
        l1_unstructured(layer, name, 0.5)
    with pytest.raises(ValueError, match=expected):
        global_unstructured([(layer, "weight"), (layer, name)], stock.L1Unstructured, amount=0.5)
    assert masks(layer) == {}


@pytest.mark.parametrize(("arguments", "given"), [({}, "none"), ({"amount": 0.5, "rate": 1}, "amount, rate")])
def test_one_threshold_by_magnitude_asks_for_an_amount_and_nothing_else(arguments: Any, given: str) -> None:
    with pytest.raises(TypeError, match=f"expected the argument amount for L1Unstructured, got {given}"):
        global_unstructured([(nn.Linear(3, 3), "weight")], stock.L1Unstructured, **arguments)


def test_one_threshold_needs_parameters_and_a_method_that_prunes_single_weights() -> None:
    with pytest.raises(ValueError, match=r"parameters: expected \(module, name\) pairs, got none"):
        global_unstructured([], stock.L1Unstructured, amount=0.5)
    layer = nn.Linear(3, 3)
    with pytest.raises(TypeError, match="pruning_method: expected one that prunes single weights, got LnStructured"):
        global_unstructured([(layer, "weight")], stock.LnStructured, amount=0.5)
    assert masks(layer) == {}


def test_where_one_of_several_parameters_is_refused_none_is_pruned() -> None:
    linear, recurrent = nn.Linear(3, 3), nn.LSTM(3, 3)
    with pytest.raises(TypeError, match="a LSTM reads its parameters around any mask"):
        global_unstructured([(linear, "weight"), (recurrent, "weight_ih_l0")], stock.L1Unstructured, amount=0.5)
    assert type(linear) is nn.Linear


def test_a_module_and_a_part_of_it_are_pruned_under_one_threshold() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(4) + 9)
            self.linear = nn.Linear(4, 4)

    model = Scaled()
    for _ in range(2):
        pairs = [(model, "scale"), (model.linear, "weight")]
        global_unstructured(pairs, stock.L1Unstructured, amount=0.5)
    assert {name: int(mask.sum()) for name, mask in masks(model).items()} == {"scale": 4, "linear.weight": 1}


@pytest.mark.parametrize("pruned", ["ours", "a bias", "sparse", "stock"])
def test_a_module_is_pruned_where_anything_inside_it_carries_a_mask(pruned: str) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 3)), nn.ReLU())
    assert not is_pruned(model)
    layer = model[0][0]  # type: ignore[index]
    if pruned == "sparse":
        model[0][0] = SparseLinear.from_dense(layer, torch.rand(3, 4) > 0.5)  # type: ignore[index]
    elif pruned == "stock":
        stock.l1_unstructured(layer, "weight", 1)
    else:
        l1_unstructured(layer, "bias" if pruned == "a bias" else "weight", 1)
    assert is_pruned(model)
    assert is_pruned(model[0])
    assert not is_pruned(model[1])


def test_the_bias_of_a_masked_layer_is_ranked_by_its_own_values() -> None:
    layer: Any = nn.Linear(2, 3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([2.0, -1.0, 3.0]))
    l1_unstructured(layer, "weight", 3)
    l1_unstructured(layer, "bias", 1)
    assert masks(layer)["bias"].tolist() == [True, False, True]


def test_a_parameter_that_is_not_pruned_has_no_mask_to_remove() -> None:
    layer = nn.Linear(4, 3)
    l1_unstructured(layer, "weight", 1)
    with pytest.raises(ValueError, match="name: parameter 'bias' of this MaskedLinear is not pruned"):
        remove(layer, "bias")
    assert list(masks(layer)) == ["weight"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_diverged_weight_is_refused_by_name(value: float) -> None:
    layers = nn.Linear(4, 3), nn.Linear(4, 3)
    nn.init.constant_(layers[1].weight, value)
    with pytest.raises(ValueError, match=r"^name: 'weight' of this Linear is NaN or infinite at a survivor"):
        l1_unstructured(layers[1], "weight", 1)
    with pytest.raises(ValueError, match=r"^name: 'weight' of this Linear has a channel whose norm is NaN"):
        ln_structured(layers[1], "weight", 1, 2, dim=0)
    with pytest.raises(ValueError, match=r"^parameters\[1\]: 'weight' of this Linear is NaN or infinite at a survivor"):
        global_unstructured([(layer, "weight") for layer in layers], stock.L1Unstructured, amount=1)
    assert not any(map(masks, layers))


def test_importance_scores_of_nan_are_refused_by_name() -> None:
    layers, scores = (nn.Linear(4, 3), nn.Linear(4, 3)), torch.full((3, 4), torch.nan)
    with pytest.raises(ValueError, match=r"^importance_scores is NaN or infinite at a survivor"):
        l1_unstructured(layers[0], "weight", 1, importance_scores=scores)
    with pytest.raises(ValueError, match=r"^importance_scores has a channel whose norm is NaN or infinite"):
        ln_structured(layers[0], "weight", 1, 2, dim=0, importance_scores=scores)
    pairs = [(layer, "weight") for layer in layers]
    with pytest.raises(ValueError, match=r"^importance_scores\['weight'\] of parameters\[1\] is NaN or infinite"):
        global_unstructured(pairs, stock.L1Unstructured, {pairs[1]: scores}, amount=1)
    assert not any(map(masks, layers))


def test_a_layer_that_carries_stock_hooks_is_refused() -> None:
    layer = nn.Linear(4, 3)
    stock.l1_unstructured(layer, "weight", 1)
    with pytest.raises(ValueError, match=r"module: this Linear is pruned by torch\.nn\.utils\.prune"):
        l1_unstructured(layer, "weight", 1)


@pytest.mark.parametrize(
    "prune",
    [
        lambda layer: l1_unstructured(layer, "weight", 0.5),
        lambda layer: random_unstructured(layer, "weight", 0.5),
        lambda layer: ln_structured(layer, "weight", 0.5, 2, 0),
        lambda layer: random_structured(layer, "weight", 0.5, 0),
        lambda layer: global_unstructured([(layer, "weight")], stock.RandomUnstructured, amount=0.5),
    ],
    ids=["l1", "random", "ln", "random structured", "global"],
)
def test_a_parameter_on_the_meta_device_or_of_a_lazy_layer_is_refused_by_name(prune: Any) -> None:
    layer = nn.Linear(4, 3, device="meta")
    with pytest.raises(ValueError, match="name: expected a parameter with values, got 'weight' on the meta device"):
        prune(layer)
    assert type(layer) is nn.Linear
    lazy = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="name: expected a parameter with a shape, got 'weight' of a lazy layer"):
        prune(lazy)
