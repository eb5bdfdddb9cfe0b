"""Errors as reasons why something is not used."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The first line of what ``error`` says; the name of its class where it says nothing (``assert``)."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
