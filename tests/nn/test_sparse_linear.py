from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

from lth_fast.nn import MaskedLinear, SparseLinear


def random_mask(out_features: int = 20, in_features: int = 33, density: float = 0.3) -> Tensor:
    """A mask that keeps something and prunes something."""
    mask = torch.rand(out_features, in_features) < density
    mask[0, :2] = torch.tensor([True, False])
    return mask


def layer_and_dense(bias: bool = True) -> tuple[SparseLinear, nn.Linear]:
    """A sparse layer, and a plain one with the same weights."""
    dense, mask = nn.Linear(33, 20, bias=bias), random_mask()
    sparse = SparseLinear.from_dense(dense, mask)
    with torch.no_grad():
        dense.weight.mul_(mask)
    return sparse, dense


def assert_same_function(one: nn.Module, other: nn.Module) -> None:
    inputs = torch.randn(9, 33)
    assert (one(inputs) - other(inputs)).abs().max() <= 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_the_dense_layer_with_the_masked_weight_computes(bias: bool) -> None:
    sparse, dense = layer_and_dense(bias)
    assert_same_function(sparse, dense)
    assert (sparse.bias is not None) == bias


def test_without_a_mask_it_starts_from_the_draws_of_a_plain_layer() -> None:
    torch.manual_seed(0)
    sparse = SparseLinear(33, 20)
    torch.manual_seed(0)
    dense = nn.Linear(33, 20)
    assert torch.equal(sparse.values, dense.weight.flatten())
    assert torch.equal(sparse.to_dense().weight, dense.weight)
    assert sparse.density == 1.0


def test_the_mask_given_to_the_constructor_selects_from_those_draws() -> None:
    mask = random_mask()
    torch.manual_seed(0)
    sparse = SparseLinear(33, 20, bias=False, dtype=torch.float64, mask=mask)
    torch.manual_seed(0)
    dense = nn.Linear(33, 20, bias=False, dtype=torch.float64)
    assert torch.equal(sparse.values, dense.weight[mask])


def test_values_are_the_survivors_in_row_major_order_and_the_only_weight_parameter() -> None:
    dense, mask = nn.Linear(33, 20), random_mask()
    sparse = SparseLinear.from_dense(dense, mask)
    assert torch.equal(sparse.values, dense.weight[mask])
    assert [name for name, _ in sparse.named_parameters()] == ["values", "bias"]
    assert torch.equal(sparse.mask, mask)
    assert sparse.survivors == int(mask.sum())
    assert sparse.density == pytest.approx(mask.float().mean().item())


def test_from_dense_leaves_the_plain_layer_as_it_is_and_shares_its_bias() -> None:
    dense = nn.Linear(33, 20)
    before = dense.weight.detach().clone()
    sparse = SparseLinear.from_dense(dense.eval(), random_mask())
    assert torch.equal(dense.weight, before)
    assert sparse.bias is dense.bias
    assert not sparse.training


def test_from_dense_takes_the_mask_of_a_masked_layer() -> None:
    masked = MaskedLinear(33, 20)
    masked.mask = random_mask()
    sparse = SparseLinear.from_dense(masked)
    assert torch.equal(sparse.mask, masked.mask)
    assert_same_function(sparse, masked)


def test_frozen_weights_stay_frozen_both_ways() -> None:
    dense = nn.Linear(33, 20).requires_grad_(False)
    sparse = SparseLinear.from_dense(dense, random_mask())
    assert not any(parameter.requires_grad for parameter in sparse.parameters())
    assert not sparse.to_dense().weight.requires_grad


def test_a_survivor_that_is_zero_stays_a_survivor() -> None:
    dense, mask = nn.Linear(33, 20), random_mask()
    nn.init.zeros_(dense.weight)
    sparse = SparseLinear.from_dense(dense, mask)
    assert sparse.survivors == int(mask.sum())
    assert torch.equal(SparseLinear.from_dense(sparse.to_dense(), sparse.mask).mask, mask)


def test_to_dense_is_a_plain_layer_with_zeros_where_pruned() -> None:
    sparse, dense = layer_and_dense()
    plain = sparse.to_dense()
    assert type(plain) is nn.Linear
    assert torch.equal(plain.weight, dense.weight)
    assert plain.bias is sparse.bias
    assert repr(plain) == repr(dense)


def test_repr_names_sizes_and_density() -> None:
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 0] = True
    assert repr(SparseLinear(4, 2, mask=mask)) == (
        "SparseLinear(in_features=4, out_features=2, bias=True, density=0.125)"
    )


def test_training_with_adam_moves_the_values_as_a_dense_layer_moves_its_survivors() -> None:
    sparse, dense = layer_and_dense()
    sparse = SparseLinear.from_dense(nn.Linear(33, 20), mask := sparse.mask)
    sparse.load_state_dict(dense.state_dict())
    inputs, targets = torch.randn(50, 33), torch.randn(50, 20)
    for layer in (sparse, dense):
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (layer(inputs) - targets).square().mean().backward()
            if layer is dense:
                dense.weight.grad = dense.weight.grad * mask
            optimizer.step()
    assert (sparse.values - dense.weight[mask]).abs().max() <= 1e-4


# ---- state dict ----


