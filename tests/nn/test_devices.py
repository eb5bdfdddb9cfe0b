"""Every layer, made on a device or moved there, computes and trains there as it does on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lth_fast.nn import (
    MaskedConv2d,
    MaskedLinear,
    SparseConv2d,
    SparseLinear,
    choices,
    convert,
    masks,
    restore,
    set_masks,
)
from lth_fast.optim import SGD, Adam

LAYERS: dict[str, tuple[Any, Callable[[], nn.Module], tuple[int, ...]]] = {
    "masked linear": (MaskedLinear, lambda: nn.Linear(40, 30), (7, 40)),
    "masked convolution": (MaskedConv2d, lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (3, 4, 9, 8)),
    "sparse linear": (SparseLinear, lambda: nn.Linear(40, 30), (7, 40)),
    "sparse convolution": (SparseConv2d, lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (3, 4, 9, 8)),
}


def distance(out: Tensor, expected: Tensor) -> float:
    return ((out.cpu().double() - expected.double()).norm() / expected.double().norm()).item()


def outputs_and_gradients(layer: nn.Module, inputs: Tensor) -> list[Tensor]:
    leaf = inputs.detach().clone().requires_grad_()
    out = layer(leaf)
    out.square().sum().backward()
    found = [out, leaf.grad, *(parameter.grad for parameter in layer.parameters())]
    return [tensor for tensor in found if tensor is not None]


@pytest.mark.parametrize("made_there", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_there_what_it_computes_on_the_cpu(name: str, made_there: bool, device: torch.device) -> None:
    kind, plain_layer, shape = LAYERS[name]
    plain, inputs = plain_layer(), torch.randn(shape)
    mask = torch.rand(plain.weight.shape) < 0.3
    expected = kind.from_dense(copy.deepcopy(plain), mask)
    layer = (
        kind.from_dense(plain.to(device), mask.to(device)) if made_there else kind.from_dense(plain, mask).to(device)
    )
    found = outputs_and_gradients(layer, inputs.to(device))
    for one, other in zip(found, outputs_and_gradients(expected, inputs), strict=True):
        assert one.device.type == device.type
        assert distance(one, other) <= 1e-5
    assert torch.equal(layer.mask.cpu(), mask)
    assert torch.equal(layer.weight.cpu(), expected.weight)


@pytest.mark.parametrize("name", ["masked linear", "masked convolution"])
def test_the_mask_is_applied_again_after_a_write_from_outside(
    name: str, write_from_outside: Callable[[Any], None], device: torch.device
) -> None:
    kind, plain_layer, shape = LAYERS[name]
    plain, inputs = plain_layer().to(device), torch.randn(shape, device=device)
    layer = kind.from_dense(plain, torch.rand(plain.weight.shape, device=device) < 0.3)
    write_from_outside(layer)
    written = layer.weight.detach().clone()
    out = layer(inputs)
    assert torch.equal(layer.weight, written * layer.mask)
    assert torch.equal(out, layer.to_dense()(inputs))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 20), nn.ReLU(), nn.Linear(20, 5)
    )


def random_masks(model: nn.Module) -> dict[str, Tensor]:
    return {name: torch.rand(value.shape) < 0.3 for name, value in model.named_parameters() if value.dim() > 1}


@pytest.mark.parametrize("made_there", [True, False])
@pytest.mark.parametrize("form", ["dense", "masked", "sparse"])
def test_a_model_converted_there_or_moved_afterwards_is_the_same_model(
    form: str, made_there: bool, device: torch.device
) -> None:
    model, inputs = network(), torch.randn(4, 3, 6, 6)
    kept = random_masks(model)
    expected = set_masks(copy.deepcopy(model), kept)(inputs)
    if made_there:
        on_device = {name: mask.to(device) for name, mask in kept.items()}
        convert(model.to(device), on_device, form=form, example_input=inputs.to(device))
    else:
        convert(model, kept, form=form, example_input=inputs).to(device)
    assert {choice.form for choice in choices(model).values()} == {form}
    assert distance(model(inputs.to(device)), expected) <= 1e-5
    for name, value in copy.deepcopy(network()).state_dict().items():
        assert model.state_dict()[name].shape == value.shape
        assert model.state_dict()[name].device.type == device.type
    if form != "dense":
        assert all(torch.equal(mask.cpu(), kept[name]) for name, mask in masks(model).items())
    assert distance(model.cpu()(inputs), expected) <= 1e-5
    assert distance(restore(model)(inputs), expected) <= 1e-5


@pytest.mark.parametrize("kind", [Adam, SGD])
@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_every_form_trains_there_as_on_the_cpu(form: str, kind: Any, device: torch.device) -> None:
    model = network()
    kept, inputs, labels = random_masks(model), torch.randn(16, 3, 6, 6), torch.randint(5, (16,))
    losses = []
    for place in (torch.device("cpu"), device):
        trained = copy.deepcopy(model).to(place)
        convert(trained, {name: mask.to(place) for name, mask in kept.items()}, form=form)
        optimizer = kind(trained.parameters(), lr=0.01)
        for _ in range(8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(trained(inputs.to(place)), labels.to(place))
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
        restore(trained)
        assert not any(trained.get_parameter(name)[~mask.to(place)].any() for name, mask in kept.items())
    assert distance(losses[1], losses[0]) <= 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda_a_convolution_stays_masked_unless_asked_and_linear_layers_are_measured() -> None:
    model, inputs = network().cuda(), torch.randn(4, 3, 6, 6, device="cuda")
    kept = {name: mask.cuda() for name, mask in random_masks(model).items()}
    chosen = choices(convert(model, kept, example_input=inputs))
    assert chosen["0.weight"].form == "masked"
    assert chosen["0.weight"].reason == "on CUDA a sparse convolution computes densely"
    assert all(chosen[name].sparse_seconds for name in ("3.weight", "5.weight"))
