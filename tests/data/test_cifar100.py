from __future__ import annotations

import pickle

import numpy as np
import pytest

from lth_fast.data import load_CIFAR100


@pytest.mark.parametrize("folder", ["", "cifar-100-python", "cifar100/cifar-100-python"])
def test_images_and_fine_labels_are_read_from_any_usual_folder(tmp_path, offline, folder):
    random = np.random.default_rng(7)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    contents = {}
    for name, count in (("train", 20), ("test", 8)):
        contents[name] = {
            "data": random.integers(0, 256, (count, 3072), dtype=np.uint8),
            "fine_labels": [99, 0, *random.integers(0, 100, count - 2).tolist()],
            "coarse_labels": [19] * count,
        }
        (tmp_path / folder / name).write_bytes(pickle.dumps(contents[name]))
    train, validation, test = load_CIFAR100(tmp_path, validation=0, augment=True)
    assert validation is None
    assert train.augment
    assert (train.name, train.classes, train.batch_size) == ("cifar100", 100, 128)
    for loader, name in ((train, "train"), (test, "test")):
        assert np.array_equal(loader.images.flatten(1).numpy(), contents[name]["data"])
        assert loader.labels.tolist() == contents[name]["fine_labels"]


def test_without_files_and_network_the_error_says_where_they_belong(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match=r"CIFAR-100 is incomplete: train, test missing") as error:
        load_CIFAR100(tmp_path)
    assert str(tmp_path / "cifar-100-python") in str(error.value)
