"""Fashion-MNIST: pictures of clothes in the format of MNIST (Xiao, Rasul, Vollgraf, arXiv 1708.07747)."""

from __future__ import annotations

import os

from lth_fast.data.files import DatasetFiles, obtain
from lth_fast.data.idx import read_idx_quartet
from lth_fast.data.split import DataSplits, Description, make_splits

# Mean and standard deviation of the training pixels / 255, as they are commonly published.
DESCRIPTION = Description("fashion_mnist", classes=10, mean=(0.2860,), std=(0.3530,))

FILES = DatasetFiles(
    title="FashionMNIST",
    names=(
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ),
    folders=("FashionMNIST/raw", "fashion_mnist/FashionMNIST/raw", "fashion_mnist/raw", "fashion_mnist", "raw", ""),
    md5={
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
)


def load_FashionMNIST(
    root: str | os.PathLike[str],
    validation: float = 5000,
    train_batch_size: int = 60,
    validation_batch_size: int = 500,
    test_batch_size: int = 500,
    *,
    augment: bool = False,
    split_seed: int = 0,
) -> DataSplits:
    """Load FashionMNIST: 60,000 training and 10,000 test images ``[1, 28, 28]`` in 10 classes.

    The other arguments are those of :func:`lth_fast.data.load`.
    """
    train, test = read_idx_quartet(obtain(FILES, root))
    return make_splits(
        DESCRIPTION,
        train,
        test,
        validation=validation,
        train_batch_size=train_batch_size,
        validation_batch_size=validation_batch_size,
        test_batch_size=test_batch_size,
        augment=augment,
        split_seed=split_seed,
    )
