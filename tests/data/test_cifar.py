from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from lth_fast.data.cifar import read_cifar_batches


def write_batch(path, content):
    path.write_bytes(pickle.dumps(content))
    return path


def test_batches_are_joined_in_order_with_channels_first(tmp_path):
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (7, 3, 32, 32), dtype=np.uint8)
    labels = random.integers(0, 10, 7).tolist()
    paths = [
        write_batch(tmp_path / "one", {"data": images[:4].reshape(4, 3072), "labels": labels[:4]}),
        write_batch(tmp_path / "two", {"data": images[4:].reshape(3, 3072), "labels": labels[4:]}),
    ]
    joined = read_cifar_batches(paths, "labels")
    assert joined.images.dtype == torch.uint8
    assert np.array_equal(joined.images.numpy(), images)
    assert joined.labels.dtype == torch.int64
    assert joined.labels.tolist() == labels


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1, 2], r"expected a dict with 'data' and 'labels', got list"),
        ({"labels": [1]}, r"expected a dict with 'data' and 'labels', got \['labels'\]"),
        ({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [1]}, r"got \['data', 'fine_labels'\]"),
        ({"data": np.zeros((2, 3071), np.uint8), "labels": [1, 2]}, r"uint8 array \[N, 3072\], got uint8 \[2, 3071\]"),
        ({"data": np.zeros((2, 3072)), "labels": [1, 2]}, r"uint8 array \[N, 3072\], got float64 \[2, 3072\]"),
        ({"data": [0] * 3072, "labels": [1]}, r"uint8 array \[N, 3072\], got list"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, r"'labels' to be a list of 2 integers, got 1 entries"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": None}, r"'labels' to be a list of 1 integers, got NoneType"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["cat"]}, r"'labels' to be a list of 1 integers"),
        (
            {"data": np.zeros((1, 3072), np.uint8), "labels": [2**70]},
            rf"'labels' to be numbers of classes, got {2**70}",
        ),
    ],
)
def test_a_file_that_is_no_batch_is_refused_with_its_name(tmp_path, content, complaint):
    path = write_batch(tmp_path / "data_batch_1", content)
    with pytest.raises(ValueError, match=rf"data_batch_1: .*{complaint}"):
        read_cifar_batches([path], "labels")
