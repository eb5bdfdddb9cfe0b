"""Each layer in the form that is fastest here: dense, masked or sparse."""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import set_stance
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lth_fast._machine import masked_linear_beats_plain
from lth_fast.nn.attributes import Model, of_another_kind
from lth_fast.nn.calibration import Work, measured_times
from lth_fast.nn.distributed import broadcast_masks, from_first
from lth_fast.nn.mask_changes import mask_changes
from lth_fast.nn.masked import MaskedLayer
from lth_fast.nn.masked_parameter import mask_on
from lth_fast.nn.model import (
    CHOICES,
    SPARSE,
    TWINS,
    forget_choices,
    join,
    keep_masks_out_of_ddp,
    make_sparse,
    masked_for_a_while,
    masked_parameters,
    parameter_names,
    set_masks,
    share_masks,
    sparse_layers,
    unmask,
)
from lth_fast.nn.sparse import check_finite

FORMS = ("auto", "dense", "masked", "sparse")

# Above this density no sparse kernel wins; nothing is measured there.
_NEVER_SPARSE_ABOVE = 0.8
# A form is worth a change of storage where it saves a twentieth of the time.
_WORTH = 0.95
# Without an example input the batch is taken to be this large ...
_ASSUMED_BATCH = 64
# ... and a convolution, whose image size nobody knows then, is sparse up to this density.
_SPARSE_CONVOLUTION = 0.1

# The stance of torch.compile is the whole process's: of two threads, the later one put back what the other had set.
_one_at_a_time = threading.RLock()


@dataclass(frozen=True)
class Choice:
    """The form of one layer and why it has it.

    Attributes:
        form: ``dense``, ``masked`` or ``sparse``.
        density: Share of survivors, 0 to 1.
        reason: In words.
        masked_seconds: Measured forward and backward of the masked form; ``None`` where nothing was measured.
        sparse_seconds: The same of the sparse form.
    """

    form: str
    density: float
    reason: str
    masked_seconds: float | None = None
    sparse_seconds: float | None = None


def convert(
    model: Model,
    masks: Mapping[str, Tensor] | None = None,
    form: str | Mapping[str, str] = "auto",
    example_input: Any = None,
) -> Model:
    """Give every masked layer of ``model`` the form that is fastest on this machine, in place.

    A *dense* layer is plain, with zeros where its mask prunes. A *masked* layer (:class:`~lth_fast.nn.MaskedLinear`)
    computes densely and keeps its mask. A *sparse* layer (:class:`~lth_fast.nn.SparseLinear`,
    :class:`~lth_fast.nn.SparseConv2d`) holds and computes its
    survivors only; its Parameter is the one-dimensional ``values`` instead of ``weight``, so make the optimizer
    afterwards; a step of an older one warns. ``state_dict`` has the plain model's keys and shapes in every form. For
    ``DistributedDataParallel``, convert the very module that it will wrap, before it does.

    Only the weights of ``nn.Linear`` and ``nn.Conv2d`` themselves become sparse. A subclass, a weight that is shared,
    parametrized, or read by anything but its layer's forward, and a layer whose forward does not run or was replaced,
    keep their storage; :func:`explain` tells the reason. Modules that share a weight have it in one form, under one
    mask. Where all weights survive, the layer becomes plain, unless masked layers multiply faster than plain ones on
    this CPU (see :func:`lth_fast.ops.masked_linear`). The times behind ``auto``, with the gradients of what is not
    frozen when ``convert`` is called, are measured once per machine and kept (see :mod:`lth_fast.nn.calibration`); a
    layer becomes sparse where that saves at least 5 %.

    Args:
        model: Any module, in any form.
        masks: Parameter name (``"0.weight"``) → bool tensor, as :func:`~lth_fast.nn.set_masks` takes them. Where a
            process group of ``torch.distributed`` has several processes, those of rank 0 hold. ``None`` keeps the
            masks the model has.
        form: ``auto``; or ``dense``, ``masked``, ``sparse`` for every layer that can have it; or one of the three by
            parameter name, as :func:`plan` gives them (layers not named are masked).
        example_input: What the model is called with, as in training: its input; a tuple of them; a dict of keyword
            arguments by name; or a tuple of both, the dict last. A dict whose names ``forward`` does not take is an
            input itself, and so is every dict with an empty one behind it: ``(batch, {})``. The model runs on a copy
            of it once, in evaluation mode and without leaving a trace, to learn which layers run and on what shapes;
            what runs in training alone (auxiliary heads) stays masked. Without one, linear layers are timed on a
            batch of 64 and convolutions are sparse up to a density of 0.1.

    Returns:
        ``model``.

    Raises:
        ValueError: ``form`` is none of these, or a layer named there cannot have the form, or layers would become
            sparse in a model that ``DistributedDataParallel`` wraps, or with survivors that are NaN or infinite.
        KeyError, TypeError, ValueError: ``masks`` are not as :func:`~lth_fast.nn.set_masks` takes them.
        TypeError: The model fails on a dict whose names its ``forward`` does not take.
    """
    asked = {name: _form(value, f"form[{name!r}]") for name, value in form.items()} if isinstance(form, Mapping) else {}
    general = None if isinstance(form, Mapping) else _form(form, "form")
    unknown = sorted(asked.keys() - _weights(model).keys() - sparse_layers(model).keys())
    if unknown:
        raise ValueError(f"form: expected names of weights of Linear or Conv2d, got {', '.join(map(repr, unknown))}")
    with masked_for_a_while(model):
        if masks is not None:
            set_masks(model, masks)
        share_masks(model)
        broadcast_masks(model)
        layers = _weights(model)
        shared = _shared(model, layers)
        _ask_for_all_that_share(asked, shared)
        observed = _observe(model, shared, example_input)
        decided = from_first(
            {name: _choose(name, layer, asked.get(name, general), observed) for name, layer in layers.items()}
        )
        if any(isinstance(part, DistributedDataParallel) for part in model.modules()) and any(
            choice.form == "sparse" for choice in decided.values()
        ):
            raise ValueError(
                "model: expected a model before DistributedDataParallel wraps it, which would go on with the "
                "Parameters that sparse layers replace"
            )
        for name, choice in decided.items():
            wanted = asked.get(name)
            if wanted in ("dense", "sparse") and choice.form != wanted:
                raise ValueError(
                    f"form[{name!r}]: expected a form that the layer can have, got {wanted!r}: {choice.reason}"
                )
            layer = layers[name]
            if isinstance(layer, MaskedLayer) and choice.form == "sparse":  # now, before any layer changes
                check_finite(layer.weight[layer.mask], f"model: {name!r} of a sparse layer")
    for name, choice in decided.items():
        layer = layers[name]
        if isinstance(layer, MaskedLayer) and choice.form == "sparse":
            make_sparse(layer)
        elif isinstance(layer, MaskedLayer) and choice.form == "dense":
            for each in (name, *shared.get(name, ())):
                unmask(model, each)
    keep_masks_out_of_ddp(model)
    forget_choices(model)
    model.__dict__[CHOICES] = decided
    return model


