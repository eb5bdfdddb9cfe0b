"""A linear layer that holds and computes its survivors only."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from lth_fast.nn.dynamic_sizes import compile_for_any_number_of_survivors
from lth_fast.nn.masked_linear import MaskedLinear
from lth_fast.ops import SparsePattern, sparse_linear, sparse_pattern
from lth_fast.ops.sparse_linear import to_dense


class SparseLinear(nn.Module):
    """``nn.Linear`` under a fixed mask, with time and memory in proportion to the survivors.

    The Parameter ``values`` ``[survivors]`` holds the weights the mask keeps, in row-major order (``weight[mask]``):
    any optimizer works on it, and its state has survivors only. ``state_dict`` speaks ``nn.Linear``: the keys
    ``weight`` and ``bias`` in dense shapes, in and out. The mask is not part of it; it moves with ``.to()``, deepcopy
    and pickle. It belongs to the layer for good: for another one, make another layer from :meth:`to_dense`.

    Args:
        in_features: Size of the last dimension of the input.
        out_features: Size of the last dimension of the output.
        bias: Whether to add a bias.
        device: Where the parameters live.
        dtype: ``torch.float32`` or ``torch.float64``.
        mask: bool ``[out_features, in_features]``, ``True`` where the weight survives; ``None`` keeps every weight.

    Shape: input ``[..., in_features]`` → output ``[..., out_features]``. The parameters start as the survivors of what
    ``nn.Linear`` draws.
    """

    in_features: int
    out_features: int
    values: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._take(nn.Linear(in_features, out_features, bias, device, dtype), mask)

    @classmethod
    def from_dense(cls, layer: nn.Linear, mask: Tensor | None = None) -> SparseLinear:
        """Make a sparse layer of the survivors of ``layer``.

        Args:
            layer: An ``nn.Linear`` or ``MaskedLinear``; it is left as it is. The bias is shared, the weight is not.
            mask: bool ``[out_features, in_features]``; ``None`` takes the mask of a ``MaskedLinear`` and keeps every
                weight of a plain layer.

        Raises:
            TypeError: ``layer`` is not an ``nn.Linear``, or ``mask`` is not bool.
            ValueError: ``mask`` has another shape than the weight.
        """
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layer must be an nn.Linear, got {type(layer).__name__}")
        if mask is None and isinstance(layer, MaskedLinear):
            mask = layer.mask
        sparse = cls.__new__(cls)
        nn.Module.__init__(sparse)
        sparse._take(layer, mask)
        return sparse.train(layer.training)

    def _take(self, layer: nn.Linear, mask: Tensor | None) -> None:
        weight = layer.weight
        if mask is None:
            mask = torch.ones(weight.shape, dtype=torch.bool)
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a bool tensor of shape {list(weight.shape)}, got {given}")
        if mask.shape != weight.shape:
            raise ValueError(f"mask must have the weight's shape {list(weight.shape)}, got {list(mask.shape)}")
        mask = mask.detach().to(weight.device)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.values = nn.Parameter(weight.detach()[mask], requires_grad=weight.requires_grad)
        self.register_parameter("bias", layer.bias)
        compile_for_any_number_of_survivors()
        for name, part in sparse_pattern(mask)._asdict().items():
            self.register_buffer(name, part, persistent=False)

    @staticmethod
    def obstacle(layer: nn.Module) -> str | None:
        """Why ``layer``, a masked one, cannot be sparse; ``None`` if it can."""
        return None

    @property
    def weight(self) -> Tensor:
        """The dense weight ``[out_features, in_features]``, computed anew at every access and differentiable.

        For code that reads a layer's weight; it costs memory and time that the layer itself does not take.
        """
        return to_dense(self.values, self.pattern)

    def to_dense(self) -> nn.Linear:
        """The plain layer with the same weights, zeros where the mask prunes. The bias is shared, the weight is not."""
        weight = to_dense(self.values.detach(), self.pattern)
        plain = nn.Linear.__new__(nn.Linear)
        nn.Module.__init__(plain)
        plain.in_features, plain.out_features = self.in_features, self.out_features
        plain.weight = nn.Parameter(weight, requires_grad=self.values.requires_grad)
        plain.register_parameter("bias", self.bias)
        return plain.train(self.training)

    @property
    def pattern(self) -> SparsePattern:
        """The survivors' places, as :func:`lth_fast.ops.sparse_linear` takes them."""
        return SparsePattern(*(getattr(self, name) for name in SparsePattern._fields))

    @property
    def mask(self) -> Tensor:
        """bool ``[out_features, in_features]``, ``True`` where the weight survives. A copy."""
        return to_dense(torch.ones_like(self.values, dtype=torch.bool), self.pattern)

    @property
    def survivors(self) -> int:
        """Number of weights the mask keeps."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """Share of the weights the mask keeps, 0 to 1 (1 for an empty weight)."""
        weights = self.in_features * self.out_features
        return self.survivors / weights if weights else 1.0

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):  # half precision is dense arithmetic's
            return nn.functional.linear(input, self.weight, self.bias)
        return sparse_linear(input, self.values, self.bias, self.pattern)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"density={self.density:.4g}"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        values = self.values if keep_vars else self.values.detach()
        destination[f"{prefix}weight"] = to_dense(values, self.pattern)
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[f"{prefix}values"]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Torch's own loading, on a copy in which the dense weight has become the values.
        weight_key, values_key = f"{prefix}weight", f"{prefix}values"
        translated = dict(state_dict)
        if translated.pop(values_key, None) is not None and strict:
            unexpected_keys.append(values_key)
        weight = translated.pop(weight_key, None)
        if weight is not None:
            shape = (self.out_features, self.in_features)
            if weight.shape == shape:
                translated[values_key] = self._survivors_of(weight.detach(), weight_key)
            else:
                error_msgs.append(f"{weight_key} must have shape {list(shape)}, got {list(weight.shape)}")
                translated[values_key] = self.values
        missing: list[str] = []
        super()._load_from_state_dict(translated, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs)
        missing_keys.extend(weight_key if key == values_key else key for key in missing)

    def _survivors_of(self, weight: Tensor, name: str) -> Tensor:
        mask = self.mask.to(weight.device)
        revived = int(weight.masked_fill(mask, 0).count_nonzero())
        if revived:
            message = f"{name}: {revived} pruned weights are not zero in the state dict; they stay zero"
            warnings.warn(message, stacklevel=2)
        return weight[mask]
