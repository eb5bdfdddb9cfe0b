"""The CUDA kernels, compiled for the CPU: what they compute is tested wherever a C++ compiler is.

``include/cuda_runtime_api.h`` stands in for CUDA's header and runs the threads of a block in turn. Speed, memory order
between threads and the compiler for the device are left to the tests marked ``gpu``.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
# Some compilers come with _FORTIFY_SOURCE, which takes a jump to another stack for an attack and ends the program.
FLAGS = (
    *("-std=c++17", "-O1", "-U_FORTIFY_SOURCE", "-fPIC", "-shared"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"),
)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    path = tmp_path_factory.mktemp("cuda_on_cpu") / "kernels.so"
    include = (f"-I{HERE / 'include'}", f"-I{HERE.parent.parent / 'csrc'}")
    source = str(HERE / "kernels.cpp")
    subprocess.run([os.environ.get("CXX", "c++"), *FLAGS, *include, source, "-o", str(path)], check=True, timeout=300)
    return ctypes.CDLL(str(path))


@pytest.fixture(params=["forwards", "backwards"])
def kernels(request: pytest.FixtureRequest, library: ctypes.CDLL) -> ctypes.CDLL:
    """The kernels, with threads and blocks in either order: a missing barrier shows in one of them."""
    library.set_reversed(request.param == "backwards")
    return library


@pytest.fixture(autouse=True)
def reproducible(request: pytest.FixtureRequest) -> Iterator[None]:
    """Random inputs that differ from case to case and are the same in every run; one thread, as tensors are small."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
