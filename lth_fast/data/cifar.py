"""The python batches of CIFAR-10 and CIFAR-100.

Each is a pickled dict with ``data``, uint8 ``[N, 3072]`` (1,024 red, green, blue values, row by row), and lists of
labels (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lth_fast.data.split import Labelled
from lth_fast.data.unpickle import unpickle

CHANNELS, HEIGHT, WIDTH = 3, 32, 32


def read_cifar_batches(paths: Sequence[Path], label_key: str) -> Labelled:
    """Read and join batches; ``label_key`` is the entry with the labels, e.g. ``"fine_labels"``.

    Raises:
        ValueError: A file is damaged or no CIFAR batch; the message names it.
    """
    batches = [_read_batch(path, label_key) for path in paths]
    return Labelled(torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches]))


def _read_batch(path: Path, label_key: str) -> Labelled:
    content = unpickle(path)
    if not isinstance(content, dict) or not {"data", label_key} <= content.keys():
        given = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected a dict with 'data' and {label_key!r}, got {given}")
    data, labels = content["data"], content[label_key]
    pixels = CHANNELS * HEIGHT * WIDTH
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != pixels:
        given = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{path}: expected 'data' to be a uint8 array [N, {pixels}], got {given}")
    if not isinstance(labels, list) or not all(isinstance(label, int) for label in labels) or len(labels) != len(data):
        given = f"{len(labels)} entries" if isinstance(labels, list) else type(labels).__name__
        raise ValueError(f"{path}: expected {label_key!r} to be a list of {len(data)} integers, got {given}")
    images = torch.from_numpy(np.ascontiguousarray(data)).view(-1, CHANNELS, HEIGHT, WIDTH)
    try:
        return Labelled(images, torch.tensor(labels, dtype=torch.int64, device="cpu"))
    except (ValueError, OverflowError, RuntimeError) as error:  # which one it is depends on torch
        raise ValueError(
            f"{path}: expected {label_key!r} to be numbers of classes, got {max(labels, key=abs)}"
        ) from error
