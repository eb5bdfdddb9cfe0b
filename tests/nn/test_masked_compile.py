"""Masked layers under torch.compile and torch.export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lth_fast.nn import set_masks

pytestmark = pytest.mark.usefixtures("forget_compiled_code")


def network() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    names = ("0.weight", "3.weight")
    return set_masks(model, {name: torch.rand(model.get_parameter(name).shape) > 0.5 for name in names})


def gradients(model: nn.Module, out: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(out.square().sum(), list(model.parameters())))


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for tensor, like in zip(found, expected, strict=True):
        assert (tensor.double() - like.double()).norm() <= 1e-6 * like.double().norm()


def test_a_compiled_model_is_one_graph_with_the_outputs_and_gradients_of_the_eager_one() -> None:
    model = network()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    for batch in (3, 5):
        inputs = torch.randn(batch, 2, 6, 6)
        out, expected = compiled(inputs), model(inputs)
        assert_close([out, *gradients(model, out)], [expected, *gradients(model, expected)])


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own, of jvp
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap of grad"])
def test_a_compiled_transform_of_a_model_is_one_graph_with_the_results_of_the_eager_one(transform: str) -> None:
    model, inputs = network(), torch.randn(3, 2, 6, 6)

    def size(inputs: Tensor) -> Tensor:
        return model(inputs).square().sum()

    def work(inputs: Tensor) -> Tensor:
        if transform == "jvp":
            return torch.func.jvp(model, (inputs,), (inputs,))[1]
        if transform == "grad":
            return torch.func.grad(size)(inputs)
        return torch.func.vmap(torch.func.grad(size))(inputs.unsqueeze(1))

    compiled: Any = torch.compile(work, fullgraph=True, backend="aot_eager")
    assert_close([compiled(inputs)], [work(inputs)])


def test_a_compiled_model_masks_what_was_written_from_outside() -> None:
    model = network()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = torch.randn(3, 2, 6, 6)
    compiled(inputs)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    out = compiled(inputs)
    eager = copy.deepcopy(model)
    expected = eager(inputs)
    found = gradients(model, out)
    assert_close([out, *found], [expected, *gradients(eager, expected)])
    masks = [model[0].mask, model[3].mask]
    for mask, gradient in zip(masks, (found[0], found[2]), strict=True):
        assert gradient[~mask].tolist() == [0.0] * int((~mask).sum())


def test_a_compiled_model_follows_a_new_mask() -> None:
    model = network()
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    inputs = torch.randn(3, 2, 6, 6)
    compiled(inputs)
    set_masks(model, {"3.weight": torch.zeros(5, 144, dtype=torch.bool)})
    assert torch.equal(compiled(inputs), model[3].bias.expand(3, 5))


def test_an_exported_model_gives_the_outputs_of_the_eager_one() -> None:
    model, inputs = network(), torch.randn(3, 2, 6, 6)
    exported = torch.export.export(model, (inputs,)).module()
    assert_close([exported(inputs)], [model(inputs)])


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch 2.11's own use of it
def test_a_compiled_optimizer_step_follows_a_new_mask() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    step: Any = torch.compile(optimizer.step, backend="eager")
    for _ in range(2):
        model(torch.randn(3, 2, 6, 6)).square().sum().backward()
        step()
        optimizer.zero_grad()
    layer: Any = model[3]
    layer.mask = torch.zeros(5, 144, dtype=torch.bool)
    model(torch.randn(3, 2, 6, 6)).square().sum().backward()
    step()
    assert layer.weight.count_nonzero() == 0
    assert optimizer.state[layer.weight]["momentum_buffer"].count_nonzero() == 0
