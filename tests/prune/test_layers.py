from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as stock

from lth_fast.nn import MaskedConv2d, MaskedLinear, SparseConv2d, SparseLinear, convert, set_masks
from lth_fast.prune import fetch_layers, prunable, sparsity


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2),
        nn.Flatten(),
        nn.Sequential(nn.Linear(32, 5), nn.LayerNorm(5)),
        nn.Linear(5, 3),
    )


def test_the_weights_of_linear_and_convolution_layers_are_prunable_and_nothing_else() -> None:
    model = network()
    assert prunable(model) == {"0.weight": model[0], "3.0.weight": model[3][0], "4.weight": model[4]}


def test_masked_and_stock_pruned_layers_are_prunable_too() -> None:
    model = nn.Sequential(MaskedConv2d(1, 2, 3), MaskedLinear(4, 3), stock.identity(nn.Linear(3, 2), "weight"))
    assert list(prunable(model)) == ["0.weight", "1.weight", "2.weight"]


def test_sparse_layers_are_prunable_too_and_their_pattern_is_sparsity() -> None:
    model = network()
    keep = {name: torch.rand(layer.weight.shape) < 0.3 for name, layer in prunable(model).items()}
    convert(set_masks(model, keep), form="sparse")
    assert [type(layer) for layer in prunable(model).values()] == [SparseConv2d, SparseLinear, SparseLinear]
    assert fetch_layers(model) == [(model[0], "weight"), (model[3][0], "weight"), (model[4], "weight")]
    survivors = sum(int(mask.sum()) for mask in keep.values())
    assert sparsity(model) == 100.0 * (1 - survivors / (18 + 160 + 15))


def test_a_layer_alone_has_a_parameter_called_weight() -> None:
    layer = nn.Linear(2, 2)
    assert prunable(layer) == {"weight": layer}
    assert prunable(nn.BatchNorm1d(2)) == {}


def test_layers_are_fetched_as_pairs_with_the_output_layer_last() -> None:
    model = network()
    assert fetch_layers(model) == [(model[0], "weight"), (model[3][0], "weight"), (model[4], "weight")]


def test_biases_are_fetched_behind_their_weights_where_there_are_any() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.BatchNorm1d(3), nn.Linear(3, 2))
    assert fetch_layers(model, bias=True) == [(model[0], "weight"), (model[2], "weight"), (model[2], "bias")]
    assert fetch_layers(model[2], bias=True) == [(model[2], "weight"), (model[2], "bias")]


def test_fetched_pairs_are_what_the_stock_functions_take() -> None:
    model = network()
    stock.global_unstructured(fetch_layers(model), stock.L1Unstructured, amount=97)
    assert sparsity(model) == 100.0 * 97 / (18 + 160 + 15)


def test_sparsity_is_the_percentage_of_prunable_weights_that_masks_remove() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 4))
    assert sparsity(model) == 0.0
    mask = torch.ones(5, 4, dtype=torch.bool)
    mask[0] = False
    set_masks(model, {"0.weight": mask})
    assert sparsity(model) == 10.0
    set_masks(model, {"2.weight": torch.zeros(4, 5, dtype=torch.bool)})
    assert sparsity(model) == 60.0


def test_weights_that_are_zero_by_chance_are_not_sparsity() -> None:
    model = network()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    assert sparsity(model) == 0.0
    set_masks(model, {"4.weight": torch.ones(3, 5, dtype=torch.bool)})
    assert sparsity(model) == 0.0


def test_stock_masks_are_sparsity() -> None:
    model = nn.Sequential(nn.Linear(4, 5))
    stock.random_unstructured(model[0], "weight", 7)
    assert sparsity(model) == 35.0


def test_a_model_without_prunable_weights_is_not_sparse() -> None:
    assert sparsity(nn.BatchNorm1d(3)) == 0.0


def test_masks_without_values_and_weights_without_a_shape_have_no_sparsity() -> None:
    for form in ("masked", "sparse"):
        model = nn.Sequential(nn.Linear(4, 4))
        convert(model, {"0.weight": torch.eye(4) > 0}, form)
        with pytest.raises(ValueError, match=r"model: expected masks with values, got that of '0\.weight' on the meta"):
            sparsity(model.to("meta"))
        assert sparsity(nn.Sequential(nn.Linear(4, 4, device="meta"))) == 0
    with pytest.raises(ValueError, match=r"model: expected weights with a shape, got '1\.weight' of a lazy layer"):
        sparsity(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4)))
