from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import prune as stock

from lth_fast import models
from lth_fast.nn import MaskedLayer, SparseLayer, convert, dense_state, masks, sparse_layers
from lth_fast.prune import (
    from_torch_prune,
    global_unstructured,
    prune_all,
    prune_by_score,
    prune_conv,
    prune_conv_globally,
    prune_fc,
    random_unstructured,
    sparsity,
)

# Frankle & Carbin 2019 (arXiv 1803.03635), LeNet-300-100: percent of the weights that remain, by level.
PAPER = {0: "100.0", 3: "51.3", 7: "21.1", 9: "13.5", 12: "7.0", 15: "3.6", 18: "1.9", 26: "0.33"}


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 5, 2), nn.Flatten(), nn.Linear(20, 10), nn.BatchNorm1d(10), nn.Linear(10, 4))


def survivors(model: nn.Module) -> list[int]:
    return [int(mask.sum()) for mask in masks(model).values()]


def test_every_layer_is_pruned_by_the_rate_and_the_output_layer_by_half_of_it() -> None:
    model = network()
    assert prune_all(model, 0.2) is model
    assert survivors(model) == [16, 160, 36]
    prune_all(model, 0.5)
    assert survivors(model) == [8, 80, 27]
    assert sparsity(model) == pytest.approx(100 * (1 - (8 + 80 + 27) / 260))


def test_linear_layers_alone_are_pruned_by_the_rate_and_the_last_of_them_by_half_of_it() -> None:
    model = network()
    assert prune_fc(model, 0.2) is model
    assert {name: int(mask.sum()) for name, mask in masks(model).items()} == {"2.weight": 160, "4.weight": 36}
    assert survivors(prune_fc(nn.Sequential(nn.Linear(5, 4), nn.Conv2d(1, 2, 3)), 0.5)) == [15]
    with pytest.raises(ValueError, match=r"model: Conv2d has no nn\.Linear to prune"):
        prune_fc(nn.Conv2d(1, 2, 3), 0.2)


def test_convolutions_alone_are_pruned_by_the_rate_and_the_last_of_them_is_no_output_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 5, 2), nn.Conv2d(5, 10, 2), nn.Flatten(), nn.Linear(20, 10))
    assert prune_conv(model, 0.2) is model
    assert {name: int(mask.sum()) for name, mask in masks(model).items()} == {"0.weight": 16, "1.weight": 160}
    with pytest.raises(ValueError, match=r"model: Linear has no nn\.Conv2d to prune"):
        prune_conv(nn.Linear(5, 4), 0.2)


PRUNERS: dict[str, Any] = {
    "prune_all": lambda model: prune_all(model, 0.2),
    "prune_all by another method": lambda model: prune_all(model, 0.2, random_unstructured),
    "prune_fc": lambda model: prune_fc(model, 0.2),
    "prune_conv": lambda model: prune_conv(model, 0.2),
    "prune_conv_globally": lambda model: prune_conv_globally(model, 0.2),
    "prune_by_score": lambda model: prune_by_score(model, 0.2, scope="global"),
    "global_unstructured": lambda model: global_unstructured(
        [(model[i], "weight") for i in (0, 2, 4)], stock.L1Unstructured, amount=0.2
    ),
}


@pytest.mark.parametrize("forms", ["all sparse", "output layer sparse"])
@pytest.mark.parametrize("pruner", PRUNERS)
def test_sparse_layers_are_pruned_as_masked_ones_are_and_become_such(pruner: str, forms: str) -> None:
    masked = prune_all(network(), 0.5)
    sparse = network()
    sparse.load_state_dict(masked.state_dict())
    form = "sparse" if forms == "all sparse" else {"4.weight": "sparse"}
    convert(sparse, masks(masked), form=form)
    before = sparsity(masked)
    assert len(sparse_layers(sparse)) == (3 if forms == "all sparse" else 1)
    for model in (masked, sparse):
        torch.manual_seed(0)
        PRUNERS[pruner](model)
    assert all(isinstance(sparse[i], MaskedLayer) for i in (0, 2, 4))
    assert sparsity(sparse) == sparsity(masked) > before
    for name, mask in masks(masked).items():
        assert torch.equal(masks(sparse)[name], mask)
        assert torch.equal(sparse.get_parameter(name), masked.get_parameter(name))


def test_a_sparse_layer_that_cannot_be_pruned_further_is_left_sparse_with_its_parameter() -> None:
    model = convert(prune_all(network(), 0.5), form="sparse")
    values = model[2].values
    with torch.no_grad():
        model[4].values[3] = torch.nan
    for prune in (PRUNERS["prune_all"], PRUNERS["prune_by_score"], PRUNERS["global_unstructured"]):
        with pytest.raises(ValueError, match="NaN or infin"):
            prune(model)
        assert all(isinstance(model[i], SparseLayer) for i in (0, 2, 4))
        assert model[2].values is values


