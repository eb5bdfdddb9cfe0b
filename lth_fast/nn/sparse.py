"""What every sparse layer shares: values instead of a weight, a pattern beside them, the plain layer's state dict."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from lth_fast.nn.attributes import buffer, of_another_kind, transformed
from lth_fast.nn.dynamic_sizes import compile_for_any_number_of_survivors
from lth_fast.nn.masked import MaskedLayer, check_mask
from lth_fast.nn.tracing import refuse_scripting

if TYPE_CHECKING:
    from typing_extensions import Self  # typing's in Python 3.11

# Where a layer on the meta device keeps the pattern that it had before.
_PATTERN_ASIDE = "_pattern_aside"
_HALF_PRECISION = (torch.float16, torch.bfloat16)


def check_finite(survivors: Tensor, name: str) -> None:
    """Raise ValueError, calling the layer ``name``, where one of its surviving weights is NaN or infinite."""
    if not bool(survivors.isfinite().all()):
        raise ValueError(f"{name}: expected finite weights at the survivors, got NaN or infinity")


class SparseLayer(nn.Module):
    """Base of ``SparseLinear`` and ``SparseConv2d``: a layer under a fixed mask that holds and computes survivors only.

    The Parameter ``values`` ``[survivors]`` holds the weights the mask keeps: any optimizer works on it, and its state
    has survivors only. Their order depends on the mask alone; :meth:`collect` and :meth:`spread` know it.
    ``state_dict`` speaks the plain layer's language: the keys ``weight`` and ``bias`` in dense shapes, in and out. Its
    ``weight`` is computed for it: what is written to that tensor (by a moving average over the tensors of two state
    dicts, for instance) is lost until ``load_state_dict`` takes it over. The mask is not part of it; it moves with
    ``.to()``, deepcopy and pickle. It belongs to the layer for good: for another one, make another layer from
    :meth:`to_dense`.
    """

    plain_class: ClassVar[type[nn.Module]]
    plain_attributes: ClassVar[tuple[str, ...]]
    """What the layer has in common with the plain one, besides the parameters."""
    pattern_fields: ClassVar[tuple[str, ...]]
    """Names of the tensors of the pattern: the layer's buffers."""

    values: nn.Parameter
    bias: nn.Parameter | None
    _pattern_version = 0  # how often its first tensor had been written to when the pattern was last known to be right

    def _find_pattern(self, mask: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _computes_densely(self, input: Tensor) -> bool:
        """Whether torch's dense operators compute: half precision, also under autocast, transforms, nested input."""
        if transformed() or input.dtype in _HALF_PRECISION or of_another_kind(input):
            return True
        return not input.is_meta and torch.is_autocast_enabled(input.device.type)

    def _check_pattern(self) -> None:
        """Raise RuntimeError where the pattern is not the mask's: the kernels go where its numbers tell.

        To be called where its first tensor was written to (``_pattern_version``), as an average of models writes to all
        buffers: with the pattern of the same layer (a copy), or with averages of numbers that mean places.
        """
        parts = [buffer(self, name) for name in self.pattern_fields]
        try:
            again = self._find_pattern(self.mask)
        except (RuntimeError, IndexError, ValueError):
            again = ()
        if not again or not all(map(torch.equal, parts, again)):
            raise RuntimeError(
                f"{type(self).__name__}: expected the pattern that its mask has, got one that was written to; "
                "AveragedModel(use_buffers=True) averages its numbers, leave it at False"
            )
        self._pattern_version = parts[0]._version

    def check_pattern(self) -> None:
        """Raise RuntimeError where the pattern was written to and is no longer the mask's."""
        if buffer(self, self.pattern_fields[0])._version != self._pattern_version:
            self._check_pattern()

    @property
    def weight_shape(self) -> torch.Size:
        """Shape of the dense weight."""
        raise NotImplementedError

    def _spread(self, values: Tensor) -> Tensor:
        raise NotImplementedError

    def _collect(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def spread(self, values: Tensor) -> Tensor:
        """``values`` ``[survivors]`` in the weight's shape: at the survivors' places, 0 elsewhere.

        Raises:
            ValueError: ``values`` has another shape.
        """
        if values.shape != self.values.shape:
            raise ValueError(f"values must have the shape {list(self.values.shape)}, got {list(values.shape)}")
        return self._spread(values)

    def collect(self, weight: Tensor) -> Tensor:
        """The survivors ``[survivors]`` of a tensor of the weight's shape, in the order of ``values``.

        Raises:
            ValueError: ``weight`` has another shape.
        """
        if weight.shape != self.weight_shape:
            raise ValueError(f"weight must have the shape {list(self.weight_shape)}, got {list(weight.shape)}")
        return self._collect(weight)

    @classmethod
    def from_dense(cls, layer: nn.Module, mask: Tensor | None = None) -> Self:
        """Make a sparse layer of the survivors of ``layer``.

        Args:
            layer: The plain layer or its masked twin; it is left as it is. The bias is shared, the weight is not.
            mask: Bool tensor of the weight's shape; ``None`` takes the mask of a masked layer and keeps every weight of
                a plain one.

        Raises:
            TypeError: ``layer`` is of another class, or ``mask`` is not bool.
            ValueError: ``mask`` has another shape than the weight, or a survivor is NaN or infinite.
        """
        if not isinstance(layer, cls.plain_class):
            raise TypeError(f"layer must be an nn.{cls.plain_class.__name__}, got {type(layer).__name__}")
        if mask is None and isinstance(layer, MaskedLayer):
            mask = layer.mask
        sparse = cls.__new__(cls)
        nn.Module.__init__(sparse)
        sparse._take(layer, mask)
        return sparse.train(layer.training)

    def _take(self, layer: Any, mask: Tensor | None) -> None:
        weight: Tensor = layer.weight
        if mask is None:
            mask = torch.ones(weight.shape, dtype=torch.bool)
        check_mask(mask, weight, "mask")
        mask = mask.detach().to(weight.device)
        for name in self.plain_attributes:
            setattr(self, name, getattr(layer, name))
        compile_for_any_number_of_survivors(self.pattern_fields)
        with torch.inference_mode(False):  # what is made in inference mode cannot be trained later
            for name, part in zip(self.pattern_fields, self._find_pattern(mask), strict=True):
                self.register_buffer(name, part, persistent=False)
            values = self.collect(weight.detach())
            check_finite(values, "layer")
            self.values = nn.Parameter(values, requires_grad=weight.requires_grad)
        self.register_parameter("bias", layer.bias)

    def to_dense(self) -> nn.Module:
        """The plain layer with the same weights, zeros where the mask prunes. The bias is shared, the weight is not."""
        plain: Any = self.plain_class.__new__(self.plain_class)
        nn.Module.__init__(plain)
        for name in self.plain_attributes:
            setattr(plain, name, getattr(self, name))
        with torch.inference_mode(False):
            plain.weight = nn.Parameter(self.spread(self.values.detach()), requires_grad=self.values.requires_grad)
        plain.register_parameter("bias", self.bias)
        return plain.train(self.training)

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as the plain layer draws its own."""
        plain: Any = self.to_dense()
        plain.reset_parameters()
        with torch.no_grad():
            self.values.copy_(self.collect(plain.weight))

    @property
    def weight(self) -> Tensor:
        """The dense weight, computed anew at every access and differentiable.

        For code that reads a layer's weight; it costs memory and time that the layer itself does not take. What is
        written to it (``nn.init``) is lost: write ``layer.collect(weight)`` to ``values``. Nothing can be assigned to
        it, an AttributeError says so.
        """
        return self._spread(self.values)

    @weight.setter
    def weight(self, weight: Tensor | None) -> None:
        self._refuse_weight(weight)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight":  # where torch takes an assigned Parameter, past the setter
            self._refuse_weight(param)
        super().register_parameter(name, param)

    def _refuse_weight(self, weight: Tensor | None) -> NoReturn:
        raise AttributeError(
            f"weight: expected no assignment, for a {type(self).__name__} computes it from its values, got "
            f"{type(weight).__name__}; write layer.collect(weight) to layer.values"
        )

    @property
    def mask(self) -> Tensor:
        """Bool tensor of the weight's shape, ``True`` where the weight survives. A copy."""
        return self._spread(torch.ones_like(self.values, dtype=torch.bool))

    @property
    def survivors(self) -> int:
        """Number of weights the mask keeps."""
        return self.values.numel()

    @property
    def density(self) -> float:
        """Share of the weights the mask keeps, 0 to 1 (1 for an empty weight)."""
        weights = self.weight_shape.numel()
        return self.survivors / weights if weights else 1.0

    def extra_repr(self) -> str:
        return f"{self.plain_class.extra_repr(self)}, density={self.density:.4g}"

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_scripting(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        with torch.inference_mode(False):  # where writes are counted
            for name in self.pattern_fields:
                part = buffer(self, name)
                self._buffers[name] = part.clone() if part.is_inference() else part
        self._pattern_version = buffer(self, self.pattern_fields[0])._version
        compile_for_any_number_of_survivors(self.pattern_fields)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # fn may convert (type()), or hand out memory without values (to_empty, to("meta")); the pattern only moves.
        pattern = {name: buffer(self, name) for name in self.pattern_fields}
        super()._apply(fn, recurse)  # which fails where values are asked for that a layer on the meta device lacks
        self._move_pattern(pattern, self.values.device)
        return self

    def _move_pattern(self, pattern: dict[str, Tensor], device: torch.device) -> None:
        """Have the ``pattern`` on ``device``. One that went to the meta device comes back from there."""
        first = self.pattern_fields[0]
        known_to_be_right = pattern[first]._version == self._pattern_version
        real = self.__dict__.pop(_PATTERN_ASIDE, pattern)
        with torch.inference_mode(False):  # where writes are counted
            for name, part in real.items():
                self._buffers[name] = part.to(device)
        # A copy on another device counts its writes anew.
        self._pattern_version = buffer(self, first)._version if known_to_be_right else -1
        if device.type == "meta":
            self.__dict__[_PATTERN_ASIDE] = real

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if "values" not in self._parameters:  # computed, by a parametrization: what it computes with has its own keys
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        values = self.values if keep_vars else self.values.detach()
        destination[f"{prefix}weight"] = self._spread(values)
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
        if "values" not in self._parameters:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
            return
        missing: list[str] = []
        # Torch's own loading, on a copy; behind the hooks of users, which may rename keys, the values take the place of
        # the dense weight.
        last = self.register_load_state_dict_pre_hook(type(self)._put_values_for_weight)
        try:
            super()._load_from_state_dict(
                dict(state_dict), prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
            )
        finally:
            last.remove()
        missing_keys.extend(f"{prefix}weight" if key == f"{prefix}values" else key for key in missing)

    def _put_values_for_weight(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        weight_key, values_key = f"{prefix}weight", f"{prefix}values"
        if state_dict.pop(values_key, None) is not None and strict:
            unexpected_keys.append(values_key)
        weight = state_dict.pop(weight_key, None)
        if weight is None:
            return
        if weight.shape != self.weight_shape:
            error_msgs.append(f"{weight_key} must have shape {list(self.weight_shape)}, got {list(weight.shape)}")
            state_dict[values_key] = self.values
            return
        if local_metadata.get("assign_to_params_buffers"):
            self._move_pattern({name: buffer(self, name) for name in self.pattern_fields}, weight.device)
        else:
            weight = weight.to(self.values.device)
        state_dict[values_key] = self._survivors_of(weight.detach(), weight_key)

    def _survivors_of(self, weight: Tensor, name: str) -> Tensor:
        mask = self.spread(weight.new_ones(self.survivors, dtype=torch.bool))
        revived = 0 if weight.is_meta else int(weight.masked_fill(mask, 0).count_nonzero())
        if revived:
            message = f"{name}: {revived} pruned weights are not zero in the state dict; they stay zero"
            warnings.warn(message, stacklevel=2)
        return self.collect(weight)
