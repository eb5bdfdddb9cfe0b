"""Weight initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lth_fast.models import initialise
from lth_fast.nn import SparseLinear, dense_state, masks, set_masks

SCHEMES = ("glorot", "kaiming", "orthogonal", "normal:0.01")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))


LAYERS = [
    pytest.param(lambda: nn.Linear(400, 200), 400, 200, id="linear"),
    pytest.param(lambda: nn.Conv2d(64, 96, 3), 64 * 9, 96 * 9, id="conv"),
]


@pytest.mark.parametrize(("make", "fan_in", "fan_out"), LAYERS)
class TestDistributions:
    def test_glorot_has_its_nominal_deviation_and_is_cut_off_at_two_of_the_widened_ones(
        self, make, fan_in: int, fan_out: int
    ) -> None:
        layer = make()
        initialise(layer, "glorot", seeded(fan_in))
        nominal = math.sqrt(2 / (fan_in + fan_out))
        widened = nominal / 0.87962566103423978
        size = layer.weight.detach().abs()
        assert layer.weight.std().item() == pytest.approx(nominal, rel=0.01)
        assert abs(layer.weight.mean().item()) < 0.02 * nominal
        assert 1.98 * widened < size.max().item() <= 2 * widened * (1 + 1e-6)
        within_one = math.erf(1 / math.sqrt(2)) / math.erf(2 / math.sqrt(2))
        assert (size < widened).float().mean().item() == pytest.approx(within_one, abs=0.01)

    def test_kaiming_is_normal_with_the_deviation_of_the_fan_in(self, make, fan_in: int, fan_out: int) -> None:
        layer = make()
        initialise(layer, "kaiming", seeded(fan_out))
        deviation = math.sqrt(2 / fan_in)
        assert layer.weight.std().item() == pytest.approx(deviation, rel=0.01)
        assert abs(layer.weight.mean().item()) < 0.02 * deviation
        assert (layer.weight.abs() > 2 * deviation).float().mean().item() == pytest.approx(0.0455, abs=0.005)

    def test_normal_has_the_deviation_of_its_argument(self, make, fan_in: int, fan_out: int) -> None:
        layer = make()
        initialise(layer, "normal:0.05", seeded(fan_in + fan_out))
        assert layer.weight.std().item() == pytest.approx(0.05, rel=0.01)
        assert abs(layer.weight.mean().item()) < 0.02 * 0.05

    def test_orthogonal_has_orthonormal_rows_or_columns(self, make, fan_in: int, fan_out: int) -> None:
        layer = make()
        initialise(layer, "orthogonal", seeded(1))
        matrix = layer.weight.detach().flatten(1)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scheme", SCHEMES)
class TestEveryScheme:
    def test_biases_become_zero_and_normalisation_starts_afresh(self, scheme: str) -> None:
        model = network()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7.0)
        model(torch.randn(4, 2, 4, 4, generator=seeded(0)))
        initialise(model, scheme, seeded(1))
        convolution, normalisation, linear = model[0], model[1], model[4]
        for zero in (convolution.bias, linear.bias, normalisation.bias, normalisation.running_mean):
            assert torch.equal(zero, torch.zeros_like(zero))
        for one in (normalisation.weight, normalisation.running_var):
            assert torch.equal(one, torch.ones_like(one))
        assert normalisation.num_batches_tracked == 0
        assert not (convolution.weight == 7).any()
        assert not (linear.weight == 7).any()

    def test_the_seed_alone_decides_whatever_was_there_before(self, scheme: str) -> None:
        first, again, other = network(), network(), network()
        for model, seed in ((first, 1), (again, 1), (other, 2)):
            initialise(model, scheme, seeded(seed))
        for layer in (0, 4):
            assert torch.equal(first[layer].weight, again[layer].weight)
            assert not torch.equal(first[layer].weight, other[layer].weight)

    def test_the_global_generator_is_left_alone(self, scheme: str) -> None:
        model = network()
        before = torch.get_rng_state()
        initialise(model, scheme, seeded(1))
        assert torch.equal(torch.get_rng_state(), before)

    def test_without_a_generator_the_global_one_draws(self, scheme: str) -> None:
        first, again = network(), network()
        for model in (first, again):
            torch.manual_seed(3)
            initialise(model, scheme)
        assert torch.equal(first[4].weight, again[4].weight)

    def test_the_dtype_of_the_model_changes_no_draw(self, scheme: str) -> None:
        single, double = network(), network().double()
        for model in (single, double):
            initialise(model, scheme, seeded(4))
        assert double[0].weight.dtype == torch.float64
        assert torch.equal(single[0].weight.double(), double[0].weight)

    def test_weights_stay_the_same_parameters_and_still_require_gradients(self, scheme: str) -> None:
        model = network()
        before = list(model.parameters())
        initialise(model, scheme, seeded(1))
        assert all(a is b and b.requires_grad and b.is_leaf for a, b in zip(before, model.parameters(), strict=True))


class TestOpenLTH:
    def test_weights_are_kaimings(self) -> None:
        for layer, fan_in in ((nn.Linear(400, 200), 400), (nn.Conv2d(64, 96, 3), 64 * 9)):
            initialise(layer, "openlth", seeded(fan_in))
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.01)

    def test_biases_are_uniform_as_torch_draws_them(self) -> None:
        for layer, fan_in in ((nn.Linear(4, 20_000), 4), (nn.Conv2d(2, 20_000, 3), 18)):
            initialise(layer, "openlth", seeded(fan_in))
            bound = 1 / math.sqrt(fan_in)
            assert layer.bias.abs().max().item() == pytest.approx(bound, rel=1e-3)
            assert layer.bias.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)

    def test_scales_of_batch_normalisation_are_uniform_and_the_rest_of_it_starts_afresh(self) -> None:
        layer = nn.BatchNorm2d(20_000)
        with torch.no_grad():
            layer.bias.fill_(7)
        initialise(layer, "openlth", seeded(1))
        scales = layer.weight.detach()
        assert 0 <= scales.min() < 1e-3 < 1 - 1e-3 < scales.max() <= 1
        assert scales.mean().item() == pytest.approx(0.5, abs=0.01)
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))
        assert torch.equal(layer.running_var, torch.ones_like(layer.running_var))
        initialise(nn.BatchNorm2d(3, affine=False), "openlth")  # has no scales

    def test_the_seed_alone_decides(self) -> None:
        first, again, other = network(), network(), network()
        for model, seed in ((first, 1), (again, 1), (other, 2)):
            initialise(model, "openlth", seeded(seed))
        for name, value in first.named_parameters():
            assert torch.equal(value, again.get_parameter(name))
            assert name == "1.bias" or not torch.equal(value, other.get_parameter(name))


def test_layers_draw_in_the_order_of_the_parameters() -> None:
    shared = seeded(1)
    model, conv, linear = network(), nn.Conv2d(2, 6, 3), nn.Linear(24, 5)
    initialise(model, "kaiming", seeded(1))
    initialise(conv, "kaiming", shared)
    initialise(linear, "kaiming", shared)
    assert torch.equal(model[0].weight, conv.weight)
    assert torch.equal(model[4].weight, linear.weight)


@pytest.mark.parametrize(
    "make", [lambda: nn.LSTM(3, 4), lambda: nn.Embedding(5, 6), lambda: nn.MultiheadAttention(4, 2)]
)
def test_other_modules_redraw_themselves_from_the_generator(make) -> None:
    before = torch.get_rng_state()
    torch.manual_seed(0)
    first = make()
    torch.manual_seed(1)
    again = make()
    torch.set_rng_state(before)
    stale = [parameter.detach().clone() for parameter in first.parameters()]
    for module in (first, again):
        initialise(module, "glorot", seeded(2))
    assert torch.equal(torch.get_rng_state(), before)
    for old, a, b in zip(stale, first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, old)


@pytest.mark.parametrize("make", [lambda: nn.LayerNorm(3), lambda: nn.GroupNorm(1, 3), lambda: nn.BatchNorm1d(3)])
def test_normalisation_layers_become_the_identity(make) -> None:
    layer = make()
    nn.init.constant_(layer.weight, 5.0)
    nn.init.constant_(layer.bias, 5.0)
    initialise(layer)
    assert torch.equal(layer.weight, torch.ones(3))
    assert torch.equal(layer.bias, torch.zeros(3))


def test_scheme_names_take_any_case_and_prefixes() -> None:
    full, short = nn.Linear(3, 4), nn.Linear(3, 4)
    initialise(full, "kaiming", seeded(1))
    initialise(short, "Kai", seeded(1))
    assert torch.equal(full.weight, short.weight)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (
            "glorott",
            r"unknown initialisation 'glorott'; did you mean glorot\? "
            r"\(known: glorot, kaiming, normal, openlth, orthogonal\)",
        ),
        ("", r"unknown initialisation ''"),
        ("normal", r"init: expected a finite standard deviation above 0, as in normal:0.01, got 'normal'"),
        ("normal:", r"init: .* got 'normal:'"),
        ("normal:wide", r"init: .* got 'normal:wide'"),
        ("normal:0", r"init: .* got 'normal:0'"),
        ("normal:-1", r"init: .* got 'normal:-1'"),
        ("normal:nan", r"init: .* got 'normal:nan'"),
        ("normal:inf", r"init: .* got 'normal:inf'"),
        ("glorot:2", r"init: glorot takes no argument, got 'glorot:2'"),
    ],
)
def test_a_wrong_scheme_is_refused_and_changes_nothing(scheme: str, message: str) -> None:
    layer = nn.Linear(3, 4)
    before = layer.weight.detach().clone()
    with pytest.raises(ValueError, match=message):
        initialise(layer, scheme)
    assert torch.equal(layer.weight, before)


def test_a_parametrized_weight_is_refused_because_drawing_it_would_be_without_effect() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))
    with pytest.raises(ValueError, match=r"model: 0\.weight must be a plain parameter to be drawn"):
        initialise(model)


class Residual(nn.Linear):
    """Masked through a parametrization, as subclasses are."""


def test_under_masks_every_parameter_is_drawn_as_in_the_plain_network_and_zero_where_pruned() -> None:
    def network() -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(6, 5), Residual(5, 4), nn.BatchNorm1d(4), nn.Embedding(3, 4), nn.MultiheadAttention(4, 2)
        )

    plain, masked = network(), network()
    random = torch.Generator().manual_seed(1)
    keep = {name: torch.rand(parameter.shape, generator=random) < 0.5 for name, parameter in masked.named_parameters()}
    set_masks(masked, keep)
    with torch.no_grad():
        for parameter in masked.parameters():
            parameter.fill_(7.0)
    for model in (plain, masked):
        initialise(model, "glorot", seeded(2))
    written = {name: value.clone() for name, value in masked.state_dict().items() if "parametrizations" in name}
    found = dense_state(masked)
    for name, value in plain.named_parameters():
        assert torch.equal(found[name], value * keep[name]), name
    assert masks(masked).keys() == keep.keys()
    # The parameters themselves, which weight decay reads.
    assert written
    assert all(torch.equal(value, masked.state_dict()[name]) for name, value in written.items())


def refused() -> dict[str, tuple[nn.Module, str]]:
    class Gained(nn.Module):
        def reset_parameters(self, gain: float) -> None:
            raise AssertionError(gain)

    biased, normed = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    nn.utils.parametrize.register_parametrization(biased, "bias", nn.Tanh())
    nn.utils.parametrize.register_parametrization(normed[1], "weight", nn.Tanh())
    embedding = nn.utils.parametrizations.weight_norm(nn.Embedding(3, 2))
    masked_too = set_masks(Residual(3, 3), {"weight": torch.eye(3).bool()})
    nn.utils.parametrize.register_parametrization(masked_too, "weight", nn.Tanh())
    return {
        "sparse": (SparseLinear.from_dense(nn.Linear(3, 3)), "weight must be a plain parameter"),
        "bias": (biased, "bias must be a plain parameter"),
        "normalisation": (normed[1], "weight must be a plain parameter"),
        "embedding": (embedding, "weight must be a plain parameter"),
        "mask and another": (masked_too, "weight must be a plain parameter"),
        "pruned by torch": (nn.utils.prune.identity(nn.Linear(3, 3), "bias"), "bias must be a plain parameter"),
        "lazy": (nn.LazyLinear(3), "weight must have a shape to be drawn; run the model on an input first"),
        "argument": (Gained(), "must work without arguments: missing a required argument: 'gain'"),
    }


@pytest.mark.parametrize("case", refused())
def test_what_cannot_be_drawn_is_refused_by_name_and_nothing_is_drawn(case: str) -> None:
    module, message = refused()[case]
    model = nn.Sequential(nn.Linear(3, 3), module)
    before = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match=rf"model: .*\b1.*{message}"):
        initialise(model)
    assert torch.equal(model[0].weight, before)
