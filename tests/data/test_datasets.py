from __future__ import annotations

import importlib

import pytest

from lth_fast import data
from lth_fast._names import match_name
from lth_fast.data import DataSplits, datasets, load


def test_the_data_sets_are_listed_in_alphabetical_order():
    assert datasets == ("cifar10", "cifar100", "digits", "fashion_mnist", "mnist", "svhn")


def test_every_data_set_has_a_public_function_of_its_own():
    names = [name.removeprefix("load_") for name in data.__all__ if name.startswith("load_")]
    assert sorted(match_name(name, datasets, "data set", separators_count=False) for name in names) == [*datasets]


@pytest.mark.parametrize("name", ["fashion_mnist", "Fashion-MNIST", "FashionMNIST", "fash"])
def test_a_name_may_be_typed_loosely(tmp_path, write_idx_data_set, name):
    write_idx_data_set(tmp_path / "FashionMNIST" / "raw", train=30, test=10)
    splits = load(name, tmp_path, validation=5, train_batch_size=3)
    assert isinstance(splits, DataSplits)
    assert splits.train.name == "fashion_mnist"
    assert (len(splits.validation.images), splits.train.batch_size) == (5, 3)


@pytest.mark.parametrize("name", ["cifar-10", "CIFAR-10", "CIFAR_10"])
def test_a_name_may_have_a_separator_where_its_publisher_puts_one(tmp_path, offline, name):
    with pytest.raises(FileNotFoundError, match="CIFAR-10 is incomplete"):
        load(name, tmp_path)


def test_cifar10_is_not_ambiguous_although_it_begins_cifar100(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match="CIFAR-10 is incomplete"):
        load("cifar10", tmp_path)


# Mean and standard deviation of the training pixels by channel, pixels from 0 to 1, as they are commonly published.
NORMALISATIONS = {
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_the_normalisation_is_the_published_one(name):
    description = importlib.import_module(f"lth_fast.data.{name}").DESCRIPTION
    assert (description.mean, description.std) == NORMALISATIONS[name]
    assert description.scale == 255.0


@pytest.mark.parametrize(("name", "complaint"), [("cifar", "ambiguous"), ("mnits", "you mean mnist"), ("", "known")])
def test_a_name_that_fits_none_or_several_is_refused(tmp_path, name, complaint):
    with pytest.raises(ValueError, match=f"data set .*{complaint}"):
        load(name, tmp_path)


def test_only_digits_does_without_a_root():
    assert len(load("digits").train.images) == 1297
    with pytest.raises(ValueError, match="root must name the folder of mnist's files, got None"):
        load("mnist")


@pytest.mark.parametrize("name", datasets)
def test_every_data_set_takes_the_same_keywords(tmp_path, offline, name):
    options = {
        "validation": 10,
        "train_batch_size": 4,
        "validation_batch_size": 4,
        "test_batch_size": 4,
        "augment": False,
        "split_seed": 1,
    }
    if name == "digits":
        assert len(load(name, tmp_path, **options).validation.images) == 10
    else:
        with pytest.raises(FileNotFoundError, match="is incomplete"):
            load(name, tmp_path, **options)
