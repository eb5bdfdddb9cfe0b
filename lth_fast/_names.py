"""Names a user types: any case, dashes or underscores, unambiguous prefixes, and a helpful refusal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def match_name(name: str, known: Iterable[str], what: str, *, separators_count: bool = True) -> str:
    """Return the one of ``known`` that ``name`` means.

    Args:
        name: What the user typed.
        known: The names that exist.
        what: The subject of the error message, e.g. ``"network"``.
        separators_count: Whether a dash or underscore left out or put in makes another name.

    Raises:
        ValueError: No name or several fit. The message lists what exists and the nearest match.
    """

    def plain(name: str) -> str:
        return name.lower().replace("-", "_").replace("_", "_" if separators_count else "")

    names = sorted(known)
    typed = plain(name)
    exact = [candidate for candidate in names if plain(candidate) == typed]
    fitting = exact or [candidate for candidate in names if typed and plain(candidate).startswith(typed)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(f"{what} {name!r} is ambiguous: it could be {', '.join(fitting)}")
    nearest = difflib.get_close_matches(typed, [plain(candidate) for candidate in names], n=1, cutoff=0.4)
    hint = ""
    if nearest:
        hint = f"; did you mean {next(n for n in names if plain(n) == nearest[0])}?"
    raise ValueError(f"unknown {what} {name!r}{hint} (known: {', '.join(names)})")
