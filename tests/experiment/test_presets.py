"""The published settings, cell by cell, and what of them a given flag replaces."""

from __future__ import annotations

import pytest

from lth_fast.data import datasets
from lth_fast.experiment.config import Config
from lth_fast.experiment.flags import BY_NAME
from lth_fast.experiment.presets import preset, presets, shown_to_fail
from lth_fast.models import default_init, models

DEEP = {"optim": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "learn_rate": 0.1, "scope": "global", "prune_rate": 0.2}
CONV = {"batch_size": 60, "optim": "adam", "fc_rate": 0.2, "rewind": 0}
LMC = {**DEEP, "batch_size": 128, "iter": 63_000, "milestones": (32_000, 48_000), "augment": True}

PAPER = {
    "lenet": {"batch_size": 60, "iter": 50_000, "optim": "adam", "learn_rate": 1.2e-3, "prune_rate": 0.2, "rewind": 0},
    "conv2": {**CONV, "iter": 20_000, "learn_rate": 2e-4, "prune_rate": 0.1},
    "conv4": {**CONV, "iter": 25_000, "learn_rate": 3e-4, "prune_rate": 0.1},
    "conv6": {**CONV, "iter": 30_000, "learn_rate": 3e-4, "prune_rate": 0.15},
    "resnet20": {
        **DEEP,
        "init": "glorot",
        "batch_size": 128,
        "iter": 30_000,
        "milestones": (20_000, 25_000),
        "whole": ("output", "shortcuts"),
        "rewind": 500,
        "augment": True,
    },
    "vgg19": {
        **DEEP,
        "init": "glorot",
        "batch_size": 64,
        "iter": 112_000,
        "milestones": (56_000, 84_000),
        "whole": ("output",),
        "rewind": 100,
        "augment": True,
    },
    **{
        name: {**LMC, "rewind": 2000, "whole": ("output", "shortcuts")}
        for name in ("resnet32", "resnet44", "resnet56", "resnet110")
    },
    **{name: {**LMC, "rewind": 1000, "whole": ("output",)} for name in ("vgg11", "vgg13", "vgg16")},
}


def test_the_table_above_has_every_network():
    assert set(PAPER) == set(models)


@pytest.mark.parametrize("net", PAPER)
def test_a_networks_settings_are_the_papers_unless_a_flag_says_otherwise(net):
    config = Config.resolve(net, "cifar10", {})
    expected = PAPER[net]
    assert {name: getattr(config, name) for name in expected} == expected
    assert {config.sources[name] for name in expected} == {"preset"}
    assert not [name for name, source in config.sources.items() if source == "preset" and name not in expected]


@pytest.mark.parametrize("name", presets)
@pytest.mark.parametrize("net", [*models, "torchvision:resnet18", "torchvision:vgg11"])
@pytest.mark.parametrize("dataset", datasets)
def test_every_cell_is_a_configuration_that_its_flags_would_accept(name, net, dataset):
    config = Config.resolve(net, dataset, {"preset": name})
    for setting, value in preset(name, net, dataset).items():
        assert BY_NAME[setting].parse is None or BY_NAME[setting].read(value) == value
    assert 0 <= config.rewind < config.iter
    assert all(milestone < config.iter for milestone in config.milestones)


@pytest.mark.parametrize("net", ["lenet", "conv2", "conv4", "conv6", "resnet20", "vgg19"])
def test_the_networks_of_the_first_paper_start_from_its_glorot_weights(net):
    assert (Config.resolve(net, "cifar10", {}).init or default_init(net)) == "glorot"
    assert Config.resolve(net, "cifar10", {"init": "kaiming"}).init == "kaiming"


# default_hparams of OpenLTH's mnist_lenet, cifar_vgg and cifar_resnet: 40 and 160 epochs of all images, 80ep and 120ep.
OPENLTH_ALL = {
    **{"batch_size": 128, "optim": "sgd", "learn_rate": 0.1, "scope": "global", "prune_rate": 0.2, "rewind": 0},
    **{"count": "openlth", "init": "openlth", "validation": 0},
}
OPENLTH_CIFAR = {
    **OPENLTH_ALL,
    **{"momentum": 0.9, "weight_decay": 1e-4, "augment": True, "iter": 62_560, "milestones": (31_280, 46_920)},
}
OPENLTH_VGG, OPENLTH_RESNET = {**OPENLTH_CIFAR, "whole": ("output",)}, {**OPENLTH_CIFAR, "whole": ()}


@pytest.mark.parametrize(
    ("net", "dataset", "expected"),
    [
        ("lenet", "mnist", {**OPENLTH_ALL, "iter": 18_760, "whole": ("output",)}),
        *((net, "cifar10", OPENLTH_VGG) for net in ("vgg11", "vgg13", "vgg16", "vgg19", "torchvision:vgg11")),
        *((net, "cifar10", OPENLTH_RESNET) for net in ("resnet20", "resnet56", "resnet110", "torchvision:resnet18")),
        ("conv2", "cifar10", {}),  # OpenLTH has none
    ],
)
def test_openlths_settings_are_its_own(net, dataset, expected):
    config = Config.resolve(net, dataset, {"preset": "openlth"})
    assert {name: getattr(config, name) for name in expected} == expected
    assert {name for name, source in config.sources.items() if source == "preset"} == set(expected)


@pytest.mark.parametrize("given", [{"scope": "layerwise"}, {"fc_rate": 0.1}, {"distribution": "erk"}])
def test_openlths_count_goes_with_its_one_threshold(given):
    assert Config.resolve("lenet", "mnist", {"preset": "openlth", "prune_rate": 0.1}).count == "openlth"
    config = Config.resolve("lenet", "mnist", {"preset": "openlth", **given})
    assert (config.count, config.sources["count"]) == ("nearest", "default")


