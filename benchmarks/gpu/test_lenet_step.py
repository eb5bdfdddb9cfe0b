"""One training step of LeNet (MNIST, batch 60, Adam) on a GPU, of one network and of 64 replicates at once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.nn import set_masks
from lth_fast.train import EagerStepper, GraphStepper, OptimizerRecipe, ReplicateStepper
from lth_fast.train.graph_stepper import capture

from ..alternation import alternate
from ..lenet import Setting, mnist
from .sides import finished, in_order, record_kernels

STEPS, REPLICATES, RATE = 50, 64, 1.2e-3


def default_adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=RATE)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("rival", ["stock pruning", "dense network"])
def test_a_step_is_ten_times_as_fast_as_stock_eager_pruning(benchmark, device, density, rival):
    splits, data_used = mnist()
    train = splits.train.to(device)
    setting = Setting.at(density)
    model = setting.ours().to(device)
    ours = GraphStepper(
        model, OptimizerRecipe.named("adam", RATE, device).build(model), nn.CrossEntropyLoss(), in_order(train)
    )
    other = (setting.stock() if rival == "stock pruning" else setting._copy()).to(device)
    theirs = EagerStepper(other, default_adam(other), nn.CrossEntropyLoss(), in_order(train))
    ours.advance(STEPS)  # recorded before the clock runs
    result = alternate(benchmark, finished(lambda: ours.advance(STEPS)), finished(lambda: theirs.advance(STEPS)))
    record_kernels(benchmark, lambda: ours.advance(STEPS), STEPS)
    bar = {"bar": 10.0} if rival == "stock pruning" else {}
    benchmark.extra_info.update(
        density=density, data=data_used, steps=STEPS, **bar, note=f"{1e6 * result.ours / STEPS:.0f} µs a step"
    )
    assert not bar or result.reaches(10.0), f"{result.ratio:.1f} times as fast, expected at least 10"


def replicates(device: torch.device, density: float) -> list[nn.Module]:
    networks = []
    for replicate in range(REPLICATES):
        draw = torch.Generator().manual_seed(replicate)
        network = models.build("lenet", generator=draw)
        masks = {
            name: torch.rand(parameter.shape, generator=draw) < density
            for name, parameter in network.named_parameters()
            if name.endswith("weight")
        }
        networks.append(set_masks(network.to(device), masks))
    return networks


def at_once(device: torch.device, train, density: float) -> ReplicateStepper:
    stepper = ReplicateStepper(
        replicates(device, density),
        OptimizerRecipe.named("adam", RATE, device).build,
        [in_order(train, replicate) for replicate in range(REPLICATES)],
        record=capture,
    )
    stepper.advance(STEPS)
    return stepper


def test_64_replicates_at_once_take_a_hundredth_of_a_stock_step_each(benchmark, device):
    splits, data_used = mnist()
    train = splits.train.to(device)
    ours = at_once(device, train, 0.5)
    other = Setting.at(0.5).stock().to(device)
    theirs = EagerStepper(other, default_adam(other), nn.CrossEntropyLoss(), in_order(train))
    result = alternate(benchmark, finished(lambda: ours.advance(STEPS)), finished(lambda: theirs.advance(STEPS)))
    record_kernels(benchmark, lambda: ours.advance(STEPS), STEPS)
    bar = 100 / REPLICATES  # one of our steps is a step of every replicate
    benchmark.extra_info.update(
        replicates=REPLICATES,
        data=data_used,
        bar=bar,
        note=f"{REPLICATES * result.ratio:.0f} times per replicate-step, "
        f"{1e6 * result.ours / STEPS / REPLICATES:.2f} µs each; one network trains beside {REPLICATES}",
    )
    assert result.reaches(bar), f"{REPLICATES * result.ratio:.0f} times per replicate-step, expected at least 100"
