from __future__ import annotations

import pytest

from lth_fast._names import match_name

NETWORKS = ["lenet", "conv2", "conv4", "resnet20", "resnet110", "VGG-19"]


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("lenet", "lenet"),
        ("LeNet", "lenet"),
        ("vgg-19", "VGG-19"),
        ("vgg_19", "VGG-19"),
        ("VGG-", "VGG-19"),
        ("l", "lenet"),
        ("resnet2", "resnet20"),
        ("Conv4", "conv4"),
    ],
)
def test_case_dashes_and_unambiguous_beginnings_are_understood(typed: str, meant: str) -> None:
    assert match_name(typed, NETWORKS, "network") == meant


def test_separators_count_unless_told_otherwise() -> None:
    assert match_name("conv-4", NETWORKS, "network", separators_count=False) == "conv4"
    assert match_name("vgg19", NETWORKS, "network", separators_count=False) == "VGG-19"
    with pytest.raises(ValueError, match="unknown network 'conv-4'"):
        match_name("conv-4", NETWORKS, "network")


def test_a_whole_name_wins_over_names_that_begin_with_it() -> None:
    assert match_name("resnet", ["resnet", "resnet20"], "network") == "resnet"


def test_a_name_that_merely_contains_what_was_typed_is_not_meant() -> None:
    with pytest.raises(ValueError, match="unknown network 'net20'"):
        match_name("net20", NETWORKS, "network")


def test_a_beginning_of_several_names_is_refused_with_all_of_them() -> None:
    with pytest.raises(ValueError) as refusal:
        match_name("Res", NETWORKS, "network")
    assert str(refusal.value) == "network 'Res' is ambiguous: it could be resnet110, resnet20"


def test_an_unknown_name_is_refused_with_the_nearest_and_all_that_exist() -> None:
    with pytest.raises(ValueError) as refusal:
        match_name("vgg18", NETWORKS, "network")
    assert str(refusal.value) == (
        "unknown network 'vgg18'; did you mean VGG-19? (known: VGG-19, conv2, conv4, lenet, resnet110, resnet20)"
    )


def test_a_name_like_none_of_them_gets_no_guess() -> None:
    with pytest.raises(ValueError) as refusal:
        match_name("zzz", ["mnist", "cifar10"], "data set")
    assert str(refusal.value) == "unknown data set 'zzz' (known: cifar10, mnist)"


def test_no_name_at_all_means_nothing() -> None:
    with pytest.raises(ValueError, match="unknown network ''"):
        match_name("", ["lenet"], "network")


def test_names_may_come_from_any_iterable() -> None:
    assert match_name("a", iter({"abc": 1}), "letter") == "abc"