def test_digits_are_not_mirrored_and_the_short_data_set_is_trained_short():
    config = Config.resolve("resnet20", "digits", {})
    assert (config.augment, config.iter, config.rewind, config.milestones) == (False, 2000, 33, (1333, 1666))


@pytest.mark.parametrize("dataset", ["mnist", "digits", "svhn", "cifar10", "cifar100", "fashion_mnist"])
def test_no_preset_mirrors_digits(dataset):
    assert Config.resolve("vgg16", dataset, {}).augment == (dataset not in ("mnist", "digits", "svhn"))


def test_a_given_prune_rate_alone_sets_every_layer():
    assert Config.resolve("conv2", "cifar10", {"prune_rate": 0.3}).fc_rate is None
    assert Config.resolve("conv2", "cifar10", {"prune_rate": 0.3, "fc_rate": 0.1}).fc_rate == 0.1


def test_a_given_distribution_wants_one_rate_and_a_threshold_for_every_layer():
    config = Config.resolve("conv2", "cifar10", {"distribution": "erk"})
    assert (config.fc_rate, config.scope) == (None, "layerwise")
    config = Config.resolve("resnet20", "cifar10", {"distribution": "erk"})
    assert (config.scope, config.sources["scope"], config.prune_rate) == ("layerwise", "default", 0.2)


def test_another_optimizer_leaves_the_settings_of_the_presets_own_behind():
    config = Config.resolve("resnet20", "cifar10", {"optim": "adam"})
    assert (config.momentum, config.weight_decay, config.learn_rate) == (0.0, 0.0, 0.01)


def test_a_training_shorter_than_the_presets_rewind_point_keeps_it_in_proportion():
    assert Config.resolve("resnet20", "cifar10", {"iter": 300}).rewind == 5
    assert Config.resolve("resnet20", "cifar10", {"iter": 20}).rewind == 1
    assert Config.resolve("resnet20", "cifar10", {"iter": 1}).rewind == 0
    assert Config.resolve("resnet20", "cifar10", {"iter": 20_000}).rewind == 500


def test_a_training_shorter_than_the_presets_schedule_keeps_it_in_proportion():
    assert Config.resolve("resnet20", "cifar10", {"iter": 3000}).milestones == (2000, 2500)
    assert Config.resolve("vgg16", "cifar10", {"preset": "openlth", "iter": 1600}).milestones == (800, 1200)
    assert Config.resolve("resnet20", "cifar10", {"iter": 3000, "milestones": "20000"}).milestones == (20_000,)
    assert Config.resolve("resnet20", "cifar10", {"iter": 26_000}).milestones == (20_000, 25_000)
    tiny = Config.resolve("resnet20", "cifar10", {"iter": 2})
    assert tiny.milestones == (1,)
    assert Config.from_record(tiny.to_record()) == tiny


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nesterov": True, "optim": "sgd"}, "--nesterov: expected with a --momentum > 0"),
        ({"precision": "tf32"}, "--precision: expected float32 or bf16 without --gpu, got 'tf32'"),
        ({"keep": "10,3000", "iter": 2000}, "--keep: expected iterations up to --iter 2000, got 3000"),
        ({"prune_global": True, "scope": "layerwise"}, "--prune_global: means --scope global, got it with --scope"),
        (
            {"distribution": "erk", "scope": "global"},
            "--distribution: expected uniform with --scope global, got 'erk'",
        ),
        ({"distribution": "erk", "fc_rate": 0.1}, "--fc_rate: expected with --distribution uniform, got it with 'erk'"),
        ({"count": "openlth"}, "--count: expected nearest without --scope global or with --fc_rate, got 'openlth'"),
        (
            {"count": "openlth", "scope": "global", "fc_rate": 0.1},
            "--count: expected nearest without --scope global or with --fc_rate, got 'openlth'",
        ),
        ({"random": True, "branch": "ticket"}, "--random: means --branch reinit, got it with --branch ticket"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(given, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Config.resolve("lenet", "digits", given)


def test_one_of_the_two_rates_may_be_zero_and_not_both():
    assert Config.resolve("conv2", "digits", {"fc_rate": 0}).fc_rate == 0
    assert Config.resolve("conv2", "digits", {"prune_rate": 0, "fc_rate": 0.2}).prune_rate == 0
    with pytest.raises(ValueError, match=r"^--fc_rate: expected a rate > 0 beside --prune_rate 0, got 0"):
        Config.resolve("conv2", "digits", {"prune_rate": 0, "fc_rate": 0})


def test_the_milestones_of_a_preset_can_be_switched_off():
    assert Config.resolve("resnet20", "cifar10", {}).milestones == (20_000, 25_000)
    assert Config.resolve("resnet20", "cifar10", {"milestones": "none"}).milestones == ()


@pytest.mark.parametrize("net", ["vgg19", "resnet20"])
def test_a_warning_tells_where_the_papers_find_no_ticket_and_nowhere_else(net):
    assert "finds no ticket without rewinding" in shown_to_fail(net, 0, 0.03, "sgd", "weights")
    assert shown_to_fail(net, 500, 0.03, "sgd", "weights") is None
    assert shown_to_fail(net, 0, 0.01, "sgd", "weights") is None
    assert shown_to_fail(net, 0, 0.03, "sgd", "learn_rate") is None
    assert shown_to_fail(net, 0, 0.03, "adam", "weights") is None
    assert shown_to_fail("lenet", 0, 0.03, "sgd", "weights") is None


@pytest.mark.parametrize("name", presets)
def test_a_network_of_ones_own_has_no_settings_though_its_module_is_called_like_another(name):
    assert preset(name, "resnet20:make", "cifar10") == {}
    assert shown_to_fail("resnet20:make", 0, 0.1, "sgd", "weights") is None
