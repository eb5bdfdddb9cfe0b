from __future__ import annotations

import itertools
import random

import pytest
import torch

from lth_fast.train import Seeds, own_random_state

PURPOSES = ("split", "init", "order", "mask", "noise")


def test_every_purpose_replicate_level_and_part_has_a_stream_of_its_own():
    places = list(itertools.product(PURPOSES, range(3), range(4), range(5)))
    streams = {Seeds(1).stream(*place) for place in places}
    assert len(streams) == len(places)
    assert all(0 <= stream < 2**63 for stream in streams)


def test_neighbouring_places_do_not_share_a_stream_by_their_digits():
    assert Seeds(1).stream("init", 11, 1) != Seeds(1).stream("init", 1, 11)
    assert Seeds(11).stream("init", 1) != Seeds(1).stream("init", 11)


def test_streams_are_the_same_for_ever_so_that_a_recorded_seed_repeats_its_run():
    assert Seeds(0).stream("init") == 151242097298907630
    assert Seeds(1, order_seed=7).stream("order", replicate=2, level=3, part=4) == 6644815709287089488


@pytest.mark.parametrize("case", range(5))
def test_init_seed_and_order_seed_replace_the_seed_for_their_purpose_alone(case):
    drawn = random.Random(case)
    seed, other = drawn.sample(range(1000), 2)
    place = {"replicate": drawn.randrange(5), "level": drawn.randrange(20)}
    init, order = Seeds(seed, init_seed=other), Seeds(seed, order_seed=other)
    for purpose in PURPOSES:
        assert (init.stream(purpose, **place) != Seeds(seed).stream(purpose, **place)) == (purpose == "init")
        assert (order.stream(purpose, **place) != Seeds(seed).stream(purpose, **place)) == (purpose == "order")
    assert init.stream("init", **place) == Seeds(other).stream("init", **place)
    assert order.stream("order", **place) == Seeds(other).stream("order", **place)


def test_zero_is_a_seed_like_any_other():
    assert Seeds(5, init_seed=0).stream("init") == Seeds(0).stream("init") != Seeds(5).stream("init")
    assert Seeds(5, order_seed=0).stream("order") == Seeds(0).stream("order") != Seeds(5).stream("order")


def test_a_generator_stands_at_the_start_of_its_stream():
    expected = torch.Generator().manual_seed(Seeds(3).stream("mask", 1, 2))
    assert torch.equal(torch.rand(4, generator=Seeds(3).generator("mask", 1, 2)), torch.rand(4, generator=expected))


def test_a_block_with_its_own_random_state_leaves_the_global_one_alone_even_when_it_fails():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), own_random_state(torch.device("cpu")):
        torch.manual_seed(2)
        torch.rand(3)
        raise RuntimeError("stop")
    assert torch.equal(torch.get_rng_state(), before)
