"""The mask of a layer, and the zeros it keeps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from lth_fast.nn import MaskedConv2d, MaskedLinear, set_masks


def pruned_weights_are_zero(layer: Any) -> bool:
    pruned = layer.weight.detach()[~layer.mask]
    return torch.equal(pruned, torch.zeros_like(pruned)) and not pruned.signbit().any()


def test_a_new_layer_keeps_every_weight(kind: Any) -> None:
    layer = kind.masked(*kind.arguments)
    assert layer.mask.dtype == torch.bool
    assert layer.mask.shape == layer.weight.shape
    assert layer.mask.all()
    assert (layer.survivors, layer.density) == (layer.weight.numel(), 1.0)


def test_setting_a_mask_zeroes_the_pruned_weights_and_their_gradient_at_once(kind: Any) -> None:
    layer = kind.masked(*kind.arguments)
    layer.weight.grad = torch.randn_like(layer.weight)
    weight, gradient, mask = layer.weight.detach().clone(), layer.weight.grad.clone(), kind.mask()
    layer.mask = mask
    assert torch.equal(layer.weight, weight * mask)
    assert torch.equal(layer.weight.grad, gradient * mask)
    assert pruned_weights_are_zero(layer)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_setting_a_mask_prunes_nan_and_infinity_too(kind: Any, value: float) -> None:
    layer = kind.masked(*kind.arguments)
    nn.init.constant_(layer.weight, value)
    layer.mask = torch.zeros_like(layer.weight, dtype=torch.bool)
    assert pruned_weights_are_zero(layer)


def test_the_mask_is_read_and_written_as_a_copy(kind: Any) -> None:
    layer, mask = kind.masked(*kind.arguments), kind.mask()
    layer.mask = mask
    expected = mask.clone()
    mask.fill_(True)
    layer.mask.fill_(False)
    assert torch.equal(layer.mask, expected)


def test_a_mask_may_lie_in_memory_in_any_order() -> None:
    mask = torch.rand(5, 3) > 0.5
    layer = MaskedLinear(5, 3)
    layer.mask = mask.t()
    assert torch.equal(layer.mask, mask.t())
    convolution, mask = MaskedConv2d(2, 3, 3), torch.rand(3, 2, 3, 3) > 0.5
    convolution.mask = mask.to(memory_format=torch.channels_last)
    assert torch.equal(convolution.mask, mask)


def test_a_mask_takes_one_bit_per_weight_and_nothing_else_is_stored(kind: Any) -> None:
    layer, dense = kind.layer(), kind.dense()
    extra = [tensor for tensor in vars(layer).values() if isinstance(tensor, Tensor)]
    buffers = list(layer.buffers())
    assert [name for name, _ in layer.named_parameters()] == [name for name, _ in dense.named_parameters()]
    assert sum(tensor.nbytes for tensor in [*extra, *buffers]) == math.ceil(layer.weight.numel() / 8)


def test_survivors_and_density_follow_the_mask(kind: Any) -> None:
    layer = kind.layer()
    for mask in (kind.mask(), torch.ones_like(layer.mask), torch.zeros_like(layer.mask), kind.mask()):
        layer.mask = mask
        assert layer.survivors == int(mask.sum())
        assert layer.density == int(mask.sum()) / mask.numel()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors is a no-op")
def test_a_layer_without_weights_has_density_one() -> None:
    assert MaskedLinear(0, 3).density == 1.0


def test_a_survivor_that_equals_zero_stays_a_survivor(kind: Any) -> None:
    layer = kind.layer()
    mask = layer.mask
    nn.init.zeros_(layer.weight)
    layer(kind.inputs())
    assert torch.equal(layer.mask, mask)
    assert layer.survivors == int(mask.sum())
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(kind.inputs()).square().sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight != 0, mask)


def test_without_a_mask_again_every_weight_survives_and_starts_from_zero(kind: Any) -> None:
    layer = kind.layer()
    weight, pruned = layer.weight.detach().clone(), ~layer.mask
    layer.mask = None
    assert layer.mask.all()
    assert layer.density == 1.0
    assert torch.equal(layer.weight, weight)
    layer(kind.inputs()).square().sum().backward()
    assert layer.weight.grad[pruned].count_nonzero() == pruned.sum()


def test_a_write_from_outside_is_masked_at_once_or_at_the_next_forward(
    kind: Any, write_from_outside: Callable[[Any], None], masked_at_once: bool
) -> None:
    layer, inputs = kind.layer(), kind.inputs()
    mask = layer.mask
    layer(inputs)
    write_from_outside(layer)
    assert pruned_weights_are_zero(layer) == masked_at_once
    expected = layer.to_dense()
    with torch.no_grad():
        expected.weight = nn.Parameter(layer.weight * mask)
    assert torch.equal(layer(inputs), expected(inputs))
    assert pruned_weights_are_zero(layer)
    assert torch.equal(layer.mask, mask)


def test_a_new_parameter_in_the_old_memory_is_masked(kind: Any) -> None:
    layer = kind.layer()
    parameter = nn.Parameter(layer.weight.data)  # counts its writes anew
    for _ in range(layer.weight._version):
        nn.init.ones_(parameter)
    assert (parameter.data_ptr(), parameter._version) == (layer.weight.data_ptr(), layer.weight._version)
    layer.weight = parameter
    layer(kind.inputs())
    assert torch.equal(layer.weight, layer.mask.float())


def test_a_write_that_torch_does_not_count_is_masked_on_request(kind: Any) -> None:
    layer = kind.layer()
    layer.weight.data.fill_(1.0)
    layer.apply_mask()
    assert torch.equal(layer.weight != 0, layer.mask)


def test_a_clean_forward_is_one_operator_and_touches_no_mask(
    kind: Any, own_operators_of: Callable[[Callable[[], Any]], list[str]]
) -> None:
    layer, inputs = kind.layer(), kind.inputs()
    operator = {MaskedLinear: "masked_linear", MaskedConv2d: "masked_conv2d"}[kind.masked]
    assert own_operators_of(lambda: layer(inputs)) == [operator]
    nn.init.normal_(layer.weight)
    assert own_operators_of(lambda: layer(inputs)) == ["masked_apply_", operator]
    assert own_operators_of(lambda: layer(inputs)) == [operator]
    layer.double()
    assert own_operators_of(lambda: layer(inputs.double())) == ["masked_apply_", operator]
    assert own_operators_of(lambda: layer(inputs.double())) == [operator]


def test_a_clean_forward_leaves_the_version_of_the_weight_alone(kind: Any) -> None:
    layer = kind.layer()
    version = layer.weight._version
    first = layer(kind.inputs())
    second = layer(kind.inputs())
    assert layer.weight._version == version
    (first.sum() + second.sum()).backward()


def test_a_weight_that_is_vouched_for_is_not_masked_again(
    kind: Any, own_operators_of: Callable[[Callable[[], Any]], list[str]]
) -> None:
    layer, inputs = kind.layer(), kind.inputs()
    with torch.no_grad():
        layer.weight.mul_(2.0)
    layer.trust_weight()
    assert "masked_apply_" not in own_operators_of(lambda: layer(inputs))


def test_training_goes_on_with_a_mask_that_was_set_in_inference_mode(kind: Any) -> None:
    layer = kind.masked(*kind.arguments)
    with torch.inference_mode():
        layer.mask = mask = kind.mask()
        layer(kind.inputs())
    layer(kind.inputs()).sum().backward()
    assert torch.equal(layer.weight.grad != 0, mask)


def test_a_layer_made_in_inference_mode_masks_what_is_written_to_it(kind: Any) -> None:
    with torch.inference_mode():
        layer = kind.layer()
        for _ in range(2):
            layer.weight.fill_(1.0)
            layer(kind.inputs())
            assert torch.equal(layer.weight, layer.mask.float())
    with torch.no_grad():
        assert layer(kind.inputs()).isfinite().all()


def test_weights_in_channels_last_order_are_masked_where_the_mask_says() -> None:
    layer: Any = MaskedConv2d(2, 3, 3)
    layer.mask = mask = torch.rand(3, 2, 3, 3) > 0.5
    layer.to(memory_format=torch.channels_last)
    nn.init.ones_(layer.weight)
    layer(torch.randn(2, 2, 6, 6))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.weight, mask.float())
    layer(torch.randn(2, 2, 6, 6)).square().sum().backward()
    assert torch.equal(layer.weight.grad != 0, mask)


def test_the_representation_shows_the_density() -> None:
    layer: Any = MaskedLinear(4, 2)
    layer.mask = torch.tensor([[True, False, False, False], [True, True, False, False]])
    assert repr(layer) == "MaskedLinear(in_features=4, out_features=2, bias=True, density=0.375)"
    assert repr(MaskedConv2d(1, 2, 3)) == "MaskedConv2d(1, 2, kernel_size=(3, 3), stride=(1, 1), density=1)"


@pytest.mark.parametrize(
    ("mask", "error", "complaint"),
    [
        ([True] * 15, TypeError, r"mask must be a bool tensor of shape \[3, 5\], got list"),
        (torch.ones(3, 5), TypeError, r"mask must be a bool tensor of shape \[3, 5\], got torch\.float32"),
        (torch.ones(5, 3) > 0, ValueError, r"mask must have the weight's shape \[3, 5\], got \[5, 3\]"),
    ],
    ids=["no tensor", "dtype", "shape"],
)
def test_a_mask_that_does_not_fit_is_refused_and_changes_nothing(
    mask: Any, error: type[Exception], complaint: str
) -> None:
    layer: Any = MaskedLinear(5, 3)
    layer.mask = before = torch.rand(3, 5) > 0.5
    weight = layer.weight.detach().clone()
    with pytest.raises(error, match=complaint):
        layer.mask = mask
    assert torch.equal(layer.mask, before)
    assert torch.equal(layer.weight, weight)
    assert layer.survivors == int(before.sum())


def test_weights_that_are_not_real_floating_point_cannot_be_masked(kind: Any) -> None:
    layer = kind.dense(dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"mask: expected a weight of one of torch\.float16.*, got torch\.complex64"):
        kind.masked.from_dense(layer, kind.mask())
    assert type(layer) is kind.plain
    assert not list(layer.buffers())
    with pytest.raises(TypeError, match=r"mask: expected a weight of one of torch\.float16.*, got torch\.complex64"):
        kind.masked.from_dense(layer)
    with pytest.raises(TypeError, match=r"mask: expected a weight of one of torch\.float16.*, got torch\.complex64"):
        kind.masked(*kind.arguments, dtype=torch.complex64)


def test_a_layer_without_values_takes_no_mask_but_says_what_it_is(kind: Any) -> None:
    layer = kind.masked(*kind.arguments, device="meta")
    assert "density=1" in repr(layer)
    with pytest.raises(ValueError, match="mask: expected a weight with values, got one on the meta device"):
        layer.mask = kind.mask()
    assert layer(kind.inputs().to("meta")).shape == kind.dense()(kind.inputs()).shape


class Shifted(nn.Module):
    """A parametrization that puts something where the mask prunes."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + 1


