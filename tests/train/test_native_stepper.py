"""Steps in native code are the eager ones, bit for bit, or are not taken."""

from __future__ import annotations

import copy
import random
import re
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizers
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lth_fast import models, optim
from lth_fast.data import ResidentLoader
from lth_fast.nn import MaskedLinear, convert, set_masks
from lth_fast.ops import sparse_pattern
from lth_fast.prune import prunable
from lth_fast.train import EagerStepper, LoaderBatches, NativeStepper, ResidentBatches, evaluate
from lth_fast.train.choice import native_refusal as refusal_by_trial
from lth_fast.train.linear_chain import linear_chain
from lth_fast.train.native_refusal import native_refusal
from lth_fast.train.schedule import StepSchedule

CPU = torch.device("cpu")
STEPS = 23
OPTIMIZERS = {
    "adam": lambda parameters: optim.Adam(parameters, lr=0.01),
    "amsgrad": lambda parameters: optim.Adam(parameters, lr=0.01, amsgrad=True, weight_decay=0.01, betas=(0.8, 0.95)),
    "adamw": lambda parameters: optim.AdamW(parameters, lr=0.01, eps=1e-6),
    "sgd": lambda parameters: optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "dampening": lambda parameters: optim.SGD(parameters, lr=0.05, momentum=0.5, dampening=0.3),
}
CHANGED_DATA = "images, labels, mean or gain are no longer as the loader made them"
REASON_OF_SHAPES = "the layers do not fit images or each other"
SCHEDULE = StepSchedule(warmup=4, milestones=(9,))


def loader(augment: bool = False, channels: int = 1, kind: type[ResidentLoader] = ResidentLoader) -> ResidentLoader:
    """23 images in batches of 5: the last batch of an epoch has 3."""
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(10, (23,), generator=draw)
    images = torch.randint(0, 100, (23, channels, 8, 8), generator=draw) + 15 * labels.view(-1, 1, 1, 1)
    return kind(
        images.to(torch.uint8),
        labels,
        name="toy",
        classes=10,
        mean=(0.4, 0.3, 0.5)[:channels],
        std=(0.3, 0.2, 0.4)[:channels],
        batch_size=5,
        shuffle=True,
        augment=augment,
    )


def batches_of(data: Any = None, iteration: int = 0) -> ResidentBatches:
    batches = ResidentBatches(data or loader(), lambda epoch: 7 + epoch, lambda epoch: 100 + epoch)
    batches.start(iteration)
    return batches


def network(form: str = "masked", density: float = 0.4, channels: int = 1, bias: bool = True) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(64 * channels, 33, bias=bias), nn.ReLU()),
        nn.Identity(),
        nn.Linear(33, 20),
        nn.Linear(20, 17, bias=bias),
        nn.ReLU(),
        nn.Linear(17, 10),
    )
    masks = {name: torch.rand(layer.weight.shape) < density for name, layer in prunable(model).items()}
    if form == "mixed":  # the first layer masked, the last one plain
        masks.pop("6.weight")
        return convert(model, masks, form={"1.0.weight": "masked", "3.weight": "sparse", "4.weight": "sparse"})
    return model if form == "dense" else convert(model, masks, form=form)


def stepper(
    kind: type[EagerStepper],
    model: nn.Module | None = None,
    optimizer: str = "adam",
    iteration: int = 0,
    data: Any = None,
    **options: Any,
) -> EagerStepper:
    model = network() if model is None else model
    made = OPTIMIZERS[optimizer](model.parameters())
    return kind(model, made, nn.CrossEntropyLoss(), batches_of(data, iteration), iteration, **options)


