"""Loading the native operators, and serving the devices that have no kernel of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

_NATIVE = Path(__file__).parent.parent / "liblth_fast_ops.so"

torch.ops.load_library(str(_NATIVE))

_without_cuda_kernel: set[str] = set()


def refuse_meta_among_others(op: str, *given: object) -> None:
    """Raise RuntimeError where some of the tensors, or lists of them, are on the meta device and others are not.

    For fake kernels: torch takes such a call for one that asks for shapes alone, and nothing would be computed.
    """
    devices = {leaf.device.type for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)}
    if len(devices) > 1 and "meta" in devices:
        raise RuntimeError(f"{op}: expected all tensors on one device, got {' and '.join(sorted(devices))}")


def serve_cuda(op: str, reference: Callable[..., Any]) -> None:
    """Let ``reference``, made of torch's own calls, serve CUDA tensors if the build has no CUDA kernel for ``op``."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"lth_fast::{op}", "CUDA"):
        torch.library.impl(f"lth_fast::{op}", "CUDA", reference)
        _without_cuda_kernel.add(op)


def has_kernel(op: str, device: torch.device) -> bool:
    """Whether this build has a kernel of its own for ``op`` on tensors of ``device``."""
    return device.type == "cpu" or op not in _without_cuda_kernel
