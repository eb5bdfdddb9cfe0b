"""A step of our SGD with momentum, masks included, against torch's, which leaves masks to others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lth_fast import optim

from ..alternation import alternate
from .optimizers import MODELS, at_work

BAR = 1.0


@pytest.mark.parametrize("rival", ["fused", "default"])
@pytest.mark.parametrize("density", [1.0, 0.1])
@pytest.mark.parametrize("model", MODELS)
def test_a_dense_step_is_not_slower_than_torchs(
    benchmark: Any, threads: int, model: str, density: float, rival: str
) -> None:
    settings: dict[str, Any] = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4}
    ours, theirs = at_work(model, density)
    result = alternate(
        benchmark,
        optim.SGD(ours.parameters(), **settings).step,
        torch.optim.SGD(theirs.parameters(), fused=True if rival == "fused" else None, **settings).step,
        rounds=31,
        repeat=10 if model == "lenet" else 2,
    )
    benchmark.extra_info.update(threads=threads, density=density)
    if density == 1:
        benchmark.extra_info["bar"] = BAR
        assert result.reaches(BAR), f"{result.ratio:.2f} times as fast, expected {BAR}"
