"""CIFAR-100: small photographs in 100 classes (Krizhevsky 2009), from the original python batches."""

from __future__ import annotations

import os

from lth_fast.data.cifar import read_cifar_batches
from lth_fast.data.files import DatasetFiles, obtain
from lth_fast.data.split import DataSplits, Description, make_splits

# Mean and standard deviation of the training pixels / 255, as they are commonly published.
DESCRIPTION = Description("cifar100", classes=100, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))

FILES = DatasetFiles(
    title="CIFAR-100",
    names=("train", "test"),
    folders=("cifar-100-python", "cifar100/cifar-100-python", "cifar100", ""),
    md5={"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
    mirrors=(
        "https://www.cs.toronto.edu/~kriz",
        "https://dataset.bj.bcebos.com/cifar",
    ),
    archive="cifar-100-python.tar.gz",
)


def load_CIFAR100(
    root: str | os.PathLike[str],
    augment: bool = False,
    validation: float = 5000,
    train_batch_size: int = 128,
    validation_batch_size: int = 500,
    test_batch_size: int = 500,
    *,
    split_seed: int = 0,
) -> DataSplits:
    """Load CIFAR-100: 50,000 training and 10,000 test images ``[3, 32, 32]`` in 100 fine classes.

    The other arguments are those of :func:`lth_fast.data.load`.
    """
    *train_paths, test_path = obtain(FILES, root)
    return make_splits(
        DESCRIPTION,
        read_cifar_batches(train_paths, "fine_labels"),
        read_cifar_batches([test_path], "fine_labels"),
        validation=validation,
        train_batch_size=train_batch_size,
        validation_batch_size=validation_batch_size,
        test_batch_size=test_batch_size,
        augment=augment,
        split_seed=split_seed,
    )
