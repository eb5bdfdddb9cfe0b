from __future__ import annotations

import pytest
import torch

from lth_fast.data import load_digits

sklearn_datasets = pytest.importorskip("sklearn.datasets")


def rows(*loaders):
    """The images and labels of loaders, one sortable entry each."""
    return sorted(
        (image.flatten().tolist(), int(label))
        for loader in loaders
        for image, label in zip(loader.images, loader.labels, strict=True)
    )


def test_the_default_split_has_1297_250_and_250_images():
    splits = load_digits()
    assert [len(loader.images) for loader in splits] == [1297, 250, 250]
    assert {(loader.name, loader.classes, loader.scale, loader.input_shape) for loader in splits} == {
        ("digits", 10, 16.0, (1, 8, 8))
    }


@pytest.mark.parametrize("options", [{}, {"validation": 0}, {"validation": 0.3, "split_seed": 4}])
def test_every_image_of_scikit_learn_is_in_exactly_one_of_the_sets(options):
    content = sklearn_datasets.load_digits()
    expected = sorted(zip(content.data.astype(int).tolist(), content.target.tolist(), strict=True))
    assert rows(*(loader for loader in load_digits(**options) if loader is not None)) == expected


def test_the_test_set_does_not_depend_on_the_split_seed_and_the_validation_set_does():
    first, second = load_digits(split_seed=1), load_digits(split_seed=2, validation=100)
    assert torch.equal(first.test.images, second.test.images)
    assert torch.equal(first.test.labels, second.test.labels)
    assert not torch.equal(first.validation.images, load_digits(split_seed=2).validation.images)


def test_every_class_is_tested():
    assert load_digits().test.labels.bincount(minlength=10).min() >= 15


def test_mean_and_standard_deviation_come_from_the_images_outside_the_test_set():
    train, validation, _ = load_digits(split_seed=3)
    pixels = torch.cat([train.images, validation.images]).double() / 16
    assert train.mean[0] == pytest.approx(float(pixels.mean()), rel=1e-12)
    assert train.std[0] == pytest.approx(float(pixels.std(correction=0)), rel=1e-12)
    assert load_digits(split_seed=9, validation=10).test.mean == train.mean


def test_more_validation_images_than_there_are_is_refused():
    with pytest.raises(ValueError, match="validation must be a count from 0 to 1546"):
        load_digits(validation=1547)
