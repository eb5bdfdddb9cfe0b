"""How long a layer takes in each form on this machine: measured once, then remembered.

What pays depends on the CPU, its instruction set, the threads, the shape and the density, so nothing but a
measurement tells. The times are kept in one small file. A second process waits for the first one's measurement instead
of disturbing it.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lth_fast._machine import machine_name

_ALTERNATIONS = 7
_MORE_ALTERNATIONS = 40  # of a small layer, whose forms differ by little else than what disturbs the measurement ...
_MORE_SECONDS = 0.2  # ... within this time
_SETTLED = 1.3  # a ratio beyond which two alternations are enough, if those of either form are closer to each other
_LEAST_SECONDS = 0.002  # of what is timed in one go: clocks and interrupts weigh less than a hundredth then

Forms = Callable[[nn.Module, Tensor], tuple[nn.Module, nn.Module]]


@dataclass(frozen=True)
class Times:
    """Seconds of one forward and backward pass of a layer in either form, the best of several alternating rounds.

    The best, because other programs only ever add time.
    """

    masked: float
    sparse: float


@dataclass(frozen=True)
class Work:
    """What a layer is asked to do.

    Attributes:
        input_shape: Shape of its input.
        input_grad: Whether the backward computes the input's gradient; the first layer of a network needs none.
    """

    input_shape: tuple[int, ...]
    input_grad: bool = True


def measured_times(layer: nn.Module, density: float, work: Work, forms: Forms) -> Times:
    """Time ``layer`` in both forms, or recall it.

    Args:
        layer: Plain ``nn.Linear`` or ``nn.Conv2d``. It is only looked at. What is frozen has no gradient to compute.
        density: Share of survivors, 0 to 1. It is rounded to a quarter of a power of two, and the survivors are drawn
            at random: the times of every single mask could not be remembered.
        work: What the layer is asked to do.
        forms: Makes the masked and the sparse form of a plain layer and a mask.
    """
    bucket = round(4 * math.log2(max(density, 2.0**-16)))
    weight = layer.weight
    key = f"{layer}, {weight.dtype}, input {list(work.input_shape)}, input_grad {work.input_grad}, 2^({bucket}/4)"
    key += "".join(f", {name} frozen" for name, value in layer.named_parameters() if not value.requires_grad)
    machine = machine_name(weight.device)  # type: ignore[arg-type]
    entry = _recall(machine, key)
    if entry is None:
        with _locked_file() as file:
            known = _read(file)
            of_this_machine = known.setdefault(machine, {})
            entry = of_this_machine.get(key)  # of a process that was waited for
            if entry is None:
                # Whatever modes the caller is in, the times are those of training.
                with (
                    torch.inference_mode(False),
                    torch.enable_grad(),
                    torch.autocast(weight.device.type, enabled=False),  # type: ignore[arg-type]
                ):
                    entry = of_this_machine[key] = asdict(_measure(layer, 2.0 ** (bucket / 4), work, forms))
                _write(file, known)
    return Times(**entry)


def cache_file() -> Path:
    """Where the times are kept: in the folder ``LTH_FAST_CACHE``, else in ``lth_fast`` of the user's cache folder."""
    folder = os.environ.get("LTH_FAST_CACHE")
    if folder:
        return Path(folder).expanduser() / "calibration.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lth_fast" / "calibration.json"


