"""LeNet on MNIST under a mask, in our layers and in torch.nn.utils.prune's: the same weights, masks, data and order."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock
from torch.utils.data import DataLoader

from lth_fast import data, models
from lth_fast.data import DataSplits, ResidentLoader
from lth_fast.nn import set_masks
from lth_fast.prune import prunable
from lth_fast.train import EagerStepper, ResidentBatches
from lth_fast.train.batches import Batches, LoaderBatches


def genuine_data(name: str) -> Path | None:
    """The folder LTH_FAST_DATA if it holds the data set ``name``."""
    root = os.environ.get("LTH_FAST_DATA")
    return Path(root) if root and (Path(root) / name).is_dir() else None


def mnist() -> tuple[DataSplits, str]:
    """MNIST from the folder LTH_FAST_DATA, else random images of its shape; and which of the two."""
    root = genuine_data("mnist")
    if root is not None:
        return data.load_MNIST(root), "MNIST"
    draw = torch.Generator().manual_seed(0)

    def loader(count: int, batch_size: int, shuffle: bool) -> ResidentLoader:
        return ResidentLoader(
            torch.randint(0, 256, (count, 1, 28, 28), generator=draw, dtype=torch.uint8),
            torch.randint(0, 10, (count,), generator=draw),
            mean=(0.1307,),
            std=(0.3081,),
            scale=255.0,
            batch_size=batch_size,
            shuffle=shuffle,
            augment=False,
            name="mnist",
            classes=10,
        )

    splits = DataSplits(loader(55_000, 60, True), loader(5_000, 500, False), loader(10_000, 500, False))
    return splits, "random images of MNIST's shape"


@dataclass(frozen=True)
class Setting:
    """A LeNet and the masks of one density."""

    model: nn.Module
    masks: dict[str, Tensor]

    @classmethod
    def at(cls, density: float) -> Setting:
        draw = torch.Generator().manual_seed(0)
        model = models.build("lenet", generator=draw)
        masks = {
            name: torch.rand(layer.get_parameter("weight").shape, generator=draw) < density
            for name, layer in prunable(model).items()
        }
        return cls(model, masks)

    def ours(self) -> nn.Module:
        return set_masks(self._copy(), self.masks)

    def stock(self) -> nn.Module:
        model = self._copy()
        for name, mask in self.masks.items():
            stock.custom_from_mask(model.get_submodule(name.rpartition(".")[0]), "weight", mask)
        return model

    def _copy(self) -> nn.Module:
        model = models.build("lenet")
        model.load_state_dict(self.model.state_dict())
        return model


def stepper(
    model: nn.Module,
    train: ResidentLoader | DataLoader[Any],
    adam: Callable[..., torch.optim.Optimizer],
    kind: type[EagerStepper] = EagerStepper,
) -> EagerStepper:
    """The given Adam and cross-entropy, in eager steps as any loop takes them or in those of ``kind``."""
    optimizer = adam(model.parameters(), lr=1.2e-3)
    batches: Batches
    if isinstance(train, DataLoader):
        batches = LoaderBatches(train, lambda epoch: epoch, torch.device("cpu"))
    else:
        batches = ResidentBatches(train, lambda epoch: epoch, lambda epoch: epoch)
    return kind(model, optimizer, nn.CrossEntropyLoss(), batches)
