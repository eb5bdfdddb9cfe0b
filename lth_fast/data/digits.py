"""The 1,797 handwritten digits that come with scikit-learn (Alpaydin and Kaynak 1998): no files, no network."""

from __future__ import annotations

import os

import torch

from lth_fast._require import require
from lth_fast.data.split import DataSplits, Description, Labelled, draw_split, make_splits

TEST_IMAGES = 250
# The test images are drawn once and for all: whoever asks for another validation split is still measured by the same.
TEST_SEED = 0
# The pixels count the dark points in 4x4 blocks of the scan.
SCALE = 16.0


def load_digits(
    root: str | os.PathLike[str] | None = None,
    validation: float = 250,
    train_batch_size: int = 60,
    validation_batch_size: int = 500,
    test_batch_size: int = 500,
    *,
    augment: bool = False,
    split_seed: int = 0,
) -> DataSplits:
    """Load digits: 1,797 images ``[1, 8, 8]`` in 10 classes, of which 250 are the test set.

    The test set is a fixed random choice and does not depend on ``split_seed``; by default the others are split into
    1,297 for training and 250 for validation. Mean and standard deviation are those of the 1,547 images outside the
    test set. ``root`` is not used: it is here so that every data set is loaded the same way. Needs scikit-learn.

    The other arguments are those of :func:`lth_fast.data.load`.
    """
    content = require("sklearn.datasets", "digits", "the data set digits").load_digits()
    images = torch.from_numpy(content.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(content.target).to(torch.int64)
    test_indices, train_indices = draw_split(len(labels), TEST_IMAGES, TEST_SEED)
    everything = Labelled(images, labels)
    train = everything.select(train_indices)
    std, mean = torch.std_mean(train.images.double() / SCALE, correction=0)
    return make_splits(
        Description("digits", classes=10, mean=(float(mean),), std=(float(std),), scale=SCALE),
        train,
        everything.select(test_indices),
        validation=validation,
        train_batch_size=train_batch_size,
        validation_batch_size=validation_batch_size,
        test_batch_size=test_batch_size,
        augment=augment,
        split_seed=split_seed,
    )
