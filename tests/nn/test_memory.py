"""What a sparse model and its optimizer take, against the dense ones."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.nn import convert, set_masks
from lth_fast.optim import Adam
from lth_fast.prune import prunable


def bytes_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Parameters, masks, patterns and other buffers, and the optimizer's state."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def after_a_step(model: nn.Module) -> int:
    optimizer = Adam(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return bytes_of(model, optimizer)


@pytest.mark.parametrize(("net", "shape"), [("vgg16", (3, 32, 32)), ("lenet", (1, 28, 28))])
def test_at_a_density_of_a_tenth_a_sparse_model_takes_a_quarter_of_the_dense_one_at_most(net, shape):
    model = models.build(net, shape, generator=torch.Generator().manual_seed(0))
    dense = after_a_step(model)
    masks = {name: torch.rand(layer.weight.shape) < 0.1 for name, layer in prunable(model).items()}
    assert after_a_step(convert(model, masks, form="sparse")) <= 0.25 * dense


def test_a_layer_that_turns_sparse_lets_go_of_its_dense_weight():
    model = set_masks(nn.Sequential(nn.Linear(30, 20)), {"0.weight": torch.rand(20, 30) < 0.1})
    dense = weakref.ref(model[0].weight)
    model(torch.randn(2, 30)).sum().backward()
    convert(model, form="sparse")
    gc.collect()
    assert dense() is None


def test_weights_that_are_not_finite_are_refused():
    layer = nn.Linear(4, 3)
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[1, 2] = False
    with torch.no_grad():
        layer.weight[1, 2] = float("nan")
    convert(nn.Sequential(layer), {"0.weight": mask}, form="sparse")  # a pruned one counts as zero
    for value in (float("nan"), float("inf")):
        layer = nn.Linear(4, 3)
        with torch.no_grad():
            layer.weight[0, 0] = value
        with pytest.raises(ValueError, match="layer: expected finite weights at the survivors, got NaN or infinity"):
            convert(nn.Sequential(layer), {"0.weight": mask}, form="sparse")
