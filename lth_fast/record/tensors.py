"""Weights, masks and checkpoints as files: safetensors for what is kept, one bit per weight for masks."""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.serialization import get_crc32_options, get_unsafe_globals_in_checkpoint, set_crc32_options

from lth_fast.record.atomic import replace_file


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict atomically.

    Tensors may be of any shape, dtype and device, non-contiguous, or share memory (tied weights are written once per
    name). The same state gives the same bytes.

    Raises:
        TypeError: A value is not a dense tensor, or of a dtype that safetensors does not know (complex128).
    """
    separate = _separate(state)
    try:
        # safetensors sorts its entries; the order of the state dict travels beside them.
        content = _content(separate, "names", list(state))
    except KeyError as error:
        (dtype,) = error.args
        names = ", ".join(repr(name) for name, tensor in separate.items() if tensor.dtype == dtype)
        raise TypeError(f"{names} should be of a dtype that safetensors can store, got {dtype}") from error
    replace_file(path, content)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict: CPU tensors under the names, shapes, dtypes, values and in the order they were written.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or holds something else. The message names it.
    """
    names, tensors = _read(path, "names", list)
    return {name: tensors[name] for name in names}


def write_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Write masks atomically, one bit per weight: flat index i is bit i % 8 of byte i // 8.

    Args:
        path: The file.
        masks: Bool tensors of any shape (0-dimensional and empty ones too), True where a weight survives.

    Raises:
        TypeError: A mask is not a bool tensor.
    """
    for name, mask in masks.items():
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise TypeError(f"mask {name!r} should be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    packed = {
        name: torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1), bitorder="little"))
        for name, mask in masks.items()
    }
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    replace_file(path, _content(packed, "shapes", shapes))


def read_masks(path: Path) -> dict[str, Tensor]:
    """Read masks: bool CPU tensors of the shapes and in the order they were written.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or holds something else. The message names it.
    """
    shapes, packed = _read(path, "shapes", dict)
    masks = {}
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"{path} is damaged: mask {name!r} has the shape {shape}")
        count = math.prod(shape)
        bits = packed[name].numpy()
        if bits.dtype != np.uint8 or bits.shape != ((count + 7) // 8,):
            raise ValueError(f"{path} is damaged: mask {name!r} of shape {shape} has {bits.nbytes} bytes")
        masks[name] = torch.from_numpy(np.unpackbits(bits, count=count, bitorder="little").view(bool).reshape(shape))
    return masks


def write_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically: tensors, numbers, strings, None, and lists, tuples and dicts of them.

    Raises:
        ValueError: It holds an object that :func:`read_checkpoint` would refuse to load.
    """
    buffer = io.BytesIO()
    checksums = get_crc32_options()
    set_crc32_options(True)
    try:
        torch.save(dict(checkpoint), buffer)
    finally:
        set_crc32_options(checksums)
    buffer.seek(0)
    # Said now rather than on resume, when the training it should have saved is lost.
    if refused := get_unsafe_globals_in_checkpoint(buffer):
        raise ValueError(f"a checkpoint holds tensors and plain Python values only, got {', '.join(sorted(refused))}")
    replace_file(path, buffer.getbuffer())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; all of its tensors lie on the CPU. It cannot run code (``weights_only``).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged. The message names it.
    """
    data = path.read_bytes()
    try:
        checkpoint: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        damaged = zipfile.ZipFile(io.BytesIO(data)).testzip()  # torch writes checksums and does not look at them
    except Exception as error:  # a damaged archive surfaces as anything from EOFError to KeyError
        # torch goes on with advice that is for those who call it.
        raise ValueError(f"{path} is not a whole checkpoint: {str(error).partition('. ')[0]}") from error
    if damaged is not None:
        raise ValueError(f"{path} is not a whole checkpoint: {damaged} in it is not what was written")
    return checkpoint


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values as contiguous CPU tensors, no two of which share memory (safetensors refuses them)."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise TypeError(f"{name!r} should be a dense tensor, got {getattr(value, 'layout', type(value).__name__)}")
        # A conjugate or a negative may be a view that only says so; the bytes behind it are another tensor's.
        tensor = value.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        separate[name] = tensor
    return separate


def _content(tensors: Mapping[str, Tensor], described: str, description: list[str] | dict[str, list[int]]) -> bytes:
    """A safetensors file of contiguous CPU tensors that tells in its metadata what they are, with a checksum of all."""
    text = json.dumps(description)
    # One entry, of two lines: safetensors writes several in an order of chance.
    return save(dict(tensors), {described: f"{text}\n{_checksum(tensors, text)}"})


def _checksum(tensors: Mapping[str, Tensor], description: str) -> str:
    value = zlib.crc32(description.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _read(path: Path, described: str, kind: type[list[Any]] | type[dict[str, Any]]) -> tuple[Any, dict[str, Tensor]]:
    """The metadata entry ``described``, a ``kind`` that lists all tensors in their order, and the tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            text, _, checksum = (file.metadata() or {}).get(described, "null").partition("\n")
            description = json.loads(text)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    named = isinstance(description, kind) and all(isinstance(name, str) for name in description)
    if not named or set(description) != set(tensors):
        raise ValueError(f"{path} is not a file of this kind: its metadata lacks {described!r} of its tensors")
    if checksum and checksum != _checksum(tensors, text):  # files of earlier versions have none
        raise ValueError(f"{path} is damaged: its content is not what was written")
    return description, tensors
