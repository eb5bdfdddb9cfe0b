"""Fixtures for the tests of the operators."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lth_fast import _C


@pytest.fixture(autouse=True)
def reproducible(request: pytest.FixtureRequest) -> Iterator[None]:
    """Random inputs that differ from case to case and are the same in every run; one thread, as tensors are small."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@contextlib.contextmanager
def forced(isa: str) -> Iterator[None]:
    if isa not in _C.usable_isas():
        pytest.skip(f"this CPU has no {isa}")
    previous = _C.active_isa()
    _C.force_isa(isa)
    yield
    _C.force_isa(previous)


@contextlib.contextmanager
def on_cuda() -> Iterator[None]:
    """New tensors are on the CUDA device; torch's own convolutions are true float32 and repeatable."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    with torch.device("cuda"), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture(params=_C.built_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the build in turn, in force during the test."""
    with forced(request.param):
        yield request.param


@pytest.fixture(params=[*_C.built_isas(), pytest.param("cuda", marks=pytest.mark.gpu)])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each set of kernels in turn: the instruction sets, and CUDA, where tensors are then made on the device."""
    with on_cuda() if request.param == "cuda" else forced(request.param):
        yield


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def library(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each of the two libraries that multiply dense matrices in turn, whatever this CPU prefers."""
    previous = _C.prefers_onednn()
    _C.force_onednn(request.param)
    yield
    _C.force_onednn(previous)


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_(tensor.is_floating_point())


def _inference_tensor(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        same_order = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        return same_order.copy_(tensor)


@pytest.fixture(params=["with a derivative", "without", "in inference mode", "on inference tensors"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``call(op, *arguments, **named)`` on each of the ways that lead to the kernels: past autograd and not."""
    prepare, mode = {
        "with a derivative": (_leaf, contextlib.nullcontext()),
        "without": (_leaf, torch.no_grad()),
        "in inference mode": (torch.detach, torch.inference_mode()),
        "on inference tensors": (_inference_tensor, contextlib.nullcontext()),
    }[request.param]

    def prepared(op: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        arguments, named = tree_map_only(Tensor, prepare, (arguments, named))
        with mode:
            return op(*arguments, **named)

    return prepared


@pytest.fixture
def on_threads() -> Iterator[Callable[[int, Callable[[], Tensor]], Tensor]]:
    """``on_threads(count, work)`` returns ``work()`` as computed with ``count`` threads."""
    previous = torch.get_num_threads()

    def compute(count: int, work: Callable[[], Tensor]) -> Tensor:
        torch.set_num_threads(count)
        return work()

    yield compute
    torch.set_num_threads(previous)


@pytest.fixture
def on_each_isa() -> Callable[[Callable[[], Tensor]], list[Tensor]]:
    """``on_each_isa(work)`` returns ``work()`` as computed with every instruction set that this CPU has."""

    def compute(work: Callable[[], Tensor]) -> list[Tensor]:
        results = []
        for isa in _C.usable_isas():
            with forced(isa):
                results.append(work())
        return results

    return compute


@pytest.fixture
def distance() -> Callable[[Tensor, Tensor], float]:
    """``distance(out, expected)``: ‖out - expected‖ / ‖expected‖ in float64, infinite for NaN."""

    def compute(out: Tensor, expected: Tensor) -> float:
        assert out.shape == expected.shape
        error = (out.double() - expected.double()).norm().item()
        size = expected.double().norm().item()
        if error == 0.0:
            return 0.0
        return error / size if math.isfinite(error) and size > 0.0 else math.inf

    return compute
