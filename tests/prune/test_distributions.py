from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lth_fast.prune import DISTRIBUTIONS, erk_densities
from lth_fast.prune.distributions import _whole_numbers

LAYERS = {"conv": (16, 3, 3, 3), "wide": (64, 16, 3, 3), "output": (10, 64)}


def sizes_of(shapes):
    return {name: math.prod(shape) for name, shape in shapes.items()}


def total_density(shapes, density):
    sizes = sizes_of(shapes)
    return sum(density[name] * sizes[name] for name in shapes) / sum(sizes.values())


def test_whole_numbers_round_the_largest_remainders_up():
    assert _whole_numbers({"a": 2.2, "b": 2.5, "c": 5.3}, dict.fromkeys("abc", 9), 10) == {"a": 2, "b": 3, "c": 5}


def test_what_a_full_tensor_cannot_hold_goes_to_the_others_in_proportion():
    most = {"full": 32, "large": 100, "small": 100}
    assert _whole_numbers({"full": 40, "large": 45, "small": 15}, most, 100) == {"full": 32, "large": 51, "small": 17}


def test_densities_are_in_proportion_to_the_sum_of_the_sizes_over_their_product():
    density = erk_densities(LAYERS, 0.05)
    raw = {name: sum(shape) / math.prod(shape) for name, shape in LAYERS.items()}
    ratios = [density[name] / raw[name] for name in LAYERS]
    assert ratios == pytest.approx([ratios[0]] * 3)
    assert total_density(LAYERS, density) == pytest.approx(0.05)


def test_a_layer_that_would_be_denser_than_dense_is_dense_and_the_others_share_the_rest():
    density = erk_densities(LAYERS, 0.2)
    assert density["output"] == 1
    assert density["wide"] / density["conv"] == pytest.approx((86 / 9216) / (25 / 432))
    assert total_density(LAYERS, density) == pytest.approx(0.2)


@settings(max_examples=200, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=4), min_size=1, max_size=6),
    density=st.floats(0, 1),
)
def test_every_density_is_a_share_and_all_together_have_the_one_asked_for(shapes, density):
    named = {str(i): tuple(shape) for i, shape in enumerate(shapes)}
    found = erk_densities(named, density)
    assert all(0 <= value <= 1 for value in found.values())
    if sum(sizes_of(named).values()):
        assert total_density(named, found) == pytest.approx(density, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=6),
    kept=st.lists(st.floats(0, 1), min_size=6, max_size=6),
    rate=st.floats(0, 1),
)
def test_exactly_as_many_are_pruned_as_the_rate_says_whatever_has_gone_before(shapes, kept, rate):
    named = {str(i): tuple(shape) for i, shape in enumerate(shapes)}
    survivors = {name: round(kept[int(name)] * size) for name, size in sizes_of(named).items()}
    counts = DISTRIBUTIONS["erk"](named, survivors, dict.fromkeys(named, rate))
    assert list(counts) == list(named)
    assert all(0 <= counts[name] <= survivors[name] for name in named)
    assert sum(counts.values()) == pytest.approx(rate * sum(survivors.values()), abs=0.5 + 1e-6)


def test_what_a_tensor_with_few_survivors_cannot_keep_the_others_keep_in_proportion():
    shapes, survivors = {"a": (10, 10), "b": (10, 20), "c": (20, 20)}, {"a": 2, "b": 200, "c": 400}
    counts = DISTRIBUTIONS["erk"](shapes, survivors, dict.fromkeys(shapes, 510 / 602))
    kept = {name: survivors[name] - counts[name] for name in shapes}
    assert kept == {"a": 2, "b": round(90 * 30 / 70), "c": round(90 * 40 / 70)}  # of shares as 20 : 30 : 40


def test_level_after_level_every_layer_has_the_density_of_one_step_to_the_same_total():
    survivors = sizes_of(LAYERS)
    for _ in range(12):
        counts = DISTRIBUTIONS["erk"](LAYERS, survivors, dict.fromkeys(LAYERS, 0.2))
        survivors = {name: survivors[name] - counts[name] for name in LAYERS}
        sizes = sizes_of(LAYERS)
        at_once = erk_densities(LAYERS, sum(survivors.values()) / sum(sizes.values()))
        for name in LAYERS:
            assert survivors[name] == pytest.approx(at_once[name] * sizes[name], abs=1.5)


def test_uniform_takes_each_tensors_rate_of_its_survivors():
    counts = DISTRIBUTIONS["uniform"]({"a": (10,), "b": (4, 5)}, {"a": 5, "b": 20}, {"a": 0.5, "b": 0.1})
    assert counts == {"a": 2, "b": 2}


def test_shapes_of_parameters_are_taken_as_they_are():
    layer = torch.nn.Conv2d(3, 16, 3)
    assert erk_densities({"a": layer.weight.shape}, 0.25) == pytest.approx({"a": 0.25})