def test_a_layer_that_cannot_be_pruned_is_named_and_no_other_is_pruned() -> None:
    model = network()
    with torch.no_grad():
        model[4].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"magnitude of '4\.weight' is NaN or infinite at a survivor"):
        prune_all(model, 0.2)
    assert masks(model) == {}
    model = network()
    nn.utils.parametrizations.weight_norm(model[4])
    with pytest.raises(TypeError, match=r"'4\.weight'"):
        prune_all(model, 0.2)
    assert masks(model) == {}


def test_a_weight_shared_with_an_embedding_of_sparse_gradients_is_refused_and_nothing_is_pruned() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4), nn.Linear(4, 5))
    model[2].weight = model[0].weight
    with pytest.raises(TypeError, match="expected an Embedding with sparse=False"):
        prune_all(model, 0.2)
    assert masks(model) == {}


def test_each_layer_loses_its_own_smallest_weights() -> None:
    model = network()
    for scale, index in ((1.0, 0), (1000.0, 2), (1e-3, 4)):
        with torch.no_grad():
            model[index].weight.mul_(scale)
    weights = {name: model.get_parameter(name).detach().abs().clone() for name in ("0.weight", "2.weight", "4.weight")}
    prune_all(model, 0.2)
    for name, mask in masks(model).items():
        assert weights[name][~mask].max() <= weights[name][mask].min()


def test_biases_and_normalisation_layers_stay_as_they_are() -> None:
    model = network()
    others = {name: value.clone() for name, value in model.state_dict().items() if name not in masks(network())}
    prune_all(model, 1.0)
    for name, value in others.items():
        if name not in masks(model):
            assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("rate", [0, 0.0, 1, 1.0])
def test_the_ends_of_the_range_of_rates_are_shares_too(rate: float) -> None:
    model = network()
    prune_all(model, rate)
    assert survivors(model) == ([20, 200, 40] if rate == 0 else [0, 0, 20])


def test_lenet_has_the_densities_of_the_paper_at_every_level() -> None:
    model = models.build("lenet")
    layers = [784 * 300, 300 * 100, 100 * 10]
    total = sum(layers)
    for level in range(27):
        if level > 0:
            prune_all(model, 0.2)
            layers = [size - round(size * rate) for size, rate in zip(layers, (0.2, 0.2, 0.1), strict=True)]
            assert survivors(model) == layers
        density = 100 - sparsity(model)
        assert density == pytest.approx(100 * sum(layers) / total)
        if level in PAPER:
            decimals = len(PAPER[level].partition(".")[2])
            assert f"{density:.{decimals}f}" == PAPER[level], level


def test_another_method_is_called_as_the_stock_functions_are() -> None:
    calls: list[tuple[Any, str, float]] = []
    model = network()
    prune_all(model, 0.2, lambda layer, name, amount: calls.append((layer, name, amount)))
    assert calls == [(model[0], "weight", 0.2), (model[2], "weight", 0.2), (model[4], "weight", 0.1)]


def test_the_stock_functions_are_such_methods() -> None:
    model = network()
    prune_all(model, 0.2, stock.random_unstructured)
    assert sparsity(model) == pytest.approx(100 * (4 + 40 + 4) / 260)


@pytest.mark.parametrize(
    "method",
    [stock.l1_unstructured, stock.random_unstructured, lambda *args, **named: stock.l1_unstructured(*args, **named)],
    ids=["l1", "random", "of one's own"],
)
@pytest.mark.parametrize("kind", [nn.Linear, NonDynamicallyQuantizableLinear], ids=["linear", "of a subclass"])
def test_a_stock_function_prunes_among_the_survivors_of_our_masks(method: Any, kind: type[nn.Linear]) -> None:
    model, expected = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), kind(8, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in "12")
    expected.load_state_dict(dense_state(prune_all(model, 0.5)))
    for name, mask in masks(model).items():
        stock.custom_from_mask(expected[int(name[0])], "weight", mask)
    before = sparsity(model)
    for each in (model, expected):
        torch.manual_seed(1)
        prune_all(each, 0.4, method)
    assert sparsity(model) == sparsity(expected) > before
    found, wanted = masks(from_torch_prune(model)), masks(from_torch_prune(expected))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], mask) for name, mask in wanted.items())


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate must be between 0 and 1, got {rate}"):
        prune_all(network(), rate)


def test_a_model_without_prunable_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model: BatchNorm1d has no nn\.Linear or nn\.Conv2d to prune"):
        prune_all(nn.BatchNorm1d(3), 0.2)