def test_a_weight_that_a_parametrization_computes_is_masked(kind: Any) -> None:
    layer, mask = kind.masked(*kind.arguments), kind.mask()
    layer.mask = mask
    inputs = kind.inputs()
    parametrize.register_parametrization(layer, "weight", Shifted())
    plain = kind.plain(*kind.arguments)
    with torch.no_grad():
        plain.weight.copy_(layer.weight * mask)
        plain.bias.copy_(layer.bias)
    out = layer(inputs)
    torch.testing.assert_close(out, plain(inputs))
    out.square().sum().backward()
    assert (layer.parametrizations.weight.original.grad[~mask] == 0).all()


def test_a_functional_call_reads_the_weight_it_is_given_and_leaves_it_alone(kind: Any) -> None:
    layer, mask, inputs = kind.masked(*kind.arguments), kind.mask(), kind.inputs()
    layer.mask = mask
    given = torch.randn(layer.weight.shape, requires_grad=True)
    computed = given.tanh()
    before = computed.detach().clone()
    out = torch.func.functional_call(layer, {"weight": computed}, (inputs,))
    out.square().sum().backward()
    assert torch.equal(computed, before)
    assert (given.grad[~mask] == 0).all()
    assert (given.grad[mask] != 0).any()
    with torch.no_grad():
        layer.weight.copy_(before)
    torch.testing.assert_close(out, layer(inputs))


