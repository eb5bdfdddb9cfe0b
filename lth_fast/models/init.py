"""Weight initialisation: every draw comes from one generator, in the order of the network's parameters."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lth_fast._names import match_name

_Draw = Callable[[Tensor, "torch.Generator | None"], Tensor]

# The standard deviation of N(0, 1) cut off at 2.
_STD_OF_TRUNCATED_NORMAL = 0.87962566103423978

_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
_NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def initialise(model: nn.Module, scheme: str = "glorot", generator: torch.Generator | None = None) -> None:
    """Draw every parameter of ``model`` again, in place.

    Weights of Linear and convolution layers follow ``scheme`` and their biases become 0; normalisation layers get
    weight 1, bias 0 and fresh running statistics (but see ``"openlth"``); any other module that can redraw itself
    (``reset_parameters``) does.
    A parameter of a module that cannot, such as a class token, keeps its value: only building anew draws that again.

    The draws are float32 on the generator's device (CPU without one) and are then copied, so that a seed gives the same
    weights whatever the device and dtype of the model.

    Args:
        model: Any network of plain torch layers, also under masks: every weight is drawn then, the pruned ones too, and
            is 0 under its mask.
        scheme: One of the following, any case, or an unambiguous prefix. ``fan_in`` and ``fan_out`` are the numbers of
            inputs and outputs of a layer times its receptive field.

            - ``"glorot"``: normal, std sqrt(2 / (fan_in + fan_out)), truncated as in the lottery-ticket paper
              (Glorot & Bengio 2010, eq. 12).
            - ``"kaiming"``: normal, std sqrt(2 / fan_in) (He et al. 2015, eq. 10).
            - ``"openlth"``: as ``"kaiming"``, with biases uniform in ±1 / sqrt(fan_in), as torch draws them, and
              weights of BatchNorm uniform in (0, 1): ``kaiming_normal`` and ``uniform`` of OpenLTH.
            - ``"orthogonal"``: orthonormal rows or columns, gain 1 (Saxe et al. 2013).
            - ``"normal:SIGMA"``: normal, std ``SIGMA`` > 0.
        generator: Source of all random numbers; None is torch's global one, which stays untouched otherwise.

    Raises:
        ValueError: The scheme is unknown or malformed; a parameter that should be drawn is not a plain one (it is
            parametrized or stored compressed), so that drawing it would be without effect; it has no shape yet; or a
            module's ``reset_parameters`` needs an argument. Nothing is drawn then.
    """
    name_of_scheme, draw = _parse(scheme)
    openlth = name_of_scheme == "openlth"
    device = "cpu" if generator is None else generator.device

    def uniform(parameter: Tensor, low: float, high: float) -> None:
        drawn = torch.empty(parameter.shape, dtype=torch.float32, device=device)
        parameter.copy_(drawn.uniform_(low, high, generator=generator))

    for name, module in model.named_modules():
        _check(module, f"{name}." if name else "")
    with torch.no_grad():
        for module in model.modules():
            with _written_below_masks(module):
                if isinstance(module, _WEIGHTED):
                    module.weight.copy_(
                        draw(torch.empty(module.weight.shape, dtype=torch.float32, device=device), generator)
                    )
                    if module.bias is not None:
                        module.bias.zero_()
                        if openlth and (fan_in := math.prod(module.weight.shape[1:])):
                            uniform(module.bias, -1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))
                elif isinstance(module, _NORMALISATIONS):
                    module.reset_parameters()
                    if openlth and isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                        uniform(module.weight, 0, 1)
                elif (reset := _reset(module)) is not None:
                    with global_draws_from(generator):
                        reset()


def _reset(module: nn.Module) -> Callable[[], Any] | None:
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def _check(module: nn.Module, prefix: str) -> None:
    """Raise ValueError if ``module``, whose parameters' names begin with ``prefix``, cannot be drawn."""
    reset = _reset(module)
    computed = [] if isinstance(module, getattr(module, "plain_class", nn.Module)) else ["weight"]  # compressed
    if isinstance(module, (*_WEIGHTED, *_NORMALISATIONS)):
        computed += [name for name in ("weight", "bias") if name not in module._parameters]
    elif reset is not None:
        computed += _parametrizations(module)
    for name in computed:
        if not _under_mask_alone(module, name):
            raise ValueError(f"model: {prefix}{name} must be a plain parameter to be drawn, got {type(module)}")
    for name, parameter in module._parameters.items():
        if isinstance(parameter, nn.UninitializedParameter):
            raise ValueError(f"model: {prefix}{name} must have a shape to be drawn; run the model on an input first")
    if reset is not None:
        try:
            inspect.signature(reset).bind()
        except TypeError as error:
            where = prefix.removesuffix(".") or type(module).__name__
            raise ValueError(f"model: reset_parameters of {where} must work without arguments: {error}") from None