def _measure(layer: nn.Module, density: float, work: Work, forms: Forms) -> Times:
    weight: Any = layer.weight
    draw = torch.Generator().manual_seed(0)  # its own: to measure or to recall makes no difference to what follows
    plain = _like(layer, draw)
    mask = torch.rand(weight.shape, generator=draw, device="cpu") < density
    inputs = torch.randn(work.input_shape, generator=draw, dtype=torch.float32, device="cpu").to(weight)
    steps = [_step(form, inputs, work.input_grad) for form in forms(plain, mask.to(weight.device))]
    repeats = [max(1, math.ceil(_LEAST_SECONDS / _seconds(step, 1, weight.device))) for step in steps]
    samples: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    for alternation in range(1, _MORE_ALTERNATIONS + 1):
        for times, step, repeat in zip(samples, steps, repeats, strict=True):
            times.append(_seconds(step, repeat, weight.device))
        masked, sparse = (min(times) for times in samples)
        # What disturbs a form makes a ratio, too, but seldom twice the same.
        alike = alternation >= 2 and all(sorted(times)[1] < _SETTLED * min(times) for times in samples)
        if alike and not 1 / _SETTLED < masked / sparse < _SETTLED:
            break
        if alternation >= _ALTERNATIONS and time.perf_counter() - began > _MORE_SECONDS:
            break
    return Times(masked, sparse)


def _like(layer: nn.Module, draw: torch.Generator) -> nn.Module:
    """A plain layer of the same shape with weights of its own."""
    twin: Any = object.__new__(type(layer))
    twin.__dict__.update(layer.__dict__)
    twin._parameters = {
        name: nn.Parameter(torch.randn(value.shape, generator=draw, device="cpu").to(value), value.requires_grad)
        if value is not None
        else None
        for name, value in layer._parameters.items()
    }
    for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        setattr(twin, hooks, {})
    return twin


def _step(layer: nn.Module, inputs: Tensor, input_grad: bool) -> Callable[[], None]:
    inputs.requires_grad_(input_grad)
    output_grad = torch.ones_like(layer(inputs))
    parameters = list(layer.parameters())

    def step() -> None:
        inputs.grad = None
        for parameter in parameters:
            parameter.grad = None
        output = layer(inputs)
        if output.requires_grad:  # nothing does where the first layer is frozen
            output.backward(output_grad)

    step()
    return step


def _seconds(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    _wait_for(device)
    began = time.perf_counter()
    for _ in range(repeats):
        step()
    _wait_for(device)
    return (time.perf_counter() - began) / repeats


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _recall(machine: str, key: str) -> dict[str, float] | None:
    """What is known, without the lock: the file is replaced as a whole, and in a folder that one may only read there is
    no lock to be had."""
    try:
        file = cache_file()
    except RuntimeError:  # from a user without a home
        return None
    return _read(file).get(machine, {}).get(key)


@contextmanager
def _locked_file() -> Iterator[Path | None]:
    """Hold the lock beside the file of times; where it cannot be had or written to, go on without a file and say so."""
    file, descriptor = None, None
    try:
        try:
            place = cache_file()
            place.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(place.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o666)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            file = place
        except (OSError, RuntimeError) as error:  # the latter from a user without a home
            warnings.warn(f"times of layers cannot be remembered, they are measured anew: {error}", stacklevel=2)
        yield file
    finally:
        if descriptor is not None:
            with suppress(OSError):  # from a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process forked off meanwhile holds it, too
            os.close(descriptor)


def _read(file: Path | None) -> dict[str, dict[str, dict[str, float]]]:
    try:
        found = json.loads(file.read_bytes()) if file is not None else {}
    except (OSError, ValueError, RecursionError):  # missing, or damaged: what it held can be measured again
        return {}
    if not isinstance(found, dict):
        return {}
    return {
        machine: {key: entry for key, entry in times.items() if _are_times(entry)}
        for machine, times in found.items()
        if isinstance(times, dict)
    }


def _are_times(entry: Any) -> bool:
    fields = Times.__dataclass_fields__.keys()
    return (
        isinstance(entry, dict)
        and entry.keys() == fields
        and all(isinstance(seconds, float) and 0 < seconds < math.inf for seconds in entry.values())
    )


def _write(file: Path | None, known: dict[str, dict[str, dict[str, float]]]) -> None:
    if file is None:
        return
    temporary = file.with_suffix(".partial")
    try:
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, file)
    except OSError as error:
        warnings.warn(f"times of layers cannot be remembered, they are measured anew: {error}", stacklevel=2)
    finally:
        with suppress(OSError):
            temporary.unlink()
