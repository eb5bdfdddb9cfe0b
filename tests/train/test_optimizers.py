from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lth_fast.ops import library
from lth_fast.optim.fused import FusedOptimizer
from lth_fast.record.document import write_document
from lth_fast.train import OptimizerRecipe
from lth_fast.train.optimizers import optimizer_class

BY_NAME = ("adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "asgd", "nadam", "radam", "rmsprop", "sgd")


def network():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def step(model, optimizer):
    model(torch.ones(2, 3)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("name", BY_NAME)
def test_an_optimizer_is_known_by_its_name_in_any_case_and_trains(name):
    recipe = OptimizerRecipe.named(name.upper(), 0.25)
    model = network()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = recipe.build(model)
    assert type(optimizer).__name__.lower() == name
    assert [group["lr"] for group in optimizer.param_groups] == [0.25]
    step(model, optimizer)
    assert any(not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_on_every_device_with_a_kernel_the_fastest_is_this_packages(name, monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(library, "_without_cuda_kernel", set())
    for device in (torch.device("cpu"), cuda):
        recipe = OptimizerRecipe.named(name, 0.1, device)
        assert issubclass(recipe.kind, FusedOptimizer)
        assert recipe.settings == {"lr": 0.1}
        assert recipe.describe()["package"] == "lth_fast"
    monkeypatch.setattr(library, "_without_cuda_kernel", {"adam_step_", "sgd_step_"})
    assert issubclass(OptimizerRecipe.named(name, 0.1).kind, FusedOptimizer)
    stock = OptimizerRecipe.named(name, 0.1, cuda)
    assert stock.kind is optimizer_class(name)
    assert stock.settings == {"lr": 0.1, "fused": True}


def test_without_a_learning_rate_the_class_has_its_own():
    assert OptimizerRecipe.named("adam").build(network()).param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("name", BY_NAME)
def test_a_setting_of_zero_is_zero_whatever_its_class_has_by_default(name):
    optimizer = OptimizerRecipe.named(name, 0.1, momentum=0.0, nesterov=False, weight_decay=0.0).build(network())
    for setting in ("momentum", "nesterov", "weight_decay"):
        assert optimizer.param_groups[0].get(setting, 0) == 0


def test_only_a_setting_that_is_not_zero_needs_a_class_that_has_it():
    assert OptimizerRecipe.named("adam", 0.1, momentum=0.0).settings == {"lr": 0.1}
    with pytest.raises(ValueError, match="--momentum: expected an optimizer that has it, got Adam"):
        OptimizerRecipe.named("adam", 0.1, momentum=0.5)


@pytest.mark.parametrize("name", ["adm", "ada", "lbfgs", "sparseadam", "muon", "optimizer", ""])
def test_what_cannot_train_a_network_by_its_name_is_refused_with_those_that_can(name):
    with pytest.raises(ValueError, match=r"optimizer.*adam.*sgd|optimizer.*adadelta"):
        optimizer_class(name)


def test_a_rebuilt_optimizer_has_class_groups_and_settings_as_handed_over_and_no_state():
    model = network()
    optimizer = torch.optim.SGD(
        [
            {"params": model[0].parameters(), "lr": 0.5, "weight_decay": 0.01},
            {"params": [model[2].weight], "momentum": 0.3},
        ],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    optimizer.param_groups[1]["lr"] = 0.7
    step(model, optimizer)
    assert optimizer.state

    copy = network()
    rebuilt = OptimizerRecipe.from_optimizer(optimizer, model).build(copy)
    assert type(rebuilt) is torch.optim.SGD
    assert not rebuilt.state
    for old, new in zip(optimizer.param_groups, rebuilt.param_groups, strict=True):
        assert {k: v for k, v in old.items() if k != "params"} == {k: v for k, v in new.items() if k != "params"}
    assert [id(p) for p in rebuilt.param_groups[0]["params"]] == [id(p) for p in copy[0].parameters()]
    assert [id(p) for p in rebuilt.param_groups[1]["params"]] == [id(copy[2].weight)]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_an_optimizer_over_named_parameters_is_rebuilt_too(kind):
    model = network()
    rebuilt = OptimizerRecipe.from_optimizer(kind(model.named_parameters(), lr=0.2), model).build(network())
    assert type(rebuilt) is kind
    assert len(rebuilt.param_groups[0]["params"]) == 4
    assert rebuilt.param_groups[0]["lr"] == 0.2


def test_an_optimizer_of_ones_own_with_arguments_of_its_own_is_rebuilt():
    class Halving(torch.optim.SGD):
        def __init__(self, params, lr, factor):
            super().__init__(params, lr=lr)
            self.factor = factor
            self.defaults["factor"] = factor

    model = network()
    rebuilt = OptimizerRecipe.from_optimizer(Halving(model.parameters(), lr=0.1, factor=0.5), model).build(network())
    assert type(rebuilt) is Halving
    assert rebuilt.factor == 0.5


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="optim: the optimizer holds a parameter that is not the model's"):
        OptimizerRecipe.from_optimizer(torch.optim.SGD(network().parameters(), lr=0.1), network())


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.Adam(parameters, lr=torch.tensor(0.1)),
        lambda parameters: torch.optim.AdamW(parameters, betas=(0.5, 0.9)),
        lambda parameters: torch.optim.SGD([{"params": parameters, "lr": 0.1}], lr=1.0),
    ],
)
def test_its_description_fits_into_a_record_and_reads_as_it_was_written(make, tmp_path):
    model = network()
    described = OptimizerRecipe.from_optimizer(make(list(model.parameters())), model).describe()
    write_document(tmp_path / "described.json", described)
    assert json.loads((tmp_path / "described.json").read_text()) == described
    assert described["groups"][0]["parameters"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_its_description_has_numbers_as_numbers():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.5, 0.9))
    described = OptimizerRecipe.from_optimizer(optimizer, model).describe()
    for settings in (described, *described["groups"]):
        assert (settings["lr"], settings["betas"], settings["amsgrad"]) == (0.01, [0.5, 0.9], False)