def _parametrizations(module: nn.Module) -> dict[str, Any]:
    """What computes each parameter of ``module`` that is computed."""
    return dict(getattr(module, "parametrizations", {}).items())


def _under_mask_alone(module: nn.Module, name: str) -> bool:
    """Whether the parameter is computed as its values under a mask; nothing here imports what the masks are."""
    entries = _parametrizations(module).get(name, ())
    return len(entries) == 1 and hasattr(entries[0], "mask_bits")


@contextmanager
def _written_below_masks(module: nn.Module) -> Iterator[None]:
    """Let what is written to parameters of ``module`` that are under a mask arrive in them, zero where pruned."""
    with parametrize.cached():  # gives out one tensor per parameter, so that it can be written to
        yield
        for name, entries in _parametrizations(module).items():
            if _under_mask_alone(module, name):
                (mask,) = entries
                entries.original.copy_(mask(getattr(module, name)))


@contextmanager
def global_draws_from(generator: torch.Generator | None) -> Iterator[None]:
    """Make code that knows only torch's global CPU generator depend on ``generator`` alone.

    Inside, the global generator is seeded with a number drawn from ``generator``; afterwards it is back in its former
    state. Without a generator nothing changes.
    """
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also seed the CUDA generators.
        torch.default_generator.manual_seed(seed)
        yield


def _glorot(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    # The authors' code asks TensorFlow's contrib.layers for xavier_initializer(uniform=False): a normal distribution
    # cut off at 2 sigma, with sigma widened so that what remains has the nominal variance. contrib rounds the widening
    # to sqrt(1.3) = 1.1402; this is the exact 1 / 0.8796 = 1.1368 of TensorFlow's glorot_normal: the std is Glorot's.
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
    sigma = math.sqrt(2 / (fan_in + fan_out)) / _STD_OF_TRUNCATED_NORMAL
    return nn.init.trunc_normal_(weight, std=sigma, a=-2 * sigma, b=2 * sigma, generator=generator)


def _kaiming(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)


def _orthogonal(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    return nn.init.orthogonal_(weight, generator=generator)


def _normal(sigma: float) -> _Draw:
    return lambda weight, generator: weight.normal_(0, sigma, generator=generator)


SCHEMES: dict[str, _Draw] = {
    "glorot": _glorot,
    "kaiming": _kaiming,
    "openlth": _kaiming,
    "orthogonal": _orthogonal,
}
"""Every scheme that takes no argument, by its name."""


def _parse(scheme: str) -> tuple[str, _Draw]:
    head, colon, argument = scheme.partition(":")
    name = match_name(head, [*SCHEMES, "normal"], "initialisation")
    if name == "normal":
        try:
            sigma = float(argument)
        except ValueError:
            sigma = math.nan
        if not 0 < sigma < math.inf:
            raise ValueError(f"init: expected a finite standard deviation above 0, as in normal:0.01, got {scheme!r}")
        return name, _normal(sigma)
    if colon:
        raise ValueError(f"init: {name} takes no argument, got {scheme!r}")
    return name, SCHEMES[name]
