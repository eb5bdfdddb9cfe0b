"""What the loop adds to a step: data, augmentation, masks and records-to-be against the bare network.

The bare side is forward, backward and the fused optimizer of the plain network, on one batch that lies in memory.
"""

import pytest
import torch
from torch import nn

from lth_fast import data, models
from lth_fast.experiment.config import Config
from lth_fast.nn import set_masks
from lth_fast.prune import prunable
from lth_fast.train import EagerStepper, OptimizerRecipe, ResidentBatches

from .alternation import alternate
from .lenet import genuine_data

BAR = 1 / 1.05


def cifar(batch_size: int, augment: bool) -> tuple[data.ResidentLoader, str]:
    """CIFAR-10 from the folder LTH_FAST_DATA, else random images of its shape; and which of the two."""
    root = genuine_data("cifar10")
    if root is not None:
        return data.load("cifar10", root, train_batch_size=batch_size, augment=augment).train, "CIFAR-10"
    draw = torch.Generator().manual_seed(0)
    loader = data.ResidentLoader(
        torch.randint(0, 256, (5_000, 3, 32, 32), generator=draw, dtype=torch.uint8),
        torch.randint(0, 10, (5_000,), generator=draw),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        batch_size=batch_size,
        shuffle=True,
        augment=augment,
        name="cifar10",
        classes=10,
    )
    return loader, "random images of CIFAR-10's shape"


def step_of(net: str, density: float | None, train: data.ResidentLoader) -> EagerStepper:
    """The loop's step on ``net`` with the paper's optimizer, under masks of ``density``, plain for ``None``."""
    config = Config.resolve(net, "cifar10", {})
    draw = torch.Generator().manual_seed(0)
    model = models.build(net, (3, 32, 32), generator=draw)
    if density is not None:
        names = prunable(model)
        set_masks(model, {name: torch.rand(names[name].weight.shape, generator=draw) < density for name in names})
    recipe = OptimizerRecipe.named(
        config.optim, config.learn_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    batches = ResidentBatches(train, lambda epoch: epoch, lambda epoch: epoch)
    return EagerStepper(model, recipe.build(model), nn.CrossEntropyLoss(), batches)


@pytest.mark.parametrize(
    "threads", ["one", pytest.param("all", marks=pytest.mark.long)], indirect=True
)  # in the default run on one: a minute less
@pytest.mark.parametrize(
    ("net", "batch_size", "augment", "density"),
    [
        ("conv2", 60, False, 1.0),
        ("conv2", 60, False, 0.5),
        pytest.param("resnet20", 128, True, 1.0, marks=pytest.mark.long),  # up to half a minute each
        pytest.param("resnet20", 128, True, 0.5, marks=pytest.mark.long),
    ],
)
def test_a_step_costs_at_most_a_twentieth_more_than_the_bare_network(
    benchmark, threads, net, batch_size, augment, density
):
    train, data_used = cifar(batch_size, augment)
    ours = step_of(net, density, train)
    bare = step_of(net, None, train)
    bare.model.train()
    inputs, labels = bare.batches.next()

    def bare_step() -> None:
        bare.optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(bare.model(inputs), labels).backward()
        bare.optimizer.step()

    result = alternate(benchmark, lambda: ours.advance(1), bare_step)
    benchmark.extra_info.update(threads=threads, density=density, data=data_used, bar=BAR)
    assert result.reaches(BAR), f"{1 / result.ratio:.3f} times the bare step, expected at most 1.05"
