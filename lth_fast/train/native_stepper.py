"""Whole training steps of fully connected networks in one native call, many at a time, without Python in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as torch_modules
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizers
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lth_fast.data import ResidentLoader
from lth_fast.nn import MaskedLinear, SparseLinear
from lth_fast.nn.attributes import transformed
from lth_fast.optim import SGD, Adam, AdamW
from lth_fast.optim.fused import Masks
from lth_fast.train.batches import Batches, ResidentBatches
from lth_fast.train.stepper import EagerStepper

_FORMS: dict[type[nn.Module], str] = {nn.Linear: "dense", MaskedLinear: "masked", SparseLinear: "sparse"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class ChainLayer:
    """One linear layer of a network that is a chain of them.

    Attributes:
        layer: An ``nn.Linear``, ``MaskedLinear`` or ``SparseLinear``.
        relu: Whether a ReLU follows.
    """

    layer: Any
    relu: bool

    @property
    def weight(self) -> nn.Parameter:
        """What the optimizer steps: the weight, or the values of a sparse layer."""
        weight: nn.Parameter = self.layer.values if isinstance(self.layer, SparseLinear) else self.layer.weight
        return weight

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Weight and bias."""
        return [self.weight] if self.layer.bias is None else [self.weight, self.layer.bias]


class NativeStepper(EagerStepper):
    """The steps of :class:`~lth_fast.train.stepper.EagerStepper` for a fully connected network and resident data.

    They call the same operators in the same order, so weights, optimizer state and losses are the eager ones bit for
    bit; the gradients are not kept. The first step is an eager one: it makes the optimizer's state. Where a reason
    against native steps has come up since, a hook for instance, all of them are eager ones. Ctrl-C is heard when the
    steps that were asked for are taken.

    Args:
        As of ``EagerStepper``.

    Raises:
        ValueError: It cannot run; :func:`native_refusal` says so before.
    """

    name = "native"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        reason = native_refusal(self)
        if reason is not None:
            raise ValueError(f"native steps: {reason}")
        self._has_stepped = False

    def _advance(self, steps: int) -> Tensor:
        if steps < 1 or native_refusal(self) is not None:
            return super()._advance(steps)
        self._chain = linear_chain(self.model)
        eager = 1 if self._lacks_state() else 0
        losses = [super()._advance(eager)]
        self._has_stepped |= eager > 0
        remaining = steps - eager
        if remaining:
            self.optimizer.zero_grad(set_to_none=True)
            masks = Masks(self._parameters())
            trainer = self._trainer(masks)
            while remaining:
                order, count = self.batches.skip(remaining)  # type: ignore[attr-defined]
                losses.append(trainer.advance(order, self._rates(count)))
                self.iteration += count
                remaining -= count
            masks.applied()
        return torch.cat(losses)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for link in self._chain for parameter in link.parameters]

    def _lacks_state(self) -> bool:
        """Whether the optimizer has yet to take a step, which makes its state, or brings a loaded one into form."""
        (group,), state = self.optimizer.param_groups, self.optimizer.state
        if group.get("momentum") == 0:
            return False
        names = ["momentum_buffer"] if isinstance(self.optimizer, SGD) else ["exp_avg", "exp_avg_sq", "step"]
        names += ["max_exp_avg_sq"] if group.get("amsgrad") else []
        return not self._has_stepped or not all(
            parameter in state and all(_is_in_form(state[parameter].get(name)) for name in names)
            for parameter in self._parameters()
        )

    def _rates(self, steps: int) -> list[float]:
        """The learning rates of the next ``steps`` steps; the optimizer's is the last of them then."""
        (group,), (base,) = self.optimizer.param_groups, self._base_rates
        if self.schedule is None:
            return [float(group["lr"])] * steps
        rates = [base * self.schedule(self.iteration + step) for step in range(steps)]
        group["lr"] = rates[-1]
        return rates

    def _trainer(self, masks: Masks) -> Any:
        """What takes the steps, over the tensors that model and optimizer have now."""
        loader = self.batches.loader  # type: ignore[attr-defined]
        trainer = torch.classes.lth_fast.LinearTrainer(
            loader.images,
            loader.labels,
            loader.pixel_mean,
            loader.pixel_gain,
            min(loader.batch_size, len(loader.images)),  # which may be too large for 64 bits
        )
        for link in self._chain:
            layer, pattern = link.layer, []
            if isinstance(layer, SparseLinear):
                layer.check_pattern()
                pattern = list(layer.pattern)
            elif isinstance(layer, MaskedLinear):
                layer.masked_weight()
            bias = None if layer.bias is None else layer.bias.detach()
            trainer.add_layer(_FORMS[type(layer)], link.weight.detach(), bias, pattern, link.relu)
        (group,) = self.optimizer.param_groups
        kept = self.optimizer.state
        if isinstance(self.optimizer, SGD):
            momentum = (
                [kept[parameter]["momentum_buffer"] for parameter in self._parameters()] if group["momentum"] else []
            )
            trainer.use_sgd(
                momentum,
                masks.bits,
                float(group["momentum"]),
                float(group["dampening"]),
                float(group["weight_decay"]),
                bool(group["nesterov"]),
                bool(group["maximize"]),
            )
        else:
            beta1, beta2 = group["betas"]
            states = [kept[parameter] for parameter in self._parameters()]
            trainer.use_adam(
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else [],
                [state["step"] for state in states],
                masks.bits,
                float(beta1),
                float(beta2),
                float(group["eps"]),
                float(group["weight_decay"]),
                bool(group["decoupled_weight_decay"]),
                bool(group["maximize"]),
            )
        return trainer


