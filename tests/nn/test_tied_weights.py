"""A weight that several modules share: one Parameter, one mask, whatever the modules are."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast import optim, prune
from lth_fast.nn import (
    MaskedEmbedding,
    MaskedLinear,
    choices,
    convert,
    dense_state,
    explain,
    masks,
    plan,
    restore,
    set_masks,
    share_masks,
)

WORDS, FEATURES = 11, 6


class Subclass(nn.Linear):
    """Masked through a parametrization."""


class Decoder(nn.Module):
    """A bare Parameter, of another name than weight."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.words = embedding.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.words)


def language_model(decoder: Callable[[nn.Embedding], nn.Module]) -> nn.Sequential:
    embedding = nn.Embedding(WORDS, FEATURES)
    return nn.Sequential(embedding, nn.Linear(FEATURES, FEATURES), nn.Tanh(), decoder(embedding))


def with_weight(layer: nn.Module, other: nn.Module) -> nn.Module:
    layer.weight = other.weight
    return layer


def two_linear(kind: type[nn.Linear] = nn.Linear) -> nn.Sequential:
    first = nn.Linear(FEATURES, FEATURES)
    second = with_weight(kind(FEATURES, FEATURES), first)
    return nn.Sequential(nn.Linear(4, FEATURES), first, nn.Tanh(), second, nn.Linear(FEATURES, 3))


def two_convolutions() -> nn.Sequential:
    first = nn.Conv2d(2, 2, 3, padding=1)
    return nn.Sequential(first, nn.Tanh(), with_weight(nn.Conv2d(2, 2, 3, padding=1), first))


def words() -> Tensor:
    return torch.randint(0, WORDS, (9, 5))


# Model, its inputs, the names of the shared weight.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], tuple[str, str]]] = {
    "embedding and Linear": (
        lambda: language_model(lambda embedding: with_weight(nn.Linear(FEATURES, WORDS), embedding)),
        words,
        ("0.weight", "3.weight"),
    ),
    "embedding and a module of one's own": (lambda: language_model(Decoder), words, ("0.weight", "3.words")),
    "two Linear": (two_linear, lambda: torch.randn(7, 4), ("1.weight", "3.weight")),
    "Linear and a subclass": (lambda: two_linear(Subclass), lambda: torch.randn(7, 4), ("1.weight", "3.weight")),
    "two Conv2d": (two_convolutions, lambda: torch.randn(3, 2, 5, 5), ("0.weight", "2.weight")),
}
PLAIN_KEYS = ["embedding and Linear", "two Linear", "two Conv2d"]
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "our SGD": lambda parameters: optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "our Adam": optim.Adam,
    "our AdamW": optim.AdamW,
    "torch's SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "torch's Adam": torch.optim.Adam,
    "torch's fused AdamW": lambda parameters: torch.optim.AdamW(parameters, fused=True),
    "torch's RMSprop": lambda parameters: torch.optim.RMSprop(parameters, momentum=0.5),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, tuple[str, str]]:
    make, inputs, names = CASES[request.param]
    return make(), inputs(), names


