"""Pickle files read as data: numpy arrays, strings, numbers, lists and dicts, and nothing that could run code."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _dtype(code: str, align: int = 0, copy: int = 1) -> np.dtype[Any]:
    # Python 2 wrote these flags as 0 and 1; numpy is about to refuse numbers here.
    return np.dtype(code, align=bool(align), copy=bool(copy))


def _bytes(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes for Python 2: as the Latin-1 text with the same code points.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}, for which data has no use")
    return text.encode("latin1")


# numpy has moved these functions between modules; asking an array for them works with every version.
_from_state: Any = np.empty(0).__reduce_ex__(2)[0]
_from_buffer: Any = np.empty(0).__reduce_ex__(5)[0]

_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _from_state,
    ("numpy._core.multiarray", "_reconstruct"): _from_state,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, for which data has no use") from None


def unpickle(path: Path) -> Any:
    """Read the object in the pickle file ``path``; byte strings written by Python 2 become ``str``.

    Raises:
        ValueError: The file is damaged, or holds more than plain data and numpy arrays; the message names it.
    """
    with path.open("rb") as file:
        try:
            return _DataUnpickler(file, encoding="latin1").load()
        except Exception as error:  # a damaged pickle can raise anything
            raise ValueError(f"{path}: expected a pickle file of plain data, got: {error}") from error
