from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune as stock

from lth_fast.nn import masks
from lth_fast.prune import DISTRIBUTIONS, SCOPES, SCORES, Gradients, Weights, erk_densities, prunable, prune_by_score


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 20), nn.Tanh(), nn.Linear(20, 4))


def evidence(model: nn.Module) -> dict[str, Any]:
    """What any score asks for, the same every time."""
    draw = torch.Generator().manual_seed(1)
    data = torch.randn(16, 1, 6, 6, generator=draw), torch.randint(4, (16,), generator=draw)
    initial = {name: torch.randn(layer.weight.shape, generator=draw) / 9 for name, layer in prunable(model).items()}
    return {
        "initial": initial,
        "gradients": Gradients(model, cross_entropy, lambda: data),
        "generator": torch.Generator().manual_seed(2),
    }


def scores_of(name: str, model: nn.Module) -> dict[str, Tensor]:
    given = evidence(model)
    trained = {key: layer.weight.detach() for key, layer in prunable(model).items()}
    return SCORES[name](Weights(trained, given["initial"], given["generator"]), given["gradients"])


def survivors(model: nn.Module) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in masks(model).items()}


@pytest.mark.parametrize("score", SCORES)
def test_layerwise_the_lowest_of_every_layer_go_level_after_level(score: str) -> None:
    model = network()
    for _ in range(3):
        before = masks(model)
        scores = scores_of(score, model)
        assert prune_by_score(model, 0.3, score, **evidence(model)) is model
        for name, after in masks(model).items():
            kept = before.get(name, torch.ones_like(after))
            pruned = kept & ~after
            assert int(pruned.sum()) == round(0.3 * int(kept.sum()))
            assert scores[name][pruned].max() <= scores[name][after].min()


def test_synflow_in_a_hundred_steps_keeps_every_layer_alive_where_one_step_prunes_whole_ones() -> None:
    """The schedule of Tanaka et al. 2020, 2006.05467, algorithm 1: density d^(k / n) after step k of n."""
    density = 0.02
    found = {}
    for steps in (1, 100):
        torch.manual_seed(0)
        model = network()
        for _ in range(steps):
            prune_by_score(model, 1 - density ** (1 / steps), "synflow", "global", **evidence(model))
        found[steps] = survivors(model)
    total = sum(layer.weight.numel() for layer in prunable(network()).values())
    assert [sum(counts.values()) for counts in found.values()] == pytest.approx([density * total] * 2, abs=1)
    assert min(found[1].values()) == 0 < min(found[100].values())


@pytest.mark.parametrize("score", SCORES)
def test_weights_and_biases_under_a_parametrization_are_pruned_level_after_level(score: str) -> None:
    """Gradients are those of a plain copy, and making it plain leaves the masks of the model alone."""

    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Flatten(), Special(36, 20), nn.Tanh(), nn.Linear(20, 4))
    names = ["1.weight", "1.bias", "3.weight", "3.bias"]
    initial = {name: torch.randn_like(model.get_parameter(name)) for name in names}
    expected = {name: model.get_parameter(name).numel() for name in names}
    for _ in range(3):
        given = evidence(model) | {"initial": initial}
        prune_by_score(model, dict.fromkeys(names, 0.2), score, **given)
        expected = {name: count - round(0.2 * count) for name, count in expected.items()}
        assert survivors(model) == expected
        assert model(torch.randn(2, 1, 6, 6)).isfinite().all()


@pytest.mark.parametrize("score", SCORES)
def test_globally_the_lowest_of_all_layers_go_exactly_as_many_as_asked(score: str) -> None:
    model = network()
    scores = torch.cat([s.reshape(-1) for s in scores_of(score, model).values()])
    prune_by_score(model, 0.4, score, "global", **evidence(model))
    expected = torch.ones_like(scores, dtype=torch.bool)
    expected[scores.sort(stable=True).indices[: round(0.4 * scores.numel())]] = False
    assert torch.equal(torch.cat([mask.reshape(-1) for mask in masks(model).values()]), expected)


@pytest.mark.parametrize("score", [name for name in SCORES if name != "random"])
def test_of_equal_scores_the_lowest_parameter_and_index_go_first(score: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 5, bias=False))
    for layer in model:
        nn.init.zeros_(layer.weight)
    data = torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)
    given = {"initial": dict(model.state_dict()), "gradients": Gradients(model, cross_entropy, lambda: data)}
    prune_by_score(model, 14 / 27, score, "global", **given)
    first, second = masks(model).values()
    assert not first.any()
    assert second.reshape(-1).tolist() == [False] * 2 + [True] * 13


def test_parameters_of_one_rate_share_a_threshold_of_their_own() -> None:
    model = network()
    weights = {name: layer.weight.detach().abs() for name, layer in prunable(model).items()}
    prune_by_score(model, {"0.weight": 0.5, "3.weight": 0.2, "5.weight": 0.2}, scope="global")
    found = masks(model)
    assert int(found["0.weight"].sum()) == 27
    joined = torch.cat([weights["3.weight"].reshape(-1), weights["5.weight"].reshape(-1)])
    threshold = joined.kthvalue(round(0.2 * 2000)).values
    for name in ("3.weight", "5.weight"):
        assert torch.equal(found[name], weights[name] > threshold)


def test_erk_leaves_the_layers_the_densities_of_its_formula() -> None:
    model = network()
    for _ in range(4):
        prune_by_score(model, 0.4, distribution="erk")
    shapes = {name: layer.weight.shape for name, layer in prunable(model).items()}
    total = sum(shape.numel() for shape in shapes.values())
    expected = erk_densities(shapes, sum(survivors(model).values()) / total)
    for name, count in survivors(model).items():
        assert count == pytest.approx(expected[name] * shapes[name].numel(), abs=1.5)


