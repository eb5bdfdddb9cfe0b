from __future__ import annotations

import os
import threading

import pytest
import torch
from torch import nn

from lth_fast.train import ParallelStepper
from lth_fast.train.parallel_stepper import room_for_replicates, side_by_side


class Counts:
    """Step i of replicate r has the loss 10 r + i."""

    name = "counts"

    def __init__(self, replicate):
        self.replicate, self.iteration = replicate, 0

    def advance(self, steps):
        self.iteration += steps
        return 10.0 * self.replicate + torch.arange(self.iteration - steps, self.iteration)


def test_losses_have_a_row_for_every_step_and_a_column_for_every_replicate():
    stepper = ParallelStepper([Counts(0), Counts(1), Counts(2)])
    assert stepper.advance(2).tolist() == [[0, 10, 20], [1, 11, 21]]
    assert stepper.advance(1).tolist() == [[2, 12, 22]]


def test_each_item_has_a_thread_of_its_own_at_the_same_time():
    together = threading.Barrier(3, timeout=30)

    def work(item):
        together.wait()
        return -item

    assert side_by_side(work, [1, 2, 3]) == [-1, -2, -3]


@pytest.mark.parametrize("threads", [1, 2])
def test_products_in_a_thread_have_the_bits_that_they_have_outside(threads):
    torch.set_num_threads(threads)  # the fixture of this folder puts it back
    for seed in range(20):
        torch.manual_seed(seed)
        inputs, layer = torch.randn(10, 36), nn.Linear(36, 24).requires_grad_(False)
        expected = layer(inputs)
        for found in side_by_side(lambda _, layer=layer, inputs=inputs: layer(inputs), range(2)):
            assert torch.equal(found, expected)


def test_an_error_in_one_of_them_is_raised():
    def work(item):
        if item == 2:
            raise ValueError("the second one")
        return item

    with pytest.raises(ValueError, match="the second one"):
        side_by_side(work, [1, 2, 3])


@pytest.mark.parametrize(("cores", "threads", "room"), [(8, 1, 8), (8, 3, 2), (2, 2, 1), (1, 2, 1)])
def test_there_is_room_for_as_many_as_have_cores(cores, threads, room, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert room_for_replicates() == room


def test_where_the_system_tells_no_affinity_all_cores_count(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert room_for_replicates() == 6 // torch.get_num_threads()
