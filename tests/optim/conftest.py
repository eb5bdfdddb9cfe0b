"""Fixtures for the tests of the optimizers."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def reproducible(request: pytest.FixtureRequest) -> Iterator[None]:
    """Random inputs that differ from case to case and are the same in every run; one thread, as tensors are small."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
