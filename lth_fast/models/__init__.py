"""Networks in plain torch; nothing here knows of masks.

``build("resnet20", (3, 32, 32))`` builds by name; each name in ``models`` is also a function of this package:
``resnet20(input_shape=(3, 32, 32))``.
"""

from __future__ import annotations

from collections.abc import Callable

from lth_fast.models.catalogue import TABLE, build, canonical, default_init, models
from lth_fast.models.init import initialise
from lth_fast.models.network import Network
from lth_fast.models.roles import output_layer, shortcut_layers

__all__ = [
    "Network",
    "build",
    "canonical",
    "default_init",
    "initialise",
    "models",
    "output_layer",
    "shortcut_layers",
    *models,
]


def __getattr__(name: str) -> Callable[..., Network]:
    # The table alone says which networks exist, so that adding one takes no line here.
    if name in TABLE:
        return TABLE[name].function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