def _is_in_form(value: Any) -> bool:
    """Whether a native step takes ``value`` of an optimizer's state as it is; step counts may be whole numbers."""
    return isinstance(value, Tensor) and value.is_cpu and value.is_floating_point()


def linear_chain(model: nn.Module) -> list[ChainLayer]:
    """The linear layers of ``model`` from the images to the logits.

    Raises:
        ValueError: It is no chain of a ``Flatten`` and linear layers with ReLU between them; the message is the reason.
    """
    chain: list[ChainLayer] = []
    flat = False
    for module in _in_turn(model):
        kind = type(module)
        if kind in _FORMS:
            if not flat:
                raise ValueError(f"no Flatten stands before the {kind.__name__}")
            chain.append(ChainLayer(module, relu=False))
        elif kind is nn.ReLU and chain and not chain[-1].relu:
            chain[-1] = ChainLayer(chain[-1].layer, relu=True)
        elif isinstance(module, nn.Flatten) and kind is nn.Flatten and not flat:
            if (module.start_dim, module.end_dim) != (1, -1):
                raise ValueError(f"the network has a {module}")
            flat = True
        elif kind is not nn.Identity:
            plain: type = getattr(kind, "plain_class", kind)
            raise ValueError(f"the network has a {plain.__name__} where a linear layer is expected")
    if not chain:
        raise ValueError("the network has no linear layer")
    return chain


def chain_refusal(model: nn.Module) -> str | None:
    """Why ``model`` is no chain of linear layers, or ``None``."""
    try:
        linear_chain(model)
    except ValueError as error:
        return str(error)
    return None