def assert_same(one: EagerStepper, other: EagerStepper) -> None:
    """Both have the same weights, optimizer state, learning rate and next batch."""
    for (name, a), b in zip(one.model.state_dict().items(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    a_state, b_state = one.optimizer.state_dict(), other.optimizer.state_dict()
    assert a_state["param_groups"] == b_state["param_groups"]
    assert a_state["state"].keys() == b_state["state"].keys()
    for number, values in a_state["state"].items():
        assert values.keys() == b_state["state"][number].keys()
        for name, value in values.items():
            assert torch.equal(value, b_state["state"][number][name]), (number, name)
    assert one.iteration == other.iteration
    for a, b in zip(one.batches.next(), other.batches.next(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("schedule", [None, SCHEDULE], ids=["constant", "scheduled"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("form", ["dense", "masked", "sparse", "mixed"])
def test_steps_are_the_eager_ones_bit_for_bit(form: str, optimizer: str, schedule: Any) -> None:
    eager, native = (
        stepper(kind, network(form), optimizer, schedule=schedule) for kind in (EagerStepper, NativeStepper)
    )
    expected = eager.advance(STEPS)
    losses = native.advance(STEPS)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, expected)
    assert expected[-5:].mean() < expected[:5].mean()
    assert_same(native, eager)


@pytest.mark.parametrize("density", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_any_number_of_survivors(form: str, density: float) -> None:
    eager, native = (stepper(kind, network(form, density)) for kind in (EagerStepper, NativeStepper))
    assert torch.equal(native.advance(STEPS), eager.advance(STEPS))
    assert_same(native, eager)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_layers_without_bias_and_images_of_several_channels(form: str) -> None:
    steppers = [
        stepper(kind, network(form, channels=3, bias=False), data=loader(channels=3))
        for kind in (EagerStepper, NativeStepper)
    ]
    expected, losses = (each.advance(STEPS) for each in steppers)
    assert torch.equal(losses, expected)
    assert_same(*steppers)


@pytest.mark.parametrize("net", ["lenet", "lenet:40", "lenet:20-30-40"])
def test_the_fully_connected_networks_of_the_package(net: str) -> None:
    made = []
    for kind in (EagerStepper, NativeStepper):
        model = models.build(net, (1, 8, 8), generator=torch.Generator().manual_seed(2))
        made.append(
            stepper(
                kind,
                set_masks(
                    model, {name: torch.eye(*layer.weight.shape).bool() for name, layer in prunable(model).items()}
                ),
            )
        )
    assert torch.equal(made[0].advance(STEPS), made[1].advance(STEPS))
    assert_same(*made)


@pytest.mark.parametrize("case", range(4))
def test_how_many_steps_are_taken_at_a_time_changes_no_bit(case: int) -> None:
    sizes = random.Random(case).choices(range(9), k=12)
    eager = stepper(EagerStepper, schedule=SCHEDULE)
    native = stepper(NativeStepper, schedule=SCHEDULE)
    losses = torch.cat([native.advance(size) for size in sizes])
    assert torch.equal(losses, eager.advance(sum(sizes)))
    assert_same(native, eager)


@pytest.mark.parametrize("first", [1, 3, 5, 12])
@pytest.mark.parametrize("kinds", [(NativeStepper, EagerStepper), (EagerStepper, NativeStepper)], ids=["to", "from"])
def test_one_goes_on_where_the_other_stopped(kinds: tuple[type[EagerStepper], type[EagerStepper]], first: int) -> None:
    whole = stepper(EagerStepper, network("sparse"), "momentum", schedule=SCHEDULE)
    expected = whole.advance(first + STEPS)

    begun = stepper(kinds[0], network("sparse"), "momentum", schedule=SCHEDULE)
    losses = begun.advance(first)
    state = copy.deepcopy(begun.optimizer.state_dict())
    ended = stepper(kinds[1], copy.deepcopy(begun.model), "momentum", first, schedule=SCHEDULE)
    ended.optimizer.load_state_dict(state)
    assert torch.equal(torch.cat([losses, ended.advance(STEPS)]), expected)
    assert_same(ended, whole)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pruned_weights_and_all_that_the_optimizer_keeps_for_them_stay_zero(optimizer: str) -> None:
    native = stepper(NativeStepper, network("masked"), optimizer)
    for _ in range(5):
        native.advance(3)
        for layer in (module for module in native.model.modules() if isinstance(module, MaskedLinear)):
            weight = layer.weight
            kept = [value for value in native.optimizer.state[weight].values() if value.shape == weight.shape]
            assert all(not value[~layer.mask].any() for value in [weight, *kept])


def test_what_is_written_between_two_calls_is_masked_before_the_next_step() -> None:
    steppers = [stepper(kind, network("masked")) for kind in (EagerStepper, NativeStepper)]
    for each in steppers:
        each.advance(2)
        with torch.no_grad():
            each.model[3].weight.fill_(0.125)
    assert torch.equal(steppers[0].advance(STEPS), steppers[1].advance(STEPS))
    assert_same(*steppers)


def hook_a_layer(native: EagerStepper) -> None:
    native.model[3].register_forward_hook(lambda layer, inputs, output: output * 2)


def hook_a_parameter(native: EagerStepper) -> None:
    native.model[3].weight.register_hook(lambda gradient: gradient * 2)


def freeze(native: EagerStepper) -> None:
    native.model[3].weight.requires_grad_(False)


def add_a_group(native: EagerStepper) -> None:
    native.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.5})


def smooth_labels(native: EagerStepper) -> None:
    native.criterion.label_smoothing = 0.1  # type: ignore[attr-defined]


def put_in_another_layer(native: EagerStepper) -> None:
    native.model[2] = nn.Tanh()  # type: ignore[operator]


def augment(native: EagerStepper) -> None:
    native.batches.loader.augment = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "change",
    [hook_a_layer, hook_a_parameter, freeze, add_a_group, smooth_labels, put_in_another_layer, augment],
)
@pytest.mark.parametrize("first", [0, 2])
def test_what_is_changed_later_is_followed_by_eager_steps(change: Any, first: int) -> None:
    steppers = [stepper(kind, network("dense")) for kind in (EagerStepper, NativeStepper)]
    for each in steppers:
        each.advance(first)
        change(each)
    assert native_refusal(steppers[1]) is not None
    assert torch.equal(steppers[0].advance(STEPS), steppers[1].advance(STEPS))
    assert_same(*steppers)


def test_autocast_is_followed_by_eager_steps() -> None:
    steppers = [stepper(kind) for kind in (EagerStepper, NativeStepper)]
    losses = []
    for each in steppers:
        before = each.advance(2)
        with torch.autocast("cpu"):
            within = each.advance(2)
        losses.append(torch.cat([before, within, each.advance(2)]))
    assert torch.equal(*losses)
    assert_same(*steppers)


@pytest.mark.parametrize(
    ("optimizer", "name", "value"),
    [
        ("adam", "step", lambda step: step.long()),
        ("adam", "step", lambda step: step.double()),
        ("adam", "step", int),
        ("momentum", "momentum_buffer", lambda buffer: None),
        ("momentum", "momentum_buffer", lambda buffer: torch.zeros(()).expand(buffer.shape)),
        ("adam", None, None),
        ("momentum", None, None),
    ],
)
@pytest.mark.parametrize("of", ["all", "one"])
def test_a_state_of_another_form_may_be_loaded_at_any_time(optimizer: str, name: Any, value: Any, of: str) -> None:
    steppers = [stepper(kind, optimizer=optimizer) for kind in (EagerStepper, NativeStepper)]
    for each in steppers:
        each.advance(3)
        state = copy.deepcopy(each.optimizer.state_dict())
        for number in list(state["state"]) if of == "all" else [2]:
            if name is None:
                del state["state"][number]
            else:
                state["state"][number][name] = value(state["state"][number][name])
        each.optimizer.load_state_dict(state)
    assert torch.equal(steppers[0].advance(STEPS), steppers[1].advance(STEPS))
    assert_same(*steppers)


def test_a_pattern_that_was_written_to_is_an_error() -> None:
    native = stepper(NativeStepper, network("sparse"))
    native.advance(2)
    native.model[3].columns.add_(1)
    native.model[3].row_starts.add_(1)
    with pytest.raises(RuntimeError, match="expected the pattern that its mask has"):
        native.advance(1)


def test_layers_need_not_look_at_their_masks_behind_the_steps(own_operators_of) -> None:
    native = stepper(NativeStepper, network("masked"))
    native.advance(7)
    assert "masked_apply_" not in own_operators_of(lambda: evaluate(native.model, nn.CrossEntropyLoss(), loader()))


def test_no_gradient_and_no_graph_is_left() -> None:
    native = stepper(NativeStepper)
    losses = native.advance(STEPS)
    assert not losses.requires_grad
    assert all(parameter.grad is None and parameter.is_leaf for parameter in native.model.parameters())


def test_the_model_is_put_into_training_mode() -> None:
    native = stepper(NativeStepper, network().eval())
    native.advance(1)
    assert native.model.training


def test_no_random_number_is_drawn() -> None:
    native = stepper(NativeStepper)
    before = torch.get_rng_state()
    native.advance(STEPS)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_bits_of_sparse_layers_do_not_depend_on_the_threads() -> None:
    losses = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        losses.append(stepper(NativeStepper, network("sparse")).advance(STEPS))
    assert torch.equal(*losses)


# ---- what it does not take ----


class OwnForward(nn.Sequential):
    def forward(self, input: Any) -> Any:
        return super().forward(input) * 2


class OwnLinear(nn.Linear):
    pass


class OwnAdam(optim.Adam):
    pass


class OwnLoader(ResidentLoader):
    pass


def with_hook(model: nn.Module) -> nn.Module:
    model[3].register_forward_hook(lambda *given: None)
    return model


def with_parameter_hook(model: nn.Module) -> nn.Module:
    model[3].weight.register_hook(lambda gradient: gradient * 2)
    return model


def with_forward(model: nn.Module) -> nn.Module:
    model[3].forward = model[3].forward  # type: ignore[method-assign]
    return model


def frozen(model: nn.Module) -> nn.Module:
    model[6].bias.requires_grad_(False)
    return model


def tied(model: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), model, nn.ReLU(), model)


def layers(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), *between, nn.Linear(12, 10))


def without_a_layer(model: nn.Module) -> nn.Module:
    model.register_module("none", None)
    return model


def in_rows(model: nn.Module) -> nn.Module:
    model[1].weight = nn.Parameter(model[1].weight.detach().to_sparse_csr())
    return model


def with_a_conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (with_a_conv, "the network has a Conv2d where a linear layer is expected"),
        (lambda: models.build("conv2", (3, 32, 32)), "the network has a Conv where a linear layer is expected"),
        (lambda: models.build("lenet", (1, 8, 8), dropout=0.5), "the network has a Dropout where"),
        (lambda: layers(nn.Dropout(0.5)), "the network has a Dropout where a linear layer is expected"),
        (lambda: layers(nn.Tanh()), "the network has a Tanh where a linear layer is expected"),
        (lambda: layers(nn.ReLU(), nn.ReLU()), "the network has a ReLU where a linear layer is expected"),
        (lambda: nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(64, 10)), "the network has a ReLU where"),
        (lambda: layers(nn.CrossEntropyLoss()), "the network has a CrossEntropyLoss where a linear layer is expected"),
        (lambda: without_a_layer(layers()), "a Sequential has a place without a layer"),
        (lambda: in_rows(layers()), "some parameters have a memory order of their own"),
        (lambda: nn.Sequential(nn.Linear(8, 10), nn.Flatten()), "no Flatten stands before the Linear"),
        (lambda: nn.Sequential(nn.Flatten(0), nn.Linear(64, 10)), r"the network has a Flatten\(start_dim=0"),
        (lambda: nn.Sequential(nn.Flatten(), OwnLinear(64, 10)), "a OwnLinear computes in Python"),
        (lambda: OwnForward(nn.Flatten(), nn.Linear(64, 10)), "a OwnForward computes in Python"),
        (lambda: with_hook(network()), "a MaskedLinear has hooks"),
        (lambda: with_forward(network()), "a MaskedLinear has a forward of its own"),
        (lambda: with_parameter_hook(network()), "some parameters have hooks"),
        (lambda: frozen(network()), "some parameters are frozen"),
        (lambda: layers().double(), "parameters are not plain float32 ones on the CPU"),
        (lambda: tied(nn.Linear(64, 64)), "layers share a parameter"),
        (
            lambda: set_masks(layers(), {"1.bias": torch.arange(12) < 6}),
            "a ParametrizedLinear computes in Python",
        ),
    ],
)
def test_networks_that_it_cannot_train_have_a_reason(model: Any, reason: str) -> None:
    assert re.match(reason, native_refusal(stepper(EagerStepper, model(), "sgd")) or "none")
    with pytest.raises(ValueError, match=f"native steps: {reason}"):
        stepper(NativeStepper, model(), "sgd")


