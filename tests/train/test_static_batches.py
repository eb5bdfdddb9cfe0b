from __future__ import annotations

import random

import pytest
import torch

from lth_fast.data import ResidentLoader
from lth_fast.train import ResidentBatches, Seeds
from lth_fast.train.static_batches import StaticBatches

COUNT, BATCH, STEPS = 23, 5, 17


def loader(augment=False, count=COUNT):
    draw = torch.Generator().manual_seed(3)
    return ResidentLoader(
        torch.randint(0, 256, (count, 2, 4, 4), dtype=torch.uint8, generator=draw),
        torch.arange(count) % 10,
        name="toy",
        classes=10,
        mean=(0.5, 0.25),
        std=(0.5, 0.5),
        batch_size=BATCH,
        shuffle=True,
        augment=augment,
    )


def resident(loader, replicate=0):
    seeds = Seeds(4)
    return ResidentBatches(
        loader,
        lambda epoch: seeds.stream("order", replicate, 1, epoch),
        lambda epoch: seeds.stream("noise", replicate, 1, epoch + 1),
    )


def take(batches, steps=STEPS):
    return [batches.take(batches.next_size()) for _ in range(steps)]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("start", [0, 3, 4, 5, 9, 10])
def test_batches_are_those_of_the_resident_order_wherever_they_start(start, augment):
    data = loader(augment)
    expected = resident(data)
    expected.start(start)
    batches = StaticBatches([resident(data)])
    batches.start(start)
    for inputs, labels in take(batches):
        expected_inputs, expected_labels = expected.next()
        assert torch.equal(inputs, expected_inputs)
        assert torch.equal(labels, expected_labels)


def test_a_loader_smaller_than_a_batch_gives_all_of_it_every_time():
    batches = StaticBatches([resident(loader(count=3))])
    batches.start(0)
    assert [sorted(labels.tolist()) for _, labels in take(batches, 4)] == [[0, 1, 2]] * 4


@pytest.mark.parametrize("augment", [False, True])
def test_stacked_batches_hold_each_replicates_own(augment):
    data, numbers = loader(augment), (0, 2, 5)
    expected = [resident(data, number) for number in numbers]
    batches = StaticBatches([resident(data, number) for number in numbers], stacked=True)
    batches.start(0)
    for inputs, labels in take(batches):
        assert inputs.shape[:2] == labels.shape
        for replicate, source in enumerate(expected):
            own_inputs, own_labels = source.next()
            assert torch.equal(inputs[replicate], own_inputs)
            assert torch.equal(labels[replicate], own_labels)


@pytest.mark.parametrize("case", range(3))
def test_what_lies_in_place_stays_in_place(case):
    batches = StaticBatches([resident(loader(augment=True))])
    held = {name: value.data_ptr() for name, value in vars(batches).items() if isinstance(value, torch.Tensor)}
    assert len(held) >= 4
    for start in random.Random(case).choices(range(20), k=3):
        batches.start(start)
        take(batches, 6)
    assert held == {name: value.data_ptr() for name, value in vars(batches).items() if isinstance(value, torch.Tensor)}


def test_batches_of_several_loaders_are_refused():
    with pytest.raises(ValueError, match="sources: expected batches of one and the same loader, got 2"):
        StaticBatches([resident(loader()), resident(loader())], stacked=True)
