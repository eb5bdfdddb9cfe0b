"""Networks from elsewhere: torchvision's, and whatever an importable function returns."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from lth_fast._names import match_name
from lth_fast._require import require
from lth_fast.models.network import Shape

TORCHVISION = "torchvision"


def torchvision_name(name: str) -> str:
    """Return the one classification network of torchvision that ``name`` means.

    Raises:
        ImportError: torchvision is missing.
        ValueError: No network or several have this name.
    """
    zoo = _torchvision(name)
    return match_name(name, zoo.list_models(module=zoo), "torchvision network")


def build_torchvision(name: str, input_shape: Shape, classes: int, dropout: float) -> nn.Module:
    """Build an untrained torchvision network whose first convolution takes the channels of ``input_shape``.

    Raises:
        ImportError: torchvision is missing.
        ValueError: ``dropout`` is not 0; torchvision's networks have rates of their own.
    """
    if dropout > 0:
        raise ValueError(f"dropout: torchvision:{name} brings its own dropout, expected 0, got {dropout!r}")
    model = _torchvision(name).get_model(name, weights=None, num_classes=classes, **_arguments(name, input_shape))
    _adapt_channels(model, input_shape[0])
    return model


def find_function(name: str) -> Callable[..., Any]:
    """Return the callable that ``name``, written ``module:function``, means.

    Raises:
        ValueError: There is no such module, or it has no such callable. Errors inside the module itself pass.
    """
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"network {name!r}: there is no module {module_name!r} to import") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"network {name!r}: module {module_name!r} has no function {function_name!r}")
    return function


def build_from_function(name: str, input_shape: Shape, classes: int, dropout: float) -> nn.Module:
    """Call ``module:function`` with those of ``input_shape``, ``classes`` and ``dropout`` that its signature names.

    Raises:
        ValueError: The function is not found, raises one, or does not take ``dropout``, which is above 0.
        TypeError: The function refuses these arguments or returns something else than an nn.Module.
    """
    function = find_function(name)
    taken = _keywords(function)
    if dropout > 0 and "dropout" not in taken:
        raise ValueError(f"dropout: {name} takes no argument dropout, expected 0, got {dropout!r}")
    offered = {"input_shape": input_shape, "classes": classes, "dropout": dropout}
    try:
        model = function(**{key: value for key, value in offered.items() if key in taken})
    except TypeError as error:
        raise TypeError(f"network {name!r}: {error}") from error
    except ValueError as error:
        raise ValueError(f"network {name!r}: {error}") from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"network {name!r}: expected the function to return an nn.Module, got {type(model).__name__}")
    return model


def _torchvision(name: str) -> ModuleType:
    return require("torchvision.models", TORCHVISION, f"the network torchvision:{name}")


def _arguments(name: str, input_shape: Shape) -> dict[str, Any]:
    """Arguments without which a torchvision network would not fit the images or would return more than logits."""
    if name in ("googlenet", "inception_v3"):
        return {"aux_logits": False, "init_weights": False}
    if name.startswith("vit_"):
        return {"image_size": input_shape[1]}
    if name.startswith("maxvit_"):
        return {"input_size": input_shape[1:]}
    return {}


def _adapt_channels(model: nn.Module, channels: int) -> None:
    name, first = next((name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels == channels:
        return
    replacement = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        stride=first.stride,  # type: ignore[arg-type]
        padding=first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    model.set_submodule(name, replacement)


def _keywords(function: Callable[..., Any]) -> set[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C, without a signature
        return set()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
