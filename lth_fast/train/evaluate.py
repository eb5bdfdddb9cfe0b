"""Loss and accuracy of a model over a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lth_fast.data import ResidentLoader
from lth_fast.train.batches import inputs_and_labels
from lth_fast.train.loss import mean_loss
from lth_fast.train.native_outputs import native_outputs
from lth_fast.train.native_outputs_refusal import native_outputs_refusal


class Evaluation(NamedTuple):
    """Attributes: loss (mean over the examples) and accuracy (correct / total, 0 to 1; NaN if there are no classes)."""

    loss: float
    accuracy: float


@torch.no_grad()
def evaluate(model: nn.Module, criterion: Callable[..., Tensor], loader: Iterable[Any]) -> Evaluation:
    """Evaluate ``model`` in evaluation mode; its mode is put back afterwards.

    Args:
        model: Network from inputs to outputs, ``[batch, classes]`` for an accuracy.
        criterion: Mean loss of a batch from (outputs, labels).
        loader: Iterable of (inputs, labels). Moved to the device of the model's first parameter.

    Returns:
        Mean loss over examples (not over batches, whose last may be smaller), and correct / total.
    """
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    training = model.training
    model.eval()
    loss = torch.zeros((), dtype=torch.float64, device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    total, has_classes = 0, True
    try:
        for outputs, labels in _outputs(model, loader, device):
            loss += mean_loss(criterion, outputs, labels).double() * len(labels)
            has_classes = has_classes and outputs.dim() == 2 and labels.dim() == 1 and not labels.is_floating_point()
            if has_classes:
                correct += (outputs.argmax(1) == labels).sum()
            total += len(labels)
    finally:
        model.train(training)
    if total == 0:
        return Evaluation(float("nan"), float("nan"))
    return Evaluation(loss.item() / total, correct.item() / total if has_classes else float("nan"))


def _outputs(model: nn.Module, loader: Iterable[Any], device: torch.device) -> Iterator[tuple[Any, Tensor]]:
    """What ``model`` makes of every batch, and its labels. Native code has the same bits and takes less time."""
    if isinstance(loader, ResidentLoader) and native_outputs_refusal(model, loader) is None:
        yield from native_outputs(model, loader)
        return
    for batch in loader:
        inputs, labels = inputs_and_labels(batch, device)
        yield model(inputs), labels