def test_parameters_that_are_not_named_keep_what_they_have() -> None:
    model = network()
    prune_by_score(model, {"3.weight": 0.5, "3.bias": 0.5})
    assert survivors(model) == {"3.weight": 960, "3.bias": 10}


@pytest.mark.parametrize("score", ["snip", "grasp", "synflow"])
def test_biases_have_scores_too(score: str) -> None:
    model = network()
    prune_by_score(model, {"3.weight": 0.5, "3.bias": 0.5}, score, **evidence(model))
    prune_by_score(model, {"3.weight": 0.5, "3.bias": 0.5}, score, **evidence(model))
    assert survivors(model) == {"3.weight": 480, "3.bias": 5}


@pytest.mark.parametrize("score", SCORES)
def test_the_same_evidence_gives_the_same_masks(score: str) -> None:
    one = network()
    other = copy.deepcopy(one)
    for model in (one, other):
        prune_by_score(model, 0.5, score, "global", **evidence(model))
    assert all(torch.equal(a, b) for a, b in zip(masks(one).values(), masks(other).values(), strict=True))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"score": "l1"}, f"score: expected one of {', '.join(SCORES)}, got 'l1'"),
        ({"scope": "all"}, "scope: expected one of layerwise, global, got 'all'"),
        ({"distribution": "er"}, f"distribution: expected one of {', '.join(DISTRIBUTIONS)}, got 'er'"),
        ({"scope": "global", "distribution": "erk"}, "distribution: expected uniform with the scope global, got 'erk'"),
        ({"rates": 1.5}, r"rates: expected shares between 0 and 1, got 1\.5 for '0\.weight'"),
        ({"score": "snip"}, "gradients: this score needs a criterion, got none"),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(arguments: dict[str, Any], complaint: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=f"^{complaint}"):
        prune_by_score(model, **{"rates": 0.5, **arguments})
    assert not masks(model)


@pytest.mark.parametrize("score", SCORES)
def test_a_diverged_weight_is_refused_by_name(score: str) -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[2, 3] = torch.nan
    if score == "random":
        prune_by_score(model, 0.5, score, **evidence(model))
    else:
        name = r"3\.weight" if "magnitude" in score else r"\d\.weight"  # the others see the whole network
        for scope in SCOPES:
            with pytest.raises(ValueError, match=f"^{score} of '{name}' is NaN or infinite at a survivor; did the"):
                prune_by_score(model, 0.5, score, scope, **evidence(model))
        assert not masks(model)


def test_one_threshold_over_parameters_of_several_dtypes_ranks_their_numbers() -> None:
    model = network()
    model[3].bfloat16()
    numbers = torch.cat([layer.weight.detach().float().reshape(-1) for layer in prunable(model).values()]).abs()
    prune_by_score(model, 0.5, scope="global")
    kept = torch.cat([mask.reshape(-1) for mask in masks(model).values()])
    assert int(kept.sum()) == kept.numel() - round(0.5 * kept.numel())
    assert numbers[~kept].max() <= numbers[kept].min()


@pytest.mark.parametrize("name", ["foo", "3.wieght", "1.running_mean"])
def test_a_name_that_is_no_parameter_is_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    known = r"0\.weight, 0\.bias, 1\.weight, 1\.bias"
    with pytest.raises(ValueError, match=f"rates: the model has no parameter '{name}'; it has: {known}$"):
        prune_by_score(model, {"0.weight": 0.5, name: 0.5})
    assert masks(model) == {}


def test_a_weight_that_is_computed_is_refused_by_name() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    with pytest.raises(TypeError, match=r"rates: expected names of parameters, got '0\.weight', which is computed"):
        prune_by_score(model, 0.5)


@pytest.mark.parametrize("score", SCORES)
def test_a_model_without_values_is_refused(score: str) -> None:
    model = network().to("meta")
    with pytest.raises(ValueError, match=r"rates: expected parameters with values, got '0\.weight' on the meta device"):
        prune_by_score(model, 0.5, score, gradients=Gradients(model))
    with pytest.raises(ValueError, match=r"rates: expected parameters with a shape, got '1\.weight' of a lazy layer"):
        prune_by_score(nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4)), 0.5)


def test_a_batch_in_place_of_the_function_that_draws_one_is_named():
    batch = (torch.zeros(2, 12), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"batch: expected a function that returns \(inputs, labels\), got tuple"):
        Gradients(nn.Linear(12, 3), cross_entropy, batch)


def test_a_model_with_nothing_to_prune_is_refused_unless_no_parameter_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"model: BatchNorm1d has no nn\.Linear or nn\.Conv2d to prune"):
        prune_by_score(nn.BatchNorm1d(3), 0.5)
    assert masks(prune_by_score(nn.BatchNorm1d(3), {})) == {}


def test_initial_weights_of_another_shape_are_refused() -> None:
    model = network()
    initial = evidence(model)["initial"] | {"3.weight": torch.ones(1)}
    expected = r"^initial: expected shape \[20, 96\] for '3\.weight', got \[1\]"
    with pytest.raises(ValueError, match=expected):
        prune_by_score(model, 0.5, "magnitude_increase", initial=initial)


def test_a_model_that_stock_has_pruned_is_sent_to_the_take_over() -> None:
    model = network()
    stock.l1_unstructured(model[3], "weight", 0.5)
    with pytest.raises(ValueError, match="take it over with from_torch_prune first"):
        prune_by_score(model, 0.5)
