from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset, WeightedRandomSampler

from lth_fast.data import ResidentLoader
from lth_fast.train import LoaderBatches, ResidentBatches, Seeds

CPU = torch.device("cpu")
COUNT, BATCH = 23, 5
SEEDS = Seeds(4)
order = partial(SEEDS.stream, "order", 0, 1)
noise = partial(SEEDS.stream, "noise", 0, 1)


def resident(augment=False):
    images = torch.arange(COUNT, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return ResidentLoader(
        images,
        torch.arange(COUNT) % 10,
        name="toy",
        classes=10,
        mean=(0.0,),
        std=(1.0,),
        scale=1.0,
        batch_size=BATCH,
        shuffle=True,
        augment=augment,
    )


class Noisy(TensorDataset):
    """Adds noise from torch's global generator, as random transforms do."""

    def __getitem__(self, index):
        value, label = super().__getitem__(index)
        return value + torch.rand(()), label


class OwnLoader:
    """Shuffles by a generator of its own, without a sampler."""

    def __init__(self):
        self.generator = torch.Generator()

    def __len__(self):
        return -(-COUNT // BATCH)

    def __iter__(self):
        for places in torch.randperm(COUNT, generator=self.generator).split(BATCH):
            yield places.float().unsqueeze(1), places


def loaders():
    dataset = TensorDataset(torch.arange(float(COUNT)).unsqueeze(1), torch.arange(COUNT))
    generator = torch.Generator()
    weights = torch.arange(1.0, COUNT + 1).tolist()
    return {
        "shuffled": DataLoader(dataset, BATCH, shuffle=True),
        "shuffled by the loader's generator": DataLoader(dataset, BATCH, shuffle=True, generator=generator),
        "shuffled by the sampler's generator": DataLoader(
            dataset, BATCH, sampler=RandomSampler(dataset, generator=torch.Generator())
        ),
        "weighted": DataLoader(dataset, BATCH, sampler=WeightedRandomSampler(weights, COUNT)),
        "shuffled in a batch sampler": DataLoader(
            dataset, batch_sampler=BatchSampler(RandomSampler(dataset, generator=torch.Generator()), BATCH, False)
        ),
        "in a fixed order": DataLoader(dataset, BATCH),
        "with random transforms": DataLoader(Noisy(*dataset.tensors), BATCH, shuffle=True),
        "with random transforms in persistent workers": DataLoader(
            Noisy(*dataset.tensors), BATCH, shuffle=True, num_workers=1, persistent_workers=True
        ),
        "shuffled by a loader of one's own": OwnLoader(),
        "a list of batches": [(torch.full((2, 1), float(i)), torch.zeros(2)) for i in range(5)],
        "a resident loader": resident(),
    }


def take(batches, count):
    return [batches.next() for _ in range(count)]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_an_epoch_visits_every_image_once_and_the_next_one_in_another_order():
    batches = ResidentBatches(resident(), order, noise)
    assert batches.per_epoch == 5
    epochs = [torch.cat([inputs[:, 0, 0, 0] for inputs, _ in take(batches, 5)]) for _ in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(float(COUNT)))
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])


def test_the_last_batch_of_an_epoch_holds_what_is_left():
    assert [len(labels) for _, labels in take(ResidentBatches(resident(), order, noise), 6)] == [5, 5, 5, 5, 3, 5]


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("case", range(4))
def test_resident_batches_can_start_anywhere_in_their_order(case, augment):
    expected = take(ResidentBatches(resident(augment), order, noise), 17)
    start = random.Random(case).choice([0, 5, 10, *range(12)])
    batches = ResidentBatches(resident(augment), order, noise)
    batches.start(start)
    assert same(take(batches, 17 - start), expected[start:])


def test_augmentation_follows_the_noise_seed_and_the_order_does_not():
    one = ResidentBatches(resident(augment=True), order, noise)
    other = ResidentBatches(resident(augment=True), order, partial(Seeds(5).stream, "noise", 0, 1))
    pairs = list(zip(take(one, 10), take(other, 10), strict=True))
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)
    assert any(not torch.equal(a, b) for (a, _), (b, _) in pairs)


def test_resident_batches_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    take(ResidentBatches(resident(augment=True), order, noise), 7)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", loaders())
def test_the_order_of_a_data_loader_follows_from_the_seed(kind):
    torch.manual_seed(1)
    one = take(LoaderBatches(loaders()[kind], order, CPU), 12)
    torch.manual_seed(2)
    assert same(take(LoaderBatches(loaders()[kind], order, CPU), 12), one)


@pytest.mark.parametrize("kind", [kind for kind in loaders() if "shuffled" in kind or kind == "weighted"])
def test_every_epoch_and_every_seed_shuffles_a_data_loader_anew(kind):
    one = take(LoaderBatches(loaders()[kind], order, CPU), 10)
    other = take(LoaderBatches(loaders()[kind], partial(Seeds(5).stream, "order", 0, 1), CPU), 5)
    assert not same(one[:5], one[5:])
    assert not same(one[:5], other)


@pytest.mark.parametrize("kind", loaders())
@pytest.mark.parametrize("start", [0, 1, 4, 5, 7, 10])
def test_training_goes_on_anywhere_in_a_data_loader_once_the_random_state_is_put_back(kind, start):
    def train(batches, steps):
        """Batches, and what dropout would draw after each."""
        return [(*batches.next(), torch.rand(3)) for _ in range(steps)]

    batches = LoaderBatches(loaders()[kind], order, CPU)
    train(batches, start)
    state = torch.get_rng_state()
    expected = train(batches, 12)

    resumed = LoaderBatches(loaders()[kind], order, CPU)
    resumed.start(start)
    torch.set_rng_state(state)
    found = train(resumed, 12)
    assert all(
        torch.equal(a, b) for one, other in zip(found, expected, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_a_loader_without_a_length_is_refused():
    with pytest.raises(TypeError, match=r"data: a loader of .* with a length is expected, got generator"):
        LoaderBatches((batch for batch in [1]), order, CPU)


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ValueError, match="data: the training loader has no batches"):
        LoaderBatches([], order, CPU)


def test_a_loader_that_yields_less_than_its_length_is_reported():
    class Once:
        """Its second pass is empty, as that of an exhausted iterator."""

        def __init__(self):
            self.batches = iter([(torch.zeros(1), torch.zeros(1))] * 3)

        def __len__(self):
            return 3

        def __iter__(self):
            return self.batches

    batches = LoaderBatches(Once(), order, CPU)
    take(batches, 3)
    with pytest.raises(ValueError, match=r"data: expected 3 batches in every pass .*, got 0 in epoch 2"):
        batches.next()


@pytest.mark.parametrize("case", range(3))
def test_batches_that_are_passed_over_are_those_that_would_have_come(case):
    taken, passed = (ResidentBatches(resident(), order, noise) for _ in range(2))
    choose = random.Random(case)
    for batches in (taken, passed):
        batches.start(case)
    for _ in range(8):
        images, count = passed.skip(most := choose.randint(1, 7))
        assert 1 <= count <= most
        expected = torch.cat([taken.next()[0] for _ in range(count)])
        assert torch.equal(passed.loader.batch(images)[0], expected)
    for one, other in zip(taken.next(), passed.next(), strict=True):
        assert torch.equal(one, other)


def test_batches_are_passed_over_to_the_end_of_an_epoch_at_most():
    batches = ResidentBatches(resident(), order, noise)
    batches.start(3)
    assert batches.skip(9)[1] == batches.per_epoch - 3
    assert batches.skip(9)[1] == batches.per_epoch