@pytest.mark.parametrize("how", ["as it is", "copied"])
def test_a_functional_call_with_the_parameters_of_another_model_leaves_them_alone(kind: Any, how: str) -> None:
    layer, dense, inputs = kind.layer(), kind.dense(), kind.inputs()
    if how == "copied":
        layer = copy.deepcopy(layer)
    weight, own = dense.weight.detach().clone(), layer.weight.detach().clone()
    whole = dense(inputs)
    out = torch.func.functional_call(layer, dict(dense.named_parameters()), (inputs,))
    (whole.sum() + out.square().sum()).backward()  # an inplace write would fail here, too
    assert torch.equal(dense.weight, weight) and torch.equal(layer.weight, own)
    with torch.no_grad():
        dense.weight.mul_(layer.mask)
    torch.testing.assert_close(out, dense(inputs))


def test_a_parameter_that_is_assigned_is_the_layers_own(kind: Any) -> None:
    layer = kind.layer()
    layer.weight = nn.Parameter(torch.ones_like(layer.weight))
    layer(kind.inputs())
    assert torch.equal(layer.weight, layer.mask.float())


def test_a_forward_that_computes_nothing_hides_no_write_from_the_mask(kind: Any) -> None:
    layer = kind.layer()
    nn.init.ones_(layer.weight)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        layer(fake.from_tensor(kind.inputs()))
    layer(kind.inputs())
    assert not layer.weight[~layer.mask].any()


