from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from lth_fast.nn import masked_layers, set_masks
from lth_fast.train import EagerStepper, OptimizerRecipe
from lth_fast.train.optimizers import KEEP_ZEROS

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "sgd with momentum and weight decay": lambda parameters: torch.optim.SGD(
        parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True
    ),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "fused adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, amsgrad=True, fused=True),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
    "adagrad": lambda parameters: torch.optim.Adagrad(parameters, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01, momentum=0.5, centered=True),
}


class RandomBatches:
    """Step i sees the i-th batch, wherever training starts."""

    per_epoch = 7

    def start(self, iteration):
        self.iteration = iteration

    def next(self):
        generator = torch.Generator().manual_seed(self.iteration)
        self.iteration += 1
        return torch.randn(6, 1, 5, 5, generator=generator), torch.randint(3, (6,), generator=generator)


def network(seed=0, density=1.0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    if density < 1:
        set_masks(model, {f"{i}.weight": torch.rand_like(model[i].weight) < density for i in (0, 4, 6)})
    return model


def stepper_of(model, optimizer, iteration=0, **options):
    batches = RandomBatches()
    batches.start(iteration)
    return EagerStepper(model, optimizer, nn.CrossEntropyLoss(), batches, iteration, **options)


def test_losses_are_those_of_each_batch_before_its_step():
    model, twin = network(), network()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    batches = RandomBatches()
    batches.start(0)
    torch.manual_seed(1)
    expected = []
    for _ in range(5):
        inputs, labels = batches.next()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(twin(inputs), labels)
        loss.backward()
        optimizer.step()
        expected.append(loss.detach())

    torch.manual_seed(1)
    stepper = stepper_of(model.eval(), torch.optim.SGD(model.parameters(), lr=0.1))
    losses = stepper.advance(5)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, torch.stack(expected))
    assert stepper.iteration == 5
    for (name, one), (_, other) in zip(model.state_dict().items(), twin.state_dict().items(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("case", range(3))
def test_how_many_steps_are_taken_at_a_time_changes_no_bit(case):
    runs = []
    for sizes in ([12], random.Random(case).choices(range(1, 4), k=30)):
        model = network(density=0.4)
        stepper = stepper_of(model, torch.optim.Adam(model.parameters(), lr=0.01, fused=True))
        torch.manual_seed(case)
        losses = torch.cat([stepper.advance(size) for size in sizes])[:12]
        runs.append(losses)
    assert torch.equal(*runs)


def test_a_schedule_scales_the_learning_rate_of_every_group_at_its_iteration():
    seen = []

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(tuple(group["lr"] for group in self.param_groups))
            return super().step(closure)

    model = network()
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[4].parameters()}]
    stepper = stepper_of(model, Spy(groups, lr=0.25), iteration=3, schedule=lambda iteration: 1 / (1 + iteration))
    stepper.advance(2)
    stepper.advance(2)
    assert seen == [(0.5 / (1 + i), 0.25 / (1 + i)) for i in (3, 4, 5, 6)]


@pytest.mark.parametrize("density", [0.5, 0.02, 0.0])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_and_everything_the_optimizer_keeps_for_them_are_zero_after_every_step(name, density):
    model = network(seed=int(density * 100) + 1, density=density)
    layers = masked_layers(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    assert type(optimizer) in KEEP_ZEROS
    stepper = stepper_of(model, optimizer)
    for _ in range(8):
        stepper.advance(1)
        for layer in layers.values():
            pruned = ~layer.mask
            assert not layer.weight[pruned].any()
            kept = [v for v in optimizer.state[layer.weight].values() if v is not None and v.shape == pruned.shape]
            for value in kept:
                assert not value[pruned].any()


@pytest.mark.parametrize("name", ["adadelta", "adafactor", "adamax", "asgd", "nadam", "radam", "rprop"])
def test_no_other_optimizer_of_torch_revives_a_pruned_weight_either(name):
    model = network(seed=2, density=0.5)
    stepper = stepper_of(model, OptimizerRecipe.named(name, 0.01).build(model))
    for _ in range(4):
        stepper.advance(2)
        for layer in masked_layers(model).values():
            assert not layer.masked_weight()[~layer.mask].any()
