"""Several fully connected networks of one shape as one network with a leading axis of replicates."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from lth_fast.nn import MaskedLinear
from lth_fast.nn.mask_changes import mask_changes
from lth_fast.ops import masked_apply_, pack_mask
from lth_fast.train.evaluate import Evaluation
from lth_fast.train.optimizers import KEEP_ZEROS
from lth_fast.train.reasons import first_line

# Layers that treat examples one by one, so that they take [replicates, batch, ...] as it is.
_POINTWISE = (nn.ReLU, nn.Identity, nn.CrossEntropyLoss)


class _StackedProduct(torch.autograd.Function):
    """``input @ weight^T + bias`` for each replicate, its weight gradient in the weight's own order and under the mask.

    Autograd's own derivative of ``baddbmm`` hands the weight gradient out transposed, which costs a copy per step.
    """

    @staticmethod
    def forward(context: Any, input: Tensor, weight: Tensor, bias: Tensor | None, mask_bits: Tensor | None) -> Tensor:
        context.save_for_backward(input, weight, mask_bits)
        transposed = weight.transpose(1, 2)
        return torch.bmm(input, transposed) if bias is None else torch.baddbmm(bias.unsqueeze(1), input, transposed)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        (grad,) = grads
        input, weight, mask_bits = context.saved_tensors
        grad_input = grad.bmm(weight) if context.needs_input_grad[0] else None
        grad_weight = grad.transpose(1, 2).bmm(input)
        if mask_bits is not None:
            masked_apply_(grad_weight, mask_bits)
        grad_bias = grad.sum(1) if context.needs_input_grad[2] else None
        return grad_input, grad_weight, grad_bias, None


class StackedLinear(nn.Module):
    """R linear layers at once, each under its own mask: ``[R, batch, in]`` to ``[R, batch, out]``.

    ``weight`` is ``[R, out, in]``, ``bias`` ``[R, out]`` or ``None``. The layers it is made of then share its memory:
    what training writes here is theirs at once.

    Args:
        layers: ``nn.Linear`` or ``MaskedLinear`` of one shape and device.
    """

    mask_bits: Tensor
    masks_gradient = True
    read_directly = False

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach() for layer in layers]))
        self.masked = any(isinstance(layer, MaskedLinear) for layer in layers)
        if self.masked:
            masks = [
                layer.mask if isinstance(layer, MaskedLinear) else torch.ones_like(layer.weight, dtype=torch.bool)
                for layer in layers
            ]
            self.register_buffer("mask_bits", pack_mask(torch.stack(masks)), persistent=False)
            self.apply_mask()
            mask_changes.note(self)
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias = nn.Parameter(torch.stack(biases)) if biases else None
        for number, layer in enumerate(layers):
            layer.weight.data = self.weight.data[number]
            if self.bias is not None:
                layer.bias.data = self.bias.data[number]

    @property
    def masked_parameter(self) -> Tensor:
        """The weights, as ``weight``."""
        return self.weight

    def hold_mask(self, bits: Tensor) -> None:
        """Keep the packed masks ``bits`` without applying them."""
        self.mask_bits = bits

    def apply_mask(self) -> None:
        """Zero the pruned weights now."""
        masked_apply_(self.weight, self.mask_bits)

    def mask_what_was_written(self) -> None:
        """Nothing, as in ``trust_weight``."""

    def trust_weight(self) -> None:
        """Nothing: the steppers that stack networks take steps which leave zeros where they are."""

    def forward(self, input: Tensor) -> Tensor:
        bits = self.mask_bits if self.masked and self.masks_gradient else None
        return _StackedProduct.apply(input, self.weight, self.bias, bits)


def stack(networks: Sequence[nn.Module]) -> nn.Module:
    """One network that computes what all of ``networks`` do, ``[R, batch, ...]`` to ``[R, batch, classes]``.

    Its parameters have the names of theirs, and their memory from now on.

    Args:
        networks: As :func:`stacking_refusal` allows, of one shape, on one device.
    """
    stacked = copy.deepcopy(networks[0])
    for name, module in list(stacked.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            layers: list[Any] = [network.get_submodule(name) for network in networks]
            setattr(stacked.get_submodule(parent), child, StackedLinear(layers))
        elif isinstance(module, nn.Flatten):
            module.start_dim = 2
    return stacked


def stacking_refusal(network: nn.Module, inputs: Tensor) -> str | None:
    """Why ``network`` cannot be stacked, or ``None``.

    Args:
        network: On any device, plain or with masked layers; left as it is.
        inputs: A batch of its inputs, on which the stacked network is compared with the single one.
    """
    for name, module in network.named_modules():
        container = next(module.children(), None) is not None or isinstance(module, nn.Sequential)
        known = (
            type(module) in (nn.Linear, MaskedLinear, *_POINTWISE)
            or (type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1))
            or (container and not list(module.parameters(recurse=False)) and not list(module.buffers(recurse=False)))
        )
        if not known or isinstance(network, nn.Linear):
            return f"{name or 'the network'} is a {type(module).__name__}; it takes Flatten, Linear and ReLU layers"
    pair = [copy.deepcopy(network).to(inputs.device) for _ in range(2)]
    with torch.no_grad():
        for parameter in pair[1].parameters():
            parameter.mul_(-0.5)
        expected = torch.stack([single(inputs) for single in pair])
        try:
            found = stack(pair)(torch.stack([inputs, inputs]))
            # TF32 rounds at three digits, and batched products in another order than single ones.
            same = torch.allclose(found, expected, rtol=0, atol=1e-2 * float(expected.abs().max()))
        except Exception as error:  # whatever the forward of a network from elsewhere raises
            return f"{type(network).__name__} does not take an axis of replicates ({first_line(error)})"
    return None if same else f"{type(network).__name__} computes something else with an axis of replicates"


def criterion_refusal(criterion: Callable[..., Tensor]) -> str | None:
    """Why the loss of each replicate cannot be told from ``criterion``, or ``None``: it must be plain cross-entropy."""
    if type(criterion) is not nn.CrossEntropyLoss or repr(vars(criterion)) != repr(vars(nn.CrossEntropyLoss())):
        return "the loss is not plain cross-entropy"
    return None


def optimizer_refusal(kind: type[Optimizer]) -> str | None:
    """Why optimizers of class ``kind`` cannot step a stacked network, or ``None``.

    They must treat every weight by itself, so that stacking changes nothing, and leave weights at zero whose gradient
    has always been zero.
    """
    own = issubclass(kind, KEEP_ZEROS) and kind.__module__.partition(".")[0] == "lth_fast"
    if kind in KEEP_ZEROS or own:
        return None
    return f"{kind.__name__} does not treat every weight by itself"


def cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each replicate, ``[R]``, of logits ``[R, batch, classes]`` and labels ``[R, batch]``."""
    losses = functional.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
    return losses.view_as(labels).mean(1)


