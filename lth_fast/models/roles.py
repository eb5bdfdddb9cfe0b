"""Layers with a role that pruning rules ask for: the output layer and the projection shortcuts."""

from __future__ import annotations

from torch import nn

# What the containers of projection shortcuts are called: here and in torchvision, and in most other code.
_SHORTCUT_CONTAINERS = {"downsample", "shortcut"}


def _kind(module: nn.Module) -> type[nn.Module]:
    """The class of ``module``, or the plain one that it is another form of, as sparse layers say."""
    kind: type[nn.Module] = getattr(module, "plain_class", type(module))
    return kind


def output_layer(model: nn.Module) -> str:
    """Return the qualified name of the last Linear or Conv2d of ``model``, in any form, in the order of registration.

    Raises:
        ValueError: The model has no such layer.
    """
    names = [name for name, module in model.named_modules() if issubclass(_kind(module), (nn.Linear, nn.Conv2d))]
    if not names:
        raise ValueError(f"model: expected a network with a Linear or Conv2d layer, got a {type(model).__name__}")
    return names[-1]


def shortcut_layers(model: nn.Module) -> list[str]:
    """Return the qualified names of the 1x1 convolutions on the shortcuts of a residual network, if any."""
    return [
        name
        for name, module in model.named_modules()
        if issubclass(_kind(module), nn.Conv2d)
        and module.kernel_size == (1, 1)
        and not _SHORTCUT_CONTAINERS.isdisjoint(name.split("."))
    ]
