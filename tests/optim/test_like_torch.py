"""Our Adam, AdamW and SGD in the place of torch's: the same arguments, the same steps, the same state."""

from __future__ import annotations

import copy
import inspect
import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_fast import optim
from lth_fast.ops import adam_step, sgd_step

TWINS: dict[type[Optimizer], type[Optimizer]] = {
    optim.Adam: torch.optim.Adam,
    optim.AdamW: torch.optim.AdamW,
    optim.SGD: torch.optim.SGD,
}
OURS = list(TWINS)
DOUBLE = partial(torch.tensor, dtype=torch.float64)
SETTINGS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (optim.Adam, {}),
    (optim.Adam, {"amsgrad": True, "weight_decay": 0.01}),
    (optim.Adam, {"betas": (0.5, 0.6), "eps": 1e-4, "maximize": True}),
    (optim.Adam, {"lr": torch.tensor(0.02), "betas": (DOUBLE(0.8), DOUBLE(0.9))}),
    (optim.Adam, {"decoupled_weight_decay": True, "weight_decay": 0.01}),
    (optim.AdamW, {}),
    (optim.AdamW, {"amsgrad": True, "maximize": True, "weight_decay": 0.1}),
    (optim.SGD, {}),
    (optim.SGD, {"momentum": 0.9}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (optim.SGD, {"momentum": 0.5, "dampening": 0.3, "maximize": True}),
    (optim.SGD, {"lr": torch.tensor([0.02]), "weight_decay": torch.tensor(0.01)}),
]


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 30), nn.Linear(30, 5))
    model[0].to(memory_format=torch.channels_last)
    return model.to(dtype)


def draw_gradients(*models: nn.Module) -> None:
    """The same random gradients for each."""
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


def steps(count: int, *pairs: tuple[nn.Module, Optimizer]) -> None:
    for _ in range(count):
        draw_gradients(*(model for model, _ in pairs))
        for _, optimizer in pairs:
            optimizer.step()


def assert_close(model: nn.Module, expected: nn.Module, precision: float) -> None:
    for found, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert (found - wanted).norm() <= precision * wanted.norm()


def assert_same_state(optimizer: Optimizer, expected: Optimizer, precision: float) -> None:
    found, wanted = optimizer.state_dict(), expected.state_dict()
    assert found["param_groups"] == wanted["param_groups"]
    assert found["state"].keys() == wanted["state"].keys()
    for number, entries in wanted["state"].items():
        assert found["state"][number].keys() == entries.keys()
        for name, value in entries.items():
            ours = found["state"][number][name]
            assert (ours.dtype, ours.shape, ours.stride()) == (value.dtype, value.shape, value.stride())
            assert (ours - value).norm() <= precision * value.norm()


@pytest.mark.parametrize("kind", OURS)
def test_the_arguments_are_torchs(kind: type[Optimizer]) -> None:
    assert inspect.signature(kind) == inspect.signature(TWINS[kind])
    assert issubclass(kind, TWINS[kind])


@pytest.mark.parametrize("theirs", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize(("kind", "settings"), SETTINGS, ids=str)
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=str)
def test_fifty_steps_are_those_of_torch(
    kind: type[Optimizer], settings: dict[str, Any], theirs: dict[str, Any], dtype: torch.dtype, precision: float
) -> None:
    if theirs.get("foreach") and isinstance(settings.get("lr"), Tensor):
        pytest.skip("torch refuses the two together")
    model = network(dtype)
    twin = copy.deepcopy(model)
    settings = {"lr": 0.01, **settings}
    optimizer = kind(model.parameters(), **settings)
    expected = TWINS[kind](twin.parameters(), **settings, **theirs)
    steps(50, (model, optimizer), (twin, expected))
    assert_close(model, twin, precision)


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("choice", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"fused": False}], ids=str)
def test_choices_of_an_implementation_are_accepted_and_change_no_bit(
    kind: type[Optimizer], choice: dict[str, bool]
) -> None:
    model = network()
    twin = copy.deepcopy(model)
    steps(3, (model, kind(model.parameters(), **choice)), (twin, kind(twin.parameters())))
    assert_close(model, twin, 0.0)


