"""A build with CUDA kernels holds code for every device it promises, and loads where there is no driver."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lth_fast
from lth_fast._build_info import CUDA_ARCHITECTURES, WHY_NO_CUDA

ROOT = Path(__file__).parent.parent
LIBRARY = Path(lth_fast.__file__).parent / "liblth_fast_ops.so"
KERNELS = sorted((ROOT / "csrc" / "cuda" / "kernels").glob("*.cu"))

with_kernels = pytest.mark.skipif(not CUDA_ARCHITECTURES, reason=f"no CUDA kernels in this build: {WHY_NO_CUDA}")


def cuobjdump() -> str:
    """The tool that lists device code: of the toolkit, or the one that Triton brings."""
    folders = [Path(folder) for folder in sys.path]
    places = [
        *(Path(os.environ[name]) / "bin" for name in ("CUDA_HOME",) if name in os.environ),
        *(folder / "triton" / "backends" / "nvidia" / "bin" for folder in folders),
        Path("/usr/local/cuda/bin"),
    ]
    found = shutil.which("cuobjdump", path=os.pathsep.join(map(str, places))) or shutil.which("cuobjdump")
    assert found, "cuobjdump was found neither in CUDA_HOME nor beside Triton nor in PATH"
    return found


def device_code(kind: str) -> list[str]:
    """Names like ``lib.3.sm_90.cubin``, one per kernel file and architecture."""
    listing = subprocess.run([cuobjdump(), f"--list-{kind}", str(LIBRARY)], capture_output=True, text=True, check=True)
    return [line.rsplit(" ", 1)[-1] for line in listing.stdout.splitlines() if " file " in line]


def kernels_in_the_build() -> int:
    """Kernel files whose op this version has."""
    return sum((ROOT / "csrc" / "ops" / f"{kernel.stem}.cpp").exists() for kernel in KERNELS)


@with_kernels
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_kernel_file_is_compiled_for_ampere_and_hopper(architecture: str) -> None:
    assert architecture in CUDA_ARCHITECTURES
    assert sum(name.endswith(f".{architecture}.cubin") for name in device_code("elf")) == kernels_in_the_build() > 0


@with_kernels
def test_every_kernel_file_comes_as_ptx_for_devices_to_come() -> None:
    assert "compute_90" in CUDA_ARCHITECTURES
    assert sum(name.endswith(".sm_90.ptx") for name in device_code("ptx")) == kernels_in_the_build() > 0


@with_kernels
def test_every_op_with_a_kernel_file_is_served_by_it() -> None:
    for name in ("pack_mask", "masked_apply_", "masked_apply_each_", "prune_by_magnitude", "sparse_linear_backward"):
        (line,) = (
            line for line in torch._C._dispatch_dump(f"lth_fast::{name}").splitlines() if line.startswith("CUDA:")
        )
        assert "csrc/cuda/" in line


@with_kernels
def test_the_library_loads_without_a_driver_and_serves_the_cpu() -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    code = "import torch, lth_fast; print(lth_fast.ops.pack_mask(torch.ones(3, dtype=torch.bool)).tolist())"
    done = subprocess.run([sys.executable, "-c", code], env=hidden, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[7]\n"), done.stderr


def test_a_build_says_whether_it_has_cuda_kernels_and_why_not() -> None:
    assert bool(CUDA_ARCHITECTURES) != bool(WHY_NO_CUDA)


def compiled(text: str, tmp_path: Path, *flags: str) -> tuple[str, int]:
    """The object that compile.py makes of ``text`` with a compiler that counts its calls, and that count."""
    calls, compiler = tmp_path / "calls", tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo 1; exit; fi\n'
        f'echo call >> "{calls}"\nfor last; do :; done\necho "$@" > /dev/null; cp "{tmp_path}/kernels/op.cu" "$last"\n'
    )
    compiler.chmod(0o755)
    source = tmp_path / "kernels" / "op.cu"
    source.parent.mkdir(exist_ok=True)
    source.write_text(text)
    command = [sys.executable, str(ROOT / "csrc" / "cuda" / "compile.py"), str(source), str(tmp_path / "object")]
    environment = {**os.environ, "LTH_FAST_BUILD_CACHE": str(tmp_path / "cache")}
    subprocess.run([*command, str(compiler), *flags], env=environment, check=True)
    return (tmp_path / "object").read_text(), calls.read_text().count("call")


def test_an_unchanged_kernel_is_not_compiled_again_and_a_changed_one_is(tmp_path: Path) -> None:
    assert compiled("one", tmp_path) == ("one", 1)
    assert compiled("one", tmp_path) == ("one", 1)
    assert compiled("two", tmp_path) == ("two", 2)
    assert compiled("one", tmp_path) == ("one", 2)
    assert compiled("one", tmp_path, "-O1") == ("one", 3)
    assert compiled("one", tmp_path, "-O1", "-I/another/clone") == ("one", 3)
    (tmp_path / "kernels" / "header.h").write_text("new")
    assert compiled("one", tmp_path, "-O1") == ("one", 4)
    (tmp_path / "cuda_runtime_api.h").write_text("another release")
    assert compiled("one", tmp_path, "-O1", "-isystem", str(tmp_path)) == ("one", 5)
