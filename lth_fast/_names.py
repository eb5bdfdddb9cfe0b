"""Names a user types: any case, with or without dashes and underscores, unambiguous prefixes, and a helpful refusal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def match_name(name: str, known: Iterable[str], what: str) -> str:
    """Return the one of ``known`` that ``name`` means.

    Args:
        name: What the user typed.
        known: The names that exist.
        what: The subject of the error message, e.g. ``"network"``.

    Raises:
        ValueError: No name or several fit. The message lists what exists and the nearest match.
    """
    names = sorted(known)
    typed = _plain(name)
    exact = [candidate for candidate in names if _plain(candidate) == typed]
    fitting = exact or [candidate for candidate in names if typed and _plain(candidate).startswith(typed)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"{what} {name!r} is ambiguous: it could be {', '.join(fitting)}")
    nearest = difflib.get_close_matches(typed, [_plain(candidate) for candidate in names], n=1, cutoff=0.4)
    hint = ""
    if nearest:
        hint = f"; did you mean {next(n for n in names if _plain(n) == nearest[0])}?"
    raise ValueError(f"unknown {what} {name!r}{hint} (known: {', '.join(names)})")


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
