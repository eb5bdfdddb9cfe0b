"""The prune step of the lottery loop on ResNet-50: all that happens between the end of a level and the next training.

Threshold and masks over 25.5 million weights of which a level has pruned a fifth already, the record of the masks, the
rewound weights under them in the network of the next level, and the sparse pattern of its output layer. Against the
part of it that ``torch.nn.utils.prune`` can do: ``global_unstructured`` on a network whose history is in place.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune as stock

from lth_fast._survivors import keeps_everything
from lth_fast.experiment.copies import copy_with
from lth_fast.experiment.prune_step import PruneStep
from lth_fast.experiment.pruning import pruning_function
from lth_fast.nn import set_masks
from lth_fast.ops import sparse_pattern
from lth_fast.prune import prunable
from lth_fast.record import create_run

from .alternation import take_turns_with_one

RATE, BAR_SECONDS, ROUNDS = 0.2, 0.5, 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    everything = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(everything)


def test_the_prune_step_takes_less_than_half_a_second(benchmark, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    dense = {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in prunable(model).items()}
    level = create_run(tmp_path, "resnet50", "none").replicate(0).level(2)
    steps = {scope: PruneStep(pruning_function(scope, RATE, None, (), False)) for scope in ("global", "layerwise")}
    before = steps["global"](model, state, dense, 1)

    def prune_step(step: PruneStep) -> nn.Module:
        masks = step(model, state, before, 2)
        level.save_masks(masks)
        network = copy_with(model, state)
        set_masks(network, {name: mask for name, mask in masks.items() if not keeps_everything(mask)})
        sparse_pattern(masks["fc.weight"])
        return network

    pruned_by_stock = iter([with_history(model, before) for _ in range(ROUNDS + 1)])
    results = take_turns_with_one(
        benchmark,
        {scope: partial(prune_step, step) for scope, step in steps.items()},
        lambda: stock.global_unstructured(next(pruned_by_stock), stock.L1Unstructured, amount=RATE),
        rounds=ROUNDS,
    )
    benchmark.extra_info.update(note=f"against stock's masks alone; the bar is {BAR_SECONDS} s")
    missed = [f"{scope}: {result.ours:.3f} s" for scope, result in results.items() if result.ours >= BAR_SECONDS]
    assert not missed, f"{', '.join(missed)}, expected less than {BAR_SECONDS}"


def with_history(model: nn.Module, masks: dict[str, torch.Tensor]) -> list[tuple[nn.Module, str]]:
    """What stock is to prune, in a copy of ``model`` that carries ``masks``."""
    layers = prunable(copy.deepcopy(model))
    for name, layer in layers.items():
        stock.custom_from_mask(layer, "weight", masks[name])
    return [(layer, "weight") for layer in layers.values()]
