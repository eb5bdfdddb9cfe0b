"""The idx file format of MNIST and its successors, plain or gzip-compressed.

An idx file is: two zero bytes, a byte for the element type (8: unsigned byte), a byte for the number of dimensions,
each dimension as a big-endian 32-bit integer, and the elements in row-major order (Y. LeCun, "The MNIST database").
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lth_fast.data.split import Labelled

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes into a uint8 tensor of the shape the file states.

    Compression is told by the content, not by the name: browsers unpack such files and keep their ``.gz``.

    Raises:
        ValueError: The file is damaged, cut short, too long, or no idx file of unsigned bytes; the message names it.
    """
    content = path.read_bytes()
    if content.startswith(GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: expected a complete gzip file, got: {error}") from error
    if len(content) < 4 or content[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise ValueError(
            f"{path} is no idx file of unsigned bytes: expected it to start with 00 00 08, got {content[:3].hex(' ')!r}"
        )
    dimensions = content[3]
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise ValueError(f"{path} is cut short: expected a header of {header} bytes, got {len(content)}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    if len(content) != header + prod(shape):
        raise ValueError(
            f"{path} is damaged: expected {header + prod(shape)} bytes for shape {list(shape)}, got {len(content)}"
        )
    # bytearray: torch warns about tensors over memory that must not be written.
    elements = np.frombuffer(bytearray(content), np.uint8, offset=header)
    try:
        return torch.from_numpy(elements.reshape(shape))
    except ValueError as error:  # more dimensions than numpy has
        raise ValueError(f"{path} is damaged: expected a few dimensions, got {dimensions} ({error})") from error


def read_idx_pair(images_path: Path, labels_path: Path) -> Labelled:
    """Read grey images ``[N, H, W]`` and their labels ``[N]`` from two idx files.

    Raises:
        ValueError: A file is damaged, or the two do not belong together.
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.dim() != 3:
        raise ValueError(f"{images_path}: expected images [N, H, W], got shape {list(images.shape)}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{labels_path}: expected {len(images)} labels, one per image of {images_path.name}, "
            f"got shape {list(labels.shape)}"
        )
    return Labelled(images.unsqueeze(1), labels.to(torch.int64))


def read_idx_quartet(paths: Sequence[Path]) -> tuple[Labelled, Labelled]:
    """Read training images, training labels, test images and test labels, in this order."""
    train_images, train_labels, test_images, test_labels = paths
    return read_idx_pair(train_images, train_labels), read_idx_pair(test_images, test_labels)
