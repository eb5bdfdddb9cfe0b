"""Fixtures for the tests of masked and sparse layers."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lth_fast.nn import MaskedConv2d, MaskedLayer, MaskedLinear, calibration
from lth_fast.nn.calibration import Times, Work


@pytest.fixture(autouse=True)
def reproducible(request: pytest.FixtureRequest) -> Iterator[None]:
    """Random inputs that differ from case to case and are the same in every run; one thread, as tensors are small."""
    torch.manual_seed(zlib.crc32(request.node.name.encode()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Kind:
    """A masked layer class, with arguments for a small layer and an input shape for it."""

    masked: type[MaskedLayer]
    plain: type[nn.Module]
    arguments: tuple[int, ...]
    input_shape: tuple[int, ...]

    def layer(self, **options: Any) -> Any:
        """A masked layer that prunes about half of its weights."""
        layer: Any = self.masked(*self.arguments, **options)
        layer.mask = self.mask()
        return layer

    def dense(self, **options: Any) -> Any:
        return self.plain(*self.arguments, **options)

    def mask(self) -> Tensor:
        """A new random mask that prunes something and keeps something."""
        mask = torch.rand(self.dense().weight.shape) > 0.5
        mask.view(-1)[:2] = torch.tensor([True, False])
        return mask

    def inputs(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.input_shape, dtype=dtype)


LINEAR = Kind(MaskedLinear, nn.Linear, (5, 3), (4, 5))
CONV2D = Kind(MaskedConv2d, nn.Conv2d, (2, 3, 3), (2, 2, 6, 6))


@pytest.fixture
def forget_compiled_code() -> Iterator[None]:
    """``torch.compile`` counts the graphs of a function over all models, and gives up at the ninth."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture(params=[LINEAR, CONV2D], ids=["linear", "conv2d"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def _load(layer: Any) -> None:
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})


def _step_with_stale_momentum(layer: Any) -> None:
    optimizer = torch.optim.SGD([layer.weight], lr=0.1, momentum=0.9)
    optimizer.step()  # has seen the masks
    optimizer.state[layer.weight]["momentum_buffer"] = torch.randn_like(layer.weight)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    layer.weight.grad = None


def _step_with_noisy_gradient(layer: Any) -> None:
    optimizer = torch.optim.SGD([layer.weight], lr=0.1)
    optimizer.step()  # has seen the masks
    layer.weight.grad = torch.randn_like(layer.weight)
    optimizer.step()
    layer.weight.grad = None


def _new_parameter(layer: Any) -> None:
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def _write_in_inference_mode(layer: Any) -> None:
    with torch.inference_mode():
        layer.weight.normal_()


OUTSIDE_WRITES: dict[str, Callable[[Any], None]] = {
    "load_state_dict": _load,
    "an initialiser": lambda layer: nn.init.normal_(layer.weight),
    "reset_parameters": lambda layer: layer.reset_parameters(),
    "an optimizer with stale momentum": _step_with_stale_momentum,
    "an optimizer with a noisy gradient": _step_with_noisy_gradient,
    "a new parameter": _new_parameter,
    "a write in inference mode": _write_in_inference_mode,
}


@pytest.fixture(params=OUTSIDE_WRITES)
def write_from_outside(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Something that overwrites a layer's weight without asking the mask."""
    return OUTSIDE_WRITES[request.param]


@pytest.fixture
def masked_at_once(write_from_outside: Callable[[Any], None]) -> bool:
    """Whether the mask is applied behind that, before any forward."""
    return write_from_outside in (_load, _step_with_stale_momentum, _step_with_noisy_gradient)


@pytest.fixture
def calibration_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where measured times of layers are kept for this test alone."""
    monkeypatch.setenv("LTH_FAST_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], list[tuple[str, tuple[int, ...], bool]]]:
    """Lets a test say how long the forms take, and keeps what was asked."""

    def set_times(masked: float, sparse: float) -> list[tuple[str, tuple[int, ...], bool]]:
        asked: list[tuple[str, tuple[int, ...], bool]] = []

        def measure(layer: nn.Module, density: float, work: Work, forms: Callable[..., Any]) -> Times:
            forms(copy.deepcopy(layer), torch.rand(layer.weight.shape) < density)
            asked.append((str(layer), work.input_shape, work.input_grad))
            return Times(masked, sparse)

        monkeypatch.setattr(calibration, "_measure", measure)
        return asked

    return set_times