def _in_turn(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of ``model`` in the order in which its input passes through them."""
    reason = _touched(model)
    if reason is not None:
        raise ValueError(reason)
    kind = type(model)
    # Not by children(), which leaves out a layer that stands there a second time.
    children = list(model._modules.values())
    if kind.__module__.startswith("lth_fast.models."):
        children = [child for child in children if not isinstance(child, nn.CrossEntropyLoss)]
    if kind is nn.Sequential or (kind.__module__.startswith("lth_fast.models.") and len(children) == 1):
        for child in children:
            if child is None:
                raise ValueError(f"a {kind.__name__} has a place without a layer")
            yield from _in_turn(child)
    elif kind.__module__.startswith(("torch.nn.modules.", "lth_fast.")):
        yield model
    else:
        raise ValueError(f"a {kind.__name__} computes in Python")


def _touched(module: nn.Module) -> str | None:
    """What a user has done to ``module`` that its native twin would leave out, or ``None``."""
    name = type(module).__name__
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        return f"a {name} has hooks"
    if "forward" in vars(module) or module._compiled_call_impl is not None:
        return f"a {name} has a forward of its own"
    return None


def native_refusal(stepper: EagerStepper) -> str | None:
    """Why :class:`NativeStepper` cannot take the steps of ``stepper``, or ``None``."""
    reason = chain_refusal(stepper.model)
    if reason is not None:
        return reason
    chain = linear_chain(stepper.model)
    parameters = [parameter for link in chain for parameter in link.parameters]
    return (
        _global_refusal()
        or _precision_refusal(stepper)
        or _parameters_refusal(parameters, chain)
        or _optimizer_refusal(stepper.optimizer, parameters)
        or _criterion_refusal(stepper.criterion)
        or _batches_refusal(stepper.batches)
        or _shapes_refusal(chain, stepper.batches)
    )


def _global_refusal() -> str | None:
    if any(getattr(torch_modules, f"_global{hooks}") for hooks in _HOOKS):
        return "there are hooks of all modules"
    own = "lth_fast."
    hooks = (
        hook
        for table in (torch_optimizers._global_optimizer_pre_hooks, torch_optimizers._global_optimizer_post_hooks)
        for hook in table.values()
    )
    if any(not getattr(hook, "__module__", "").startswith(own) for hook in hooks):
        return "there are hooks of all optimizers"
    return _mode_refusal()


def _mode_refusal() -> str | None:
    """What the thread has set for the operations of torch, and native steps would not follow."""
    if not torch.is_grad_enabled():
        return "gradients are switched off"
    if torch.is_anomaly_enabled():
        return "anomalies are looked for"
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        return "there are hooks of all saved tensors"
    modes = [mode for mode in _get_current_function_mode_stack() if not isinstance(mode, DeviceContext)]
    if modes or _get_current_dispatch_mode_stack() or transformed():
        return "a mode or a transform follows every operation"
    return None


def _precision_refusal(stepper: EagerStepper) -> str | None:
    if stepper.precision == "bf16" or torch.is_autocast_enabled("cpu"):
        return "the precision is not float32"
    return None


def _parameters_refusal(parameters: Iterable[nn.Parameter], chain: Iterable[ChainLayer]) -> str | None:
    seen: set[int] = set()
    for parameter in parameters:
        if type(parameter) is not nn.Parameter or parameter.dtype != torch.float32 or not parameter.is_cpu:
            return "parameters are not plain float32 ones on the CPU"
        if not parameter.requires_grad:
            return "some parameters are frozen"
        if parameter.layout is not torch.strided or not parameter.is_contiguous() or parameter.is_inference():
            return "some parameters have a memory order of their own"
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            return "some parameters have hooks"
        if id(parameter) in seen:
            return "layers share a parameter"
        seen.add(id(parameter))
    if any(getattr(link.layer, "read_directly", False) for link in chain):
        return "something reads a weight around its layer"
    return None


def _optimizer_refusal(optimizer: Optimizer, parameters: Iterable[nn.Parameter]) -> str | None:
    kind = type(optimizer)
    if kind not in (Adam, AdamW, SGD):
        return f"{kind.__module__.partition('.')[0]}'s {kind.__name__} has no native step"
    own = {"step", "_steps", "zero_grad"} & vars(optimizer).keys()
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks or own:
        return "the optimizer has hooks"
    if len(optimizer.param_groups) != 1:
        return f"the optimizer has {len(optimizer.param_groups)} groups of parameters"
    (group,) = optimizer.param_groups
    if sorted(map(id, group["params"])) != sorted(map(id, parameters)):
        return "the optimizer does not hold all parameters, each of them once"
    if isinstance(group["lr"], Tensor):
        return "the learning rate is a tensor"
    return None


def _criterion_refusal(criterion: Any) -> str | None:
    if criterion is functional.cross_entropy:
        return None
    if type(criterion) is not nn.CrossEntropyLoss:
        return "the criterion is not nn.CrossEntropyLoss"
    settings = (criterion.weight, criterion.ignore_index, criterion.reduction, criterion.label_smoothing)
    return _touched(criterion) or (None if settings == (None, -100, "mean", 0.0) else "the criterion has settings")


def _batches_refusal(batches: Batches) -> str | None:
    if type(batches) is not ResidentBatches or type(batches.loader) is not ResidentLoader:
        return "the data does not lie in memory"
    loader = batches.loader
    if loader.augment:
        return "the data is augmented"
    if any(callable(value) for value in vars(loader).values()) or {"next", "skip"} & vars(batches).keys():
        return "the data has methods of its own"
    factors = (loader.pixel_mean, loader.pixel_gain)
    shape = (loader.images.shape[1], 1, 1)
    if not loader.images.is_contiguous() or any((each.shape, each.dtype) != (shape, torch.float32) for each in factors):
        return "images, their mean or gain are no longer as the loader made them"
    return None


def _shapes_refusal(chain: Sequence[ChainLayer], batches: Batches) -> str | None:
    """Behind the checks of the batches. The operators' own are those of the eager steps' autograd."""
    features = batches.loader.images[0].numel()  # type: ignore[attr-defined]
    for link in chain:
        layer = link.layer
        if isinstance(layer, SparseLinear):
            outputs, inputs = layer.pattern.row_order.shape[-1], layer.pattern.column_order.shape[-1]
            fits = layer.values.shape == layer.pattern.columns.shape
        else:
            fits = layer.weight.dim() == 2
            outputs, inputs = layer.weight.shape if fits else (0, 0)
        if not fits or inputs != features or (layer.bias is not None and layer.bias.shape != (outputs,)):
            return "the layers do not fit images or each other"
        features = outputs
    return None
