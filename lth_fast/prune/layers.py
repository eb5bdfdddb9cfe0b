"""Which parameters of a model are pruned, and how much of them is gone."""

from __future__ import annotations

from torch import Tensor, nn

from lth_fast.nn import MaskedLayer

_WEIGHTED = (nn.Linear, nn.Conv2d)


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights are pruned, by parameter name (``"net.0.weight"``), in registration order.

    These are the weights of every ``nn.Linear`` and ``nn.Conv2d``, also masked or stock-pruned ones. Biases and
    normalisation layers are not pruned (Frankle & Carbin 2019).
    """
    return {
        f"{name}.weight" if name else "weight": layer
        for name, layer in model.named_modules()
        if isinstance(layer, _WEIGHTED)
    }


def fetch_layers(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The parameters to prune as ``(layer, "weight")`` pairs, the format of ``torch.nn.utils.prune``.

    The last one is the output layer.
    """
    return [(layer, "weight") for layer in prunable(model).values()]


def layer_mask(layer: nn.Module) -> Tensor | None:
    """The mask of a masked or stock-pruned layer as a bool tensor, ``None`` for a plain one."""
    if isinstance(layer, MaskedLayer):
        return layer.mask
    stock = getattr(layer, "weight_mask", None)
    return stock.bool() if isinstance(stock, Tensor) else None


def sparsity(model: nn.Module) -> float:
    """Share of the prunable weights that masks remove, in percent (0 to 100).

    A weight that is zero by chance is a survivor: only masks count.
    """
    total = pruned = 0
    for layer in prunable(model).values():
        weight = layer.weight
        total += weight.numel()  # type: ignore[operator]
        mask = layer_mask(layer)
        if mask is not None:
            pruned += mask.numel() - int(mask.sum())
    return 100.0 * pruned / total if total else 0.0
