"""Pickle files read as data: numpy arrays, strings, numbers, lists and dicts, and nothing that could run code."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


class _Dtype:
    """A type of numbers. numpy's own would believe what the file says of it, even that objects are none."""

    def __init__(self, code: str, align: int = 0, copy: int = 1) -> None:
        if not re.fullmatch("[buif][1248]", code):
            raise pickle.UnpicklingError(f"it asks for an array of {code!r}, where data has numbers")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    """An array that is empty until its state gives it numbers."""

    def __new__(cls, *_: Any) -> _Array:
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, fortran, content = state
        super().__setstate__((version, shape, dtype.numpy, fortran, content))


def _array_of_buffer(buffer: Any, dtype: _Dtype, *layout: Any) -> Any:
    return _from_buffer(buffer, dtype.numpy, *layout)


def _bytes(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes for Python 2: as the Latin-1 text with the same code points.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}, for which data has no use")
    return text.encode("latin1")


# numpy has moved this function between modules; asking an array for it works with every version.
_from_buffer: Any = np.empty(0).__reduce_ex__(5)[0]

_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _array_of_buffer,
    ("numpy._core.numeric", "_frombuffer"): _array_of_buffer,
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