def half(model: nn.Module, name: str) -> Tensor:
    weight = model.get_parameter(name)
    return (torch.randperm(weight.numel()) < weight.numel() // 2).reshape(weight.shape)


def train(model: nn.Module, optimizer: Optimizer, inputs: Tensor) -> None:
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    optimizer.step()


def assert_zero_where_pruned(weight: Tensor, mask: Tensor, optimizer: Optimizer) -> None:
    state = [value for value in optimizer.state[weight].values() if value.shape == weight.shape]
    assert weight.grad is not None
    for value in (weight, weight.grad, *state):
        assert value[~mask].count_nonzero() == 0
        assert value[mask].count_nonzero() > 0


@pytest.mark.parametrize("named", [0, 1], ids=["by its first name", "by its second name"])
def test_one_mask_under_either_name_reaches_all_modules_and_prunes_what_zeros_would(case: Any, named: int) -> None:
    model, inputs, names = case
    mask, parameter = half(model, names[named]), model.get_parameter(names[0])
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        zeroed.get_parameter(names[0]).mul_(mask)
    set_masks(model, {names[named]: mask})
    assert masks(model).keys() == set(names)
    assert all(torch.equal(found, mask) for found in masks(model).values())
    torch.testing.assert_close(model(inputs), zeroed(inputs))
    for network in (model, zeroed):
        network(inputs).square().sum().backward()
    torch.testing.assert_close(parameter.grad, zeroed.get_parameter(names[0]).grad * mask)
    assert len(list(model.parameters())) == len(list(zeroed.parameters()))


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_pruned_places_are_zero_after_every_step_also_when_the_mask_comes_late(case: Any, make_optimizer: Any) -> None:
    model, inputs, names = case
    optimizer, weight = make_optimizer(model.parameters()), model.get_parameter(names[0])
    for _ in range(2):
        train(model, optimizer, inputs)
    for mask in (half(model, names[1]), half(model, names[1])):
        set_masks(model, {names[1]: mask})
        for _ in range(3):
            train(model, optimizer, inputs)
            assert_zero_where_pruned(weight, mask, optimizer)


@pytest.mark.parametrize("name", PLAIN_KEYS)
def test_the_keys_of_the_state_stay_and_it_loads_both_ways(name: str) -> None:
    make, inputs, names = CASES[name]
    model, plain = make(), make()
    set_masks(model, {names[0]: half(model, names[0])})
    assert list(model.state_dict()) == list(plain.state_dict())
    example = inputs()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(plain(example), model(example))
    model.load_state_dict(make().state_dict())
    model(example).sum().backward()  # neither module may write to what the other one's backward needs
    assert model.get_parameter(names[0])[~masks(model)[names[0]]].count_nonzero() == 0


def test_the_dense_state_has_the_plain_names_whatever_the_modules_are(case: Any) -> None:
    model, inputs, names = case
    plain = copy.deepcopy(model)
    set_masks(model, {names[0]: half(model, names[0])})
    plain.load_state_dict(dense_state(model))
    torch.testing.assert_close(plain(inputs), model(inputs))


def assert_leads_a_life_of_its_own(twin: nn.Module, model: nn.Module, inputs: Tensor, names: tuple[str, str]) -> None:
    mask = masks(model)[names[0]]
    pruned = torch.zeros_like(mask)
    set_masks(twin, {names[1]: pruned})
    assert all(torch.equal(found, pruned) for found in masks(twin).values())
    assert all(torch.equal(found, mask) for found in masks(model).values())
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), inputs)
    assert all(dense_state(twin)[name].count_nonzero() == 0 for name in names)


def test_a_copy_shares_its_own_weight_and_mask(case: Any) -> None:
    model, inputs, names = case
    set_masks(model, {names[0]: half(model, names[0])})
    assert_leads_a_life_of_its_own(copy.deepcopy(model), model, inputs, names)


@pytest.mark.parametrize("name", PLAIN_KEYS)  # torch refuses to pickle modules with a parametrization
def test_a_pickled_model_shares_its_own_weight_and_mask(name: str) -> None:
    make, inputs, names = CASES[name]
    model = make()
    set_masks(model, {names[0]: half(model, names[0])})
    assert_leads_a_life_of_its_own(pickle.loads(pickle.dumps(model)), model, inputs(), names)


def test_restore_gives_the_plain_modules_with_the_same_parameter_back(case: Any) -> None:
    model, _, names = case
    parameter, kinds = model.get_parameter(names[0]), [type(module) for module in model]
    mask = half(model, names[0])
    restore(set_masks(model, {names[0]: mask}))
    assert [type(module) for module in model] == kinds
    assert model.get_parameter(names[0]) is model.get_parameter(names[1]) is parameter
    assert torch.equal(parameter != 0, mask)
    assert masks(model) == {}


def test_a_mask_set_on_one_layer_is_set_on_all_that_share_the_weight(case: Any) -> None:
    model, _, names = case
    set_masks(model, {names[0]: half(model, names[0])})
    mask = half(model, names[0])
    model.get_submodule(names[0].split(".")[0]).mask = mask
    assert all(torch.equal(found, mask) for found in masks(model).values())


@pytest.mark.parametrize("spread", [share_masks, lambda model: convert(model, form="masked")], ids=["share", "convert"])
def test_a_mask_that_a_layer_got_outside_of_its_model_is_taken_to_the_others(case: Any, spread: Any) -> None:
    model, _, names = case
    layer = model.get_submodule(names[0].split(".")[0])
    prune.l1_unstructured(layer, "weight", 0.5)
    assert masks(model).keys() == {names[0]}
    spread(model)
    assert masks(model).keys() == set(names)
    assert all(torch.equal(found, layer.mask) for found in masks(model).values())


def test_layers_that_were_tied_after_they_were_masked_keep_what_both_keep() -> None:
    first, second = MaskedLinear(6, 6), MaskedLinear(6, 6)
    first.mask, second.mask = torch.rand(6, 6) < 0.7, torch.rand(6, 6) < 0.7
    both = first.mask & second.mask
    second.weight = first.weight
    nn.init.ones_(first.weight)
    second(first(torch.randn(3, 6))).sum().backward()
    assert torch.equal(first.weight != 0, both)


