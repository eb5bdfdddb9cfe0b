from __future__ import annotations

import pytest
import torch

from lth_fast.data.split import Description, Labelled, draw_split, make_splits, validation_count


@pytest.mark.parametrize(
    ("validation", "count"), [(0, 0), (0.0, 0), (1, 1), (99, 99), (0.1, 10), (0.255, 26), (0.006, 1), (0.99, 99)]
)
def test_the_validation_set_is_given_by_count_or_by_share(validation, count):
    assert validation_count(validation, 100) == count


@pytest.mark.parametrize("validation", [-1, 100, 101, 1.0, 5.0, -0.5, 0.001, 0.999, float("nan"), True, "5", None])
def test_a_validation_set_that_cannot_be_is_refused(validation):
    with pytest.raises(ValueError, match=r"validation must be a count from 0 to 99 .*, got "):
        validation_count(validation, 100)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_a_split_puts_each_index_on_exactly_one_side_in_ascending_order(seed):
    held_out, kept = draw_split(1000, 137, seed)
    assert len(held_out) == 137
    assert (held_out.diff() > 0).all() and (kept.diff() > 0).all()
    assert torch.equal(torch.cat([held_out, kept]).sort().values, torch.arange(1000))


def test_a_split_depends_on_its_seed_and_on_nothing_else():
    torch.manual_seed(1)
    first = draw_split(1000, 100, 7)
    torch.manual_seed(2)
    again, other = draw_split(1000, 100, 7), draw_split(1000, 100, 8)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_a_split_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    draw_split(1000, 100, 7)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_part_of_the_training_set_is_drawn_from():
    held_out, _ = draw_split(10_000, 1000, 3)
    assert torch.histc(held_out.float(), bins=10, min=0, max=10_000).min() > 60


@pytest.mark.parametrize("seed", [-1, 2**63, 1.0, True, None])
def test_a_bad_split_seed_is_refused(seed):
    with pytest.raises(ValueError, match="split_seed must be an integer"):
        draw_split(10, 5, seed)


def splits(**changes):
    images = torch.arange(50, dtype=torch.uint8).view(50, 1, 1, 1)
    options = {
        "validation": 8,
        "train_batch_size": 4,
        "validation_batch_size": 5,
        "test_batch_size": 6,
        "augment": False,
        "split_seed": 0,
    }
    return make_splits(
        Description("toy", classes=10, mean=(0.5,), std=(0.25,)),
        Labelled(images[:40], images[:40].flatten().long() % 10),
        Labelled(images[40:], images[40:].flatten().long() % 10),
        **(options | changes),
    )


def test_training_validation_and_test_set_share_no_image_and_lose_none():
    train, validation, test = splits()
    assert (len(train.images), len(validation.images), len(test.images)) == (32, 8, 10)
    assert sorted(torch.cat([train.images, validation.images]).flatten().tolist()) == list(range(40))
    assert test.images.flatten().tolist() == list(range(40, 50))


def test_labels_stay_with_their_images():
    for loader in splits():
        assert torch.equal(loader.images.flatten().long() % 10, loader.labels)


def test_each_loader_has_its_own_batch_size():
    assert [loader.batch_size for loader in splits()] == [4, 5, 6]


def test_only_training_shuffles_and_augments():
    assert [(loader.shuffle, loader.augment) for loader in splits(augment=True)] == [
        (True, True),
        (False, False),
        (False, False),
    ]


def test_no_validation_set_means_none_and_the_training_set_whole():
    train, validation, _ = splits(validation=0)
    assert validation is None
    assert train.images.flatten().tolist() == list(range(40))


@pytest.mark.parametrize("argument", ["train_batch_size", "validation_batch_size", "test_batch_size"])
@pytest.mark.parametrize("value", [0, -3, 2.0, True, None])
def test_a_bad_batch_size_is_refused_by_its_name(argument, value):
    with pytest.raises(ValueError, match=f"^{argument} must be an integer >= 1, got {value}"):
        splits(**{argument: value})
