"""Networks by name. To add one, write its file beside this one and give it a line in the table."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from lth_fast._names import match_name
from lth_fast.models import conv, external, fully_connected, resnet, vgg
from lth_fast.models.init import global_draws_from, initialise
from lth_fast.models.network import Network, Shape, check_arguments


class _Entry(NamedTuple):
    function: Callable[..., Network]
    family: type[Network]


TABLE: dict[str, _Entry] = {
    "lenet": _Entry(fully_connected.lenet, fully_connected.LeNet),
    "conv2": _Entry(conv.conv2, conv.Conv),
    "conv4": _Entry(conv.conv4, conv.Conv),
    "conv6": _Entry(conv.conv6, conv.Conv),
    "vgg11": _Entry(vgg.vgg11, vgg.VGG),
    "vgg13": _Entry(vgg.vgg13, vgg.VGG),
    "vgg16": _Entry(vgg.vgg16, vgg.VGG),
    "vgg19": _Entry(vgg.vgg19, vgg.VGG),
    "resnet20": _Entry(resnet.resnet20, resnet.ResNet),
    "resnet32": _Entry(resnet.resnet32, resnet.ResNet),
    "resnet44": _Entry(resnet.resnet44, resnet.ResNet),
    "resnet56": _Entry(resnet.resnet56, resnet.ResNet),
    "resnet110": _Entry(resnet.resnet110, resnet.ResNet),
}

models: tuple[str, ...] = tuple(TABLE)

# Networks from elsewhere are deep and use ReLU, as a rule.
_EXTERNAL_INIT = "kaiming"


def build(
    name: str,
    input_shape: Shape = (1, 28, 28),
    classes: int = 10,
    *,
    dropout: float = 0.0,
    init: str | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build the network called ``name`` and draw its weights.

    Args:
        name: One of

            - a name in :data:`models`, any case, or an unambiguous prefix;
            - ``"lenet:500-200"``: LeNet with these widths of its hidden layers;
            - ``"torchvision:resnet18"``: a classification network of torchvision, untrained. Its first convolution is
              made to take the channels of ``input_shape``; the images must be large enough for it;
            - ``"module:function"``: a callable that returns an nn.Module, given those of the arguments ``input_shape``,
              ``classes`` and ``dropout`` that its signature names.
        input_shape: Channels, height and width of one image, each at least 1.
        classes: Number of classes, at least 1.
        dropout: Probability of zeroing an activation before a fully connected layer, in [0, 1).
        init: Scheme of :func:`initialise`; None is :func:`default_init` of the name.
        generator: Source of the initial weights; None is torch's global one, which stays untouched otherwise.

    Returns:
        A network that maps float images (N, channels, height, width) to logits (N, classes).

    Raises:
        ValueError: The name is unknown or ambiguous, or an argument is outside its range.
        ImportError: A torchvision network is asked for and torchvision is missing.
        TypeError: ``module:function`` refuses its arguments or returns something else than an nn.Module.
    """
    name = canonical(name)
    kind, rest = kind_of(name), name.partition(":")[2]
    if kind in TABLE:
        hidden = {"hidden": tuple(map(int, rest.split("-")))} if rest else {}
        return TABLE[kind].function(
            **hidden, input_shape=input_shape, classes=classes, dropout=dropout, init=init, generator=generator
        )
    check_arguments(input_shape, classes, dropout)
    # Parameters that no scheme covers, such as class tokens, keep what the network's own code drew.
    with global_draws_from(generator):
        if kind == external.TORCHVISION:
            model = external.build_torchvision(rest, input_shape, classes, dropout)
        else:
            model = external.build_from_function(name, input_shape, classes, dropout)
    initialise(model, init or _EXTERNAL_INIT, generator)
    return model


def canonical(name: str) -> str:
    """Return the one spelling of the network that ``name`` means; :func:`build` takes it.

    Raises:
        ValueError: As :func:`build`.
        ImportError: As :func:`build`.
    """
    head, colon, rest = name.partition(":")
    if not colon:
        return match_name(head, models, "network")
    if head.lower() == external.TORCHVISION:
        return f"{external.TORCHVISION}:{external.torchvision_name(rest)}"
    # A Python name cannot begin with a digit, so this is no module:function.
    if rest[:1].isdigit():
        return _with_hidden_sizes(match_name(head, models, "network"), rest)
    if not all(part.isidentifier() for part in (*head.split("."), rest)):
        raise ValueError(
            f"network {name!r}: expected lenet:500-200 (hidden sizes), torchvision:resnet18 or module:function"
        )
    external.find_function(name)
    return name


def default_init(name: str) -> str:
    """Return the initialisation that the network called ``name`` gets unless told otherwise, as in its paper.

    Raises:
        ValueError: As :func:`build`.
        ImportError: As :func:`build`.
    """
    kind = kind_of(canonical(name))
    return TABLE[kind].family.default_init if kind in TABLE else _EXTERNAL_INIT


def kind_of(name: str) -> str | None:
    """Return what the network of this :func:`canonical` name is: an entry of the table, ``torchvision`` or None.

    None is for ``module:function``, whatever the module is called: a ``lenet.py`` of one's own is no LeNet.
    """
    head, _, rest = name.partition(":")
    return None if rest.isidentifier() and head != external.TORCHVISION else head


def _with_hidden_sizes(name: str, text: str) -> str:
    if name != "lenet":
        raise ValueError(f"network {name}:{text}: only lenet takes hidden sizes")
    sizes = text.split("-")
    if not all(re.fullmatch(r"\d{1,12}", size) and int(size) > 0 for size in sizes):
        raise ValueError(
            f"network {name}:{text}: expected hidden sizes of 1 to 999999999999 joined by dashes, as in lenet:500-200"
        )
    widths = tuple(map(int, sizes))
    return name if widths == fully_connected.LENET_HIDDEN else f"{name}:{'-'.join(map(str, widths))}"