@pytest.mark.parametrize("bias", [True, False])
def test_the_state_dict_is_that_of_a_plain_layer(bias: bool) -> None:
    sparse, dense = layer_and_dense(bias)
    state, expected = sparse.state_dict(), dense.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert not any(value.requires_grad for value in state.values())


def test_within_a_model_the_keys_are_those_of_the_plain_model_and_load_both_ways() -> None:
    plain = nn.Sequential(nn.Linear(33, 20), nn.ReLU(), nn.Linear(20, 5))
    masks = random_mask(), random_mask(5, 20)
    sparse = nn.Sequential(
        SparseLinear.from_dense(nn.Linear(33, 20), masks[0]), nn.ReLU(), SparseLinear(20, 5, mask=masks[1])
    )
    with torch.no_grad():
        plain[0].weight.mul_(masks[0])
        plain[2].weight.mul_(masks[1])
    assert list(sparse.state_dict()) == list(plain.state_dict())
    sparse.load_state_dict(plain.state_dict())
    assert_same_function(sparse, plain)
    nn.init.zeros_(plain[0].weight)
    plain.load_state_dict(sparse.state_dict())
    assert_same_function(sparse, plain)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_fills_the_values_and_keeps_them_trainable(assign: bool) -> None:
    sparse, _ = layer_and_dense()
    values, loaded = sparse.values, torch.randn(20, 33) * sparse.mask
    sparse.load_state_dict({"weight": loaded, "bias": torch.zeros(20)}, assign=assign)
    assert torch.equal(sparse.values, loaded[sparse.mask])
    assert sparse.values.requires_grad
    assert isinstance(sparse.values, nn.Parameter)
    assert (sparse.values is values) != assign


@pytest.mark.parametrize("revived", [1.0, float("nan")])
def test_a_nonzero_at_a_pruned_place_warns_and_stays_zero(revived: float) -> None:
    sparse, dense = layer_and_dense()
    state = dense.state_dict()
    state["weight"][0, 1] = revived
    with pytest.warns(UserWarning, match="weight: 1 pruned weights are not zero in the state dict; they stay zero"):
        sparse.load_state_dict(state)
    assert sparse.to_dense().weight[0, 1] == 0.0
    assert torch.equal(sparse.values, state["weight"][sparse.mask])


def test_a_weight_of_another_shape_is_refused_and_changes_nothing() -> None:
    sparse, _ = layer_and_dense()
    before = sparse.values.detach().clone()
    with pytest.raises(RuntimeError, match=r"weight must have shape \[20, 33\], got \[33, 20\]"):
        sparse.load_state_dict({"weight": torch.zeros(33, 20), "bias": torch.zeros(20)})
    assert torch.equal(sparse.values, before)


def test_missing_and_unexpected_keys_are_reported_in_the_plain_layers_words() -> None:
    sparse, _ = layer_and_dense()
    report = sparse.load_state_dict({"values": torch.zeros(sparse.survivors), "other": torch.zeros(1)}, strict=False)
    assert report.missing_keys == ["bias", "weight"] or report.missing_keys == ["weight", "bias"]
    assert set(report.unexpected_keys) == {"values", "other"}
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"weight\""):
        sparse.load_state_dict({"bias": torch.zeros(20)})


# ---- copies ----


def test_a_deepcopy_is_independent_and_keeps_the_mask() -> None:
    sparse, dense = layer_and_dense()
    twin = copy.deepcopy(sparse)
    assert torch.equal(twin.mask, sparse.mask)
    nn.init.zeros_(sparse.values)
    assert_same_function(twin, dense)


def test_pickle_and_torch_save_keep_the_mask() -> None:
    sparse, dense = layer_and_dense()
    assert_same_function(pickle.loads(pickle.dumps(sparse)), dense)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    restored = torch.load(file, weights_only=False)
    assert torch.equal(restored.mask, sparse.mask)
    assert_same_function(restored, dense)


def test_to_float64_converts_the_values_and_leaves_the_pattern() -> None:
    sparse, dense = layer_and_dense()
    inputs = torch.randn(4, 33, dtype=torch.float64)
    out = sparse.double()(inputs)
    assert out.dtype == torch.float64
    assert (out - dense.double()(inputs)).abs().max() <= 1e-12


def test_a_compiled_layer_gives_the_same_output() -> None:
    sparse, _ = layer_and_dense()
    inputs = torch.randn(4, 33)
    assert torch.equal(torch.compile(sparse, backend="aot_eager", fullgraph=True)(inputs), sparse(inputs))


# ---- errors ----


def test_a_mask_that_is_not_bool_is_refused() -> None:
    with pytest.raises(TypeError, match=r"mask must be a bool tensor of shape \[20, 33\], got torch.float32"):
        SparseLinear(33, 20, mask=torch.ones(20, 33))


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mask must have the weight's shape \[20, 33\], got \[33, 20\]"):
        SparseLinear(33, 20, mask=random_mask().t())


def test_only_linear_layers_can_become_sparse() -> None:
    with pytest.raises(TypeError, match=r"layer must be an nn.Linear, got ReLU"):
        SparseLinear.from_dense(nn.ReLU())  # type: ignore[arg-type]
