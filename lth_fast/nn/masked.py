"""What every masked layer shares: the mask beside the weight, and the promise that pruned weights are zero."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lth_fast.ops import masked_apply, masked_apply_, pack_mask, unpack_mask

# Layers whose mask was set and whose weight an optimizer may already carry moments for: lth_fast.optim clears those
# before the optimizer's next step.
recently_masked: weakref.WeakSet[MaskedLayer] = weakref.WeakSet()
every_masked_layer: weakref.WeakSet[MaskedLayer] = weakref.WeakSet()


class MaskedLayer(nn.Module):
    """Base of ``MaskedLinear`` and ``MaskedConv2d``: a plain layer whose ``weight`` carries a mask.

    The mask is a bool tensor of the weight's shape outside (``True`` = survivor) and one bit per weight inside. It is
    not part of ``state_dict``, whose keys are the plain layer's; it moves with ``.to()``, deepcopy and pickle.

    Pruned weights are zero. The layer knows when the weight was last seen so and re-applies the mask in the forward if
    anything wrote to it since (``load_state_dict``, an initialiser, an optimizer step). Writes through ``weight.data``
    leave no trace in torch's version counter; call :meth:`apply_mask` after them.
    """

    plain_class: ClassVar[type[nn.Module]]
    weight: Tensor
    mask_bits: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool tensor of the weight's shape, ``True`` where the weight survives. A copy: assign to change it."""
        return unpack_mask(self.mask_bits, self.weight.shape)

    @mask.setter
    def mask(self, mask: Tensor | None) -> None:
        weight = self.weight
        if mask is None:
            mask = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor of shape {list(weight.shape)}, got {given}")
        if mask.shape != weight.shape:
            raise ValueError(f"mask must have the weight's shape {list(weight.shape)}, got {list(mask.shape)}")
        bits = pack_mask(mask.detach().to(weight.device))
        if "mask_bits" in self._buffers:
            self.mask_bits = bits
        else:
            self.register_buffer("mask_bits", bits, persistent=False)
        self._survivors: int | None = None
        self.apply_mask()
        if weight.grad is not None:
            masked_apply_(weight.grad, bits)
        every_masked_layer.add(self)
        recently_masked.add(self)

    def apply_mask(self) -> None:
        """Zero the pruned weights now."""
        masked_apply_(self.weight, self.mask_bits)
        self.trust_weight()

    def trust_weight(self) -> None:
        """Note that the pruned weights are zero as they stand.

        For whoever just wrote the weight and knows it, a training loop whose optimizer maps zero gradients and zero
        moments to zero, for instance: the next forward then skips re-applying the mask.
        """
        self._seen_masked = _identity(self.weight)

    def masked_weight(self) -> Tensor:
        """The weight, after re-applying the mask if anything wrote to it since it was last known to be masked."""
        if torch.compiler.is_compiling():
            # A graph cannot look at version counters: it always applies the mask, as a differentiable copy.
            return masked_apply(self.weight, self.mask_bits)
        if self._seen_masked != _identity(self.weight):
            self.apply_mask()
        return self.weight

    @property
    def survivors(self) -> int:
        """Number of weights the mask keeps."""
        if self._survivors is None:
            self._survivors = int(self.mask.sum())
        return self._survivors

    @property
    def density(self) -> float:
        """Share of the weights the mask keeps, 0 to 1 (1 for an empty weight)."""
        return self.survivors / self.weight.numel() if self.weight.numel() else 1.0

    @classmethod
    def from_dense(cls, layer: nn.Module, mask: Tensor | None = None) -> Any:
        """Make a masked layer that shares the parameters of ``layer``.

        Args:
            layer: The plain layer; it is left as it is, but its weight is zeroed where ``mask`` prunes.
            mask: Bool tensor of the weight's shape; ``None`` keeps every weight.
        """
        twin = cls.plain_class.__new__(cls)
        nn.Module.__init__(twin)
        twin.__dict__.update({key: value for key, value in layer.__dict__.items() if not key.startswith("_")})
        for table in ("_parameters", "_buffers"):
            getattr(twin, table).update(getattr(layer, table))
        twin._copy_private(layer)
        mask_layer(twin, mask, cls)
        return twin

    def _copy_private(self, layer: Any) -> None:
        """Copy the underscore attributes that ``layer``'s class keeps for itself, as Conv2d does for its padding."""

    def to_dense(self) -> nn.Module:
        """The plain layer with the same parameters (shared), zeros where the mask prunes."""
        plain = self.plain_class.__new__(self.plain_class)
        self.apply_mask()
        plain.__dict__.update(self.__dict__)
        for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            plain.__dict__[table] = self.__dict__[table].copy()
        _forget_mask(plain)
        return plain

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, density={self.density:.4g}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The copy's version counter starts anew, so what was noted about the original says nothing about it; and an
        # optimizer may have been copied along.
        self._seen_masked = None
        every_masked_layer.add(self)
        recently_masked.add(self)


def _identity(weight: Tensor) -> tuple[int, int, int] | None:
    if weight.is_inference():
        return None
    return (id(weight), weight.data_ptr() if weight.device.type != "meta" else 0, weight._version)


def mask_layer(layer: nn.Module, mask: Tensor | None, cls: type[MaskedLayer]) -> None:
    """Turn a plain ``layer`` into its masked twin in place, so that whoever holds the layer sees the mask."""
    previous = layer.__class__
    layer.__class__ = cls
    try:
        layer.mask = mask  # type: ignore[assignment]
    except BaseException:
        layer.__class__ = previous
        raise


def unmask_layer(layer: MaskedLayer) -> None:
    """Turn a masked layer back into its plain class in place; pruned weights stay as zeros."""
    layer.apply_mask()
    layer.__class__ = layer.plain_class  # type: ignore[assignment]
    _forget_mask(layer)


def _forget_mask(layer: nn.Module) -> None:
    layer._buffers.pop("mask_bits", None)
    layer._non_persistent_buffers_set.discard("mask_bits")
    for name in ("_seen_masked", "_survivors"):
        layer.__dict__.pop(name, None)
