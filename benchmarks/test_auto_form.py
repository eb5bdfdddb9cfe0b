"""``convert(form="auto")`` on every layer of four networks: never slower than the dense layer by more than 3 %."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.prune import prunable

from .alternation import in_turns
from .layers import exact_mask, ours, training_pass

DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.01)
NETWORKS = {"lenet": (1, 28, 28), "conv6": (3, 32, 32), "vgg16": (3, 32, 32), "torchvision:resnet18": (3, 224, 224)}
BATCH = {"torchvision:resnet18": 8}
ALLOWED = 0.03
SHORT, ALLOWED_IF_SHORT = 100e-6, 5e-6


def layers_of(net: str) -> dict[str, tuple[nn.Module, tuple[int, ...], bool]]:
    """Each different layer of ``net``, its input's shape and whether that needs a gradient; by its description."""
    shape = NETWORKS[net]
    model = models.build(net, shape, 10, generator=torch.Generator().manual_seed(0))
    found: dict[str, tuple[nn.Module, tuple[int, ...], bool]] = {}

    def seen(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        (inputs,) = given
        key = f"{layer} on {list(inputs.shape)}"
        found.setdefault(key, (copy.deepcopy(layer), tuple(inputs.shape), inputs.requires_grad))

    hooks = [layer.register_forward_pre_hook(seen) for layer in prunable(model).values()]
    model.eval()(torch.zeros(BATCH.get(net, 64), *shape))
    for hook in hooks:
        hook.remove()
    for layer, _, _ in found.values():
        layer._forward_pre_hooks.clear()
    return found


@pytest.mark.long
@pytest.mark.usefixtures("denormals_flushed")
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("threads", ["one"], indirect=True)
def test_no_layer_is_slower_than_dense(benchmark: Any, threads: int, net: str, density: float) -> None:
    slower: list[str] = []
    shown: dict[str, dict[str, Any]] = {}
    for description, (layer, shape, input_grad) in layers_of(net).items():
        inputs = torch.randn(shape, requires_grad=input_grad)
        chosen, form = ours(layer, exact_mask(layer.weight.shape, density), inputs)  # type: ignore[arg-type]
        gradient = torch.randn_like(layer(inputs))
        result = in_turns(training_pass(chosen, inputs, gradient), training_pass(layer, inputs, gradient))
        shown[description] = {**vars(result), "form": form}
        allowed = ALLOWED * result.rival if result.rival >= SHORT else ALLOWED_IF_SHORT
        if not result.reaches(result.rival / (result.rival + allowed)):
            slower.append(f"{description}: {form} takes {1 / result.ratio:.2f} of dense's time")
    benchmark.extra_info.update(threads=threads, density=density, layers=shown)
    benchmark.pedantic(lambda: None)  # what was measured is in extra_info, one entry per layer
    assert not slower, "; ".join(slower)
