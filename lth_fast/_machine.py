"""What measured times depend on besides the work itself."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

import lth_fast
from lth_fast._build_info import CUDA_ARCHITECTURES, WHY_NO_CUDA
from lth_fast._C import active_isa, onednn_pays


def cpu_name() -> str:
    """The processor's own name where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """``cpu``, or the name of the CUDA device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def cuda_kernels() -> str:
    """The architectures the build has kernels for (``compute_90``: as PTX), or why it has none."""
    if CUDA_ARCHITECTURES:
        return ", ".join(CUDA_ARCHITECTURES)
    return f"none, {WHY_NO_CUDA}: CUDA tensors are served by plain PyTorch operations"


def masked_linear_beats_plain(samples: int, in_features: int, out_features: int) -> bool:
    """Whether ``ops.masked_linear`` multiplies float32 matrices of this size faster than ``nn.Linear`` on this CPU."""
    return onednn_pays(samples, in_features, out_features)


def machine_name(device: torch.device) -> str:
    """One line that two installations share only if they take the same time for the same work."""
    compute = f"{cpu_name()}, {active_isa()}, {torch.get_num_threads()} threads"
    if device.type != "cpu":
        compute = f"{device_name(device)}, kernels: {cuda_kernels()}"
    return f"{compute}, lth_fast {lth_fast.__version__}, torch {torch.__version__}"
