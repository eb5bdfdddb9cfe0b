from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lth_fast.data import ResidentLoader, load
from lth_fast.data.augment import flip_and_crop

MEAN, STD = (0.3, 0.5, 0.7), (0.2, 0.25, 0.3)


def make_loader(count=23, channels=3, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, 6, 5), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (count,), generator=generator)
    defaults = {"name": "toy", "classes": 10, "mean": MEAN[:channels], "std": STD[:channels], "batch_size": 5}
    return ResidentLoader(images, labels, **(defaults | options))


def normalised(loader, images):
    """The definition, in double precision."""
    mean, std = (torch.tensor(value, dtype=torch.float64).view(-1, 1, 1) for value in (loader.mean, loader.std))
    return (images.double() / loader.scale - mean) / std


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [255.0, 16.0])
def test_a_batch_holds_the_normalised_images_and_the_labels_at_the_indices(channels, scale):
    loader = make_loader(channels=channels, scale=scale, seed=channels)
    indices = torch.tensor([7, 0, 22, 7])
    inputs, labels = loader.batch(indices)
    assert inputs.dtype == torch.float32
    assert labels.dtype == torch.int64
    torch.testing.assert_close(inputs.double(), normalised(loader, loader.images[indices]), rtol=1e-6, atol=1e-5)
    assert torch.equal(labels, loader.labels[indices])


def test_a_batch_leaves_the_resident_images_as_they_are():
    loader = make_loader()
    images = loader.images.clone()
    loader.batch(torch.arange(5))[0].zero_()
    next(iter(loader))[0].zero_()
    assert torch.equal(loader.images, images)


@pytest.mark.parametrize(("count", "batches"), [(1, 1), (5, 1), (23, 5), (25, 5), (26, 6)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_visits_every_image_once_in_batches_of_which_the_last_may_be_smaller(count, batches, shuffle):
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    loader = ResidentLoader(
        images,
        torch.arange(count),
        name="toy",
        classes=count,
        mean=(0.0,),
        std=(1.0,),
        scale=1.0,
        batch_size=5,
        shuffle=shuffle,
    )
    epoch = list(loader)
    assert len(loader) == len(epoch) == batches
    assert [len(labels) for _, labels in epoch] == [5] * (count // 5) + [count % 5] * (count % 5 > 0)
    labels = torch.cat([labels for _, labels in epoch])
    assert torch.equal(labels.sort().values, torch.arange(count))
    assert torch.equal(torch.cat([inputs for inputs, _ in epoch]).flatten().long(), labels)


def test_without_shuffling_batches_come_in_order_and_draw_no_random_number():
    loader = make_loader()
    before = torch.get_rng_state()
    labels = torch.cat([labels for _, labels in loader])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(labels, loader.labels)
    assert torch.equal(loader.order(3), torch.arange(23))


@pytest.mark.parametrize("augment", [False, True])
def test_the_global_seed_decides_the_epoch_and_the_next_epoch_differs(augment):
    loader = make_loader(count=200, shuffle=True, augment=augment)

    def epoch():
        return torch.cat([inputs for inputs, _ in loader])

    torch.manual_seed(4)
    first, second = epoch(), epoch()
    torch.manual_seed(4)
    assert torch.equal(epoch(), first)
    assert not torch.equal(first, second)


def test_each_batch_of_each_epoch_is_augmented_afresh():
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
    loader = ResidentLoader(
        image.repeat(60, 1, 1, 1),
        torch.zeros(60, dtype=torch.int64),
        name="toy",
        classes=1,
        mean=(0.0,),
        std=(1.0,),
        batch_size=20,
        augment=True,
    )
    torch.manual_seed(5)
    batches = [inputs for _ in range(2) for inputs, _ in loader]
    assert len(torch.stack(batches).flatten(1).unique(dim=0)) == 6


def test_a_default_device_decides_nothing():
    def epoch():
        splits = load("digits", augment=True, split_seed=1)
        torch.manual_seed(3)
        return [tensor for batch in (*splits.train, *splits.validation) for tensor in batch]

    expected = epoch()
    with torch.device("meta"):  # as torch.set_default_device("cuda") would, without a device
        found = epoch()
    assert all(map(torch.equal, found, expected))


def test_an_order_is_a_permutation_that_its_seed_alone_decides():
    loader = make_loader(count=1000, shuffle=True)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    order = loader.order(12)
    assert torch.equal(torch.get_rng_state(), before)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(1000))
    torch.manual_seed(1)
    assert torch.equal(loader.order(12), order)
    assert not torch.equal(loader.order(13), order)


def test_augmentation_is_applied_to_raw_pixels_before_normalisation():
    loader = make_loader(augment=True)
    indices = torch.arange(10)
    inputs, _ = loader.batch(indices, augment_seed=8)
    expected = normalised(loader, flip_and_crop(loader.images[indices], 8))
    torch.testing.assert_close(inputs.double(), expected, rtol=1e-6, atol=1e-5)


def test_augmentation_needs_both_the_setting_and_a_seed():
    indices = torch.arange(10)
    augmenting, plain = make_loader(augment=True), make_loader()
    untouched = plain.batch(indices)[0]
    assert torch.equal(augmenting.batch(indices)[0], untouched)
    assert torch.equal(plain.batch(indices, augment_seed=8)[0], untouched)
    assert not torch.equal(augmenting.batch(indices, augment_seed=8)[0], untouched)


def test_the_same_indices_and_seed_give_the_same_batch():
    loader = make_loader(augment=True)
    indices = torch.tensor([3, 1, 4, 1, 5])
    assert torch.equal(loader.batch(indices, 2)[0], loader.batch(indices, 2)[0])


def test_the_dataset_gives_single_images_normalised_and_ends():
    loader = make_loader()
    dataset = loader.dataset
    assert len(dataset) == 23
    image, label = dataset[4]
    assert torch.equal(image, loader.batch(torch.tensor([4]))[0][0])
    assert (type(label), label) == (int, loader.labels[4])
    assert len(list(dataset)) == 23
    with pytest.raises(IndexError):
        dataset[23]


def test_the_dataset_tells_its_name():
    dataset = make_loader().dataset
    assert (dataset.name, str(dataset)) == ("toy", "toy")


def test_the_dataset_works_in_a_data_loader():
    loader = make_loader()
    batches = torch.utils.data.DataLoader(loader.dataset, batch_size=5)
    for (inputs, labels), (expected_inputs, expected_labels) in zip(batches, loader, strict=True):
        assert torch.equal(inputs, expected_inputs)
        assert torch.equal(labels, expected_labels)


def test_the_input_shape_is_that_of_one_image():
    assert make_loader(channels=1).input_shape == (1, 6, 5)


def test_a_loader_stays_itself_on_its_own_device():
    loader = make_loader()
    assert loader.to("cpu") is loader
    assert loader.to(torch.device("cpu")) is loader


def test_a_moved_loader_keeps_everything_but_the_device():
    loader = make_loader(shuffle=True, augment=True)
    moved = loader.to("meta")
    assert moved is not loader
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert {tensor.device.type for tensor in [*tensors, moved.order(0)]} == {"meta"}
    assert moved.batch(moved.order(0)[:5])[0].shape == (5, 3, 6, 5)
    assert loader.images.device.type == "cpu"
    for attribute in ("name", "classes", "mean", "std", "scale", "batch_size", "shuffle", "augment", "input_shape"):
        assert getattr(moved, attribute) == getattr(loader, attribute)


@pytest.mark.gpu
def test_a_loader_on_the_gpu_gives_the_batches_of_the_cpu():
    loader = make_loader(count=100, shuffle=True, augment=True)
    moved = loader.to("cuda")
    assert moved.to("cuda") is moved
    order = loader.order(5)
    assert torch.equal(moved.order(5).cpu(), order)
    inputs, labels = moved.batch(moved.order(5)[:32], augment_seed=3)
    expected_inputs, expected_labels = loader.batch(order[:32], augment_seed=3)
    torch.testing.assert_close(inputs.cpu(), expected_inputs)
    assert torch.equal(labels.cpu(), expected_labels)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))])
