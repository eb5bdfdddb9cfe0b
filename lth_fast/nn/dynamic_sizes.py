"""Layers whose tensors change their sizes from level to level, and ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterable

import torch.compiler.config


def compile_for_any_number_of_survivors(pattern_fields: Iterable[str]) -> None:
    """Let ``torch.compile`` make one graph of a sparse layer for every number of survivors.

    Parameters and buffers are taken to have one size for ever: every new mask would be a new graph, and after eight of
    them ``torch.compile`` gives up. Users' own ``torch.compiler.config.dynamic_sources`` stay.

    Args:
        pattern_fields: Names of the buffers that grow and shrink, beside the parameter ``values``.
    """
    config = torch.compiler.config
    known = config.dynamic_sources
    # As dynamo names what it reads.
    ours = (r".*_parameters\['values'\]", *(rf".*_buffers\['{name}'\]" for name in pattern_fields))
    missing = [source for source in ours if source not in known.split(",")]
    if missing:
        config.dynamic_sources = ",".join(([known] if known else []) + missing)
