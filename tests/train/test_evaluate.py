from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lth_fast.train import evaluate


class Halves(nn.Module):
    """Twice as large while training: whoever forgets eval() gets other numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, inputs):
        return inputs @ self.weight * (2 if self.training else 1)


def batches(seed, sizes=(4, 4, 1)):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 3, generator=generator), torch.randint(3, (size,), generator=generator)) for size in sizes
    ]


@pytest.mark.parametrize("seed", range(3))
def test_loss_and_accuracy_are_means_over_examples_not_over_batches(seed):
    loader = batches(seed)
    inputs, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    loss, accuracy = evaluate(Halves(), nn.CrossEntropyLoss(), loader)
    assert loss == pytest.approx(nn.functional.cross_entropy(inputs, labels).item(), rel=1e-6)
    assert accuracy == (inputs.argmax(1) == labels).sum().item() / 9


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_put_back_also_after_an_error(training):
    model = Halves().train(training)
    evaluate(model, nn.CrossEntropyLoss(), batches(0))
    assert model.training is training
    with pytest.raises(RuntimeError):
        evaluate(model, nn.CrossEntropyLoss(), [(torch.zeros(2, 7), torch.zeros(2, dtype=torch.int64))])
    assert model.training is training


def test_nothing_is_kept_for_a_backward_pass():
    seen = []

    def criterion(outputs, labels):
        seen.append(outputs.requires_grad)
        return nn.functional.cross_entropy(outputs, labels)

    evaluate(Halves(), criterion, batches(0))
    assert seen == [False, False, False]


@pytest.mark.parametrize(
    "labels",
    [lambda inputs: inputs + 1, lambda inputs: inputs.sum(1), lambda inputs: (inputs > 0).long()],
    ids=["vectors", "numbers", "several classes each"],
)
def test_without_one_class_each_there_is_a_loss_and_no_accuracy(labels):
    loader = [(inputs, labels(inputs)) for inputs, _ in batches(1)]
    loss, accuracy = evaluate(Halves(), lambda outputs, labels: torch.tensor(1.5), loader)
    assert loss == 1.5
    assert math.isnan(accuracy)


def test_without_examples_there_is_neither():
    assert all(math.isnan(value) for value in evaluate(Halves(), nn.CrossEntropyLoss(), []))