@pytest.mark.parametrize(("kind", "settings"), SETTINGS, ids=str)
def test_states_load_both_ways_and_the_steps_go_on(kind: type[Optimizer], settings: dict[str, Any]) -> None:
    model = network()
    twin = copy.deepcopy(model)
    settings = {"lr": 0.01, **settings}
    optimizer, expected = kind(model.parameters(), **settings), TWINS[kind](twin.parameters(), **settings)
    steps(3, (model, optimizer), (twin, expected))
    assert_same_state(optimizer, expected, 1e-6)
    swapped = kind(twin.parameters(), **settings), TWINS[kind](model.parameters(), **settings)
    swapped[0].load_state_dict(expected.state_dict())
    swapped[1].load_state_dict(optimizer.state_dict())
    steps(3, (twin, swapped[0]), (model, swapped[1]))
    assert_close(model, twin, 1e-6)
    assert_same_state(*swapped, 1e-6)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("kind", OURS)
def test_copies_go_on_to_the_same_bits(kind: type[Optimizer], way: str) -> None:
    model = network()
    optimizer = kind(model.parameters(), **({"momentum": 0.9} if kind is optim.SGD else {}))
    steps(3, (model, optimizer))
    if way == "deepcopy":
        twin, twin_optimizer = copy.deepcopy((model, optimizer))
    else:
        torch.save((model, optimizer), file := io.BytesIO())
        twin, twin_optimizer = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    steps(3, (model, optimizer), (twin, twin_optimizer))
    assert type(twin_optimizer) is kind
    assert_close(twin, model, 0.0)


@pytest.mark.parametrize("kind", OURS)
def test_groups_have_settings_of_their_own_and_may_come_later(kind: type[Optimizer]) -> None:
    model = network()
    twin = copy.deepcopy(model)
    optimizers = []
    for module, its_kind in ((model, kind), (twin, TWINS[kind])):
        optimizer = its_kind([{"params": module[0].parameters(), "lr": 0.5}], lr=0.01, weight_decay=0.1)
        optimizer.add_param_group({"params": module[3].parameters(), "weight_decay": 0.0})
        optimizers.append((module, optimizer))
    untouched = model[4].weight.detach().clone()
    steps(5, *optimizers)
    assert_close(model, twin, 1e-6)
    assert torch.equal(model[4].weight, untouched)


@pytest.mark.parametrize("kind", OURS)
def test_schedulers_set_the_rate(kind: type[Optimizer]) -> None:
    model = network()
    twin = copy.deepcopy(model)
    pairs = (model, kind(model.parameters(), lr=0.1)), (twin, TWINS[kind](twin.parameters(), lr=0.1))
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for _, optimizer in pairs]
    for _ in range(5):
        steps(1, *pairs)
        for scheduler in schedulers:
            scheduler.step()
    assert_close(model, twin, 1e-6)


