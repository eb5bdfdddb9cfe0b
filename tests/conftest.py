"""Fixtures for every test."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture(scope="session", autouse=True)
def measured_times(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Times of layers are kept in a folder of the test session, which child processes share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTH_FAST_CACHE", str(tmp_path_factory.mktemp("calibration")))
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of genuine data sets, ``<folder>/<dataset>/...``, from the environment variable LTH_FAST_DATA."""
    folder = os.environ.get("LTH_FAST_DATA")
    if not folder:
        pytest.skip("LTH_FAST_DATA is not set: it names the folder of the genuine data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def fake_mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder whose MNIST is noise: 5,100 training images (100 beside the validation set) and 60 test images."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    folder = root / "mnist" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 5100), ("t10k", 60)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, count, dtype=np.uint8)
        for name, array in ((f"{part}-images-idx3", images), (f"{part}-labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), compresslevel=1))
    return root


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device in turn; torch's own convolutions are true float32 and repeatable there."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield torch.device(request.param)


class _OwnOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lth_fast":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def own_operators_of() -> Callable[[Callable[[], Any]], list[str]]:
    """Runs what it is given and returns the names of the package's operators that were dispatched meanwhile."""

    def names(work: Callable[[], Any]) -> list[str]:
        with _OwnOperators() as mode:
            work()
        return mode.names

    return names