def groups(parameters: Any) -> torch.optim.Optimizer:
    first, *others = parameters
    return optim.SGD([{"params": [first], "lr": 0.5}, {"params": others}], lr=0.1)


def hooked(parameters: Any) -> torch.optim.Optimizer:
    optimizer = optim.SGD(parameters, lr=0.1)
    optimizer.register_step_post_hook(lambda *given: None)
    return optimizer


def twice(parameters: Any) -> torch.optim.Optimizer:
    first, *others = parameters
    return optim.SGD([first, *others, first], lr=0.1)


def with_step_of_its_own(name: str) -> Any:
    def make(parameters: Any) -> torch.optim.Optimizer:
        optimizer = optim.SGD(parameters, lr=0.1)
        setattr(optimizer, name, getattr(optimizer, name))
        return optimizer

    return make


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda parameters: torch.optim.Adam(parameters), "torch's Adam has no native step"),
        (lambda parameters: OwnAdam(parameters), ".*'s OwnAdam has no native step"),
        (groups, "the optimizer has 2 groups of parameters"),
        (hooked, "the optimizer has hooks"),
        (lambda parameters: optim.SGD([*parameters][1:], lr=0.1), "the optimizer does not hold all parameters"),
        (twice, "the optimizer does not hold all parameters, each of them once"),
        (with_step_of_its_own("step"), "the optimizer has hooks"),
        (with_step_of_its_own("zero_grad"), "the optimizer has hooks"),
        (lambda parameters: optim.SGD(parameters, lr=torch.tensor(0.1)), "the learning rate is a tensor"),
    ],
)
def test_optimizers_that_it_cannot_step_have_a_reason(make: Any, reason: str) -> None:
    model = network()
    eager = EagerStepper(model, make(model.parameters()), nn.CrossEntropyLoss(), batches_of())
    assert re.match(reason, native_refusal(eager) or "none")


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.ones(10)),
        nn.CrossEntropyLoss(ignore_index=3),
        nn.NLLLoss(),
        lambda outputs, labels: nn.functional.cross_entropy(outputs, labels),
    ],
)
def test_other_losses_have_a_reason(criterion: Any) -> None:
    model = network()
    eager = EagerStepper(model, optim.SGD(model.parameters(), lr=0.1), criterion, batches_of())
    assert native_refusal(eager) == "the loss is not plain cross-entropy"


