"""Benchmarks that need a CUDA device; without one they are skipped. ``benchmarks/gpu.sh`` runs them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from lth_fast.train.precision import float32_arithmetic


@pytest.fixture(autouse=True)
def true_float32() -> Iterator[None]:
    """Both sides of every comparison compute in true float32; torch alone would take TF32 in convolutions."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with float32_arithmetic("float32"):
        yield


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())
