"""What the sparse layers share."""

from __future__ import annotations

import copy
import io
import pickle
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lth_fast.nn import MaskedConv2d, MaskedLinear, SparseConv2d, SparseLayer, SparseLinear, convert


@dataclass(frozen=True)
class Kind:
    """A sparse layer class, with arguments for a small layer and an input shape for it."""

    sparse: Any
    plain: Any
    masked: Any
    arguments: tuple[int, ...]
    input_shape: tuple[int, ...]

    def dense(self, **options: Any) -> Any:
        return self.plain(*self.arguments, **options)

    def mask(self) -> Tensor:
        """A new random mask that keeps something and prunes something."""
        mask = torch.rand(self.dense().weight.shape) < 0.3
        mask.view(-1)[:2] = torch.tensor([True, False])
        return mask

    def pair(self, **options: Any) -> tuple[Any, Any]:
        """A sparse layer, and a plain one with the same weights."""
        dense, mask = self.dense(**options), self.mask()
        sparse = self.sparse.from_dense(dense, mask)
        with torch.no_grad():
            dense.weight.mul_(mask)
        return sparse, dense

    def inputs(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.input_shape, dtype=dtype)

    def assert_same_function(self, one: nn.Module, other: nn.Module) -> None:
        inputs = self.inputs()
        assert (one(inputs) - other(inputs)).abs().max() <= 1e-5


LINEAR = Kind(SparseLinear, nn.Linear, MaskedLinear, (33, 20), (9, 33))
CONV2D = Kind(SparseConv2d, nn.Conv2d, MaskedConv2d, (4, 6, 3), (2, 4, 7, 6))