def test_the_loss_as_a_function_is_that_of_the_module() -> None:
    models_ = [network(), network()]
    eager, native = (
        kind(model, optim.SGD(model.parameters(), lr=0.1), nn.functional.cross_entropy, batches_of())
        for kind, model in zip((EagerStepper, NativeStepper), models_, strict=True)
    )
    assert torch.equal(native.advance(STEPS), eager.advance(STEPS))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (loader(augment=True), "the data is augmented"),
        (loader(kind=OwnLoader), "the data does not lie in memory"),
    ],
)
def test_other_data_has_a_reason(data: Any, reason: str) -> None:
    assert native_refusal(stepper(EagerStepper, data=data)) == reason


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("batch", lambda batch: batch, "the data has methods of its own"),
        ("images", lambda images: images.transpose(2, 3), CHANGED_DATA),
        ("images", lambda images: images.float(), CHANGED_DATA),
        ("images", lambda images: images.flatten(1), CHANGED_DATA),
        ("labels", lambda labels: nn.functional.one_hot(labels, 10).float(), CHANGED_DATA),
        ("pixel_mean", lambda mean: mean.double(), CHANGED_DATA),
        ("pixel_mean", lambda mean: mean.expand(1, 8, 8), CHANGED_DATA),
        ("pixel_gain", lambda gain: gain.view(()), CHANGED_DATA),
    ],
)
def test_a_loader_that_was_changed_has_a_reason(name: str, change: Any, reason: str) -> None:
    data = loader()
    setattr(data, name, change(getattr(data, name)))
    assert native_refusal(stepper(EagerStepper, data=data)) == reason


