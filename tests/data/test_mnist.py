from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from lth_fast.data import load_MNIST


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("folder", ["", "MNIST/raw", "mnist/MNIST/raw", "mnist", "raw"])
def test_the_idx_files_are_read_from_any_usual_folder(tmp_path, write_idx_data_set, offline, folder, compress):
    arrays = write_idx_data_set(tmp_path / folder, train=30, test=10, compress=compress)
    train, validation, test = load_MNIST(tmp_path, validation=0)
    assert validation is None
    assert np.array_equal(train.images.squeeze(1).numpy(), arrays["train-images-idx3-ubyte"])
    assert np.array_equal(train.labels.numpy(), arrays["train-labels-idx1-ubyte"])
    assert np.array_equal(test.images.squeeze(1).numpy(), arrays["t10k-images-idx3-ubyte"])
    assert np.array_equal(test.labels.numpy(), arrays["t10k-labels-idx1-ubyte"])


def test_the_keywords_reach_the_loaders(tmp_path, write_idx_data_set):
    write_idx_data_set(tmp_path, train=30, test=10)
    train, validation, test = load_MNIST(tmp_path, 6, 4, 3, 2, augment=True, split_seed=5)
    assert (len(validation.images), train.batch_size, validation.batch_size, test.batch_size) == (6, 4, 3, 2)
    assert train.augment
    other = load_MNIST(tmp_path, 6, split_seed=6)
    assert not torch.equal(validation.images, other.validation.images)


def test_a_damaged_file_is_an_error_that_names_it(tmp_path, write_idx_data_set, offline):
    write_idx_data_set(tmp_path, train=30, test=10)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected a complete gzip file") as error:
        load_MNIST(tmp_path, validation=0)
    assert str(path) in str(error.value)


def test_a_label_beyond_nine_is_refused(tmp_path, write_idx_data_set):
    write_idx_data_set(tmp_path, train=30, test=10, compress=False)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + bytes([10]))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.9, got 0\.\.10 \(mnist\)"):
        load_MNIST(tmp_path, validation=0)


def test_without_files_and_network_the_error_says_where_they_belong(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match="MNIST is incomplete: train-images-idx3-ubyte") as error:
        load_MNIST(tmp_path)
    assert f"missing from {tmp_path / 'MNIST' / 'raw'}." in str(error.value)
    assert len(offline) == 3


@pytest.fixture(scope="module")
def mnist(data_root):
    return load_MNIST(data_root)


@pytest.fixture(scope="module")
def whole_mnist(data_root):
    return load_MNIST(data_root / "mnist", validation=0)


@pytest.mark.real_data
def test_the_default_split_is_that_of_the_lottery_ticket_hypothesis(mnist):
    assert [len(loader.images) for loader in mnist] == [55_000, 5_000, 10_000]
    assert [loader.batch_size for loader in mnist] == [60, 500, 500]
    assert {loader.input_shape for loader in mnist} == {(1, 28, 28)}
    assert {(loader.name, loader.classes, loader.scale) for loader in mnist} == {("mnist", 10, 255.0)}


@pytest.mark.real_data
def test_the_labels_are_those_of_mnist(whole_mnist):
    assert whole_mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert whole_mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert whole_mnist.train.labels.bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert whole_mnist.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.real_data
def test_the_pixels_are_those_of_the_file(whole_mnist, data_root):
    with gzip.open(data_root / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte.gz") as file:
        content = file.read()
    assert whole_mnist.train.images.numpy().tobytes() == content[16:]


@pytest.mark.real_data
def test_mean_and_standard_deviation_are_those_of_the_training_pixels(whole_mnist):
    std, mean = torch.std_mean(whole_mnist.train.images.double() / 255)
    assert float(mean) == pytest.approx(whole_mnist.train.mean[0], abs=5e-5)
    assert float(std) == pytest.approx(whole_mnist.train.std[0], abs=5e-5)


@pytest.mark.real_data
def test_normalised_inputs_have_mean_0_and_standard_deviation_1(mnist):
    std, mean = torch.std_mean(torch.cat([inputs for inputs, _ in mnist.validation]))
    assert float(mean) == pytest.approx(0, abs=0.02)
    assert float(std) == pytest.approx(1, abs=0.02)
