"""Optional dependencies: imported where they are used, named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say which extra of lth_fast brings it.

    Args:
        module: Dotted name to import, e.g. ``"matplotlib"``.
        extra: Extra of this package that installs it, e.g. ``"plot"``.
        purpose: What needs it, as the subject of the message, e.g. ``"drawing figures"``.

    Raises:
        ImportError: The module cannot be imported. The message holds the pip command.
    """
    try:
        return importlib.import_module(module)
    # torchvision raises RuntimeError, not ImportError, beside a torch it was not built for.
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"{purpose} needs {module.split('.')[0]}, which cannot be imported ({error}); "
            f"install it with: pip install 'lth_fast[{extra}]'"
        ) from error
