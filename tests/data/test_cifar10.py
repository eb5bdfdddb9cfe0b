from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from lth_fast.data import load_CIFAR10

TRAINING_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


def write_cifar10(folder, seed=0):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*TRAINING_BATCHES, "test_batch"]:
        content = {
            "data": random.integers(0, 256, (6, 3072), dtype=np.uint8),
            "labels": random.integers(0, 10, 6).tolist(),
        }
        (folder / name).write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("folder", ["", "cifar-10-batches-py", "cifar10/cifar-10-batches-py"])
def test_the_batches_are_read_from_any_usual_folder(tmp_path, offline, folder):
    write_cifar10(tmp_path / folder)
    train, validation, test = load_CIFAR10(tmp_path, True, 5, 4, 3, 2, split_seed=1)
    assert [len(loader.images) for loader in (train, validation, test)] == [25, 5, 6]
    assert [loader.batch_size for loader in (train, validation, test)] == [4, 3, 2]
    assert [loader.augment for loader in (train, validation, test)] == [True, False, False]
    assert test.input_shape == (3, 32, 32)


def test_a_batch_cut_short_is_an_error_that_names_it(tmp_path, offline):
    write_cifar10(tmp_path)
    path = tmp_path / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="expected a pickle file") as error:
        load_CIFAR10(tmp_path)
    assert str(path) in str(error.value)


def test_without_files_and_network_the_error_says_where_they_belong(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match=r"Put them or cifar-10-python\.tar\.gz there") as error:
        load_CIFAR10(tmp_path)
    assert f"missing from {tmp_path / 'cifar-10-batches-py'}." in str(error.value)


@pytest.fixture(scope="module")
def cifar10(data_root):
    return load_CIFAR10(data_root, validation=0)


@pytest.mark.real_data
def test_the_default_split_is_that_of_the_lottery_ticket_hypothesis(data_root):
    splits = load_CIFAR10(data_root / "cifar10")
    assert [len(loader.images) for loader in splits] == [45_000, 5_000, 10_000]
    assert splits.train.batch_size == 128
    assert not splits.train.augment
    assert sum(loader.labels.bincount() for loader in splits).tolist() == [6000] * 10


@pytest.mark.real_data
def test_there_are_5000_training_and_1000_test_images_of_each_class(cifar10):
    assert cifar10.train.images.shape == (50_000, 3, 32, 32)
    assert cifar10.train.labels.bincount().tolist() == [5000] * 10
    assert cifar10.test.labels.bincount().tolist() == [1000] * 10


@pytest.mark.real_data
def test_the_images_and_labels_are_those_of_cifar_10(cifar10):
    # frog, truck, truck, deer, car; cat, ship, ship, plane, frog
    assert cifar10.train.labels[:5].tolist() == [6, 9, 9, 4, 1]
    assert cifar10.test.labels[:5].tolist() == [3, 8, 8, 0, 6]
    assert cifar10.train.images[0, :, 0, 0].tolist() == [59, 62, 63]
    assert cifar10.train.images[0, :, 0, 1].tolist() == [43, 46, 45]


@pytest.mark.real_data
def test_mean_and_standard_deviation_are_those_of_the_training_pixels(cifar10):
    for channel in range(3):
        share = cifar10.train.images[:, channel].flatten().bincount(minlength=256).double() / (50_000 * 32 * 32)
        value = torch.arange(256).double() / 255
        mean = (share * value).sum()
        std = (share * (value - mean).square()).sum().sqrt()
        assert float(mean) == pytest.approx(cifar10.train.mean[channel], abs=6e-5)
        assert float(std) == pytest.approx(cifar10.train.std[channel], abs=6e-5)
