from __future__ import annotations

import numpy as np
import pytest

from lth_fast.data import load_SVHN

scipy_io = pytest.importorskip("scipy.io")


def write_svhn(folder, train=20, test=12, seed=0):
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {}
    for name, count in (("train", train), ("test", test)):
        images = random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        labels = np.array([10, 1, 9, *random.integers(1, 11, count - 3)], dtype=np.float64).reshape(-1, 1)
        scipy_io.savemat(folder / f"{name}_32x32.mat", {"X": images, "y": labels})
        contents[name] = images, labels
    return contents


@pytest.mark.parametrize("folder", ["", "svhn"])
def test_images_come_channels_first_and_the_label_10_means_0(tmp_path, offline, folder):
    contents = write_svhn(tmp_path / folder)
    train, validation, test = load_SVHN(tmp_path, validation=0)
    assert validation is None
    assert (train.name, train.classes, train.batch_size) == ("svhn", 10, 128)
    for loader, name in ((train, "train"), (test, "test")):
        images, labels = contents[name]
        assert np.array_equal(loader.images.permute(2, 3, 1, 0).numpy(), images)
        assert np.array_equal(loader.labels.numpy(), labels.flatten() % 10)
        assert loader.labels[:3].tolist() == [0, 1, 9]


def test_a_file_cut_short_is_an_error_that_names_it(tmp_path, offline):
    write_svhn(tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"expected a \.mat file with the arrays X and y") as error:
        load_SVHN(tmp_path, validation=0)
    assert str(path) in str(error.value)


def test_images_of_another_shape_are_refused(tmp_path, offline):
    write_svhn(tmp_path)
    scipy_io.savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((28, 28, 3, 4), np.uint8), "y": np.ones((4, 1))})
    with pytest.raises(ValueError, match=r"expected X to be uint8 \[32, 32, 3, 4\].*got uint8 \[28, 28, 3, 4\]"):
        load_SVHN(tmp_path, validation=0)


def test_without_files_and_network_the_error_says_where_they_belong(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match=r"train_32x32\.mat, test_32x32\.mat missing from") as error:
        load_SVHN(tmp_path)
    assert f"missing from {tmp_path}." in str(error.value)
