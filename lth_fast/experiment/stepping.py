"""What is stepped: a level's network and optimizer on the device; and by what, which is tried out on copies of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast.experiment.experiment import Experiment
from lth_fast.nn import set_masks
from lth_fast.prune.layers import prunable_names
from lth_fast.train import EagerStepper, GraphStepper, StepperChoice, choose_stepper
from lth_fast.train.choice import graph_refusal
from lth_fast.train.stepper import Stepper


def trainee(
    experiment: Experiment, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> tuple[nn.Module, Optimizer]:
    """A copy of the network on the training device, with ``weights`` and ``masks``, and a fresh optimizer over it."""
    model = to_device(copy.deepcopy(experiment.model), experiment.device)
    # Plain while it is filled and its optimizer made: a mask on a bias changes the parameter's name.
    model.load_state_dict(weights)
    optimizer = experiment.optimizer.build(model)
    set_masks(model, {name: mask for name, mask in masks.items() if not bool(mask.all())})
    return model, optimizer


def to_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move ``model``; on CUDA four-dimensional weights become channels-last, which cuDNN's convolutions are fastest on.

    The first convolution hands the order on, so the images need not have it.
    """
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if device.type == "cuda" else model


def choose(experiment: Experiment) -> StepperChoice:
    """The fastest stepper that can train ``experiment``, and why faster ones cannot."""
    return choose_stepper(
        {GraphStepper.name: lambda: graph_refusal(experiment.device, lambda kind: trial(experiment, kind))}
    )


def trial(experiment: Experiment, kind: type[EagerStepper] | type[GraphStepper]) -> Stepper:
    """A stepper at the start of the dense network, under masks that prune a single weight of every layer.

    Layers under a mask are others than plain ones, and most levels have them.
    """
    parameters = dict(experiment.model.named_parameters())
    masks = {
        name: torch.ones_like(parameters[name], dtype=torch.bool, device="cpu")
        for name in prunable_names(experiment.model, bias=experiment.prune_bias)
    }
    for mask in masks.values():
        mask.view(-1)[:1] = False
    model, optimizer = trainee(experiment, experiment.model.state_dict(), masks)
    return kind(
        model,
        optimizer,
        experiment.criterion,
        experiment.batches(0),
        schedule=experiment.schedule,
        precision=experiment.precision,
    )
