"""The example in the reference project's README, shortened and with its slips repaired, is a program that works."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lth_fast


class Custom_Model(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, 200), nn.Linear(200, 100), nn.Linear(100, 10))
        self.optim = torch.optim.Adam(self.parameters(), lr=0.05)
        self.optim.name = "adam"
        self._initialize_weights()
        self.criterion = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.net(x)

    def _initialize_weights(self):
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.normal_(m.weight, 0, 0.01)
                nn.init.constant_(m.bias, 0)


def prune_net(net):
    for layer, param_type in lth_fast.prune.fetch_layers(net):
        torch.nn.utils.prune.l1_unstructured(layer, name=param_type, amount=0.11)
    return net


def digits(root):
    return lth_fast.data.load_digits()


def mnist(root):
    return lth_fast.data.load_MNIST(root / "mnist", validation=4500, validation_batch_size=200)


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("data", ("load_CIFAR10", "load_MNIST")),
        ("models", ("lenet", "conv2", "conv4", "conv6", "vgg19", "resnet20", "resnet32", "resnet44", "resnet56")),
        ("prune", ("prune_all", "prune_fc", "prune_conv", "prune_conv_globally", "fetch_layers", "sparsity")),
    ],
)
def test_functions_that_load_build_and_prune_have_the_reference_projects_names(module, names):
    assert all(callable(getattr(getattr(lth_fast, module), name)) for name in names)


@pytest.mark.parametrize(
    ("load", "inputs", "iterations"),
    [(digits, 64, 90), pytest.param(mnist, 784, 300, marks=pytest.mark.real_data)],
)
def test_the_example_runs_and_finds_networks_that_work(load, inputs, iterations, tmp_path, monkeypatch, request):
    dataloader = load(request.getfixturevalue("data_root") if load is mnist else None)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    result = lth_fast.iterative_pruning(Custom_Model(inputs), dataloader, iterations, 3, prune_net, seed=0)
    assert result.path.resolve().parent == tmp_path / "experiments"
    assert [level.density for level in result.levels] == pytest.approx([0.89**level for level in range(4)], abs=1e-3)
    assert all(level.early_stop_accuracy > 0.6 for level in result.levels)
    assert isinstance(result.model, Custom_Model)
