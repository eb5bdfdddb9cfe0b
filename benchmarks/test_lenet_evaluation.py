"""The evaluation of LeNet on 15,000 images that comes every hundred iterations, in native code, against the forwards of
the same network.
"""

import pytest
import torch
from torch import nn

from lth_fast.nn import choices, convert
from lth_fast.train import evaluate

from .alternation import alternate
from .lenet import Setting, mnist

# As the search finds it, 3 % of noise allowed, where nothing is sparse.
BARS = {1.0: 0.97, 0.5: 1.2, 0.1: 1.4}


def seen_by_python(model: nn.Module) -> nn.Module:
    """``model`` itself; whatever has a hook is left to its own forward."""
    model.register_forward_hook(lambda *given: None)
    return model


@pytest.mark.parametrize("threads", ["one", pytest.param("all", marks=pytest.mark.long)], indirect=True)
@pytest.mark.parametrize("density", BARS)
def test_evaluation(benchmark, threads, density):
    splits, data_used = mnist()
    setting = Setting.at(density)
    native, eager = (convert(setting.ours(), example_input=torch.randn(60, 1, 28, 28)) for _ in range(2))
    seen_by_python(eager)
    loss = nn.CrossEntropyLoss()

    def measure(model: nn.Module) -> list[tuple[float, float]]:
        return [tuple(evaluate(model, loss, part)) for part in (splits.validation, splits.test)]

    assert measure(native) == measure(eager)
    result = alternate(benchmark, lambda: measure(native), lambda: measure(eager))
    benchmark.extra_info.update(
        threads=threads,
        density=density,
        data=data_used,
        bar=BARS[density],
        note=f"{1e3 * result.ours:.1f} ms, {', '.join(choice.form for choice in choices(native).values())}",
    )
    assert result.reaches(BARS[density]), f"{result.ratio:.2f} times faster, expected {BARS[density]}"
