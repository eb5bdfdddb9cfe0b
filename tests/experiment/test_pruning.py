"""The flags on pruning: which layers lose how much."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.experiment.build import build_experiment
from lth_fast.experiment.config import Config
from lth_fast.experiment.presets import preset
from lth_fast.experiment.pruning import Evidence, pruning_function
from lth_fast.models import output_layer, shortcut_layers
from lth_fast.nn import masks
from lth_fast.prune import SCOPES, SCORES, sparsity


def densities(model: nn.Module) -> dict[str, float]:
    return {name.removesuffix(".weight"): float(mask.double().mean()) for name, mask in masks(model).items()}


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 5), nn.Flatten(), nn.Linear(40, 50), nn.Linear(50, 20))


def test_one_rate_sets_every_layer_and_half_of_it_the_output_layer():
    model = pruning_function("layerwise", 0.4, None, (), False)(small())
    assert densities(model) == pytest.approx({"0": 0.6, "2": 0.6, "3": 0.8})


def test_a_rate_of_their_own_sets_linear_layers_and_half_of_it_the_output_layer():
    model = pruning_function("layerwise", 0.1, 0.4, (), False)(small())
    assert densities(model) == pytest.approx({"0": 0.9, "2": 0.6, "3": 0.8})


def test_rate_zero_beside_a_rate_for_linear_layers_prunes_those_alone():
    model = pruning_function("layerwise", 0.0, 0.4, (), False)(small())
    assert densities(model) == pytest.approx({"0": 1.0, "2": 0.6, "3": 0.8})


@pytest.mark.parametrize(("whole", "pruned"), [(("output",), (0, 2)), ((), (0, 2, 3))], ids=["output whole", "all"])
def test_global_is_one_threshold_over_all_layers_but_those_kept_whole(whole, pruned):
    model = pruning_function("global", 0.3, None, whole, False)(small())
    before = small()
    weights = torch.cat([before[place].weight.detach().reshape(-1) for place in pruned])
    threshold = weights.abs().kthvalue(round(0.3 * weights.numel())).values
    for place in pruned:
        assert torch.equal(model[place].mask, before[place].weight.abs() > threshold)
    assert set(densities(model)) == set(map(str, pruned))


@pytest.mark.parametrize("whole", [("output", "shortcuts"), ("output",), ("shortcuts",)], ids=" and ".join)
def test_layers_kept_whole_are_not_touched_and_all_others_are_pruned(whole):
    model = models.build("resnet20", (1, 8, 8))
    roles = {"output": {output_layer(model)}, "shortcuts": set(shortcut_layers(model))}
    assert len(roles["shortcuts"]) == 2
    layers = {name for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    pruning_function("layerwise", 0.5, None, whole, False)(model)
    pruned = layers.difference(*(roles[role] for role in whole))
    halves = dict.fromkeys(roles["output"], 0.75)
    assert densities(model) == {name: halves.get(name, 0.5) for name in pruned}


def test_biases_are_pruned_only_when_asked_for():
    assert not any("bias" in name for name in masks(pruning_function("layerwise", 0.4, None, (), False)(small())))
    model = pruning_function("layerwise", 0.4, None, (), True)(small())
    found = {name: float(mask.double().mean()) for name, mask in masks(model).items() if "bias" in name}
    assert found == pytest.approx({"0.bias": 5 / 8, "2.bias": 0.6, "3.bias": 0.8})


def test_scores_see_the_initial_weights_and_a_batch_that_follows_torchs_generator():
    seeds = []

    def batch(seed):
        seeds.append(seed)
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(9, 1, 9, 5, generator=draw), torch.randint(20, (9,), generator=draw)

    evidence = Evidence(dict(small().named_parameters()), nn.functional.cross_entropy, batch)

    def found(score, seed):
        prune, model = pruning_function("global", 0.3, None, ("output",), False, score, "uniform", evidence), small()
        torch.manual_seed(seed)
        return {name: mask.tolist() for name, mask in masks(prune(model)).items()}

    for score in ("snip", "grasp"):
        assert found(score, 1) == found(score, 1) != found(score, 2)
    assert seeds[0] == seeds[1] != seeds[2]
    assert found("synflow", 1) == found("synflow", 2)
    assert found("random", 1) == found("random", 1) != found("random", 2)
    count = len(seeds)
    # Nothing grew since the beginning: all scores are equal, so the first weights go.
    first = torch.tensor(found("magnitude_increase", 1)["0.weight"]).reshape(-1)
    assert not first.any()
    found("magnitude", 1)
    assert len(seeds) == count


def test_scores_of_a_run_see_another_training_batch_at_every_seed():
    experiment = build_experiment(Config.resolve("lenet:8", "digits", {"score": "snip", "seed": 1}))

    def found(seed):
        torch.manual_seed(seed)
        pruned = experiment.prune_net(copy.deepcopy(experiment.model))
        return {name: mask.tolist() for name, mask in masks(pruned).items()}

    assert found(1) == found(1) != found(2)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("scope", SCOPES)
def test_every_score_prunes_a_real_network_exactly_by_its_rate(score, scope):
    model = models.build("resnet20", (1, 8, 8), generator=torch.Generator().manual_seed(0))
    data = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3])
    evidence = Evidence(
        {name: torch.zeros_like(value) for name, value in model.named_parameters()},
        nn.functional.cross_entropy,
        lambda seed: data,
    )
    prune = pruning_function(scope, 0.2, None, ("output", "shortcuts"), False, score, "uniform", evidence)
    counts = []
    for _ in range(2):
        prune(model)
        counts.append(sum(int(mask.sum()) for mask in masks(model).values()))
    sizes = [mask.numel() for mask in masks(model).values()]
    left = [size - round(0.2 * size) for size in (sizes if scope == "layerwise" else [sum(sizes)])]
    assert counts == [sum(left), sum(size - round(0.2 * size) for size in left)]


@pytest.mark.parametrize(
    ("net", "given", "pruned"),
    [
        ("resnet20", {"preset": "openlth"}, True),  # its default_hparams ignore no layer here
        ("vgg11", {"preset": "openlth"}, False),
        ("lenet", {"preset": "openlth"}, False),
        ("resnet20", {}, False),
        ("lenet", {"scope": "global"}, False),
        ("lenet", {"scope": "global", "whole": "none"}, True),
        ("lenet", {"prune_global": True, "whole": "output"}, False),
    ],
)
def test_one_threshold_is_over_the_output_layer_too_where_a_flag_or_the_preset_says_so(net, given, pruned):
    config = Config.resolve(net, "cifar10", given)
    model = models.build(net, (3, 32, 32))
    pruning_function(config.scope, config.prune_rate, config.fc_rate, config.whole, config.prune_bias)(model)
    assert (output_layer(model) in densities(model)) == pruned == ("output" not in config.whole)


def sparse_global_of_openlth(weights, kept, ignored, fraction):
    """The masks that OpenLTH's ``sparse_global`` makes of ``kept``, arrays by name."""
    count = int(np.ceil(fraction * sum(mask.sum() for mask in kept.values())))
    ranked = np.sort(np.concatenate([abs(weights[name][kept[name]]) for name in weights if name not in ignored]))
    return {
        name: mask if name in ignored else mask & (abs(weights[name]) > ranked[count]) for name, mask in kept.items()
    }