def test_layers_that_were_tied_after_they_were_masked_share_what_both_keep() -> None:
    model = nn.Sequential(MaskedLinear(6, 6), MaskedLinear(6, 6), nn.Linear(6, 6))
    for layer in (model[0], model[1]):
        layer.mask = torch.rand(6, 6) < 0.7
    both = model[0].mask & model[1].mask
    model(torch.randn(3, 6))
    model[1].weight = model[2].weight = model[0].weight
    assert share_masks(model) is model
    assert all(torch.equal(masks(model)[f"{i}.weight"], both) for i in range(3))
    assert torch.equal(model[2].weight != 0, both)


def test_moving_to_another_dtype_keeps_it_one_weight_under_one_mask(case: Any) -> None:
    model, inputs, names = case
    mask = half(model, names[0])
    set_masks(model, {names[0]: mask}).double()
    optimizer = torch.optim.Adam(model.parameters())
    train(model, optimizer, inputs.double() if inputs.is_floating_point() else inputs)
    assert all(torch.equal(found, mask) for found in masks(model).values())
    assert all(dense_state(model)[name][~mask].count_nonzero() == 0 for name in names)


@pytest.mark.parametrize("form", ["auto", "masked", "sparse"])
def test_convert_keeps_a_tied_weight_masked_and_explains_why(case: Any, form: str) -> None:
    model, inputs, names = case
    convert(model, {names[1]: half(model, names[0])}, form=form, example_input=inputs)
    assert masks(model).keys() == set(names)
    for name, other in (names, names[::-1]):
        if name in choices(model) and form != "masked":
            assert choices(model)[name].form == "masked"
            reason = choices(model)[name].reason
            assert reason == f"its weight is shared with {other}" or "parametrization" in reason
            assert reason in explain(model)


def test_without_a_mask_a_tied_weight_stays_dense(case: Any) -> None:
    model, inputs, names = case
    kinds = [type(module) for module in model]
    convert(model, form="sparse", example_input=inputs)
    assert [type(module) for module in model] == kinds
    assert all(choices(model)[name].form == "dense" for name in names if name in choices(model))


@pytest.mark.parametrize("name", ["embedding and Linear", "Linear and a subclass"])
def test_a_tied_weight_that_keeps_everything_is_dense_again_in_all_its_modules(name: str) -> None:
    model, inputs, names = (part() if callable(part) else part for part in CASES[name])
    kinds, keys = [type(module) for module in model], list(model.state_dict())
    set_masks(model, {names[0]: half(model, names[0])})
    convert(model, {names[0]: torch.ones_like(model[int(names[0][0])].weight, dtype=torch.bool)}, example_input=inputs)
    assert masks(model) == {}
    assert ([type(module) for module in model], list(model.state_dict())) == (kinds, keys)


def test_a_tied_weight_that_becomes_dense_leaves_the_bias_beside_it_its_mask() -> None:
    model = two_linear(Subclass)
    kept = torch.arange(FEATURES) > 1
    set_masks(model, {"1.weight": half(model, "1.weight"), "3.bias": kept})
    convert(model, {"1.weight": torch.ones(FEATURES, FEATURES, dtype=torch.bool)})
    assert list(masks(model)) == ["3.bias"]
    assert torch.equal(masks(model)["3.bias"], kept)


def test_a_form_asked_for_one_name_holds_for_all_and_two_forms_are_refused() -> None:
    model = two_linear()
    kept = {"1.weight": half(model, "1.weight")}
    convert(model, kept, form={"3.weight": "dense"})
    assert plan(model) == dict.fromkeys(["0.weight", "1.weight", "3.weight", "4.weight"], "dense")
    assert [type(module) for module in model] == [type(module) for module in two_linear()]
    expected = r"form\['3.weight'\]: expected 'dense' as for '1.weight', whose weight it shares, got 'masked'"
    with pytest.raises(ValueError, match=expected):
        convert(model, kept, form={"1.weight": "dense", "3.weight": "masked"})
    with pytest.raises(ValueError, match=r"form\['1.weight'\]: .* got 'sparse': its weight is shared with 3.weight"):
        convert(model, kept, form={"1.weight": "sparse"})


