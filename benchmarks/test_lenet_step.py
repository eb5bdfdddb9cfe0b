"""One training step of LeNet (batch 60, Adam) under a mask as the search takes it on a CPU, native and in the forms
that it gives the layers: against torch.nn.utils.prune and against our own eager steps, on images that lie in memory;
and against torch.nn.utils.prune on images that are loaded one by one, as the reference project does.
"""

import copy
from functools import partial

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lth_fast import optim
from lth_fast.data import ResidentLoader
from lth_fast.nn import choices, convert
from lth_fast.train import NativeStepper

from .alternation import alternate, take_turns
from .lenet import Setting, mnist, stepper

STEPS = 20
RIVALS = {"default Adam": torch.optim.Adam, "fused Adam": partial(torch.optim.Adam, fused=True)}


class ImageByImage(Dataset[tuple[Tensor, int]]):
    """MNIST as torchvision gives it, whose ``__getitem__`` this is, and as the reference project loads it."""

    def __init__(self, resident: ResidentLoader) -> None:
        self.images, self.labels = resident.images.squeeze(1), resident.labels
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = Image.fromarray(self.images[index].numpy())
        return self.transform(image), int(self.labels[index])


@pytest.mark.parametrize("density", [1.0, 0.5, 0.1])
def test_step(benchmark, threads, density):
    splits, data_used = mnist()
    setting = Setting.at(density)
    model = convert(setting.ours(), example_input=torch.randn(60, 1, 28, 28))
    forms = ", ".join(choice.form for choice in choices(model).values())
    rivals = {name: stepper(setting.stock(), splits.train, adam) for name, adam in RIVALS.items()}
    rivals["ours in eager steps"] = stepper(copy.deepcopy(model), splits.train, optim.Adam)
    ours = stepper(model, splits.train, optim.Adam, NativeStepper)
    results = take_turns(
        benchmark,
        lambda: ours.advance(STEPS),
        {name: partial(rival.advance, STEPS) for name, rival in rivals.items()},
    )
    ours_seconds = results["default Adam"].ours
    benchmark.extra_info.update(
        threads=threads,
        density=density,
        data=data_used,
        steps=STEPS,
        forms=forms,
        note=f"{STEPS} steps; {1e3 * ours_seconds / STEPS:.2f} ms a step ({forms})",
    )
    assert ours_seconds > 0


@pytest.mark.long
@pytest.mark.parametrize("threads", ["one"], indirect=True)
@pytest.mark.parametrize("density", [1.0, 0.1])
def test_step_against_images_loaded_one_by_one(benchmark, threads, density):
    splits, data_used = mnist()
    setting = Setting.at(density)
    model = convert(setting.ours(), example_input=torch.randn(60, 1, 28, 28))
    ours = stepper(model, splits.train, optim.Adam, NativeStepper)
    loader = DataLoader(ImageByImage(splits.train), splits.train.batch_size, shuffle=True)
    rival = stepper(setting.stock(), loader, torch.optim.Adam)
    result = alternate(benchmark, partial(ours.advance, STEPS), partial(rival.advance, STEPS))
    benchmark.extra_info.update(
        threads=threads, density=density, data=data_used, steps=STEPS, note=f"{STEPS} steps of either"
    )
    assert result.ours > 0