@pytest.mark.parametrize("size", [23, 24, sys.maxsize, 10**30])
def test_a_batch_may_be_all_images_and_more(size: int) -> None:
    data = loader()
    data.batch_size = size
    eager, native = (stepper(kind, data=data) for kind in (EagerStepper, NativeStepper))
    assert torch.equal(native.advance(STEPS), eager.advance(STEPS))
    assert_same(native, eager)


@pytest.mark.parametrize("images", [5, 6, 1])
@pytest.mark.parametrize("form", ["dense", "masked", "sparse"])
def test_a_layer_of_one_input_has_the_same_bits_in_a_batch_of_one_image_too(form: str, images: int) -> None:
    whole = loader()
    losses = []
    for kind in (EagerStepper, NativeStepper):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Linear(1, 100), nn.ReLU(), nn.Linear(100, 10))
        if form != "dense":
            masks = {name: torch.rand(layer.weight.shape) < 0.9 for name, layer in prunable(model).items()}
            model = convert(model, masks, form=form)
        data = copy.copy(whole)
        data.images, data.labels = whole.images[:images], whole.labels[:images]
        losses.append(stepper(kind, model, data=data).advance(STEPS))
    assert torch.equal(*losses)


def test_a_data_loader_has_a_reason() -> None:
    model = network()
    batches = LoaderBatches([(torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))], lambda epoch: epoch, CPU)
    eager = EagerStepper(model, optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), batches)
    assert native_refusal(eager) == "the data does not lie in memory"


