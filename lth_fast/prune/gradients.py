"""The derivatives that scores are made of, computed when a score asks for them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lth_fast.nn import restore

Batch = tuple[Tensor, Any]

# Of what does not depend on a parameter: zero.
_derivatives = partial(torch.autograd.grad, allow_unused=True, materialize_grads=True)


class Gradients:
    """Derivatives of a model with respect to some of its parameters, at its weights as they are.

    Every method takes parameter names and returns name → tensor of the parameter's shape on the parameter's device. It
    works on a plain copy, zero where masks prune, in float32 or whatever the model has, where the batch lies; places
    that are pruned get the gradient of a weight of value 0. The model is left as it was. Layers that draw random
    numbers (dropout) take them from torch's global generator. Derivatives are computed under ``torch.no_grad`` and in
    inference mode, too.

    Args:
        model: Any module, with or without masks of ours.
        criterion: Mean loss of a batch from (outputs, labels), one number.
        batch: Returns (inputs, labels), the inputs in one tensor; called at the first need, once.

    Raises:
        TypeError: ``batch`` is no function, but the batch itself, for instance.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Any, Any], Tensor] | None = None,
        batch: Callable[[], Batch] | None = None,
    ) -> None:
        if batch is not None and not callable(batch):
            raise TypeError(f"batch: expected a function that returns (inputs, labels), got {type(batch).__name__}")
        self._model = model
        self._criterion = criterion
        self._draw = batch
        self._drawn: Batch | None = None

    @torch.inference_mode(False)
    @torch.enable_grad()
    def of_loss(self, names: Sequence[str]) -> dict[str, Tensor]:
        """``g = ∂L/∂w``, ``L`` the loss of the batch in training mode.

        Raises:
            ValueError: There is no criterion or no batch, or they are not as described above.
        """
        loss, parameters = self._loss(names)
        return self._here(names, _derivatives(loss, parameters))

    @torch.inference_mode(False)
    @torch.enable_grad()
    def hessian_times_loss(self, names: Sequence[str]) -> dict[str, Tensor]:
        """``H g``, the Hessian of the loss in the named parameters times their gradient, without forming ``H``.

        Raises:
            ValueError: There is no criterion or no batch, or they are not as described above.
        """
        loss, parameters = self._loss(names)
        gradients = _derivatives(loss, parameters, create_graph=True)
        product = torch.stack([(gradient * gradient.detach()).sum() for gradient in gradients]).sum()
        return self._here(names, _derivatives(product, parameters))

    @torch.inference_mode(False)
    @torch.enable_grad()
    def of_flow(self, names: Sequence[str]) -> dict[str, Tensor]:
        """``∂R/∂|w|``, ``R`` the sum of the outputs for one input of ones, with ``|.|`` of all weights and buffers.

        In evaluation mode and float64: over many layers ``R`` leaves the range of float32. Of the batch it takes the
        shape alone. Infinite buffers, such as the mask of causal attention, stay as they are.

        Raises:
            ValueError: There is no batch, or its inputs are indices (int32, int64).
        """
        inputs, _ = self._batch()
        if inputs.dtype in (torch.int32, torch.int64):  # places in a vocabulary; bytes are pixels
            raise ValueError(f"gradients: this score needs inputs of floating-point numbers, got {inputs.dtype}")
        model = self._copy(inputs.device).double().eval()
        with torch.no_grad():
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(torch.where(tensor.isinf(), tensor, tensor.abs()))
        parameters = _named(model, names)
        flow = model(torch.ones_like(inputs[:1], dtype=torch.float64)).sum()
        return self._here(names, _derivatives(flow, parameters))

    def _loss(self, names: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
        if self._criterion is None:
            raise ValueError("gradients: this score needs a criterion, got none")
        inputs, labels = self._batch()
        model = self._copy(inputs.device).train()
        loss = self._criterion(model(inputs), labels)
        if loss.numel() != 1:
            raise ValueError(f"criterion: expected the mean loss of a batch, got a tensor of shape {list(loss.shape)}")
        return loss, _named(model, names)

    def _batch(self) -> Batch:
        if self._draw is None:
            raise ValueError("gradients: this score needs a batch of training data, got none")
        if self._drawn is None:
            inputs, labels = self._draw()
            if not isinstance(inputs, Tensor):
                raise ValueError(f"batch: expected inputs in one tensor, got {type(inputs).__name__}")
            self._drawn = _usable(inputs), _usable(labels)
        return self._drawn

    def _copy(self, device: torch.device) -> nn.Module:
        model = restore(copy.deepcopy(self._model)).to(device)
        return model.requires_grad_(True)

    def _here(self, names: Sequence[str], gradients: Sequence[Tensor]) -> dict[str, Tensor]:
        device = next(self._model.parameters()).device
        return {name: gradient.detach().to(device) for name, gradient in zip(names, gradients, strict=True)}


def _usable(value: Any) -> Any:
    """``value``, as a copy where it was made in inference mode and no derivative could be taken through it."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _named(model: nn.Module, names: Sequence[str]) -> list[Tensor]:
    parameters: Mapping[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return [parameters[name] for name in names]
