"""MNIST: handwritten digits (LeCun, Bottou, Bengio, Haffner 1998), from the original idx files."""

from __future__ import annotations

import os

from lth_fast.data.files import DatasetFiles, obtain
from lth_fast.data.idx import read_idx_quartet
from lth_fast.data.split import DataSplits, Description, make_splits

# Mean and standard deviation of the training pixels / 255; the values of PyTorch's own MNIST example.
DESCRIPTION = Description("mnist", classes=10, mean=(0.1307,), std=(0.3081,))

FILES = DatasetFiles(
    title="MNIST",
    names=(
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
    ),
    folders=("MNIST/raw", "mnist/MNIST/raw", "mnist/raw", "mnist", "raw", ""),
    md5={
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist",
        "https://storage.googleapis.com/cvdf-datasets/mnist",
        "http://yann.lecun.com/exdb/mnist",
    ),
)


def load_MNIST(
    root: str | os.PathLike[str],
    validation: float = 5000,
    train_batch_size: int = 60,
    validation_batch_size: int = 500,
    test_batch_size: int = 500,
    *,
    augment: bool = False,
    split_seed: int = 0,
) -> DataSplits:
    """Load MNIST: 60,000 training and 10,000 test images ``[1, 28, 28]`` in 10 classes.

    The defaults are those of the lottery ticket hypothesis (arXiv 1803.03635, figure 2): 55,000 / 5,000 / 10,000
    images, batches of 60. ``augment`` also mirrors digits, which few want.

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
