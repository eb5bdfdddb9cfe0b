"""Builds the native libraries: drives CMake and hands it the folders of the installed torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


def cuda_wheels(version: str | None) -> list[Path]:
    """Where the wheels that torch comes with (libraries, headers) and those of the compiler (nvcc) put their files."""
    if version is None:
        return []
    folders = [Path(folder) / "nvidia" / f"cu{version.split('.')[0]}" for folder in sys.path if folder]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def cmake() -> str:
    """The one that pip installed for this interpreter, whose environment need not be activated, else that of PATH."""
    try:
        from cmake import CMAKE_BIN_DIR
    except ImportError:
        return "cmake"
    return str(Path(CMAKE_BIN_DIR) / "cmake")


def ninja() -> str:
    """The one of PATH, else that of this interpreter's environment."""
    return shutil.which("ninja") or shutil.which("ninja", path=sysconfig.get_path("scripts")) or "ninja"


class CMakeBuild(build_ext):
    """``build_ext`` that leaves the whole compilation to CMakeLists.txt."""

    def run(self) -> None:
        # setuptools' own run() would build beside the package and copy one extension file back for an editable install;
        # CMake installs everything (two libraries and the build information) where it belongs, in place or not.
        for extension in self.extensions:
            self.build_extension(extension)

    def build_extension(self, ext: Extension) -> None:
        import pybind11
        import torch
        from torch.utils.cpp_extension import include_paths, library_paths

        package = Path(self.get_ext_fullpath(ext.name)).parent.resolve()  # the source folder when self.inplace
        # One build folder per Python and torch: objects survive between calls, so a touched kernel rebuilds in seconds.
        build = ROOT / "build" / f"{sys.implementation.cache_tag}-torch{torch.__version__}"
        build.mkdir(parents=True, exist_ok=True)
        options = {
            "CMAKE_BUILD_TYPE": os.environ.get("LTH_FAST_BUILD_TYPE", "Release"),
            # Named each time: the build folder may remember the ninja of an isolated build, which is gone by now.
            "CMAKE_MAKE_PROGRAM": ninja(),
            "CMAKE_INSTALL_PREFIX": str(package),
            "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "LTH_FAST_TORCH_INCLUDE": ";".join(include_paths()),
            "LTH_FAST_TORCH_LIBRARIES": library_paths()[0],
            "LTH_FAST_TORCH_VERSION": torch.__version__,
            "LTH_FAST_CXX11_ABI": str(int(torch.compiled_with_cxx11_abi())),
            "LTH_FAST_CUDA": os.environ.get("LTH_FAST_CUDA", "AUTO"),
            "LTH_FAST_GPU_VISIBLE": "ON" if torch.cuda.is_available() else "OFF",
            "LTH_FAST_TORCH_CUDA": torch.version.cuda or "",
            "LTH_FAST_CUDA_WHEELS": ";".join(map(str, cuda_wheels(torch.version.cuda))),
            "LTH_FAST_WERROR": os.environ.get("LTH_FAST_WERROR") or "OFF",
        }
        configure = [cmake(), "-G", "Ninja", *(f"-D{key}={value}" for key, value in options.items())]
        subprocess.run([*configure, str(ROOT)], cwd=build, check=True)
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
        subprocess.run([cmake(), "--build", ".", "--parallel", jobs], cwd=build, check=True)
        package.mkdir(parents=True, exist_ok=True)
        subprocess.run([cmake(), "--install", "."], cwd=build, check=True)


setup(ext_modules=[Extension("lth_fast._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
