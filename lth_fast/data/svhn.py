"""SVHN: house numbers seen from the street, cropped to one digit (Netzer et al. 2011), from the original .mat files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from lth_fast._require import require
from lth_fast.data.files import DatasetFiles, obtain
from lth_fast.data.split import DataSplits, Description, Labelled, make_splits

# Mean and standard deviation of the training pixels / 255, as they are commonly published.
DESCRIPTION = Description("svhn", classes=10, mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970))

FILES = DatasetFiles(
    title="SVHN",
    names=("train_32x32.mat", "test_32x32.mat"),
    folders=("", "svhn", "SVHN"),
    md5={
        "train_32x32.mat": "e26dedcc434d2e4c54c9b2d4a06d8373",
        "test_32x32.mat": "eb5a983be6a315427106f1b164d9cef3",
    },
    mirrors=("http://ufldl.stanford.edu/housenumbers", "https://ufldl.stanford.edu/housenumbers"),
)


def load_SVHN(
    root: str | os.PathLike[str],
    augment: bool = False,
    validation: float = 5000,
    train_batch_size: int = 128,
    validation_batch_size: int = 500,
    test_batch_size: int = 500,
    *,
    split_seed: int = 0,
) -> DataSplits:
    """Load SVHN: 73,257 training and 26,032 test images ``[3, 32, 32]`` in 10 classes.

    Class *d* is the digit *d*. The additional, easier 531,131 images are not used. ``augment`` also mirrors digits,
    which few want. Needs scipy.

    The other arguments are those of :func:`lth_fast.data.load`.
    """
    train_path, test_path = obtain(FILES, root)
    return make_splits(
        DESCRIPTION,
        _read_mat(train_path),
        _read_mat(test_path),
        validation=validation,
        train_batch_size=train_batch_size,
        validation_batch_size=validation_batch_size,
        test_batch_size=test_batch_size,
        augment=augment,
        split_seed=split_seed,
    )


def _read_mat(path: Path) -> Labelled:
    scipy_io = require("scipy.io", "svhn", "reading SVHN")
    try:
        content = scipy_io.loadmat(path, variable_names=("X", "y"))
        images, labels = content["X"], content["y"].astype(np.int64).flatten()
    except Exception as error:  # a damaged file makes scipy raise almost anything
        raise ValueError(f"{path}: expected a .mat file with the arrays X and y, got: {error!r}") from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise ValueError(
            f"{path}: expected X to be uint8 [32, 32, 3, {len(labels)}], one image per entry of y, "
            f"got {images.dtype} {list(images.shape)}"
        )
    # The files call the digit 0 "10".
    labels[labels == 10] = 0
    return Labelled(torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))), torch.from_numpy(labels))
