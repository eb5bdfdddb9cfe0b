"""Calls whose time is the device's: each waits for what it launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from lth_fast.data import ResidentLoader
from lth_fast.train import ResidentBatches


def finished(work: Callable[[], object], times: int = 1) -> Callable[[], None]:
    """``work``, so many times, and then the wait for the device."""

    def call() -> None:
        for _ in range(times):
            work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return call


def record_kernels(benchmark: Any, work: Callable[[], object], steps: int, most: int = 15) -> None:
    """Note in ``extra_info`` what the device does in a step of ``work``, which takes ``steps`` of them.

    That is µs and launches of all kernels, and of those that take longest. To be called when the time has been taken.
    """
    if not torch.cuda.is_available():
        return
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        finished(work)()
    events = [event for event in profiled.key_averages() if event.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)

    def line(microseconds: float, launches: int, name: str) -> str:
        return f"{microseconds / steps:.2f} µs, {launches / steps:.1f} launches: {name[:100]}"

    everything = (sum(event.self_device_time_total for event in events), sum(event.count for event in events))
    benchmark.extra_info["kernels"] = [
        line(*everything, "all"),
        *(line(event.self_device_time_total, event.count, event.key) for event in events[:most]),
    ]


def in_order(train: ResidentLoader, replicate: int = 0) -> ResidentBatches:
    """Seeded batches of ``train``; another order for each replicate."""
    return ResidentBatches(train, lambda epoch: 1000 * replicate + epoch, lambda epoch: 1000 * replicate + epoch)


def endless(loader: Any, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a DataLoader with pinned memory on the device, epoch after epoch."""
    while True:
        for inputs, labels in loader:
            yield inputs.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def plain_step(model: nn.Module, optimizer: Optimizer, batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """The step of everybody's training loop, as PyTorch's tutorials have it."""
    criterion = nn.CrossEntropyLoss()
    model.train()

    def step() -> None:
        inputs, labels = next(batches)
        optimizer.zero_grad()
        criterion(model(inputs), labels).backward()
        optimizer.step()

    return step