@pytest.fixture(params=[LINEAR, CONV2D], ids=["linear", "conv2d"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_the_dense_layer_with_the_masked_weight_computes(kind: Kind, bias: bool) -> None:
    sparse, dense = kind.pair(bias=bias)
    kind.assert_same_function(sparse, dense)
    assert (sparse.bias is not None) == bias


def test_without_a_mask_it_starts_from_the_draws_of_a_plain_layer(kind: Kind) -> None:
    with torch.random.fork_rng():
        sparse = kind.sparse(*kind.arguments)
    dense = kind.dense()
    assert torch.equal(sparse.values, sparse.collect(dense.weight))
    assert torch.equal(sparse.to_dense().weight, dense.weight)
    assert sparse.density == 1.0


def test_the_mask_given_to_the_constructor_selects_from_those_draws(kind: Kind) -> None:
    mask = kind.mask()
    with torch.random.fork_rng():
        sparse = kind.sparse(*kind.arguments, bias=False, dtype=torch.float64, mask=mask)
    assert torch.equal(sparse.values, sparse.collect(kind.dense(bias=False, dtype=torch.float64).weight))
    assert torch.equal(sparse.mask, mask)


def test_values_are_the_survivors_and_the_only_weight_parameter(kind: Kind) -> None:
    dense, mask = kind.dense(), kind.mask()
    sparse = kind.sparse.from_dense(dense, mask)
    assert torch.equal(sparse.values.sort().values, dense.weight[mask].sort().values)
    assert torch.equal(sparse.weight, dense.weight.where(mask, torch.tensor(0.0)))
    assert torch.equal(sparse.values, sparse.collect(dense.weight))
    assert [name for name, _ in sparse.named_parameters()] == ["values", "bias"]
    assert torch.equal(sparse.mask, mask)
    assert sparse.survivors == int(mask.sum())
    assert sparse.density == pytest.approx(mask.float().mean().item())
    assert isinstance(sparse, SparseLayer)


def test_what_goes_between_values_and_weight_has_their_shape(kind: Kind) -> None:
    sparse, dense = kind.pair()
    larger = torch.ones([size + 1 for size in dense.weight.shape])  # has something at every place of the weight
    for wrong in (larger, dense.weight[:-1], dense.weight.flatten()):
        expected = re.escape(f"weight must have the shape {list(dense.weight.shape)}, got {list(wrong.shape)}")
        with pytest.raises(ValueError, match=expected):
            sparse.collect(wrong)
    for wrong in (torch.ones(1), sparse.values[1:], dense.weight):
        expected = re.escape(f"values must have the shape [{sparse.survivors}], got {list(wrong.shape)}")
        with pytest.raises(ValueError, match=expected):
            sparse.spread(wrong)


def test_from_dense_leaves_the_plain_layer_as_it_is_and_shares_its_bias(kind: Kind) -> None:
    dense = kind.dense()
    before = dense.weight.detach().clone()
    sparse = kind.sparse.from_dense(dense.eval(), kind.mask())
    assert torch.equal(dense.weight, before)
    assert sparse.bias is dense.bias
    assert not sparse.training


def test_from_dense_takes_the_mask_of_a_masked_layer(kind: Kind) -> None:
    masked = kind.masked(*kind.arguments)
    masked.mask = kind.mask()
    sparse = kind.sparse.from_dense(masked)
    assert torch.equal(sparse.mask, masked.mask)
    kind.assert_same_function(sparse, masked)


def test_frozen_weights_stay_frozen_both_ways(kind: Kind) -> None:
    sparse = kind.sparse.from_dense(kind.dense().requires_grad_(False), kind.mask())
    assert not any(parameter.requires_grad for parameter in sparse.parameters())
    assert not sparse.to_dense().weight.requires_grad


def test_a_survivor_that_is_zero_stays_a_survivor(kind: Kind) -> None:
    dense, mask = kind.dense(), kind.mask()
    nn.init.zeros_(dense.weight)
    sparse = kind.sparse.from_dense(dense, mask)
    assert sparse.survivors == int(mask.sum())
    assert torch.equal(kind.sparse.from_dense(sparse.to_dense(), sparse.mask).mask, mask)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_a_layer_without_weights_has_density_one() -> None:
    assert SparseLinear(0, 3).density == 1.0


def test_a_layer_may_have_no_survivors(kind: Kind) -> None:
    sparse = kind.sparse(*kind.arguments, mask=torch.zeros_like(kind.mask()))
    inputs = kind.inputs().requires_grad_()
    out = sparse(inputs)
    out.sum().backward()
    assert sparse.density == 0.0
    assert torch.equal(out, sparse.to_dense()(inputs))
    assert inputs.grad is not None
    assert inputs.grad.count_nonzero() == 0


def test_to_dense_is_a_plain_layer_with_zeros_where_pruned(kind: Kind) -> None:
    sparse, dense = kind.pair()
    plain = sparse.to_dense()
    assert type(plain) is kind.plain
    assert torch.equal(plain.weight, dense.weight)
    assert plain.bias is sparse.bias
    assert repr(plain) == repr(dense)


def test_training_with_adam_moves_the_values_as_a_dense_layer_moves_its_survivors(kind: Kind) -> None:
    sparse, dense = kind.pair()
    dense = copy.deepcopy(dense)
    inputs = kind.inputs()
    targets = torch.randn_like(dense(inputs))
    for layer in (sparse, dense):
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            (layer(inputs) - targets).square().mean().backward()
            if layer is dense:
                dense.weight.grad = dense.weight.grad * sparse.mask
            optimizer.step()
    assert (sparse.values - sparse.collect(dense.weight)).abs().max() <= 1e-4


# ---- state dict ----


@pytest.mark.parametrize("bias", [True, False])
def test_the_state_dict_is_that_of_a_plain_layer(kind: Kind, bias: bool) -> None:
    sparse, dense = kind.pair(bias=bias)
    state, expected = sparse.state_dict(), dense.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert not any(value.requires_grad for value in state.values())


def test_within_a_model_the_keys_are_those_of_the_plain_model_and_load_both_ways(kind: Kind) -> None:
    first, plain_first = kind.pair()
    second, plain_second = kind.pair()
    sparse, plain = nn.ModuleList([first, nn.ReLU(), second]), nn.ModuleList([plain_first, nn.ReLU(), plain_second])
    assert list(sparse.state_dict()) == list(plain.state_dict())
    nn.init.zeros_(first.values)
    sparse.load_state_dict(plain.state_dict())
    kind.assert_same_function(first, plain_first)
    nn.init.zeros_(plain_second.weight)
    plain.load_state_dict(sparse.state_dict())
    kind.assert_same_function(second, plain_second)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_fills_the_values_and_keeps_them_trainable(kind: Kind, assign: bool) -> None:
    sparse, dense = kind.pair()
    values, loaded = sparse.values, torch.randn_like(dense.weight) * sparse.mask
    sparse.load_state_dict({"weight": loaded, "bias": torch.zeros_like(dense.bias)}, assign=assign)
    assert torch.equal(sparse.values, sparse.collect(loaded))
    assert sparse.values.requires_grad
    assert isinstance(sparse.values, nn.Parameter)
    assert (sparse.values is values) != assign


@pytest.mark.parametrize("revived", [1.0, float("nan")])
def test_a_nonzero_at_a_pruned_place_warns_and_stays_zero(kind: Kind, revived: float) -> None:
    sparse, dense = kind.pair()
    state = dense.state_dict()
    state["weight"].view(-1)[1] = revived
    with pytest.warns(UserWarning, match="weight: 1 pruned weights are not zero in the state dict; they stay zero"):
        sparse.load_state_dict(state)
    assert sparse.to_dense().weight.view(-1)[1] == 0.0
    assert torch.equal(sparse.values, sparse.collect(state["weight"]))


def test_a_weight_of_another_shape_is_refused_and_changes_nothing(kind: Kind) -> None:
    sparse, dense = kind.pair()
    before = sparse.values.detach().clone()
    wrong = dense.weight.detach().transpose(0, 1)
    message = f"weight must have shape {list(dense.weight.shape)}, got {list(wrong.shape)}"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        sparse.load_state_dict({"weight": wrong, "bias": dense.bias})
    assert torch.equal(sparse.values, before)


def test_missing_and_unexpected_keys_are_reported_in_the_plain_layers_words(kind: Kind) -> None:
    sparse, dense = kind.pair()
    report = sparse.load_state_dict({"values": torch.zeros(sparse.survivors), "other": torch.zeros(1)}, strict=False)
    assert sorted(report.missing_keys) == ["bias", "weight"]
    assert sorted(report.unexpected_keys) == ["other", "values"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"weight\""):
        sparse.load_state_dict({"bias": dense.bias})


def test_a_users_hook_may_rename_keys_before_they_are_loaded(kind: Kind) -> None:
    sparse, dense = kind.pair()

    def from_old_name(layer: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
        state[f"{prefix}weight"] = state.pop(f"{prefix}kernel")

    sparse.register_load_state_dict_pre_hook(from_old_name)
    model = nn.Sequential(sparse)
    state = {"0.kernel": 2 * dense.weight.detach(), "0.bias": dense.bias.detach() + 1}
    model.load_state_dict(state)
    assert torch.equal(sparse.weight, state["0.kernel"])
    assert torch.equal(sparse.bias, state["0.bias"])
    assert [entry.hook for entry in sparse._load_state_dict_pre_hooks.values()] == [from_old_name]


# ---- copies ----


def test_a_deepcopy_is_independent_and_keeps_the_mask(kind: Kind) -> None:
    sparse, dense = kind.pair()
    twin = copy.deepcopy(sparse)
    assert torch.equal(twin.mask, sparse.mask)
    nn.init.zeros_(sparse.values)
    kind.assert_same_function(twin, dense)


def test_a_copy_that_is_made_in_inference_mode_computes_the_same(kind: Kind) -> None:
    sparse, dense = kind.pair()
    with torch.inference_mode():
        twin = copy.deepcopy(sparse)
    with torch.no_grad():
        kind.assert_same_function(twin, dense)


def test_pickle_and_torch_save_keep_the_mask(kind: Kind) -> None:
    sparse, dense = kind.pair()
    kind.assert_same_function(pickle.loads(pickle.dumps(sparse)), dense)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    restored = torch.load(file, weights_only=False)
    assert torch.equal(restored.mask, sparse.mask)
    kind.assert_same_function(restored, dense)


def test_to_float64_converts_the_values_and_leaves_the_pattern(kind: Kind) -> None:
    sparse, dense = kind.pair()
    inputs = kind.inputs(torch.float64)
    out = sparse.double()(inputs)
    assert out.dtype == torch.float64
    assert (out - dense.double()(inputs)).abs().max() <= 1e-12


@pytest.mark.usefixtures("forget_compiled_code")
def test_a_compiled_layer_gives_the_same_output(kind: Kind) -> None:
    sparse, _ = kind.pair()
    inputs = kind.inputs()
    assert torch.equal(torch.compile(sparse, backend="aot_eager", fullgraph=True)(inputs), sparse(inputs))


# ---- errors ----


def test_a_mask_that_is_not_bool_is_refused(kind: Kind) -> None:
    message = f"mask must be a bool tensor of shape {list(kind.mask().shape)}, got torch.float32"
    with pytest.raises(TypeError, match=re.escape(message)):
        kind.sparse(*kind.arguments, mask=kind.mask().float())


def test_a_mask_of_another_shape_is_refused(kind: Kind) -> None:
    mask = kind.mask()
    wrong = mask.transpose(0, 1)
    message = f"mask must have the weight's shape {list(mask.shape)}, got {list(wrong.shape)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        kind.sparse(*kind.arguments, mask=wrong)


def test_only_layers_of_its_kind_can_become_sparse(kind: Kind) -> None:
    with pytest.raises(TypeError, match=f"layer must be an nn.{kind.plain.__name__}, got ReLU"):
        kind.sparse.from_dense(nn.ReLU())


def test_the_pattern_stays_what_it_is_through_the_meta_device_and_memory_without_values(kind: Kind) -> None:
    sparse, dense = kind.pair()
    state, mask = dense.state_dict(), sparse.mask
    on_meta = copy.deepcopy(copy.deepcopy(sparse).to("meta"))
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        on_meta.to("cpu")
    for layer in (sparse.to_empty(device="cpu"), on_meta.to_empty(device="cpu")):
        layer.load_state_dict(state)
        assert torch.equal(layer.mask, mask)
        kind.assert_same_function(layer, dense)


def test_a_state_that_is_assigned_brings_the_pattern_back_from_the_meta_device(kind: Kind) -> None:
    sparse, plain = kind.pair()
    mask = sparse.mask
    sparse.to("meta").load_state_dict(plain.state_dict(), assign=True)
    assert torch.equal(sparse.mask, mask)
    kind.assert_same_function(sparse, plain)


@pytest.mark.parametrize("assigned", [nn.Parameter, torch.Tensor.clone, lambda weight: None])
def test_nothing_can_be_assigned_to_the_weight_which_is_computed(kind: Kind, assigned: Any) -> None:
    sparse, dense = kind.pair()
    value = assigned(torch.ones_like(dense.weight))
    got = type(value).__name__
    with pytest.raises(
        AttributeError,
        match=rf"weight: expected no assignment, .*, got {got}; write layer\.collect\(weight\) to layer\.values",
    ):
        sparse.weight = value
    assert list(dict(sparse.named_parameters())) == ["values", "bias"]
    kind.assert_same_function(sparse, dense)
    with torch.no_grad():
        sparse.values.copy_(sparse.collect(torch.ones_like(dense.weight)))
    assert torch.equal(sparse.weight, sparse.mask.float())


def test_reset_parameters_draws_the_survivors_of_what_the_plain_layer_draws(kind: Kind) -> None:
    sparse, dense = kind.pair()
    values, mask, drawn = sparse.values, sparse.mask, []
    for layer in (sparse, dense):
        torch.manual_seed(3)
        layer.reset_parameters()
        drawn.append(torch.rand(1))
    assert sparse.values is values
    assert torch.equal(sparse.weight, dense.weight * mask)
    assert torch.equal(sparse.bias, dense.bias)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_a_layer_computes_densely(kind: Kind, dtype: torch.dtype) -> None:
    sparse, dense = (layer.to(dtype) for layer in kind.pair())
    inputs = kind.inputs(dtype)
    assert torch.equal(sparse(inputs), dense(inputs))
    sparse(inputs).sum().backward()
    dense(inputs).sum().backward()
    assert torch.equal(sparse.values.grad, sparse.collect(dense.weight.grad))
    assert torch.equal(sparse.bias.grad, dense.bias.grad)


def test_on_the_meta_device_a_layer_gives_shapes(kind: Kind) -> None:
    sparse, dense = kind.pair()
    inputs = kind.inputs().to("meta")
    for layer in (copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse)), sparse):
        assert layer.to("meta")(inputs).shape == dense.to("meta")(inputs).shape


def test_another_type_is_that_of_the_values_not_of_the_pattern(kind: Kind) -> None:
    sparse, dense = kind.pair()
    inputs = kind.inputs(torch.float64)
    torch.testing.assert_close(sparse.type(torch.float64)(inputs), dense.type(torch.float64)(inputs))


def test_an_unpickled_layer_too_is_compiled_for_any_number_of_survivors(kind: Kind) -> None:
    pickled = pickle.dumps(kind.pair()[0])
    with torch.compiler.config.patch(dynamic_sources=""):  # as in a process that has made no layer
        sparse = pickle.loads(pickled)
        for name in ("values", *sparse.pattern_fields):
            assert f"'{name}'" in torch.compiler.config.dynamic_sources


def test_values_that_torch_prunes_are_computed_with_and_go_into_files(kind: Kind) -> None:
    sparse, _ = kind.pair()
    prune.l1_unstructured(sparse, "values", 0.5)
    inputs = kind.inputs()
    output = sparse(inputs)
    state = {name: value.clone() for name, value in sparse.state_dict().items()}
    nn.init.zeros_(sparse.values_orig)
    assert not torch.equal(sparse(inputs), output)
    sparse.load_state_dict(state)
    assert torch.equal(sparse(inputs), output)
    with pytest.raises(TypeError, match=r"got 'values' computed by .*torch.nn.utils.prune; remove it first"):
        convert(sparse)
    assert torch.equal(sparse(inputs), output)
    prune.remove(sparse, "values")
    assert torch.equal(sparse(inputs), output)
    assert sparse.state_dict().keys() == kind.dense().state_dict().keys()


def test_an_average_of_models_takes_over_the_pattern_and_is_refused_where_it_averages_the_pattern(kind: Kind) -> None:
    sparse, _ = kind.pair()
    inputs = kind.inputs()
    average = AveragedModel(sparse)
    for _ in range(2):
        average.update_parameters(sparse)
    assert torch.equal(average(inputs), sparse(inputs))
    wrong = AveragedModel(sparse, use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(3):
        wrong.update_parameters(sparse)
    for device in ("cpu", "meta"):  # a move takes nothing wrong for right
        with pytest.raises(RuntimeError, match=r"expected the pattern that its mask has, .*use_buffers=True"):
            wrong.to(device)(inputs.to(device))