def test_a_loader_survives_copying_and_pickling(duplicate):
    loader = make_loader()
    assert torch.equal(duplicate(loader).batch(torch.arange(5))[0], loader.batch(torch.arange(5))[0])


def test_a_batch_may_be_a_single_image():
    loader = make_loader(count=3, batch_size=1)
    assert [inputs.shape[0] for inputs, _ in loader] == [1, 1, 1]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1, got 2.5"),
        ({"classes": 3}, r"labels must lie in 0\.\.2, got 0\.\.9 \(toy\)"),
        ({"mean": (0.1,)}, "mean must be 3 finite numbers"),
        ({"mean": (0.1, 0.2, float("nan"))}, "mean must be 3 finite numbers"),
        ({"std": (0.1, 0.2)}, "std must be 3 finite numbers > 0"),
        ({"std": (0.1, 0.2, 0.0)}, "std must be 3 finite numbers > 0"),
        ({"std": (0.1, 0.2, float("nan"))}, "std must be 3 finite numbers > 0"),
        ({"scale": 0.0}, "scale must be finite and > 0, got 0.0"),
    ],
)
def test_a_bad_argument_is_refused_by_its_name(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        make_loader(count=100, **changes)


@pytest.mark.parametrize(
    ("images", "labels", "complaint"),
    [
        (torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64), r"images must be uint8 \[N, C, H, W\]"),
        (torch.zeros(4, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), r"got torch.uint8 \[4, 2, 2\]"),
        (torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), "with N >= 1"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"labels must be int64 \[4\]"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4), r"labels must be int64 \[4\], got torch.float32"),
    ],
)
def test_tensors_of_the_wrong_shape_or_dtype_are_refused(images, labels, complaint):
    with pytest.raises(ValueError, match=complaint):
        ResidentLoader(images, labels, name="toy", classes=10, mean=(0.0,), std=(1.0,), batch_size=2)
