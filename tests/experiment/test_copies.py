"""Copies that hold other weights: those of a deep copy that was loaded, and nothing that was left unwritten."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.experiment import copies
from lth_fast.experiment.copies import copy_with
from lth_fast.nn import load_dense_state


@pytest.fixture(autouse=True)
def memory_that_nobody_has_written_is_nan(monkeypatch):
    def empty_like(tensor):
        return torch.full_like(tensor, torch.nan)

    monkeypatch.setattr(copies.torch, "empty_like", empty_like)


def random_state(model):
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=draw) if value.is_floating_point() else value + 1
        for name, value in model.state_dict().items()
    }


def assert_like_a_loaded_copy(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, state = copy.deepcopy(model), random_state(model)
    load_dense_state(expected, state)
    found = copy_with(model, state)
    assert found.state_dict().keys() == before.keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
        assert torch.equal(model.state_dict()[name], before[name]), name
    for (name, one), other in zip(expected.named_parameters(), found.parameters(), strict=True):
        assert one.requires_grad == other.requires_grad, name
        assert one.stride() == other.stride(), name
    return found


@pytest.mark.parametrize("name", ["lenet", "conv2", "resnet20"])
def test_networks_of_the_package(name):
    assert_like_a_loaded_copy(models.build(name, (3, 32, 32)))


def test_frozen_channels_last_and_shared_parameters():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(8, 8), nn.Linear(8, 8))
    model = model.to(memory_format=torch.channels_last)
    model[0].weight.requires_grad_(False)
    model[3].weight = model[2].weight
    found = assert_like_a_loaded_copy(model)
    assert found[3].weight is found[2].weight
    assert found[2].weight is not model[2].weight


class Stubborn(nn.Linear):
    """Keeps the weight it has."""

    def _load_from_state_dict(self, state_dict, prefix, *others):
        super()._load_from_state_dict({**state_dict, f"{prefix}weight": self.weight.detach().clone()}, prefix, *others)


def keep_the_bias(module, state_dict, prefix, *others):
    state_dict[f"{prefix}bias"] = module.bias.detach().clone()


class Halved(nn.Sequential):
    def load_state_dict(self, state_dict, *others, **named):
        own = self.state_dict()
        return super().load_state_dict({name: (own[name] + value) / 2 for name, value in state_dict.items()})


def drop_the_last_weight(module, state_dict, *others):
    del state_dict["1.weight"]


def accept_what_is_missing(module, incompatible):
    incompatible.missing_keys.clear()


def test_what_a_hook_of_the_whole_leaves_out_keeps_its_values():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model.register_load_state_dict_pre_hook(drop_the_last_weight)
    model.register_load_state_dict_post_hook(accept_what_is_missing)
    assert_like_a_loaded_copy(model)


def test_what_a_module_leaves_as_it_is_keeps_its_values():
    hooked = nn.Linear(4, 4)
    hooked.register_load_state_dict_pre_hook(keep_the_bias)
    assert_like_a_loaded_copy(nn.Sequential(Stubborn(4, 4), hooked, nn.BatchNorm1d(4)))
    assert_like_a_loaded_copy(Halved(nn.Linear(4, 4)))


def test_a_parameter_that_the_state_does_not_have_is_an_error_that_names_it():
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError, match="bias"):
        copy_with(model, {"weight": torch.zeros(2, 3)})
