"""The loss of a batch, which any function may compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def mean_loss(criterion: Callable[..., Tensor], outputs: Any, labels: Tensor) -> Tensor:
    """What ``criterion`` makes of (outputs, labels), as a tensor of shape ``[]``.

    Raises:
        TypeError: It is no tensor.
        ValueError: It is not one number.
    """
    loss = criterion(outputs, labels)
    if not isinstance(loss, Tensor):
        raise TypeError(f"criterion: expected the mean loss of a batch in a tensor, got {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(f"criterion: expected the mean loss of a batch, got a tensor of shape {list(loss.shape)}")
    return loss.reshape(()) if loss.dim() else loss
