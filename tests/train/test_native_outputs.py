"""Native code makes of a data set what the network does, bit for bit, or leaves it to the network."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from lth_fast import _C
from lth_fast.data import ResidentLoader
from lth_fast.nn import MaskedLinear, convert
from lth_fast.prune import prunable
from lth_fast.train import evaluate
from lth_fast.train.native_outputs import IMAGES_OF_A_THREAD, native_outputs
from lth_fast.train.native_outputs_refusal import native_outputs_refusal

LAYERS_FROM_THE_IMAGES_ON = ["dense", "masked", "sparse", "sparse then masked", "sparse then dense"]


def images(count: int = 23, shape: tuple[int, ...] = (1, 8, 8), batch_size: int = 5, **options: Any) -> ResidentLoader:
    channels = shape[0]
    return ResidentLoader(
        torch.randint(0, 256, (count, *shape), dtype=torch.uint8),
        torch.randint(10, (count,)),
        name="toy",
        classes=10,
        mean=(0.4, 0.3, 0.5)[:channels],
        std=(0.3, 0.2, 0.4)[:channels],
        batch_size=batch_size,
        **options,
    )


def network(forms: str = "sparse", widths: tuple[int, ...] = (64, 33, 20, 10), density: float = 0.3) -> nn.Module:
    """A ReLU between any two linear layers but the last two."""
    layers: list[nn.Module] = [nn.Flatten()]
    for number, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(inputs, outputs, bias=number != 1), nn.ReLU()]
    model = nn.Sequential(*layers[:-1]) if len(widths) < 3 else nn.Sequential(*layers[:-3], layers[-2])
    if forms == "dense":
        return model
    masks = {name: torch.rand(layer.weight.shape) < density for name, layer in prunable(model).items()}
    first, _, rest = forms.partition(" then ")
    if rest == "dense":
        masks = dict([*masks.items()][:2])
    names = [*masks]
    form = {name: first if not rest or name in names[:2] else "masked" for name in names}
    return convert(model, masks, form=form)


@pytest.fixture(autouse=True)
def seeded(request: pytest.FixtureRequest) -> None:
    torch.manual_seed(sum(map(ord, request.node.name)))


@pytest.fixture(params=_C.usable_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    previous = _C.active_isa()
    _C.force_isa(request.param)
    yield request.param
    _C.force_isa(previous)


def assert_outputs_of(model: nn.Module, loader: ResidentLoader) -> None:
    """Native outputs are those of the model's forward, batch by batch."""
    assert native_outputs_refusal(model, loader) is None
    made = [*native_outputs(model, loader)]
    assert len(made) == len(loader)
    with torch.no_grad():
        for (outputs, labels), (inputs, expected_labels) in zip(made, loader, strict=True):
            expected = model(inputs)
            assert not outputs.requires_grad
            assert (outputs.dtype, outputs.shape) == (expected.dtype, expected.shape)
            assert torch.equal(outputs.view(torch.int32), expected.view(torch.int32)), (outputs - expected).abs().max()
            assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("forms", LAYERS_FROM_THE_IMAGES_ON)
def test_outputs_are_those_of_the_network(isa: str, forms: str) -> None:
    assert_outputs_of(network(forms), images())


@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_any_number_of_survivors(isa: str, density: float) -> None:
    assert_outputs_of(network(density=density), images())


@pytest.mark.parametrize("batch_size", [1, 7, 8, 31, 32, 33, 63, 64, 65, 128, 150, 300, 301])
@pytest.mark.parametrize("forms", ["sparse", "sparse then dense"])
def test_any_number_of_images(isa: str, forms: str, batch_size: int) -> None:
    # More than a call computes.
    assert IMAGES_OF_A_THREAD * torch.get_num_threads() < 300
    assert_outputs_of(network(forms), images(300, batch_size=batch_size))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (1, 28, 28), (3, 4, 4), (3, 5, 5), (2, 8, 16)])
def test_images_of_any_shape(isa: str, shape: tuple[int, int, int]) -> None:
    features = shape[0] * shape[1] * shape[2]
    assert_outputs_of(network(widths=(features, 40, 10)), images(70, shape, 70))


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_images_without_pixels(isa: str) -> None:
    assert_outputs_of(network(widths=(0, 20, 10)), images(shape=(1, 0, 5)))


@pytest.mark.parametrize("widths", [(3072, 300, 100, 10), (3072, 24, 2500, 130, 10), (3072, 1500, 10), (3072, 10)])
@pytest.mark.parametrize("density", [0.05, 0.5])
def test_layers_whose_panels_are_added_up_in_two_parts(isa: str, widths: tuple[int, ...], density: float) -> None:
    # sparse_linear does so from 2,048 features on, for 1,024 rows at most.
    assert_outputs_of(network(widths=widths, density=density), images(70, (3, 32, 32), 70))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("forms", LAYERS_FROM_THE_IMAGES_ON)
