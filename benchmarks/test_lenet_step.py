"""One training step of LeNet (batch 60, Adam) under a mask: our layers against torch.nn.utils.prune."""

from functools import partial

import pytest
import torch

from lth_fast import optim

from .alternation import alternate
from .lenet import Setting, mnist, stepper

STEPS = 40


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
@pytest.mark.parametrize("rival_fused", [False, True], ids=["rival_default_adam", "rival_fused_adam"])
def test_step(benchmark, threads, density, rival_fused):
    splits, data_used = mnist()
    setting = Setting.at(density)
    ours = stepper(setting.ours(), splits.train, optim.Adam)
    rival = stepper(setting.stock(), splits.train, partial(torch.optim.Adam, fused=rival_fused))
    result = alternate(benchmark, lambda: ours.advance(STEPS), lambda: rival.advance(STEPS))
    benchmark.extra_info.update(
        threads=threads,
        density=density,
        data=data_used,
        steps=STEPS,
        note=f"{STEPS} steps; {1e3 * result.ours / STEPS:.2f} ms a step, the reference project's is 14.5",
    )
    assert result.ours > 0
