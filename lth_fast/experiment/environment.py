"""What a run's bits depend on besides its configuration: versions, CPU, instruction set, devices, threads."""

from __future__ import annotations

import platform
from typing import Any

import numpy
import torch

import lth_fast
from lth_fast._build_info import BUILD_TYPE, COMPILER, TORCH_VERSION
from lth_fast._C import active_isa, built_isas, usable_isas
from lth_fast._machine import cpu_name, cuda_kernels, device_name

# A resumed run ends with the same bits only where these are the same.
BITS_DEPEND_ON = ("torch", "lth_fast", "isa", "cpu", "device", "cuda_kernels", "threads")


def describe(device: torch.device) -> dict[str, Any]:
    """The environment as records keep it."""
    return {
        "lth_fast": lth_fast.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "isa": active_isa(),
        "device": device_name(device),
        "cuda_kernels": cuda_kernels() if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


def differences(recorded: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """In words, each way in which ``found`` may change the bits of a run recorded in the environment ``recorded``."""
    return [
        f"{key}: the run had {recorded.get(key)}, here is {found.get(key)}"
        for key in BITS_DEPEND_ON
        if recorded.get(key) != found.get(key)
    ]


def information() -> str:
    """The text of ``python -m lth_fast info``."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    rows = {
        "lth_fast": f"{lth_fast.__version__} (built for torch {TORCH_VERSION}, {COMPILER}, {BUILD_TYPE})",
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "cpu": cpu_name(),
        "isa": f"{active_isa()} (built: {', '.join(built_isas())}; usable here: {', '.join(usable_isas())})",
        "threads": f"{torch.get_num_threads()} (--threads sets them; default 1 for lenet, all for other networks)",
        "gpu": ", ".join(gpus) or "none found",
        "cuda kernels": cuda_kernels(),
        "stepper": "native for fully connected networks on the CPU, else eager; "
        + (
            "with --gpu CUDA graphs where model, optimizer and data allow"
            if gpus
            else "CUDA graphs and replicates at once need a CUDA device, and there is none"
        ),
    }
    width = max(map(len, rows))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows.items())
