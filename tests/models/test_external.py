"""Networks from torchvision and from importable functions."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from lth_fast import models


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, classes, dropout=0.0):
        super().__init__()
        self.arguments = (input_shape, classes, dropout)
        self.token = nn.Parameter(torch.randn(4))
        self.fc = nn.Linear(4, classes)

def fixed():
    return nn.Linear(2, 3)

def swallows(**anything):
    assert not anything
    return nn.Linear(2, 3)

def keyword(*, classes):
    return nn.Linear(2, classes)

def positional(classes=3, /):
    return nn.Linear(2, classes)

def text():
    return "no network"

def dislikes():
    raise ValueError("something")

number = 3
"""


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "a_zoo.py").write_text(MODULE)
    (tmp_path / "broken_zoo.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "a_zoo"
    sys.modules.pop("a_zoo", None)


@pytest.fixture
def no_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As beside a torch it was not built for, where importing torchvision raises RuntimeError."""
    genuine = importlib.import_module

    def refuse(name: str, package: str | None = None):
        if name.split(".")[0] == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return genuine(name, package)

    monkeypatch.setattr(importlib, "import_module", refuse)


class TestFunctions:
    def test_a_class_gets_the_arguments_its_signature_names(self, zoo: str) -> None:
        model = models.build(f"{zoo}:Net", (3, 8, 8), 5, dropout=0.25)
        assert model.arguments == ((3, 8, 8), 5, 0.25)

    @pytest.mark.parametrize(
        ("function", "classes"), [("fixed", 3), ("swallows", 3), ("keyword", 7), ("positional", 3)]
    )
    def test_a_function_gets_nothing_it_does_not_name(self, zoo: str, function: str, classes: int) -> None:
        assert models.build(f"{zoo}:{function}", classes=7).out_features == classes

    def test_every_parameter_depends_on_the_generator_alone(self, zoo: str) -> None:
        before = torch.get_rng_state()
        first, again, other = (models.build(f"{zoo}:Net", generator=seeded(seed)) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        for parameter in ("token", "fc.weight"):
            assert torch.equal(first.get_parameter(parameter), again.get_parameter(parameter))
            assert not torch.equal(first.get_parameter(parameter), other.get_parameter(parameter))

    def test_weights_follow_the_scheme(self, zoo: str) -> None:
        assert models.default_init(f"{zoo}:Net") == "kaiming"
        weight = models.build(f"{zoo}:Net", classes=4, init="orthogonal").fc.weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(4))

    def test_a_module_may_have_the_name_of_a_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "lenet.py").write_text(MODULE)
        monkeypatch.syspath_prepend(tmp_path)
        assert models.build("lenet:Net", classes=7).fc.out_features == 7
        assert models.default_init("lenet:Net") == "kaiming"
        sys.modules.pop("lenet")

    def test_the_name_is_kept_as_written(self, zoo: str) -> None:
        assert models.canonical(f"{zoo}:Net") == f"{zoo}:Net"

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("no_such_zoo:Net", "network 'no_such_zoo:Net': there is no module 'no_such_zoo' to import"),
            ("a_zoo.inner:Net", "network 'a_zoo.inner:Net': there is no module 'a_zoo.inner' to import"),
            ("a_zoo:net", "network 'a_zoo:net': module 'a_zoo' has no function 'net'"),
            ("a_zoo:number", "network 'a_zoo:number': module 'a_zoo' has no function 'number'"),
        ],
    )
    @pytest.mark.parametrize("ask", [models.build, models.canonical, models.default_init])
    @pytest.mark.usefixtures("zoo")
    def test_a_function_that_does_not_exist_is_named(self, ask, name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ask(name)

    @pytest.mark.usefixtures("zoo")
    def test_an_error_inside_the_module_is_shown_as_it_is(self) -> None:
        with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
            models.build("broken_zoo:Net")

    def test_a_function_that_returns_no_network_is_refused(self, zoo: str) -> None:
        with pytest.raises(TypeError, match=r"network 'a_zoo:text': .* to return an nn.Module, got str"):
            models.build(f"{zoo}:text")

    def test_what_a_function_refuses_is_said_with_the_name_of_the_network(self, zoo: str) -> None:
        with pytest.raises(ValueError, match=r"network 'a_zoo:dislikes': something"):
            models.build(f"{zoo}:dislikes")

    def test_dropout_is_refused_where_it_would_be_ignored(self, zoo: str) -> None:
        with pytest.raises(ValueError, match=r"dropout: a_zoo:fixed takes no argument dropout, expected 0, got 0.5"):
            models.build(f"{zoo}:fixed", dropout=0.5)

    def test_arguments_are_checked_before_the_function_is_called(self, zoo: str) -> None:
        with pytest.raises(ValueError, match="classes: expected at least 1, got -1"):
            models.build(f"{zoo}:Net", classes=-1)


class TestTorchvision:
    @pytest.fixture(autouse=True)
    def _torchvision(self) -> None:
        pytest.importorskip("torchvision", reason="torchvision is not installed", exc_type=(ImportError, RuntimeError))

    @pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
    def test_a_network_fits_the_channels_and_classes(self, shape: tuple[int, int, int]) -> None:
        model = models.build("torchvision:resnet18", shape, 7, generator=seeded(1))
        assert model.conv1.in_channels == shape[0]
        assert (model.conv1.kernel_size, model.conv1.stride, model.conv1.padding) == ((7, 7), (2, 2), (3, 3))
        assert model.conv1.bias is None
        assert model(torch.randn(2, *shape, generator=seeded(2))).shape == (2, 7)

    def test_every_parameter_depends_on_the_generator_alone(self) -> None:
        before = torch.get_rng_state()
        first, again = (models.build("torchvision:shufflenet_v2_x0_5", generator=seeded(1)) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), before)
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))

    def test_a_network_with_a_class_token_depends_on_the_generator_alone_and_takes_the_image_size(self) -> None:
        first, again = (models.build("torchvision:vit_b_32", (1, 32, 32), 3, generator=seeded(1)) for _ in range(2))
        assert first.image_size == 32
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))

    def test_a_network_with_auxiliary_outputs_gives_logits_alone(self) -> None:
        model = models.build("torchvision:googlenet", (1, 32, 32), 3)
        assert model.training
        assert model(torch.randn(2, 1, 32, 32, generator=seeded(3))).shape == (2, 3)

    @pytest.mark.parametrize("name", ["TorchVision:ResNet18", "torchvision:resnet18"])
    def test_names_take_any_case(self, name: str) -> None:
        assert models.canonical(name) == "torchvision:resnet18"
        assert models.default_init(name) == "kaiming"

    @pytest.mark.parametrize("ask", [models.build, models.canonical, models.default_init])
    def test_an_unknown_network_is_refused_with_what_exists(self, ask) -> None:
        with pytest.raises(
            ValueError, match=r"unknown torchvision network 'resnet17'; did you mean resnet\d+\?.*vgg19"
        ):
            ask("torchvision:resnet17")

    def test_dropout_is_refused_where_it_would_be_ignored(self) -> None:
        with pytest.raises(
            ValueError, match=r"dropout: torchvision:resnet18 brings its own dropout, expected 0, got 0.5"
        ):
            models.build("torchvision:resnet18", dropout=0.5)


@pytest.mark.usefixtures("no_torchvision")
class TestWithoutTorchvision:
    @pytest.mark.parametrize("ask", [models.build, models.canonical, models.default_init])
    def test_a_torchvision_network_names_the_extra_to_install(self, ask) -> None:
        message = r"the network torchvision:resnet18 needs torchvision, .*nms.* pip install 'lth_fast\[torchvision\]'"
        with pytest.raises(ImportError, match=message):
            ask("torchvision:resnet18")

    @pytest.mark.parametrize("name", models.models)
    def test_every_other_network_has_a_name_and_an_initialisation(self, name: str) -> None:
        assert models.canonical(name) == name
        assert models.default_init(name)

    def test_other_networks_and_functions_are_built(self, zoo: str) -> None:
        assert isinstance(models.build("resnet20"), models.Network)
        assert isinstance(models.build(f"{zoo}:fixed"), nn.Linear)


def test_torchvision_is_imported_only_when_asked_for() -> None:
    program = (
        "import sys; from lth_fast import models; models.build('resnet20'); assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
