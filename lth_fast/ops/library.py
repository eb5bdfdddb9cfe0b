"""Loading the native operators, and serving the devices that have no kernel of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_NATIVE = Path(__file__).parent.parent / "liblth_fast_ops.so"

torch.ops.load_library(str(_NATIVE))

_without_cuda_kernel: set[str] = set()


def serve_cuda(op: str, reference: Callable[..., Any]) -> None:
    """Let ``reference``, made of torch's own calls, serve CUDA tensors if the build has no CUDA kernel for ``op``."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"lth_fast::{op}", "CUDA"):
        torch.library.impl(f"lth_fast::{op}", "CUDA", reference)
        _without_cuda_kernel.add(op)


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether this build has a kernel of its own for ``op`` on tensors of ``device``."""
    return device.type == "cpu" or op not in _without_cuda_kernel