def other_values(model: nn.Module) -> nn.Module:
    model[3].values = nn.Parameter(torch.zeros(3))
    return model


def other_bias(model: nn.Module) -> nn.Module:
    model[3].bias = nn.Parameter(torch.zeros(3))
    return model


@pytest.mark.parametrize(
    ("form", "change"),
    [("dense", other_bias), ("masked", other_bias), ("sparse", other_bias), ("sparse", other_values)],
)
def test_parameters_that_do_not_fit_have_a_reason(form: str, change: Any) -> None:
    assert native_refusal(stepper(EagerStepper, change(network(form)))) == REASON_OF_SHAPES


@pytest.mark.parametrize("form", ["dense", "masked", "sparse"])
def test_a_network_for_images_of_another_size_has_a_reason(form: str) -> None:
    # The kernels of a sparse layer would read behind the end of the images.
    assert native_refusal(stepper(EagerStepper, network(form, channels=3))) == REASON_OF_SHAPES
    assert native_refusal(stepper(EagerStepper, network(form), data=loader(channels=3))) == REASON_OF_SHAPES


def test_lower_precision_has_a_reason() -> None:
    assert native_refusal(stepper(EagerStepper, precision="bf16")) == "the precision is not float32"
    with torch.autocast("cpu"):
        assert native_refusal(stepper(EagerStepper)) == "the precision is not float32"


def test_hooks_of_everything_have_a_reason() -> None:
    eager = stepper(EagerStepper)
    handle = torch_modules.register_module_forward_hook(lambda *given: None)
    try:
        assert native_refusal(eager) == "there are hooks of all modules"
    finally:
        handle.remove()
    handle = torch_optimizers.register_optimizer_step_post_hook(lambda *given: None)
    try:
        assert native_refusal(eager) == "there are hooks of all optimizers"
    finally:
        handle.remove()
    assert native_refusal(eager) is None


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class WatchFunctions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (torch.no_grad, "gradients are switched off"),
        (torch.inference_mode, "gradients are switched off"),
        (torch.autograd.detect_anomaly, "anomalies are looked for"),
        (lambda: saved_tensors_hooks(lambda saved: saved, lambda saved: saved), "there are hooks of all saved tensors"),
        (Watch, "a mode or a transform follows every operation"),
        (WatchFunctions, "a mode or a transform follows every operation"),
        (forward_ad.dual_level, "a mode or a transform follows every operation"),
        (lambda: torch.device("cpu"), None),
    ],
)
def test_what_follows_every_operation_has_a_reason(context: Any, reason: str | None) -> None:
    eager = stepper(EagerStepper)
    with context():
        assert native_refusal(eager) == reason
    assert native_refusal(eager) is None


def test_the_chain_names_every_layer_and_whether_a_relu_follows() -> None:
    model = network()
    chain = linear_chain(model)
    assert [link.layer for link in chain] == [model[1][0], model[3], model[4], model[6]]
    assert [link.relu for link in chain] == [True, False, True, False]


def test_a_network_without_layers_is_no_chain() -> None:
    with pytest.raises(ValueError, match="the network has no linear layer"):
        linear_chain(nn.Sequential(nn.Flatten(), nn.Sequential()))


# ---- the trial ----


def test_where_steps_are_the_same_the_trial_finds_no_reason_and_leaves_no_trace_in_random_numbers() -> None:
    before = torch.get_rng_state()
    assert refusal_by_trial(CPU, network(), lambda kind: stepper(kind)) is None
    assert torch.equal(torch.get_rng_state(), before)


def test_other_losses_in_the_trial_are_a_reason() -> None:
    def trial(kind: Any) -> Any:
        return stepper(kind, network(density=0.4 if kind is EagerStepper else 0.5))

    assert (refusal_by_trial(CPU, network(), trial) or "none").startswith("native steps have other losses (")


def test_another_device_or_network_is_a_reason_before_anything_is_tried() -> None:
    def trial(kind: Any) -> Any:
        raise AssertionError("made a stepper")

    assert refusal_by_trial(torch.device("cuda"), network(), trial) == "the training is on cuda"
    assert refusal_by_trial(CPU, with_a_conv(), trial) == "the network has a Conv2d where a linear layer is expected"