@pytest.mark.parametrize("net", ["lenet", "resnet20"])
def test_the_masks_of_the_preset_openlth_are_those_of_openlth(net):
    config = Config.resolve(net, "cifar10", {"preset": "openlth"})
    model = models.build(net, (3, 8, 8), init=config.init, generator=torch.Generator().manual_seed(0))
    prune = pruning_function(
        config.scope, config.prune_rate, config.fc_rate, config.whole, config.prune_bias, count=config.count
    )
    names = [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    ignored = {f"{output_layer(model)}.weight"} if net == "lenet" else set()
    kept = {name: np.ones(tuple(model.get_parameter(name).shape), dtype=bool) for name in names}
    for _ in range(12):
        weights = {name: model.get_parameter(name).detach().numpy() for name in names}
        kept = sparse_global_of_openlth(weights, kept, ignored, 0.2)
        found = masks(prune(model))
        for name in names:
            assert np.array_equal(found[name].numpy() if name in found else np.ones_like(kept[name]), kept[name])
    size = sum(mask.size for mask in kept.values())
    assert sum(mask.sum() for mask in kept.values()) / size == pytest.approx(0.8**12, abs=10 / size)


def test_openlths_count_ends_where_nothing_is_left_to_prune():
    prune, model = pruning_function("global", 0.9, None, ("output",), False, count="openlth"), small()
    for _ in range(2):
        assert densities(prune(model)) == {"0": 0.0, "2": 0.0}


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        ("conv2", {3: 51.4, 6: 26.5, 9: 13.7, 11: 8.8}),
        ("conv4", {11: 11.1, 12: 9.2, 15: 5.4}),
        ("resnet20", {4: 41.7, 6: 27.1, 7: 21.9, 10: 11.8}),
        ("vgg19", {15: 3.5, 19: 1.5}),
    ],
)
def test_densities_by_level_are_those_of_the_papers(net, expected):
    settings = preset("paper", net, "cifar10")
    model = models.build(net, (3, 32, 32))
    prune = pruning_function(
        settings.get("scope", "layerwise"),
        settings["prune_rate"],
        settings.get("fc_rate"),
        settings.get("whole", ()),
        False,
    )
    found = {}
    for level in range(1, max(expected) + 1):
        prune(model)
        if level in expected:
            found[level] = round(100 - sparsity(model), 1)
    assert found == expected
