"""The arithmetic of forward and backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

PRECISIONS = ("float32", "tf32", "bf16")


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
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = name == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