@pytest.mark.parametrize("kind", OURS)
def test_a_closure_is_called_with_gradients_on_and_its_loss_returned(kind: type[Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert (weight < 1.0).all()


@pytest.mark.parametrize("kind", OURS)
def test_a_parameter_without_a_gradient_is_left_alone_and_may_begin_later(kind: type[Optimizer]) -> None:
    settings: dict[str, Any] = {"momentum": 0.9, "dampening": 0.5} if kind is optim.SGD else {}
    model = network()
    twin = copy.deepcopy(model)
    pairs = (
        (model, kind(model.parameters(), lr=0.1, **settings)),
        (twin, TWINS[kind](twin.parameters(), lr=0.1, **settings)),
    )
    for late in (True, True, False, False):
        draw_gradients(model, twin)
        for module, optimizer in pairs:
            if late:
                module[3].weight.grad = None
            optimizer.step()
    assert_close(model, twin, 1e-6)
    assert_same_state(pairs[0][1], pairs[1][1], 1e-6)


@pytest.mark.parametrize("kind", OURS)
def test_a_group_may_hold_several_dtypes(kind: type[Optimizer]) -> None:
    model = network()
    model[3].double()
    model[4].bfloat16()
    twin = copy.deepcopy(model)
    steps(5, (model, kind(model.parameters(), lr=0.1)), (twin, TWINS[kind](twin.parameters(), lr=0.1, foreach=False)))
    assert_close(model[0], twin[0], 1e-6)
    assert_close(model[3], twin[3], 1e-13)
    assert_close(model[4], twin[4], 1e-2)


@pytest.mark.parametrize("kind", OURS)
def test_a_step_without_any_gradient_is_none(kind: type[Optimizer]) -> None:
    model = network()
    before = copy.deepcopy(model)
    kind(model.parameters()).step()
    assert_close(model, before, 0.0)


@pytest.mark.parametrize("kind", OURS)
def test_a_loss_scaler_unscales_the_gradients_and_skips_a_step_that_overflowed(kind: type[Optimizer]) -> None:
    weight, twin = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer, expected = kind([weight], lr=0.1, fused=True), TWINS[kind]([twin], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(weight.square().sum()).backward()
    twin.square().sum().backward()
    scaler.step(optimizer)
    scaler.update()
    expected.step()
    assert (weight - twin).norm() <= 1e-6 * twin.norm()
    weight.grad = torch.tensor([1.0, float("inf"), 1.0])
    before = weight.detach().clone()
    scaler.step(optimizer)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("kind", OURS)
def test_a_step_that_is_to_be_differentiated_is_refused_wherever_it_is_asked_for(kind: type[Optimizer]) -> None:
    complaint = f"{kind.__name__}: differentiable must be False, the step has no derivative"
    with pytest.raises(RuntimeError, match=complaint):
        kind([torch.ones(3)], differentiable=True)
    optimizer = kind([torch.ones(3)])
    with pytest.raises(RuntimeError, match=complaint):
        optimizer.add_param_group({"params": [torch.ones(2)], "differentiable": True})
    with pytest.raises(RuntimeError, match=complaint):
        optimizer.load_state_dict(TWINS[kind]([torch.ones(3)], differentiable=True).state_dict())


@pytest.mark.parametrize("kind", OURS)
def test_sparse_gradients_are_refused(kind: type[Optimizer]) -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        kind(embedding.parameters()).step()


def test_a_refused_step_leaves_no_momentum_behind() -> None:
    weight, embedding = nn.Parameter(torch.randn(4)), nn.Embedding(5, 3, sparse=True)
    gradient = torch.randn(4)
    weight.grad = gradient.clone()
    embedding(torch.tensor([1, 2])).sum().backward()
    optimizer = optim.SGD([weight, *embedding.parameters()], momentum=0.9)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    embedding.weight.grad = None
    optimizer.step()
    assert optimizer.state[weight]["momentum_buffer"].equal(gradient)


@pytest.mark.parametrize("kind", OURS)
def test_complex_parameters_are_refused(kind: type[Optimizer]) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    weight.grad = torch.ones_like(weight)
    with pytest.raises(RuntimeError, match=f"{kind.__name__}: expected parameters of .*float32, .*got torch.complex64"):
        kind([weight]).step()


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("in_one_group", [True, False])
def test_a_refused_step_steps_nothing(kind: type[Optimizer], in_one_group: bool) -> None:
    weight, rotation = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.complex64))
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    for refused in (rotation, embedding.weight):
        weight.grad, rotation.grad = torch.ones_like(weight), torch.ones_like(rotation)
        optimizer = kind([weight, refused] if in_one_group else [{"params": [weight]}, {"params": [refused]}])
        with pytest.raises(RuntimeError, match=r"got torch.complex64|does not support sparse gradients"):
            optimizer.step()
        assert weight.tolist() == [1.0, 1.0, 1.0]
        assert optimizer.state[weight].get("step", 0) == 0


@pytest.mark.parametrize(
    "settings", [(optim.Adam, {"amsgrad": True}), (optim.AdamW, {}), (optim.SGD, {"momentum": 0.9})]
)
@pytest.mark.parametrize("in_one_group", [True, False])
def test_a_loaded_state_of_expanded_tensors_is_stepped_from_as_any(
    settings: tuple[type[Optimizer], dict[str, Any]], in_one_group: bool
) -> None:
    kind, options = settings

    def make() -> tuple[nn.Sequential, Optimizer]:
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        groups = [{"params": list(layer.parameters())} for layer in model]
        return model, kind(model.parameters() if in_one_group else groups, lr=0.1, **options)

    first, twin = make(), make()
    twin[0].load_state_dict(first[0].state_dict())
    steps(1, first)
    state = first[1].state_dict()
    for values in state["state"].values():
        values.update({name: value.mean().expand(value.shape) for name, value in values.items() if value.dim()})
    first[1].load_state_dict(state)
    twin[0].load_state_dict(first[0].state_dict())
    twin[1].load_state_dict(copy.deepcopy(state))
    for values in twin[1].state.values():
        values.update({name: value.contiguous() for name, value in values.items()})
    steps(3, first, twin)
    assert_close(*(model for model, _ in (first, twin)), 0.0)
    assert_same_state(first[1], twin[1], 0.0)


@pytest.mark.parametrize("kind", OURS)
def test_hooks_run_around_a_step(kind: type[Optimizer]) -> None:
    seen = []
    optimizer = kind([torch.ones(3)])
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    assert seen == ["before", "after"]


@pytest.mark.parametrize("native", [True, False], ids=["native", "reference"])
@pytest.mark.parametrize(("kind", "settings"), SETTINGS)
def test_an_infinite_weight_stays_infinite_where_nothing_decays(
    kind: type[Optimizer], settings: dict[str, Any], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr("lth_fast.optim.adam.adam_step_", adam_step.reference)
        monkeypatch.setattr("lth_fast.optim.sgd.sgd_step_", sgd_step.reference)
    settings = {**settings, "weight_decay": 0}
    pairs = []
    for one in (kind, TWINS[kind]):
        weight = nn.Parameter(torch.tensor([-torch.inf, 1.0, 2.0, torch.inf]))
        pairs.append((weight, one([weight], **{"lr": 0.1, **settings})))
    for _ in range(3):
        for weight, optimizer in pairs:
            weight.grad = torch.tensor([0.0, 1.0, -1.0, 0.0])
            optimizer.step()
    assert pairs[0][0][[0, 3]].tolist() == [-torch.inf, torch.inf]
    torch.testing.assert_close(pairs[0][0], pairs[1][0])


@pytest.mark.parametrize("kind", OURS)
def test_parameters_that_are_views_of_one_memory_take_their_steps_one_after_the_other(
    kind: type[Optimizer], device: torch.device
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        start, *gradients = (torch.randn(shape, device=device) for shape in ((300, 400), (300, 400), (400, 300)))
        results = []
        for one in (kind, TWINS[kind]):
            encoder = nn.Parameter(start.clone())
            decoder = nn.Parameter(encoder.detach().t())
            # Torch's default on CUDA updates a list at once: of two views of one memory, Adam there loses updates.
            options = {} if one is kind else {"foreach": False}
            optimizer = one([encoder, decoder], lr=0.1, **options)
            for _ in range(20):
                encoder.grad, decoder.grad = gradients
                optimizer.step()
            results.append(encoder.detach().double())
    finally:
        torch.set_num_threads(threads)
    assert (results[0] - results[1]).norm() <= 1e-6 * results[1].norm()


@pytest.mark.parametrize("kind", [optim.Adam, optim.AdamW])
def test_a_loaded_count_of_steps_may_be_an_integer(kind: type[Optimizer]) -> None:
    model, pairs = network(), []
    for one in (kind, TWINS[kind]):
        copied = copy.deepcopy(model)
        optimizer = one(copied.parameters(), lr=0.01)
        pairs.append((copied, optimizer))
    steps(1, *pairs)
    for _, optimizer in pairs:
        for state in optimizer.state.values():
            state["step"] = state["step"].long()
    steps(2, *pairs)
    for one, other in zip(*(copied.parameters() for copied, _ in pairs), strict=True):
        torch.testing.assert_close(one, other)