def test_any_number_of_threads(forms: str, threads: int) -> None:
    torch.set_num_threads(threads)
    assert_outputs_of(network(forms, widths=(784, 300, 100, 10)), images(800, (1, 28, 28), 250))


def test_relu_behind_the_last_layer_and_layers_without_one_between() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 30), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU())
    masks = {name: torch.rand(layer.weight.shape) < 0.4 for name, layer in prunable(model).items()}
    assert_outputs_of(convert(model, masks, form="sparse"), images())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e-39])
def test_values_that_are_no_common_numbers(value: float) -> None:
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[::3] = value
    loader = images()
    made = torch.cat([outputs for outputs, _ in native_outputs(model, loader)])
    with torch.no_grad():
        expected = torch.cat([model(inputs) for inputs, _ in loader])
    assert torch.equal(made.isnan(), expected.isnan())
    assert torch.equal(made.nan_to_num(), expected.nan_to_num())


def test_what_was_written_to_a_masked_weight_is_masked() -> None:
    model = network("masked")
    with torch.no_grad():
        for layer in (layer for layer in model.modules() if isinstance(layer, MaskedLinear)):
            layer.weight.fill_(0.1)
    loader = images()
    made = torch.cat([outputs for outputs, _ in native_outputs(model, loader)])
    for layer in (layer for layer in model.modules() if isinstance(layer, MaskedLinear)):
        assert not layer.weight[~layer.mask].any()
    assert torch.equal(made, torch.cat([model(inputs).detach() for inputs, _ in loader]))


def test_a_batch_may_be_all_images_and_more() -> None:
    assert_outputs_of(network(), images(batch_size=10**30))


def test_frozen_networks_and_layers_that_share_a_parameter() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), shared := nn.Linear(64, 64), shared)
    assert_outputs_of(model.requires_grad_(False), images())


@pytest.mark.parametrize("forms", ["dense", "sparse"])
def test_an_evaluation_is_that_of_the_network(forms: str) -> None:
    model, loader = network(forms), images()
    native = evaluate(model, cross_entropy, loader)
    ran = []
    hook = model.register_forward_hook(lambda *given: ran.append(1))
    assert evaluate(model, cross_entropy, loader) == native
    hook.remove()
    assert len(ran) == len(loader)


def test_no_random_number_is_drawn_and_the_mode_is_put_back() -> None:
    model, loader = network().train(), images()
    assert native_outputs_refusal(model, loader) is None
    before = torch.get_rng_state()
    evaluate(model, cross_entropy, loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training


class Watch(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Own(nn.Linear):
    def forward(self, given: Tensor) -> Tensor:
        return 2 * super().forward(given)


def hooked() -> nn.Module:
    model = network()
    model[1].register_forward_hook(lambda module, inputs, output: output + 1)
    return model


def with_images(change: Callable[[Tensor], Tensor]) -> ResidentLoader:
    loader = images()
    loader.images = change(loader.images)
    return loader


@pytest.mark.parametrize(
    ("model", "loader", "context", "reason"),
    [
        (hooked, images, None, "hooks"),
        (lambda: nn.Sequential(nn.Flatten(), Own(64, 10)), images, None, "computes in Python"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout()), images, None, "Dropout"),
        (lambda: network().bfloat16(), images, None, "float32"),
        (network, lambda: images(shuffle=True), None, "shuffled"),
        (network, lambda: images(augment=True), None, "augmented"),
        (network, lambda: [*images()], None, "memory"),
        (network, lambda: with_images(lambda pixels: pixels.transpose(2, 3)), None, "no longer"),
        (network, lambda: with_images(Tensor.float), None, "no longer"),
        (network, lambda: images(shape=(1, 8, 9)), None, "do not fit"),
        (network, images, Watch, "a mode"),
        (network, images, lambda: torch.autocast("cpu"), "float32"),
    ],
)
def test_what_native_code_cannot_compute_is_the_networks(
    model: Any, loader: Any, context: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, data = model(), loader()

    def not_to_be_called(*given: Any) -> None:
        raise AssertionError("native outputs")

    monkeypatch.setattr(sys.modules["lth_fast.train.evaluate"], "native_outputs", not_to_be_called)
    with contextlib.nullcontext() if context is None else context():
        assert reason in (native_outputs_refusal(made, data) or "")
        with contextlib.suppress(RuntimeError, ValueError):  # what does not fit or mixes dtypes is the network's error
            evaluate(made, cross_entropy, data)


def test_the_native_class_reads_no_image_that_is_not_there() -> None:
    loader = images()
    made = torch.classes.lth_fast.LinearNetwork(loader.images, loader.labels, loader.pixel_mean, loader.pixel_gain, 5)
    with pytest.raises(ValueError, match=r"LinearNetwork: expected layers before outputs\(\)"):
        made.outputs(0, 5)
    for first, count in [(-1, 5), (0, -1), (3, 0), (0, 24), (20, 4), (24, 1), (2**63 - 1, 2**63 - 1)]:
        with pytest.raises(IndexError, match=r"first and count must be one or more images in 0\.\.22, got"):
            made.outputs(first, count)
