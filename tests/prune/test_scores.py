"""Every score against its equation, on networks small enough to write it out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lth_fast.nn import set_masks
from lth_fast.prune import SCORES, Gradients, Weights, prunable, prune_by_score

BATCH = 12


def network() -> nn.Sequential:
    """Smooth, so that its Hessian is more than the last layers'."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4)
    ).double()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(BATCH, 1, 3, 3, dtype=torch.float64), torch.randint(4, (BATCH,))


def scored(model: nn.Module, name: str, data: Any = None, **more: Any) -> dict[str, Tensor]:
    weights = {name: layer.weight.detach() for name, layer in prunable(model).items()}
    draw = None if data is None else lambda: data
    return SCORES[name](Weights(weights, **more), Gradients(model, cross_entropy, draw))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name in found:
        error = (found[name].double() - expected[name]).norm() / expected[name].norm()
        assert error < 1e-9, name


def test_magnitude_is_the_absolute_value() -> None:
    model = network()
    expected = {name: layer.weight.detach().abs() for name, layer in prunable(model).items()}
    assert_close(scored(model, "magnitude"), expected)


def test_magnitude_increase_is_what_training_added_and_may_be_negative() -> None:
    model = network()
    initial = {name: torch.randn_like(layer.weight) for name, layer in prunable(model).items()}
    found = scored(model, "magnitude_increase", initial=initial)
    assert_close(found, {n: layer.weight.detach().abs() - initial[n].abs() for n, layer in prunable(model).items()})
    assert min(float(score.min()) for score in found.values()) < 0


def test_random_scores_follow_their_generator_and_no_other() -> None:
    def drawn(seed: int) -> Tensor:
        found = scored(network(), "random", generator=torch.Generator().manual_seed(seed))
        return torch.cat([score.reshape(-1) for score in found.values()])

    first = drawn(1)
    torch.rand(7)
    assert torch.equal(drawn(1), first)
    assert not torch.equal(drawn(2), first)
    assert first.unique().numel() > 0.9 * first.numel()


def test_snip_is_the_magnitude_of_weight_times_gradient() -> None:
    model, data = network(), batch()
    found = scored(model, "snip", data)
    cross_entropy(model(data[0]), data[1]).backward()
    assert_close(found, {n: (layer.weight * layer.weight.grad).detach().abs() for n, layer in prunable(model).items()})


def test_grasp_is_weight_times_hessian_times_gradient() -> None:
    model, data = network(), batch()
    layers = prunable(model)
    names, shapes = list(layers), [layer.weight.shape for layer in layers.values()]
    flat = torch.cat([layer.weight.detach().reshape(-1) for layer in layers.values()])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        named = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return cross_entropy(torch.func.functional_call(model, named, (data[0],)), data[1])

    hessian = torch.autograd.functional.hessian(loss, flat)
    gradient = torch.func.grad(loss)(flat)
    product = (flat * (hessian @ gradient)).split([shape.numel() for shape in shapes])
    expected = {name: part.reshape(shape) for name, part, shape in zip(names, product, shapes, strict=True)}
    assert_close(scored(model, "grasp", data), expected)


def test_grasp_scores_predict_what_removing_a_weight_does_to_the_gradients_norm() -> None:
    """Equation 8 of the paper: to first order the squared norm changes by -2 w (H g)."""
    model, data = network(), batch()
    found = scored(model, "grasp", data)["3.weight"].reshape(-1)

    def squared_norm() -> float:
        parameters = [layer.weight for layer in prunable(model).values()]
        gradients = torch.autograd.grad(cross_entropy(model(data[0]), data[1]), parameters)
        return float(sum(gradient.square().sum() for gradient in gradients))

    step, before = 1e-6, squared_norm()
    for place in (0, 7, 59):
        with torch.no_grad():
            value = model[3].weight.view(-1)[place].clone()
            model[3].weight.view(-1)[place] = value * (1 - step)
        assert (squared_norm() - before) / step == pytest.approx(-2 * float(found[place]), rel=1e-3, abs=1e-7)
        with torch.no_grad():
            model[3].weight.view(-1)[place] = value


def test_synflow_is_the_share_of_all_paths_through_a_weight() -> None:
    """Without biases R = 1' |W3| |W2| |W1| 1, and the scores of every layer sum up to R."""
    model = nn.Sequential(
        nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)
    )
    first, second, third = (model[i].weight.detach().double().abs() for i in (0, 2, 3))
    found = scored(model, "synflow", (torch.randn(2, 6), None))
    incoming, outgoing = first.sum(1), third.sum(0) @ second
    assert_close(
        found,
        {
            "0.weight": first * outgoing[:, None],
            "2.weight": second * third.sum(0)[:, None] * incoming,
            "3.weight": third * (second @ incoming),
        },
    )
    flow = float(third.sum(0) @ second @ first.sum(1))
    assert [float(score.sum()) for score in found.values()] == pytest.approx([flow] * 3)


def test_synflow_stays_finite_in_networks_whose_flow_leaves_float32() -> None:
    model = nn.Sequential(*(nn.Linear(200, 200, bias=False) for _ in range(20)))
    for layer in model:
        nn.init.normal_(layer.weight, std=1.0)
    found = scored(model, "synflow", (torch.zeros(1, 200), None))
    assert max(float(score.max()) for score in found.values()) > torch.finfo(torch.float32).max
    prune_by_score(
        model, 0.5, "synflow", "global", gradients=Gradients(model, None, lambda: (torch.zeros(1, 200), None))
    )


