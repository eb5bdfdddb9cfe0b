"""Masked layers as plain ones and back, their copies, their state and their conversions."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as stock

from lth_fast.nn import MaskedConv2d, MaskedLinear, convert, masked, set_masks


def assert_same_layer(found: Any, expected: Any, inputs: torch.Tensor) -> None:
    assert type(found) is type(expected)
    assert torch.equal(found.mask, expected.mask)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found(inputs), expected(inputs))


def test_state_dict_has_exactly_the_keys_and_shapes_of_the_plain_layer(kind: Any) -> None:
    found, expected = kind.layer().state_dict(), kind.dense().state_dict()
    assert list(found) == list(expected)
    assert [value.shape for value in found.values()] == [value.shape for value in expected.values()]


def test_state_dict_loads_from_plain_to_masked_and_back(kind: Any) -> None:
    masked, dense, other = kind.layer(), kind.dense(), kind.dense()
    masked.load_state_dict(dense.state_dict())
    inputs = kind.inputs()
    out = masked(inputs)
    assert torch.equal(masked.weight, dense.weight * masked.mask)
    other.load_state_dict(masked.state_dict())
    assert torch.equal(other(inputs), out)


def test_state_dict_can_be_assigned(kind: Any) -> None:
    masked, dense = kind.layer(), kind.dense()
    masked.load_state_dict(dense.state_dict(), assign=True)
    masked(kind.inputs())
    assert torch.equal(masked.weight != 0, masked.mask)


def test_a_deep_copy_under_a_mask_on_its_bias_too_trains_under_both(kind: Any) -> None:
    original = nn.Sequential(kind.layer())
    original[0].bias.data.fill_(1.0)
    pruned, inputs = ~original[0].mask, kind.inputs()
    on_bias = torch.arange(len(original[0].bias)) % 2 == 0
    set_masks(original, {"0.bias": on_bias})
    model = copy.deepcopy(original)
    optimizer, weight = torch.optim.SGD(model.parameters(), lr=0.1), model[0].weight
    model(inputs).square().sum().backward()
    weight.grad += 1.0  # noise, which no backward masks
    optimizer.step()
    assert weight[pruned].count_nonzero() == 0
    assert weight[~pruned].count_nonzero() > 0
    assert torch.equal(model[0].bias != 0, on_bias)
    model[0].mask = torch.ones_like(pruned)
    assert torch.equal(original[0].mask, ~pruned)
    convert(model, form="dense")
    assert torch.equal(copy.deepcopy(model)(inputs), model(inputs))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_keep_the_mask_and_lead_lives_of_their_own(kind: Any, how: str) -> None:
    layer, inputs = kind.layer(), kind.inputs()
    if how == "deepcopy":
        twin = copy.deepcopy(layer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(layer))
    else:
        torch.save(layer, file := io.BytesIO())
        twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert_same_layer(twin, layer, inputs)
    mask, weight = layer.mask, layer.weight.detach().clone()
    twin.mask = torch.zeros_like(mask)
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.weight, weight)


def test_a_copy_masks_what_was_written_to_the_original_before_it_was_copied(kind: Any) -> None:
    layer = kind.layer()
    nn.init.ones_(layer.weight)
    twin = copy.deepcopy(layer)
    twin(kind.inputs())
    assert torch.equal(twin.weight, layer.mask.float())


def test_a_copy_trusts_nothing_that_was_noted_about_the_original(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Read back in another process, a copy may lie at the address where the original lay.
    monkeypatch.setattr(masked, "as_it_was", lambda weight, seen: seen is not None and seen[2] >= 0)
    layer = kind.layer()
    nn.init.ones_(layer.weight)
    twin = pickle.loads(pickle.dumps(layer))
    twin(kind.inputs())
    assert torch.equal(twin.weight, layer.mask.float())


def test_from_dense_shares_the_parameters(kind: Any) -> None:
    dense, mask = kind.dense(), kind.mask()
    weight = dense.weight.detach().clone()
    masked = kind.masked.from_dense(dense, mask)
    assert type(masked) is kind.masked
    assert type(dense) is kind.plain
    assert masked.weight is dense.weight
    assert masked.bias is dense.bias
    assert torch.equal(dense.weight, weight * mask)
    inputs = kind.inputs()
    assert torch.equal(masked(inputs), dense(inputs))
    assert list(masked.state_dict()) == list(dense.state_dict())
    assert not list(dense.buffers())


def test_from_dense_without_a_mask_keeps_every_weight(kind: Any) -> None:
    dense = kind.dense()
    weight = dense.weight.detach().clone()
    masked = kind.masked.from_dense(dense)
    assert masked.mask.all()
    assert torch.equal(masked.weight, weight)


def test_from_dense_keeps_mode_hooks_and_attributes(kind: Any) -> None:
    dense = kind.dense().eval()
    dense.note = "kept"
    calls: list[str] = []
    dense.register_forward_hook(lambda *_: calls.append("called"))
    masked = kind.masked.from_dense(dense)
    masked(kind.inputs())
    assert (masked.training, masked.note, calls) == (False, "kept", ["called"])


def test_from_dense_of_a_masked_layer_gives_another_one_with_the_same_state_dict(kind: Any) -> None:
    layer, mask = kind.layer(), kind.mask()
    twin = kind.masked.from_dense(layer, mask)
    assert torch.equal(twin.mask, mask)
    assert list(twin.state_dict()) == list(kind.dense().state_dict())
    assert torch.equal(kind.masked.from_dense(twin).mask, mask)


def test_from_dense_refuses_other_layers() -> None:
    with pytest.raises(TypeError, match=r"layer must be an nn\.Linear \(no subclass\).*, got Conv2d with"):
        MaskedLinear.from_dense(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match=r"layer must be an nn\.Conv2d \(no subclass\).*, got Linear with"):
        MaskedConv2d.from_dense(nn.Linear(1, 1))


@pytest.mark.parametrize("name", ["mask", "mask_bits", "density"])
@pytest.mark.parametrize("as_buffer", [False, True])
@pytest.mark.parametrize("with_mask", [False, True])
def test_from_dense_refuses_a_layer_on_which_a_user_has_put_something_by_a_name_of_the_masked_one(
    kind: Any, name: str, as_buffer: bool, with_mask: bool
) -> None:
    dense = kind.plain(*kind.arguments)
    before, own = dense.weight.detach().clone(), torch.ones_like(dense.weight)
    if as_buffer:
        dense.register_buffer(name, own)
    else:
        setattr(dense, name, own)
    with pytest.raises(
        ValueError, match=rf"layer: expected an nn\.\w+ without attributes .*, got {name}; lth_fast\.nn\.set_masks"
    ):
        kind.masked.from_dense(dense, kind.mask() if with_mask else None)
    assert torch.equal(dense.weight, before)
    assert getattr(dense, name) is own


def test_from_dense_refuses_a_layer_whose_weight_is_computed(kind: Any) -> None:
    layer = kind.dense()
    stock.l1_unstructured(layer, "weight", 2)
    with pytest.raises(TypeError, match=r"whose weight is a parameter, got .* parameters \['bias', 'weight_orig'\]"):
        kind.masked.from_dense(layer)
    parametrized = nn.utils.parametrizations.weight_norm(kind.dense())
    with pytest.raises(TypeError, match="whose weight is a parameter"):
        kind.masked.from_dense(parametrized)


def test_a_layer_whose_bias_is_computed_is_copied_to_no_other_form(kind: Any) -> None:
    layer = kind.layer()
    set_masks(layer, {"bias": torch.arange(layer.bias.numel()) > 0})
    for copied in (kind.masked.from_dense, type(layer).to_dense):
        with pytest.raises(TypeError, match="expected parameters, got bias computed by a parametrization or under a m"):
            copied(layer)


def test_to_dense_is_a_plain_layer_with_zeros(kind: Any) -> None:
    layer, inputs = kind.layer(), kind.inputs()
    nn.init.normal_(layer.weight)
    dense = layer.to_dense()
    assert type(dense) is kind.plain
    assert dense.weight is layer.weight
    assert torch.equal(dense.weight != 0, layer.mask)
    assert torch.equal(dense(inputs), layer(inputs))
    assert not list(dense.buffers())
    assert vars(dense).keys() == vars(kind.dense()).keys()


def test_to_dense_leaves_the_masked_layer_as_it_is(kind: Any) -> None:
    layer = kind.layer()
    mask, calls = layer.mask, []
    dense = layer.to_dense()
    dense.register_forward_hook(lambda *_: calls.append("called"))
    dense.bias = None
    layer(kind.inputs())
    assert torch.equal(layer.mask, mask)
    assert layer.bias is not None
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("how", ["to", "type"])
def test_a_layer_of_another_dtype_keeps_its_mask(kind: Any, dtype: torch.dtype, how: str) -> None:
    layer = kind.layer()
    mask, weight = layer.mask, layer.weight.detach().clone()
    assert getattr(layer, how)(dtype) is layer
    assert layer.mask_bits.dtype == torch.uint8
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.weight, weight.to(dtype))
    layer(kind.inputs(dtype)).sum().backward()
    assert layer.weight.grad.dtype == dtype
    assert layer.weight.grad[~mask].count_nonzero() == 0
    nn.init.ones_(layer.weight)
    layer(kind.inputs(dtype))
    assert torch.equal(layer.weight, mask.to(dtype))


def test_half_precision_there_and_back_keeps_the_mask(kind: Any) -> None:
    layer = kind.layer()
    mask = layer.mask
    layer.half().float()
    layer(kind.inputs())
    assert torch.equal(layer.mask, mask)


def test_new_memory_for_the_parameters_leaves_the_mask(kind: Any) -> None:
    layer = kind.layer()
    mask = layer.mask
    layer.to_empty(device="cpu")
    layer.reset_parameters()
    layer(kind.inputs())
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.weight != 0, mask)


def test_a_layer_that_gets_its_values_late_keeps_every_weight(kind: Any) -> None:
    layer = kind.masked(*kind.arguments, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.mask.all()
    assert layer.density == 1.0
    assert layer(kind.inputs()).isfinite().all()
    layer, plain = kind.masked(*kind.arguments, device="meta"), kind.dense()
    layer.load_state_dict(plain.state_dict(), assign=True)
    assert layer.mask.all()
    inputs = kind.inputs()
    assert torch.equal(layer(inputs), plain(inputs))


@pytest.mark.parametrize("assign", [False, True])
def test_the_mask_goes_to_the_meta_device_and_back_with_the_weight(kind: Any, assign: bool) -> None:
    layer, state = kind.layer(), kind.dense().state_dict()
    mask, density = layer.mask, layer.density
    layer.to("meta")
    assert layer.density == density < 1
    assert layer(kind.inputs().to("meta")).is_meta
    layer = copy.deepcopy(layer)
    if not assign:
        layer.to_empty(device="cpu")
    layer.load_state_dict(state, assign=assign)
    assert torch.equal(layer.mask, mask)
    assert torch.equal(layer.weight, state["weight"] * mask)
    layer(kind.inputs()).sum().backward()
    assert layer.weight.grad[~mask].count_nonzero() == 0


def test_a_layer_in_shared_memory_keeps_its_mask(kind: Any) -> None:
    layer = kind.layer()
    mask = layer.mask
    layer.share_memory()
    assert layer.mask_bits.is_shared()
    assert torch.equal(layer.mask, mask)
