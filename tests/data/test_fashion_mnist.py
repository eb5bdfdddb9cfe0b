from __future__ import annotations

import numpy as np
import pytest

from lth_fast.data import load_FashionMNIST


@pytest.mark.parametrize("folder", ["", "FashionMNIST/raw", "fashion_mnist/FashionMNIST/raw"])
def test_the_idx_files_are_read_from_any_usual_folder(tmp_path, write_idx_data_set, offline, folder):
    arrays = write_idx_data_set(tmp_path / folder, train=30, test=10, seed=3)
    train, validation, test = load_FashionMNIST(tmp_path, validation=0.2, train_batch_size=7)
    assert (len(train.images), len(validation.images), train.batch_size) == (24, 6, 7)
    assert {(loader.name, loader.classes) for loader in (train, validation, test)} == {("fashion_mnist", 10)}
    assert np.array_equal(test.images.squeeze(1).numpy(), arrays["t10k-images-idx3-ubyte"])


def test_the_files_of_mnist_in_the_same_root_are_not_taken_for_those_of_fashion_mnist(
    tmp_path, write_idx_data_set, offline
):
    write_idx_data_set(tmp_path / "MNIST" / "raw", train=30, test=10)
    write_idx_data_set(tmp_path / "mnist" / "MNIST" / "raw", train=30, test=10)
    with pytest.raises(FileNotFoundError, match="FashionMNIST is incomplete"):
        load_FashionMNIST(tmp_path)