# ---- the native class by itself, which trusts little of what it is given ----


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda trainer: trainer.add_layer("other", torch.zeros(2, 4), None, [], False), "form must be dense, masked"),
        (lambda trainer: trainer.add_layer("sparse", torch.zeros(2), None, [], False), "pattern must hold 7 tensors"),
        (lambda trainer: trainer.advance(torch.tensor([0]), [0.1]), "expected layers and an optimizer before advance"),
        (lambda trainer: trainer.advance(torch.tensor([0, 1, 0]), [0.1]), "order must hold the images of 1 batches"),
    ],
)
def test_the_native_class_names_what_is_wrong(use: Any, message: str) -> None:
    images, labels = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    trainer = torch.classes.lth_fast.LinearNetwork(images, labels, torch.zeros(1), torch.ones(1), 2)
    with pytest.raises(ValueError, match=f"LinearNetwork: {message}"):
        use(trainer)


@pytest.mark.parametrize(
    ("layers_", "message"),
    [
        ([("dense", torch.zeros(3, 5), None, [])], "the layer must take 4 features, it takes 5"),
        ([("masked", torch.zeros(3, 4), None, []), ("dense", torch.zeros(2, 4), None, [])], "must take 3 features"),
        ([("dense", torch.zeros(12), None, [])], r"weight must have 2 dimensions \[out_features, in_features\]"),
        ([("dense", torch.zeros(3, 4).double(), None, [])], "weight must be float32 on the CPU, got Double"),
        (
            [("dense", torch.zeros(3, 4, device="meta"), None, [])],
            "weight must be float32 on the CPU, got Float on meta",
        ),
        ([("masked", torch.zeros(3, 4), torch.zeros(4), [])], r"bias must have shape \[3\]"),
        ([("sparse", torch.zeros(5), None, [*sparse_pattern(torch.ones(3, 2).bool())])], "values|columns"),
        ([("sparse", torch.zeros(6), None, [*sparse_pattern(torch.ones(3, 2).bool())])], "must take 4 features, it ta"),
        ([("sparse", torch.zeros(4), torch.zeros(2), [*sparse_pattern(torch.eye(4).bool())])], "bias must have shape"),
    ],
)
def test_the_native_class_takes_no_layer_that_does_not_fit(layers_: Any, message: str) -> None:
    images, labels = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    trainer = torch.classes.lth_fast.LinearNetwork(images, labels, torch.zeros(1), torch.ones(1), 2)
    *fitting, last = layers_
    for layer in fitting:
        trainer.add_layer(*layer, False)
    with pytest.raises((ValueError, RuntimeError), match=message):
        trainer.add_layer(*last, False)


@pytest.mark.parametrize(
    ("order", "message"),
    [([0, 2], "indices must be in 0..1, got 2|out of range"), ([-1, 0], "indices must be in|out of")],
)
def test_the_native_class_reads_no_image_that_is_not_there(order: list[int], message: str) -> None:
    images, labels = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    trainer = torch.classes.lth_fast.LinearNetwork(images, labels, torch.zeros(1), torch.ones(1), 2**62)
    trainer.add_layer("dense", torch.zeros(3, 4), None, [], False)
    trainer.use_sgd([], [None], 0.0, 0.0, 0.0, False, False)
    with pytest.raises(IndexError, match=message):
        trainer.advance(torch.tensor(order), [0.1])


def test_no_steps_and_fewer_are_none() -> None:
    native = stepper(NativeStepper)
    for steps in (0, 3, 0):
        native.advance(steps)
    with pytest.raises(RuntimeError):
        native.advance(-2)
    assert native.iteration == 3


def test_a_batch_has_images() -> None:
    images, labels = torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        torch.classes.lth_fast.LinearNetwork(images, labels, torch.zeros(1), torch.ones(1), 0)


def test_a_training_that_diverges_has_the_same_bits_to_its_end() -> None:
    steppers = []
    for kind in (EagerStepper, NativeStepper):
        model = network("masked")
        steppers.append(kind(model, optim.SGD(model.parameters(), lr=1e20), nn.CrossEntropyLoss(), batches_of()))
    expected, losses = (each.advance(STEPS) for each in steppers)
    assert expected.isnan().any()
    assert torch.equal(losses.view(torch.int32), expected.view(torch.int32))
    for one, other in zip(steppers[0].model.parameters(), steppers[1].model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
