"""Layers whose tensors change their sizes from level to level, and ``torch.compile``."""

from __future__ import annotations

import torch.compiler.config

# Parameters and buffers are taken to have one size for ever: every new mask would be a new graph, and after eight of
# them torch.compile gives up. These are named as dynamo names what it reads.
_SOURCES = r".*_parameters\['values'\],.*_buffers\['(row_starts|columns|column_starts|rows|permutation)'\]"


def compile_for_any_number_of_survivors() -> None:
    """Let ``torch.compile`` make one graph of a sparse layer for every number of survivors. Once is enough.

    Users' own ``torch.compiler.config.dynamic_sources`` stay.
    """
    config = torch.compiler.config
    known = getattr(config, "dynamic_sources", None)
    if known is not None and _SOURCES not in known:
        config.dynamic_sources = f"{known},{_SOURCES}" if known else _SOURCES