def test_a_weight_is_never_taken_for_the_one_whose_place_and_memory_it_has() -> None:
    for _ in range(100):
        layer = MaskedLinear(64, 64, bias=False)
        layer.mask = torch.rand(64, 64) < 0.5
        layer.weight = nn.Parameter(torch.randn(64, 64))
        layer(torch.randn(2, 64))  # which writes to it once
        for _ in range(2):
            del layer.weight
            layer.weight = nn.Parameter(torch.randn(64, 64).mul_(0.5))  # written to once
        layer(torch.randn(2, 64))
        assert not layer.weight[~layer.mask].any()


def test_what_is_loaded_is_masked_before_anything_reads_it() -> None:
    model: Any = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    set_masks(model, {"linear1.weight": torch.rand(16, 8) < 0.5, "linear2.weight": torch.rand(8, 16) < 0.5})
    inputs = torch.randn(2, 3, 8)
    expected = model(inputs)
    model.load_state_dict(state)
    with torch.no_grad():  # computes with the weights, not by the layers
        torch.testing.assert_close(model(inputs), expected)
    assert pruned_weights_are_zero(model.linear1)


def test_a_mask_that_is_set_between_two_forwards_of_one_autocast_region_holds_for_the_second(kind: Any) -> None:
    layer, inputs = kind.masked(*kind.arguments), kind.inputs()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        layer(inputs)
        layer.mask = torch.zeros(layer.weight.shape, dtype=torch.bool)
        zeros = layer(inputs) - (layer.bias if layer.bias.dim() == inputs.dim() - 1 else layer.bias.view(-1, 1, 1))
    assert zeros.abs().max() <= 0.01


def test_the_count_of_survivors_follows_the_mask_that_an_average_of_models_copies(kind: Any) -> None:
    layer = kind.masked(*kind.arguments)
    average = AveragedModel(layer)
    assert average.module.density == 1
    layer.mask = kind.mask()
    average.update_parameters(layer)
    assert average.module.survivors == int(layer.mask.sum())
    assert torch.equal(average.module.mask, layer.mask)


def test_a_copy_that_is_made_in_inference_mode_tells_its_density(kind: Any) -> None:
    layer = kind.layer()
    with torch.inference_mode():
        twin = copy.deepcopy(layer)
    assert twin.survivors == int(layer.mask.sum())
