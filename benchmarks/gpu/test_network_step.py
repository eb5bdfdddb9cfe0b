"""One training step of ResNet-20 (CIFAR-10, batch 128, flipped and cropped) on a GPU, under a mask."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as stock
from torch.utils.data import DataLoader, Dataset

from lth_fast import data, models
from lth_fast.experiment.config import Config
from lth_fast.nn import set_masks
from lth_fast.prune import prunable
from lth_fast.train import EagerStepper, GraphStepper, OptimizerRecipe

from ..alternation import alternate
from ..test_network_step import cifar
from .sides import endless, finished, in_order, plain_step, record_kernels

STEPS, BATCH, DENSITY = 50, 128, 0.2


class Pictures(Dataset):
    """The images one by one through torchvision's usual transforms, as a DataLoader's workers see them."""

    def __init__(self, loader: data.ResidentLoader) -> None:
        from torchvision import transforms

        self.images = loader.images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        self.labels = loader.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(loader.mean, loader.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def network() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    model = models.build("resnet20", (3, 32, 32), generator=draw)
    masks = {name: torch.rand(layer.weight.shape, generator=draw) < DENSITY for name, layer in prunable(model).items()}
    return model, masks


def recipe(device: torch.device) -> OptimizerRecipe:
    config = Config.resolve("resnet20", "cifar10", {})
    settings = {"momentum": config.momentum, "weight_decay": config.weight_decay}
    return OptimizerRecipe.named(config.optim, config.learn_rate, device, **settings)


def our_stepper(train: data.ResidentLoader, device: torch.device, masked: bool = True) -> GraphStepper:
    model, masks = network()
    model = model.to(device).to(memory_format=torch.channels_last)
    if masked:
        set_masks(model, masks)
    stepper = GraphStepper(model, recipe(device).build(model), nn.CrossEntropyLoss(), in_order(train))
    stepper.advance(STEPS)
    return stepper


def stock_network(device: torch.device) -> tuple[nn.Module, torch.optim.Optimizer]:
    model, masks = network()
    for name, mask in masks.items():
        stock.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", mask)
    model = model.to(device)
    settings = {key: value for key, value in recipe(device).settings.items() if key != "fused"}
    return model, torch.optim.SGD(model.parameters(), **settings)


def test_a_step_is_four_times_as_fast_as_stock_pruning_with_a_data_loader(benchmark, device):
    pytest.importorskip("torchvision")
    train, data_used = cifar(BATCH, augment=True)
    workers = min(8, max(1, (os.cpu_count() or 2) - 1))
    loader = DataLoader(
        Pictures(train), BATCH, shuffle=True, num_workers=workers, pin_memory=True, persistent_workers=True
    )
    model, optimizer = stock_network(device)
    rival = plain_step(model, optimizer, endless(loader, device))
    ours = our_stepper(train.to(device), device)
    result = alternate(benchmark, finished(lambda: ours.advance(STEPS)), finished(rival, STEPS), rounds=7)
    benchmark.extra_info.update(
        data=data_used, workers=workers, bar=4.0, note=f"{1e6 * result.ours / STEPS:.0f} µs a step; {workers} workers"
    )
    assert result.reaches(4.0), f"{result.ratio:.2f} times as fast, expected at least 4"


def test_a_step_is_twice_as_fast_as_stock_pruning_on_resident_data(benchmark, device):
    train, data_used = cifar(BATCH, augment=True)
    train = train.to(device)
    model, optimizer = stock_network(device)
    rival = EagerStepper(model, optimizer, nn.CrossEntropyLoss(), in_order(train))
    ours = our_stepper(train, device)
    result = alternate(
        benchmark, finished(lambda: ours.advance(STEPS)), finished(lambda: rival.advance(STEPS)), rounds=9
    )
    record_kernels(benchmark, lambda: ours.advance(STEPS), STEPS)
    benchmark.extra_info.update(data=data_used, bar=2.0, note=f"{1e6 * result.ours / STEPS:.0f} µs a step")
    assert result.reaches(2.0), f"{result.ratio:.2f} times as fast, expected at least 2"


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels last", "contiguous"])
def test_a_masked_step_beside_the_dense_network_in_the_same_graph(benchmark, device, channels_last):
    train, data_used = cifar(BATCH, augment=True)
    train = train.to(device)
    ours = our_stepper(train, device)
    dense = our_stepper(train, device, masked=False)
    if not channels_last:
        model = copy.deepcopy(dense.model).to(memory_format=torch.contiguous_format)
        dense = GraphStepper(model, recipe(device).build(model), nn.CrossEntropyLoss(), in_order(train))
        dense.advance(STEPS)
    result = alternate(
        benchmark, finished(lambda: ours.advance(STEPS)), finished(lambda: dense.advance(STEPS)), rounds=9
    )
    order = "channels last" if channels_last else "contiguous"
    benchmark.extra_info.update(data=data_used, note=f"dense twin {order}, both as CUDA graphs")
    assert result.ours > 0


def test_what_it_gains_where_cudnn_tries_its_algorithms(benchmark, device):
    """Ours beside ours: cuDNN goes by rules of thumb unless it is told to measure, which makes runs differ in bits."""
    train, data_used = cifar(BATCH, augment=True)
    train = train.to(device)
    as_usual = our_stepper(train, device)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False):
        tried = our_stepper(train, device)
    result = alternate(
        benchmark, finished(lambda: tried.advance(STEPS)), finished(lambda: as_usual.advance(STEPS)), rounds=9
    )
    record_kernels(benchmark, lambda: tried.advance(STEPS), STEPS)
    benchmark.extra_info.update(data=data_used, note=f"{1e6 * result.ours / STEPS:.0f} µs a step")
    assert result.ours > 0
