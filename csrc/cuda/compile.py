"""Compiles one file of CUDA kernels: ``compile.py SOURCE OBJECT NVCC FLAGS...``.

Where the environment variable LTH_FAST_BUILD_CACHE names a folder, an object that the same compiler made there before
from the same text with the same flags is copied instead. The folder may be shared and emptied at any time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def main(source: Path, made: Path, compiler: list[str]) -> None:
    command = [*compiler, "-c", str(source), "-o"]
    folder = os.environ.get("LTH_FAST_BUILD_CACHE")
    if not folder:
        subprocess.run([*command, str(made)], check=True)
        return
    cached = Path(folder) / f"{source.stem}-{fingerprint(source, compiler)}.o"
    if not cached.exists():
        cached.parent.mkdir(parents=True, exist_ok=True)
        # Under a name of its own until it is whole: another build may look at the same moment.
        with tempfile.TemporaryDirectory(dir=cached.parent) as scratch:
            unfinished = Path(scratch) / cached.name
            subprocess.run([*command, str(unfinished)], check=True)
            unfinished.rename(cached)
    shutil.copyfile(cached, made)


def fingerprint(source: Path, compiler: list[str]) -> str:
    """A hash of what the object depends on: compiler, flags, the file, our headers and the release of CUDA's.

    Where these lie does not count, so that every clone and every virtual environment finds the same object.
    """
    flags, folders = [], []
    words = iter(compiler[1:])
    for word in words:
        if word == "-isystem":
            folders.append(Path(next(words)))
        elif not word.startswith("-I"):
            flags.append(word)
    version = subprocess.run([compiler[0], "--version"], check=True, capture_output=True).stdout
    digest = hashlib.sha256(version + "\0".join(flags).encode())
    of_cuda = [folder / "cuda_runtime_api.h" for folder in folders]  # it holds the release
    for file in [source, *sorted(source.parent.glob("*.h")), *filter(Path.exists, of_cuda)]:
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:32]


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.returncode)  # nvcc has said why