def test_synflow_does_not_see_the_data_and_runs_batch_norm_on_its_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    model(torch.randn(50, 4))
    one, other = (scored(model, "synflow", (torch.randn(count, 4), None)) for count in (1, 9))
    assert_close(one, other)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_scores_of_the_loss_are_those_in_training_mode_whatever_mode_the_model_is_in(name: str) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    data = torch.randn(9, 5, dtype=torch.float64), torch.randint(3, (9,))
    expected = scored(model.train(), name, data)
    assert_close(scored(model.eval(), name, data), expected)
    assert not model.training


@pytest.mark.parametrize("name", SCORES)
def test_scoring_leaves_the_model_and_its_gradients_as_they_were(name: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4)).double()
    set_masks(model, {"1.weight": torch.rand(6, 9) > 0.5})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    initial = {key: torch.zeros_like(value) for key, value in before.items()}
    scored(model, name, batch(), initial=initial)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_under_masks_the_scores_are_those_of_the_network_with_zeros(name: str) -> None:
    masked, data = network(), batch()
    mask = torch.rand(5, 12) > 0.5
    zeros = network()
    zeros.load_state_dict(masked.state_dict())
    with torch.no_grad():
        zeros[3].weight *= mask
    set_masks(masked, {"3.weight": mask})
    assert_close(scored(masked, name, data), scored(zeros, name, data))


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_weights_that_take_no_part_in_the_output_score_zero(name: str) -> None:
    model, data = network(), batch()
    expected = scored(model, name, data)
    model[0].register_module("aside", nn.Linear(3, 2, dtype=torch.float64))
    found = scored(model, name, data)
    assert not found.pop("0.aside.weight").any()
    assert_close(found, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_scores_of_derivatives_are_the_same_where_gradients_are_switched_off(name: str, mode: Any) -> None:
    model, data = network(), batch()
    expected = scored(model, name, data)
    with mode():
        assert_close(scored(model, name, tuple(part.clone() for part in data)), expected)
        prune_by_score(model, 0.5, name, gradients=Gradients(model, cross_entropy, lambda: data))
    model(data[0]).sum().backward()


class Causal(nn.Module):
    """Attention over earlier places only, by a buffer of negative infinities."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Linear(3, 3, bias=False)
        self.register_buffer("causal", torch.full((4, 4), -torch.inf).triu(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs @ inputs.mT + self.causal).softmax(-1) @ self.values(inputs)


def test_synflow_leaves_the_infinities_of_a_causal_mask_as_they_are() -> None:
    model = Causal()
    found = scored(model, "synflow", (torch.randn(2, 4, 3), None))
    assert_close(found, {"values.weight": 4 * model.values.weight.detach().double().abs()})


def test_synflow_of_a_network_over_words_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"this score needs inputs of floating-point numbers, got torch\.int64"):
        scored(model, "synflow", (torch.randint(9, (2, 5)), None))


def test_synflow_of_images_stored_as_bytes_is_that_of_any_image() -> None:
    model = nn.Linear(3, 2)
    pixels = torch.randint(255, (2, 3))
    assert_close(scored(model, "synflow", (pixels.byte(), None)), scored(model, "synflow", (pixels.float(), None)))


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_a_loss_of_every_sample_is_refused(name: str) -> None:
    model = network()
    weights = Weights({"0.weight": model[0].weight.detach()})
    expected = r"criterion: expected the mean loss of a batch, got a tensor of shape \[12\]"
    with pytest.raises(ValueError, match=expected):
        SCORES[name](weights, Gradients(model, nn.CrossEntropyLoss(reduction="none"), batch))


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow"])
def test_a_batch_of_several_inputs_is_refused(name: str) -> None:
    inputs, labels = batch()
    with pytest.raises(ValueError, match="batch: expected inputs in one tensor, got tuple"):
        scored(network(), name, ((inputs, inputs), labels))


def test_the_batch_is_drawn_once() -> None:
    draws: list[int] = []

    def draw() -> tuple[Tensor, Tensor]:
        draws.append(1)
        return batch()

    model = network()
    gradients = Gradients(model, cross_entropy, draw)
    assert not draws
    for name in ("snip", "grasp", "synflow"):
        SCORES[name](Weights({key: layer.weight.detach() for key, layer in prunable(model).items()}), gradients)
    assert len(draws) == 1


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("magnitude_increase", "initial: magnitude_increase needs the initial value of '0.weight', got none"),
        ("snip", "gradients: this score needs a batch of training data, got none"),
        ("grasp", "gradients: this score needs a batch of training data, got none"),
        ("synflow", "gradients: this score needs a batch of training data, got none"),
    ],
)
def test_a_score_that_lacks_what_it_needs_says_so(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        scored(network(), name)


def test_a_score_of_the_loss_without_a_loss_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match="needs a criterion, got none"):
        SCORES["snip"](Weights({"0.weight": model[0].weight.detach()}), Gradients(model, None, batch))