def plan(model: nn.Module) -> dict[str, str]:
    """The form of each masked parameter of ``model`` by name; ``convert(model, masks, form=plan)`` repeats it."""
    return {name: choice.form for name, choice in choices(model).items()}


def choices(model: nn.Module) -> dict[str, Choice]:
    """Form and reason of every layer that :func:`convert` decided on, by parameter name."""
    found = {
        join(name, layer): choice
        for name, part in model.named_modules()
        for layer, choice in part.__dict__.get(CHOICES, {}).items()
    }
    # A layer whose mask was taken off since is a plain one, and one that has got a mask is none, whatever was decided.
    masked, sparse = masked_parameters(model).keys(), sparse_layers(model).keys()
    still = {"masked": masked, "sparse": sparse, "dense": found.keys() - masked - sparse}
    return {name: choice for name, choice in found.items() if name in still[choice.form]}


def explain(model: nn.Module) -> str:
    """A table of the layers that :func:`convert` decided on: density now, form, measured times in ms, reason.

    Returns:
        The table, one line per layer, which is printed too.
    """
    rows = [("layer", "density", "form", "masked ms", "sparse ms", "reason")]
    holders = {**masked_parameters(model), **sparse_layers(model)}
    for name, choice in choices(model).items():
        times = (_milliseconds(choice.masked_seconds), _milliseconds(choice.sparse_seconds))
        density = holders[name].density if name in holders else choice.density  # it may have been pruned since
        rows.append((name, f"{density:.4g}", choice.form, *times, choice.reason))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    table = "\n".join(lines)
    print(table)
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"


def _form(given: str, called: str) -> str:
    if given not in FORMS:
        raise ValueError(f"{called}: expected one of {', '.join(FORMS)}, got {given!r}")
    return given


