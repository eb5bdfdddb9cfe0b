"""The arithmetic of forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch

PRECISIONS = ("float32", "tf32", "bf16")

Setting = TypeVar("Setting")


def forward_precision(name: str, device: torch.device) -> AbstractContextManager[object]:
    """The context of one forward pass and its loss: autocast for ``bf16``, nothing else otherwise.

    To be entered anew for every step: autocast keeps the cast weights until it is left.
    """
    if name == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def float32_arithmetic(name: str) -> Iterator[None]:
    """What CUDA computes float32 products in inside the block: TF32 for ``tf32``, true float32 otherwise.

    Torch would by itself take TF32 in cuDNN's convolutions and not in matrix products.
    """
    backends: Any = torch.backends
    # Torch keeps what its older names say beside what the newer ones do, and refuses to read the older where a user has
    # set the newer. The older set both, so inside the block whoever reads either learns the same.
    newer = [(of, of.fp32_precision) for of in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]
    newer.append((backends.mkldnn.matmul, backends.mkldnn.matmul.fp32_precision))
    precision = _readable(torch.get_float32_matmul_precision, "highest")
    convolutions = _readable(lambda: backends.cudnn.allow_tf32, True)
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    backends.cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        backends.cudnn.allow_tf32 = convolutions
        for of, setting in newer:
            of.fp32_precision = setting


def _readable(read: Callable[[], Setting], otherwise: Setting) -> Setting:
    """A setting by its older name, or torch's own one where it cannot be read: nobody has set it by that name then."""
    try:
        return read()
    except RuntimeError:
        return otherwise
