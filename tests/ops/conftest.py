"""Fixtures for the tests of the operators."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from lth_fast import _C


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    """Random inputs that differ from case to case and are the same in every run."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))


@pytest.fixture(params=_C.built_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the build in turn, in force during the test."""
    if request.param not in _C.usable_isas():
        pytest.skip(f"this CPU has no {request.param}")
    previous = _C.active_isa()
    _C.force_isa(request.param)
    yield request.param
    _C.force_isa(previous)


@pytest.fixture
def on_threads() -> Iterator[Callable[[int, Callable[[], Tensor]], Tensor]]:
    """``on_threads(count, work)`` returns ``work()`` as computed with ``count`` threads."""
    previous = torch.get_num_threads()

    def compute(count: int, work: Callable[[], Tensor]) -> Tensor:
        torch.set_num_threads(count)
        return work()

    yield compute
    torch.set_num_threads(previous)


@pytest.fixture
def distance() -> Callable[[Tensor, Tensor], float]:
    """``distance(out, expected)``: ‖out - expected‖ / ‖expected‖ in float64, infinite for NaN."""

    def compute(out: Tensor, expected: Tensor) -> float:
        assert out.shape == expected.shape
        error = (out.double() - expected.double()).norm().item()
        size = expected.double().norm().item()
        if error == 0.0:
            return 0.0
        return error / size if math.isfinite(error) and size > 0.0 else math.inf

    return compute
