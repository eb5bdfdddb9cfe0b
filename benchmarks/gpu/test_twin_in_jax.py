"""64 LeNet replicates at once beside their twin in JAX, where it is installed.

Apart from the other benchmarks and behind them: the workers of a DataLoader are forks, which JAX's threads do not bear.
"""

from __future__ import annotations

import pytest

from ..alternation import alternate
from ..lenet import mnist
from .sides import finished
from .test_lenet_step import RATE, REPLICATES, STEPS, at_once


def test_64_replicates_beside_a_jax_twin(benchmark, device):
    pytest.importorskip("jax")
    from .jax_twin import make_jax_twin

    splits, data_used = mnist()
    train = splits.train.to(device)
    ours = at_once(device, train, 0.5)
    theirs = make_jax_twin(splits.train, REPLICATES, STEPS, RATE, 0.5)
    theirs()  # compiled before the clock runs
    result = alternate(benchmark, finished(lambda: ours.advance(STEPS)), theirs)
    benchmark.extra_info.update(
        replicates=REPLICATES,
        data=data_used,
        note=f"JAX vmap + scan: {1e6 * result.rival / STEPS / REPLICATES:.2f} µs per replicate-step, "
        f"ours {1e6 * result.ours / STEPS / REPLICATES:.2f}",
    )
    assert result.rival > 0
