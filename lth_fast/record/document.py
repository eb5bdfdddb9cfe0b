"""JSON documents for people and programs: sorted, indented, strict, and always whole."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lth_fast.record.atomic import replace_file


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write ``document`` atomically: strings, numbers, booleans, None, paths, and lists and mappings of them.

    The same document gives the same bytes. JSON knows neither NaN nor infinity: both are written as null.

    Raises:
        TypeError: A value of another type, named by its place in the document.
    """
    text = json.dumps(_plain(document, path.name), indent=2, sort_keys=True, allow_nan=False)
    replace_file(path, (text + "\n").encode())


def read_document(path: Path) -> dict[str, Any]:
    """Read what :func:`write_document` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged. The message names it.
    """
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a whole JSON document: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path} should hold a JSON object, found {type(document).__name__}")
    return document


def _plain(value: Any, place: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{place}: keys should be str, got {key!r}")
        return {key: _plain(item, f"{place}: {key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{place}: cannot be written as JSON: {type(value).__name__}")