@torch.no_grad()
def evaluate_stacked(stacked: nn.Module, replicates: int, loader: Iterable[Any]) -> list[Evaluation]:
    """:func:`~lth_fast.train.evaluate.evaluate` for each replicate of a stacked network and plain cross-entropy.

    Args:
        stacked: From :func:`stack`.
        replicates: How many it holds.
        loader: Iterable of (inputs, labels), the same for all replicates.
    """
    device = next(stacked.parameters()).device
    training = stacked.training
    stacked.eval()
    losses = torch.zeros(replicates, dtype=torch.float64, device=device)
    correct = torch.zeros(replicates, dtype=torch.int64, device=device)
    total = 0
    try:
        for inputs, labels in loader:
            labels = labels.to(device).expand(replicates, -1)
            outputs = stacked(inputs.to(device).expand(replicates, *inputs.shape))
            losses += cross_entropy(outputs, labels).double() * labels.shape[1]
            correct += (outputs.argmax(2) == labels).sum(1)
            total += labels.shape[1]
    finally:
        stacked.train(training)
    if total == 0:
        return [Evaluation(float("nan"), float("nan"))] * replicates
    return [
        Evaluation(loss / total, count / total) for loss, count in zip(losses.tolist(), correct.tolist(), strict=True)
    ]