def test_a_masked_embedding_has_the_arguments_and_the_gradients_of_a_plain_one() -> None:
    plain = nn.Embedding(WORDS, FEATURES, padding_idx=2, max_norm=1.5, scale_grad_by_freq=True)
    mask = torch.rand(WORDS, FEATURES) < 0.5
    masked = MaskedEmbedding.from_dense(copy.deepcopy(plain), mask)
    with torch.no_grad():
        plain.weight.mul_(mask)
    indices, gradient = words(), torch.randn(9, 5, FEATURES)
    for layer in (plain, masked):
        layer(indices).backward(gradient)
    torch.testing.assert_close(masked(indices), plain(indices))
    torch.testing.assert_close(masked.weight, plain.weight)
    torch.testing.assert_close(masked.weight.grad, plain.weight.grad * mask)


def test_a_gradient_that_is_not_finite_is_zero_where_an_embedding_is_pruned() -> None:
    layer = MaskedEmbedding(WORDS, FEATURES)
    layer.mask = torch.rand(WORDS, FEATURES) < 0.5
    layer(torch.arange(WORDS)).backward(torch.full((WORDS, FEATURES), torch.inf))
    assert torch.equal(layer.weight.grad, torch.where(layer.mask, torch.inf, 0.0))


@pytest.mark.usefixtures("forget_compiled_code")
def test_a_tied_language_model_compiles_to_one_graph() -> None:
    model, inputs, names = (part() if callable(part) else part for part in CASES["embedding and Linear"])
    set_masks(model, {names[0]: half(model, names[0])})
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(inputs), model(inputs))


def test_a_compiled_masked_embedding_limits_the_norm_of_its_rows():
    eager = nn.Embedding(20, 8, max_norm=1.0)
    with torch.no_grad():
        eager.weight.mul_(10)
    set_masks(eager, {"weight": torch.rand(20, 8) < 0.5})
    model = copy.deepcopy(eager)
    rows = torch.arange(10)
    expected = eager(rows)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager")(rows), expected)
    torch.testing.assert_close(model.weight, eager.weight)


@pytest.mark.parametrize("parameter", ["weight", "bias"])
def test_a_layer_that_has_two_names_takes_its_mask_under_either_again_and_again(parameter: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    model.append(model[0])
    shape = model[0].get_parameter(parameter).shape
    for density in (0.8, 0.4):
        mask = torch.rand(shape) < density
        set_masks(model, {f"2.{parameter}": mask})
        assert torch.equal(masks(model)[f"0.{parameter}"], mask)


def test_two_parameters_that_are_views_of_one_memory_are_refused_and_left_alone():
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.detach().t())
    before = model[0].weight.detach().clone()
    refused = r"got '[01]\.weight' and '[01]\.weight' as views of one memory"
    with pytest.raises(ValueError, match=refused):
        set_masks(model, {"0.weight": torch.rand(4, 6) < 0.5})
    assert torch.equal(model[0].weight, before)
    assert type(model[0]) is nn.Linear
    flat = torch.randn(48)
    model[0].weight, model[1].weight = nn.Parameter(flat[:24].view(4, 6)), nn.Parameter(flat[23:47].view(6, 4))
    with pytest.raises(ValueError, match=refused):
        set_masks(model, {"0.weight": torch.rand(4, 6) < 0.5})
    model[1].weight = nn.Parameter(flat[24:].view(6, 4))  # disjoint pieces of one memory are fine
    prune.prune_all(model, 0.5)


@pytest.mark.parametrize("name", ["0.weight", "1.weight", "whole"])
def test_parameters_that_are_pieces_of_another_one_are_refused_wherever_they_begin(name: str) -> None:
    model: Any = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 6, bias=False))
    model.register_parameter("whole", nn.Parameter(torch.randn(56)))
    model[0].weight = nn.Parameter(model.whole.detach()[8:32].view(4, 6))
    model[1].weight = nn.Parameter(model.whole.detach()[32:].view(6, 4))
    with pytest.raises(ValueError, match=r"got 'whole' and '[01]\.weight' as views of one memory"):
        set_masks(model, {name: torch.zeros_like(model.get_parameter(name), dtype=torch.bool)})
    assert model.whole.count_nonzero() == 56


def test_a_mask_reaches_a_layer_that_has_come_to_share_the_weight_since_the_last_mask_was_set():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    for layer in (first, second):
        set_masks(layer, {"weight": torch.rand(6, 6) < 0.9})
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    first(torch.randn(2, 6)).sum().backward()
    optimizer.step()  # looks up who holds the weight
    second.weight = first.weight
    mask = torch.rand(6, 6) < 0.5
    set_masks(first, {"weight": mask})
    assert torch.equal(second.mask, mask)
