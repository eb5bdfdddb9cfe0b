"""Networks by name."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from lth_fast import models

SMALL = ("lenet", "conv6", "resnet20")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, *shape, generator=seeded(seed))


def test_the_networks_of_the_paper_and_their_families_exist() -> None:
    assert models.models == (
        *("lenet", "conv2", "conv4", "conv6", "vgg11", "vgg13", "vgg16", "vgg19"),
        *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110"),
    )


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 8, 8), (3, 32, 32)])
@pytest.mark.parametrize("name", models.models)
def test_every_network_gives_finite_logits_for_every_data_set(name: str, shape: tuple[int, int, int]) -> None:
    logits = models.build(name, shape, generator=seeded(1))(images(*shape))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", models.models)
def test_every_network_has_as_many_logits_as_there_are_classes(name: str) -> None:
    assert models.build(name, (3, 32, 32), 100)(images(3, 32, 32)).shape == (2, 100)


@pytest.mark.parametrize("name", SMALL)
def test_every_network_learns_from_images_that_are_not_square(name: str) -> None:
    model = models.build(name, (2, 17, 40), 3)
    model.criterion(model(images(2, 17, 40)), torch.tensor([0, 2])).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", (*SMALL, "vgg11"))
def test_the_seed_of_the_generator_alone_decides_the_weights(name: str) -> None:
    first, again, other = (models.build(name, (1, 8, 8), generator=seeded(seed)) for seed in (3, 3, 4))
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c)


@pytest.mark.parametrize("name", SMALL)
def test_a_generator_leaves_the_global_one_untouched(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model = models.build(name, generator=seeded(0))
    model._initialize_weights(seeded(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_the_global_one_decides_the_weights_and_advances() -> None:
    torch.manual_seed(6)
    first = models.build("lenet")
    second = models.build("lenet")
    torch.manual_seed(6)
    again = models.build("lenet")
    first_weight, second_weight, again_weight = (m.classifier.fc1.weight for m in (first, second, again))
    assert torch.equal(first_weight, again_weight)
    assert not torch.equal(first_weight, second_weight)


@pytest.mark.parametrize("init", [None, "glorot", "normal:0.01"])
@pytest.mark.parametrize("name", SMALL)
def test_drawing_again_equals_building_anew(name: str, init: str | None) -> None:
    model = models.build(name, (1, 8, 8), init=init, generator=seeded(1))
    model(images(1, 8, 8))
    model._initialize_weights(seeded(2))
    anew = models.build(name, (1, 8, 8), init=init, generator=seeded(2))
    state = model.state_dict()
    assert state.keys() == anew.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in anew.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_networks_survive_deepcopy_and_pickle(name: str) -> None:
    model = models.build(name, (1, 8, 8)).eval()
    batch = images(1, 8, 8)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batch), model(batch))
        assert next(twin.parameters()) is not next(model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_networks_compile_into_one_graph(name: str) -> None:
    model = models.build(name, (1, 8, 8)).eval()
    batch = images(1, 8, 8)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(batch), model(batch))


@pytest.mark.parametrize("name", models.models)
def test_every_name_is_a_function_with_the_same_result_as_build(name: str) -> None:
    function = getattr(models, name)
    assert inspect.isfunction(function)
    assert function.__name__ == name
    direct = function(input_shape=(1, 8, 8), classes=3, dropout=0.5, init="normal:0.1", generator=seeded(1))
    built = models.build(name, (1, 8, 8), 3, dropout=0.5, init="normal:0.1", generator=seeded(1))
    assert type(direct) is type(built)
    assert isinstance(direct.criterion, nn.CrossEntropyLoss)
    for a, b in zip(direct.parameters(), built.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_package_has_no_attribute_for_an_unknown_network() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'lenet5'"):
        models.lenet5  # noqa: B018


@pytest.mark.parametrize("name", SMALL)
def test_dropout_drops_while_training_only(name: str) -> None:
    model = models.build(name, (1, 8, 8), dropout=0.5)
    torch.manual_seed(7)
    batch = images(1, 8, 8)
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))


@pytest.mark.parametrize("name", SMALL)
def test_dropout_changes_no_parameter_name_and_no_weight(name: str) -> None:
    without = models.build(name, generator=seeded(1)).state_dict()
    with_dropout = models.build(name, dropout=0.3, generator=seeded(1)).state_dict()
    assert list(without) == list(with_dropout)
    assert all(torch.equal(without[key], with_dropout[key]) for key in without)


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("lenet", "lenet"),
        ("LeNet", "lenet"),
        ("l", "lenet"),
        ("ResNet11", "resnet110"),
        ("resnet2", "resnet20"),
        ("VGG16", "vgg16"),
        ("lenet:500-200", "lenet:500-200"),
        ("LE:0500-200", "lenet:500-200"),
        ("lenet:7", "lenet:7"),
        ("lenet:300-100", "lenet"),
    ],
)
def test_names_take_any_case_and_unambiguous_prefixes(name: str, full: str) -> None:
    assert models.canonical(name) == full
    assert models.canonical(full) == full


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lennet", r"unknown network 'lennet'; did you mean lenet\? \(known: conv2, .*resnet110.*, vgg19\)"),
        ("qqq", r"unknown network 'qqq' \(known: "),
        ("", r"unknown network ''"),
        ("conv", r"network 'conv' is ambiguous: it could be conv2, conv4, conv6"),
        ("lennet:500-200", r"unknown network 'lennet'; did you mean lenet\?"),
        ("conv2:300", r"network conv2:300: only lenet takes hidden sizes"),
        (
            "lenet:300-",
            r"network lenet:300-: expected hidden sizes of 1 to 999999999999 joined by dashes, as in lenet:500-200",
        ),
        ("lenet:300-0", r"network lenet:300-0: expected hidden sizes of 1 to 999999999999"),
        ("lenet:1000000000000", r"network lenet:1000000000000: expected hidden sizes of 1 to 999999999999"),
        ("lenet:3x", r"network lenet:3x: expected hidden sizes of 1 to 999999999999"),
        ("lenet:", r"network 'lenet:': expected lenet:500-200 .*, torchvision:resnet18 or module:function"),
        ("lenet:-5", r"network 'lenet:-5': expected lenet:500-200"),
        (":build", r"network ':build': expected lenet:500-200"),
        (".models:build", r"network '.models:build': expected lenet:500-200"),
    ],
)
@pytest.mark.parametrize("ask", [models.build, models.canonical, models.default_init])
def test_a_wrong_name_is_refused_with_what_exists(ask, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"input_shape": (28, 28)},
            r"input_shape: expected \(channels, height, width\), each at least 1, got \(28, 28\)",
        ),
        ({"input_shape": (1, 0, 28)}, r"input_shape: .* got \(1, 0, 28\)"),
        ({"classes": 0}, r"classes: expected at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout: .* got -0.1"),
        ({"dropout": float("nan")}, r"dropout: .* got nan"),
        (
            {"init": "xavier"},
            r"unknown initialisation 'xavier'.* \(known: glorot, kaiming, normal, openlth, orthogonal\)",
        ),
    ],
)
def test_a_wrong_argument_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build("resnet20", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", models.models)
def test_shallow_networks_start_from_glorot_and_deep_ones_from_kaiming(name: str) -> None:
    expected = "kaiming" if name.startswith(("vgg", "resnet")) else "glorot"
    assert models.default_init(name) == expected
    default, named = (models.build(name, (1, 8, 8), init=init, generator=seeded(1)) for init in (None, expected))
    for a, b in zip(default.parameters(), named.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_default_initialisation_belongs_to_the_network_whatever_its_sizes() -> None:
    assert models.default_init("LENET:20-10") == "glorot"
