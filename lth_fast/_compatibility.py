"""The native libraries belong to one minor version of torch: compare before loading them, and say how to rebuild."""

from __future__ import annotations

import torch

_REBUILD = "rebuild lth_fast against it: pip install --no-build-isolation --no-deps -e . (in the folder of its sources)"


def check_build(built_for: str | None, found: str) -> None:
    """Raise ImportError unless a build for torch ``built_for`` can be loaded beside torch ``found``.

    Args:
        built_for: Version the libraries were compiled against, e.g. ``"2.15.0+cu132"``; ``None``: there is no build.
        found: Version of the imported torch.
    """
    if built_for is None:
        raise ImportError(f"the native libraries of lth_fast are not built; with torch {found} installed, {_REBUILD}")
    if _minor(built_for) != _minor(found):
        raise ImportError(f"lth_fast was built for torch {built_for}, but torch {found} is installed; {_REBUILD}")


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split("+")[0].split(".")[:2])


try:
    from lth_fast._build_info import TORCH_VERSION as BUILT_FOR_TORCH
except ImportError:
    check_build(None, torch.__version__)
check_build(BUILT_FOR_TORCH, torch.__version__)
