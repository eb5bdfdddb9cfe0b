"""Data sets held in memory whole: plain torch, no worker processes, no image library.

To add one: a file here with its ``load_<Name>`` function, which is imported below and entered in ``__all__`` and the
table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from lth_fast._names import match_name
from lth_fast.data.cifar10 import load_CIFAR10
from lth_fast.data.cifar100 import load_CIFAR100
from lth_fast.data.digits import load_digits
from lth_fast.data.fashion_mnist import load_FashionMNIST
from lth_fast.data.loader import ResidentDataset, ResidentLoader
from lth_fast.data.mnist import load_MNIST
from lth_fast.data.split import DataSplits
from lth_fast.data.svhn import load_SVHN

__all__ = [
    "DataSplits",
    "ResidentDataset",
    "ResidentLoader",
    "datasets",
    "load",
    "load_CIFAR10",
    "load_CIFAR100",
    "load_FashionMNIST",
    "load_MNIST",
    "load_SVHN",
    "load_digits",
]

_loaders: dict[str, Callable[..., DataSplits]] = {
    "cifar10": load_CIFAR10,
    "cifar100": load_CIFAR100,
    "digits": load_digits,
    "fashion_mnist": load_FashionMNIST,
    "mnist": load_MNIST,
    "svhn": load_SVHN,
}

datasets: tuple[str, ...] = tuple(_loaders)


def load(name: str, root: str | os.PathLike[str] | None = None, **options: Any) -> DataSplits:
    """Load the data set ``name``, downloading its files if they are missing.

    Args:
        name: One of :data:`datasets`, in any case, with dashes or underscores, or an unambiguous beginning.
        root: The data set's own folder, or a folder of several data sets; ``~`` is expanded. Its usual sub-folders are
            searched (``mnist/MNIST/raw``, ``cifar10/cifar-10-batches-py`` ...). Missing files are downloaded to where
            torchvision would have put them. Only ``digits`` does without.
        options: Keywords of the loader; each has a default that suits its data set:

            * ``validation``: size of the validation set, taken from the training set at random: a count, a share
              between 0 and 1, or 0 for none.
            * ``train_batch_size``, ``validation_batch_size``, ``test_batch_size``: images per batch, >= 1.
            * ``augment``: whether training images are flipped and cropped at random, see
              :func:`lth_fast.data.augment.flip_and_crop`.
            * ``split_seed``: integer >= 0 that decides which images are the validation set, and nothing else.

    Raises:
        ValueError: No such data set, an option out of its range, or a damaged file.
        FileNotFoundError: Files are missing and cannot be downloaded; the message says which and where they go.
        ImportError: The data set needs a package that is not installed.
    """
    known = match_name(name, datasets, "data set", separators_count=False)
    if root is None and known != "digits":
        raise ValueError(f"root must name the folder of {known}'s files, got None")
    return _loaders[known](root, **options)
