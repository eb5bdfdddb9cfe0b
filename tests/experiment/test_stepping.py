"""A level's network on its device: weights, masks, memory order."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.data import ResidentLoader
from lth_fast.experiment.stepping import to_device, trainee
from lth_fast.nn import dense_state, masks, set_masks
from lth_fast.train import EagerStepper, OptimizerRecipe, ResidentBatches


def is_channels_last(weight):
    return weight.is_contiguous(memory_format=torch.channels_last)


def test_on_the_cpu_weights_keep_their_order():
    model = to_device(models.build("conv2", (3, 8, 8)), torch.device("cpu"))
    assert all(parameter.is_contiguous() for parameter in model.parameters())


@pytest.mark.gpu
def test_on_a_gpu_the_weights_of_convolutions_are_channels_last():
    model = to_device(models.build("conv2", (3, 8, 8)), torch.device("cuda"))
    wide = [parameter for parameter in model.parameters() if parameter.dim() == 4]
    assert wide
    assert all(is_channels_last(parameter) for parameter in wide)


def test_a_trainee_has_the_weights_masks_and_a_fresh_optimizer_and_is_a_copy(make_experiment):
    experiment = make_experiment()
    weights = {name: value + 1 for name, value in experiment.model.state_dict().items()}
    kept = {"5.weight": torch.rand(experiment.model[5].weight.shape) < 0.5}
    model, optimizer = trainee(experiment, weights, kept)
    assert torch.equal(model[5].weight, weights["5.weight"] * kept["5.weight"])
    assert torch.equal(masks(model)["5.weight"], kept["5.weight"])
    assert not optimizer.state
    assert not torch.equal(experiment.model[7].weight, model[7].weight)
    assert {id(p) for p in model.parameters()} == {id(p) for group in optimizer.param_groups for p in group["params"]}


def test_an_optimizer_with_groups_by_name_is_made_for_a_network_with_a_masked_bias(make_experiment):
    model = make_experiment().model
    groups = [{"params": [model[5].bias], "lr": 0.5}, {"params": [model[5].weight], "lr": 0.25}]
    recipe = OptimizerRecipe.from_optimizer(torch.optim.SGD(groups), model)
    kept = {"5.bias": torch.arange(8) < 4}
    trained, optimizer = trainee(make_experiment(optimizer=recipe), model.state_dict(), kept)
    assert torch.equal(masks(trained)["5.bias"], kept["5.bias"])
    bias, weight = (group["params"][0] for group in optimizer.param_groups)
    assert bias is trained[5].parametrizations.bias.original
    assert weight is trained[5].weight


@pytest.mark.parametrize("net", ["conv2", "resnet20"])
def test_a_masked_network_trains_the_same_in_channels_last_order(net):
    draw = torch.Generator().manual_seed(0)
    plain = models.build(net, (3, 8, 8), generator=draw)
    kept = {
        name: torch.rand(parameter.shape, generator=draw) < 0.5
        for name, parameter in plain.named_parameters()
        if parameter.dim() > 1
    }
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.randint(10, (40,), generator=draw)
    data = ResidentLoader(
        images, labels, name="toy", classes=10, mean=(0.5,) * 3, std=(0.3,) * 3, batch_size=10, shuffle=True
    )
    losses, states = [], []
    for order in (torch.contiguous_format, torch.channels_last):
        model = copy.deepcopy(plain).to(memory_format=order)
        optimizer = OptimizerRecipe.named("sgd", 1e-3, momentum=0.9).build(model)
        set_masks(model, kept)
        batches = ResidentBatches(data, lambda epoch: epoch, lambda epoch: epoch)
        losses.append(EagerStepper(model, optimizer, nn.CrossEntropyLoss(), batches).advance(4))
        states.append(dense_state(model))
    assert any(is_channels_last(value) for value in states[1].values() if value.dim() == 4 and value.shape[2] == 3)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)
    for name, mask in kept.items():
        assert not states[1][name][~mask].any()
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-2, atol=1e-3)
