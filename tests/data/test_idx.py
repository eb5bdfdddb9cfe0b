from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch

from lth_fast.data.idx import read_idx, read_idx_pair


@pytest.mark.parametrize("shape", [(7,), (3, 4), (5, 6, 2), (0, 28, 28)])
@pytest.mark.parametrize("compress", [False, True])
def test_a_file_gives_back_the_bytes_and_the_shape_it_was_written_with(tmp_path, idx_bytes, shape, compress):
    array = np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if compress else idx_bytes(array))
    tensor = read_idx(path)
    assert tensor.dtype == torch.uint8
    assert tensor.shape == shape
    assert np.array_equal(tensor.numpy(), array)


def test_a_hand_made_file_is_read_in_big_endian_row_major_order(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 6]))
    assert read_idx(path).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_a_file_called_gz_that_is_not_compressed_is_read_all_the_same(tmp_path, idx_bytes):
    path = tmp_path / "labels.gz"
    path.write_bytes(idx_bytes(np.array([4, 2], dtype=np.uint8)))
    assert read_idx(path).tolist() == [4, 2]


@pytest.mark.parametrize("lost", [1, 5, 11, 17])
def test_a_file_cut_short_is_refused_with_its_name_and_both_sizes(tmp_path, idx_bytes, lost):
    content = idx_bytes(np.zeros((2, 3), dtype=np.uint8))
    path = tmp_path / "images"
    path.write_bytes(content[:-lost])
    with pytest.raises(ValueError, match=r"images .*expected.*got") as error:
        read_idx(path)
    assert str(path) in str(error.value)


def test_a_file_with_more_than_its_shape_holds_is_refused(tmp_path, idx_bytes):
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(np.zeros((2, 3), dtype=np.uint8)) + b"x")
    with pytest.raises(ValueError, match=r"expected 18 bytes for shape \[2, 3\], got 19"):
        read_idx(path)


def test_a_compressed_file_cut_short_is_refused(tmp_path, idx_bytes):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8)))[:-20])
    with pytest.raises(ValueError, match=r"images\.gz is damaged: expected a complete gzip file"):
        read_idx(path)


def test_a_compressed_file_with_a_flipped_bit_is_refused(tmp_path, idx_bytes):
    content = bytearray(gzip.compress(idx_bytes(np.random.default_rng(1).integers(0, 256, 500, dtype=np.uint8))))
    content[len(content) // 2] ^= 4
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"images\.gz is damaged"):
        read_idx(path)


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", bytes([0, 0, 13, 1]) + struct.pack(">I", 1) + bytes(4)]
)
def test_what_is_no_idx_file_of_bytes_is_refused(tmp_path, content):
    path = tmp_path / "images"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="images is no idx file of unsigned bytes: expected it to start with 00 00 08"):
        read_idx(path)


def test_images_and_labels_of_different_numbers_are_refused(tmp_path, idx_bytes):
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx_bytes(np.zeros((3, 2, 2), dtype=np.uint8)))
    labels.write_bytes(idx_bytes(np.zeros(4, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"labels: expected 3 labels, one per image of images, got shape \[4\]"):
        read_idx_pair(images, labels)


def test_a_labels_file_in_the_place_of_the_images_is_refused(tmp_path, idx_bytes):
    labels = tmp_path / "labels"
    labels.write_bytes(idx_bytes(np.zeros(4, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"expected images \[N, H, W\], got shape \[4\]"):
        read_idx_pair(labels, labels)


def test_a_header_with_more_dimensions_than_arrays_have_is_refused_with_the_files_name(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(bytes([0, 0, 8, 80]) + bytes([0, 0, 0, 1]) * 80 + b"x")
    with pytest.raises(ValueError, match="images is damaged: expected a few dimensions, got 80"):
        read_idx(path)