def _weights(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer with the weight of a Linear or Conv2d, by parameter name; a layer that has two names has one here."""
    return {
        join(name, "weight"): layer
        for name, layer in model.named_modules()
        if isinstance(layer, (nn.Linear, nn.Conv2d))
    }


@dataclass(frozen=True)
class _Observed:
    """What the example input showed; empty without one.

    Attributes:
        works: What each layer that ran was asked to do.
        reasons: Why a layer should keep its storage.
    """

    works: dict[str, Work]
    reasons: dict[str, str]


def _choose(name: str, layer: nn.Module, asked: str | None, observed: _Observed) -> Choice:
    if not isinstance(layer, MaskedLayer):
        return _choice_without_mask(layer)
    density = layer.density
    if layer.masked_parameter is None:
        return Choice("masked", density, "its weight is computed, not a parameter")
    if asked is None:
        return Choice("masked", density, "not named in form")
    if asked in ("dense", "masked"):
        return Choice(asked, density, "asked for")
    obstacle = _obstacle(layer) or observed.reasons.get(name)
    if asked == "auto" and density == 1:
        if obstacle is None and _multiplies_faster(layer, observed.works.get(name)):
            return Choice("masked", density, "all weights survive; masked layers multiply faster than plain ones here")
        return Choice("dense", density, "all weights survive")
    if obstacle is not None:
        return Choice("masked", density, obstacle)
    if asked == "sparse":
        return Choice("sparse", density, "asked for")
    if density == 0:
        return Choice("sparse", density, "no weight survives")
    if density > _NEVER_SPARSE_ABOVE:
        return Choice("masked", density, f"denser than {_NEVER_SPARSE_ABOVE}: not measured")
    if isinstance(layer, nn.Conv2d) and layer.weight.is_cuda:
        return Choice("masked", density, "on CUDA a sparse convolution computes densely")
    work = observed.works.get(name)
    if work is None and isinstance(layer, nn.Conv2d):
        form = "sparse" if density <= _SPARSE_CONVOLUTION else "masked"
        return Choice(form, density, f"no example input: sparse up to a density of {_SPARSE_CONVOLUTION}")
    assumed = "" if work is not None else f", on an assumed batch of {_ASSUMED_BATCH}"
    work = work or Work((_ASSUMED_BATCH, layer.in_features))  # type: ignore[arg-type]
    times = measured_times(layer.to_dense(), density, work, _both_forms)
    form = "sparse" if times.sparse <= _WORTH * times.masked else "masked"
    reason = f"sparse takes {times.sparse / times.masked:.2f} of masked's time{assumed}"
    return Choice(form, density, reason, times.masked, times.sparse)


def _multiplies_faster(layer: nn.Module, work: Work | None) -> bool:
    """Whether a masked layer is faster than a plain one even without anything to prune (see ``ops.masked_linear``)."""
    if not isinstance(layer, nn.Linear) or layer.weight.is_cuda or layer.weight.dtype != torch.float32:
        return False
    samples = _ASSUMED_BATCH if work is None else math.prod(work.input_shape[:-1])
    return masked_linear_beats_plain(samples, layer.in_features, layer.out_features)


def _both_forms(plain: nn.Module, mask: Tensor) -> tuple[nn.Module, nn.Module]:
    masked = TWINS[type(plain)].from_dense(plain, mask)
    return masked, SPARSE[type(plain)].from_dense(plain, mask)


def _choice_without_mask(layer: nn.Module) -> Choice:
    masked = mask_on(layer, "weight")
    if masked is not None:
        kind = type(layer).__mro__[1].__name__  # under the class that parametrize makes
        return Choice("masked", masked.density, f"a mask on the weight of a {kind} is a parametrization")
    return Choice("dense", 1.0, "no mask")


def _obstacle(layer: MaskedLayer) -> str | None:
    """Why this masked layer cannot be sparse."""
    if layer.weight.dtype not in (torch.float32, torch.float64):
        return f"sparse layers compute on survivors in float32 or float64, this one has {layer.weight.dtype}"
    if parametrize.is_parametrized(layer):
        return f"a parametrization computes its {', '.join(layer.parametrizations)}"  # type: ignore[arg-type]
    if "forward" in vars(layer):
        return "its forward was replaced by another one"
    return None


def _shared(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """The other names of each of the layers' weights that other modules hold too."""
    names = parameter_names(model)
    found = {name: names.get(id(layer._parameters.get("weight")), []) for name, layer in layers.items()}
    return {name: [other for other in all_names if other != name] for name, all_names in found.items() if all_names[1:]}


def _ask_for_all_that_share(asked: dict[str, str], shared: Mapping[str, Sequence[str]]) -> None:
    """Let the form that is asked for one name of a shared weight hold for all of them."""
    for name in [name for name in asked if name in shared]:
        for other in shared[name]:
            if asked.setdefault(other, asked[name]) != asked[name]:
                raise ValueError(
                    f"form[{other!r}]: expected {asked[name]!r} as for {name!r}, whose weight it shares, "
                    f"got {asked[other]!r}"
                )


def _observe(model: nn.Module, shared: Mapping[str, Sequence[str]], example_input: Any) -> _Observed:
    reasons = {name: f"its weight is shared with {', '.join(others)}" for name, others in shared.items()}
    if example_input is None:
        return _Observed({}, reasons)
    works: dict[str, Work] = {}
    holders = masked_parameters(model)
    reads = _DirectReads({name: holder.weight for name, holder in holders.items()})

    def enters(name: str, _: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensor = next((value for value in tree_leaves((given, named)) if isinstance(value, Tensor)), None)
        reads.running.append(name)
        if tensor is not None and of_another_kind(tensor):
            reasons.setdefault(name, "its input is a nested or sparse tensor, which torch computes with densely")
        elif tensor is not None and tensor.numel():
            works.setdefault(name, Work(tuple(tensor.shape), tensor.requires_grad))

    def leaves(*_: Any) -> None:
        reads.running.pop()

    hooks = []
    for name, holder in holders.items():
        hooks.append(holder.register_forward_pre_hook(partial(enters, name), with_kwargs=True))
        hooks.append(holder.register_forward_hook(leaves, always_call=True))
    try:
        with (
            _one_at_a_time,
            _without_a_trace(model),
            set_stance("force_eager"),
        ):  # compiled code shows no calls of layers
            _call(model, example_input, reads)
    finally:
        for hook in hooks:
            hook.remove()
    for name, holder in holders.items():
        read_directly = name in reads.found or "forward" in vars(holder)  # a replaced one reads what it likes
        if holder.read_directly != read_directly:
            holder.read_directly = read_directly
            mask_changes.note(holder)
        if holder.read_directly:
            reasons.setdefault(name, "its weight is read outside of its forward")
        elif name not in works:
            reasons.setdefault(name, "its forward does not run on the example input in evaluation mode")
    return _Observed(works, reasons)


def _forward(model: nn.Module) -> Callable[..., Any]:
    """The forward that takes the arguments, behind what compiles or distributes the model and hands on any."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, (DataParallel, DistributedDataParallel)):
        inner = model.module
    return model.forward if inner is None else _forward(inner)


def _call(model: nn.Module, example_input: Any, reads: _DirectReads) -> None:
    """Run ``model`` on a copy of ``example_input``, which :func:`convert` describes, while ``reads`` watches."""
    inputs = example_input if type(example_input) is tuple else (example_input,)  # one with names is one input
    named: dict[str, Any] = {}
    expected = None  # the names that forward takes, where those of a dict are others
    if inputs and isinstance(inputs[-1], Mapping):
        try:
            signature = inspect.signature(_forward(model))
            expected = ", ".join(signature.parameters)
            signature.bind(*inputs[:-1], **inputs[-1])
            inputs, named, expected = inputs[:-1], dict(inputs[-1]), None
        except (TypeError, ValueError):  # the latter from a forward without a signature
            pass
    # Copies, for a model may write to its input, and autograd does not take one made in inference mode.
    inputs, named = tree_map_only(Tensor, Tensor.clone, (inputs, named))
    try:
        with reads:
            model(*inputs, **named)
    except Exception as error:
        if expected is None:
            raise
        given = ", ".join(map(repr, inputs[-1])) or "none"
        raise TypeError(
            f"example_input: expected a dict by names of arguments of {type(model).__name__}.forward ({expected}), or "
            f"one that it takes as an input, got one of {given}, on which it fails: {error}"
        ) from error


@contextmanager
def _without_a_trace(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, so that no statistics are gathered, with gradients, which show where they are needed."""
    modes = {module: module.training for module in model.modules()}
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.inference_mode(False), torch.enable_grad():
        for module in modes:  # not by eval(), which a model may use to do more (LoRA merges weights) that stays done
            module.training = False
        try:
            yield
        finally:
            for module, training in modes.items():
                module.training = training


class _DirectReads(TorchFunctionMode):
    """Finds the weights that something other than their layer's own forward computes with.

    Args:
        weights: By name; a weight may have several.

    Attributes:
        running: Names of the weights whose layers' forwards are under way.
        found: Names of the weights that were read while none of their layers ran.
    """

    _METADATA = frozenset(("shape", "dtype", "device", "requires_grad", "layout", "ndim", "grad_fn", "nbytes"))
    _QUESTIONS = frozenset(
        ("size", "numel", "nelement", "dim", "ndimension", "stride", "element_size", "data_ptr", "__len__")
    )

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._names: dict[int, set[str]] = {}
        for name, weight in weights.items():
            self._names.setdefault(id(weight), set()).add(name)
        self.running: list[str] = []
        self.found: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The attribute, or the function that is called; is_cuda is one, is_complex the other.
        name, known = func.__name__, self._QUESTIONS
        if name == "__get__":
            name, known = getattr(func.__self__, "__name__", ""), self._METADATA
        if name not in known and not name.startswith("is_"):
            for value in tree_leaves((args, kwargs)):
                names = self._names.get(id(value), set())
                if names.isdisjoint(self.running):
                    self.found |= names
        return func(*args, **(kwargs or {}))
