"""The step that is recorded, called as the plain function it is (any device) and replayed as a CUDA graph (GPU)."""

from __future__ import annotations

import contextlib
import copy
import random

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.data import ResidentLoader
from lth_fast.nn import masked_layers, set_masks
from lth_fast.prune import prunable
from lth_fast.train import (
    EagerStepper,
    GraphStepper,
    LoaderBatches,
    OptimizerRecipe,
    ResidentBatches,
    Seeds,
    evaluate,
    own_random_state,
)
from lth_fast.train import static_stepper as static_module
from lth_fast.train.graph_stepper import capture, optimizer_refusal
from lth_fast.train.schedule import StepSchedule
from lth_fast.train.static_stepper import WARM_UP

STEPS = 23
# Learning rates that float32 holds exactly: on the device they are float32.
OPTIMIZERS = {
    "adam": ("adam", 2**-7, {}),
    "adamw": ("adamw", 2**-7, {"weight_decay": 0.01}),
    "sgd": ("sgd", 2**-5, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}),
    "rmsprop": ("rmsprop", 2**-8, {}),
    "nadam": ("nadam", 2**-8, {}),  # moves pruned weights: the layers' masks hold them at zero
}


def optimizer_of(model, name="adam"):
    """The fastest implementation on the model's device."""
    kind, rate, settings = OPTIMIZERS[name]
    return OptimizerRecipe.named(kind, rate, next(model.parameters()).device, **settings).build(model)


SCHEDULE = StepSchedule(warmup=4, milestones=())


def loader(device="cpu", augment=True):
    """23 images in batches of 5: the last batch of an epoch has 3."""
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(10, (23,), generator=draw)
    images = torch.randint(0, 100, (23, 1, 8, 8), generator=draw) + 15 * labels.view(-1, 1, 1, 1)
    return ResidentLoader(
        images.to(torch.uint8),
        labels,
        name="toy",
        classes=10,
        mean=(0.4,),
        std=(0.3,),
        batch_size=5,
        shuffle=True,
        augment=augment,
    ).to(device)


def batches_of(data, iteration=0):
    seeds = Seeds(7)
    batches = ResidentBatches(
        data, lambda epoch: seeds.stream("order", part=epoch), lambda epoch: seeds.stream("noise", part=epoch + 1)
    )
    batches.start(iteration)
    return batches


def network(density=0.5, device="cpu", net="lenet:32"):
    draw = torch.Generator().manual_seed(int(10 * density))
    model = models.build(net, (1, 8, 8), generator=draw)
    masks = {name: torch.rand(layer.weight.shape, generator=draw) < density for name, layer in prunable(model).items()}
    return set_masks(model.to(device), masks)


def as_it_is(step):
    """Takes the place of the recording: the step itself."""
    return step


def make(kind, optimizer="adam", model=None, iteration=0, data=None, state=None, **options):
    model = network() if model is None else model
    if kind is GraphStepper and next(model.parameters()).device.type == "cpu":
        options.setdefault("record", as_it_is)
    data = loader(next(model.parameters()).device) if data is None else data
    optimizer = optimizer_of(model, optimizer)
    if state is not None:  # before the stepper sees it, as the loop does it
        optimizer.load_state_dict(state)
    return kind(
        model,
        optimizer,
        nn.CrossEntropyLoss(),
        batches_of(data, iteration),
        iteration=iteration,
        **options,
    )


# NAdam multiplies its rate with other numbers, which float32 does not hold exactly.
@pytest.mark.parametrize(
    ("name", "schedule"), [*((name, None) for name in OPTIMIZERS), *((name, SCHEDULE) for name in [*OPTIMIZERS][:-1])]
)
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_the_recorded_function_takes_the_eager_steps_bit_for_bit(name, density, schedule):
    eager = make(EagerStepper, name, network(density), schedule=schedule)
    replayed = make(GraphStepper, name, network(density), schedule=schedule)
    expected = eager.advance(STEPS)
    assert torch.equal(replayed.advance(STEPS), expected)
    assert expected[-5:].mean() < expected[:5].mean()
    assert replayed.iteration == STEPS
    for layer in masked_layers(eager.model).values():
        layer.masked_weight()
    for (name, one), (_, other) in zip(
        replayed.model.state_dict().items(), eager.model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("net", ["conv2", "resnet20"])
def test_networks_with_convolutions_and_batch_norm_do_too(net):
    options = {"schedule": SCHEDULE, "precision": "bf16" if net == "conv2" else "float32"}
    runs = [make(kind, "sgd", network(net=net), **options) for kind in (EagerStepper, GraphStepper)]
    expected, found = (stepper.advance(7) for stepper in runs)
    assert torch.equal(found, expected)


def test_groups_have_rates_of_their_own_and_a_model_in_evaluation_mode_is_put_into_training_mode():
    losses = []
    for kind, options in ((EagerStepper, {}), (GraphStepper, {"record": as_it_is})):
        model = network(net="resnet20").eval()
        first, *others = model.parameters()
        optimizer = torch.optim.SGD([{"params": others}, {"params": [first], "lr": 2**-2}], lr=2**-6)
        batches = batches_of(loader())
        losses.append(kind(model, optimizer, nn.CrossEntropyLoss(), batches, schedule=SCHEDULE, **options).advance(7))
    assert torch.equal(*losses)


@pytest.mark.parametrize("case", range(3))
def test_how_many_steps_are_taken_at_a_time_changes_no_bit(case, monkeypatch):
    expected = make(GraphStepper).advance(30)
    monkeypatch.setattr(static_module, "LOG_STEPS", 4)
    stepper = make(GraphStepper)
    sizes = random.Random(case).choices(range(1, 9), k=12)
    assert torch.equal(torch.cat([stepper.advance(size) for size in sizes])[:30], expected[: sum(sizes)])


def test_each_batch_size_is_recorded_once_after_its_first_steps():
    recorded = []

    def record(step):
        recorded.append((step.args, stepper.iteration))
        return step

    stepper = make(GraphStepper, record=record)
    stepper.advance(40)
    # Steps 5, 10, 15, 20 take the three images that are left.
    assert recorded == [((5,), WARM_UP), ((3,), 5 * (WARM_UP + 1) - 1)]


@pytest.mark.parametrize("stop", [2, 5, 11])
@pytest.mark.parametrize("kind", [EagerStepper, GraphStepper])
def test_training_goes_on_from_a_checkpoint_to_the_same_bits(kind, stop):
    reference = make(kind, schedule=SCHEDULE)
    expected = reference.advance(20)[stop:]

    first = make(kind, schedule=SCHEDULE)
    first.advance(stop)
    weights, state = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.optimizer.state_dict())
    model = network()
    model.load_state_dict(weights)
    second = make(kind, model=model, iteration=stop, state=state, schedule=SCHEDULE)
    assert torch.equal(second.advance(20 - stop), expected)


def test_evaluating_in_between_changes_no_bit_and_sees_masked_weights():
    data = loader(augment=False)
    expected = make(GraphStepper, "nadam").advance(12)
    stepper = make(GraphStepper, "nadam")
    found = []
    for _ in range(4):
        found.append(stepper.advance(3))
        for layer in masked_layers(stepper.model).values():
            assert not layer.weight[~layer.mask].any()
        evaluate(stepper.model, nn.CrossEntropyLoss(), data)
    assert torch.equal(torch.cat(found), expected)


def test_a_data_loader_is_refused():
    model = network()
    batches = LoaderBatches([(torch.zeros(2, 1, 8, 8), torch.zeros(2))], lambda epoch: epoch, torch.device("cpu"))
    with pytest.raises(ValueError, match="batches: the data comes from a list, batch by batch"):
        GraphStepper(model, optimizer_of(model, "adam"), nn.CrossEntropyLoss(), batches)


def test_an_optimizer_that_may_count_its_steps_in_python_is_refused():
    class Own(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.1})

    parameters = list(network().parameters())
    assert optimizer_refusal(Own(parameters)) == "Own does not say that it is capturable"
    for name in OPTIMIZERS:
        assert optimizer_refusal(optimizer_of(network(), name)) is None
    assert optimizer_refusal(torch.optim.SGD(parameters)) is None


class PretendedCuda:
    """Streams by name, and recordings that fail as torch's do: on their own stream, with an error of their own."""

    def __init__(self, monkeypatch):
        self.current = "the caller's stream"
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "stream", self.stream)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)

    @contextlib.contextmanager
    def stream(self, name):
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def graph(self, graph, capture_error_mode):
        self.current = "the recording's stream"
        try:
            yield
        except RuntimeError:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904


def test_a_recording_that_fails_says_why_and_leaves_the_stream_it_was_on(monkeypatch):
    cuda = PretendedCuda(monkeypatch)

    def step():
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        capture(step)
    assert cuda.current == "the caller's stream"


# ---- on a GPU ----


@pytest.fixture
def on_gpu():
    with own_random_state(torch.device("cuda")):
        yield torch.device("cuda")


def gpu_run(kind, name, device, net="lenet:32", steps=STEPS, **options):
    torch.manual_seed(0)
    stepper = make(kind, name, network(device=device, net=net), **options)
    return stepper, stepper.advance(steps)


@pytest.mark.gpu
@pytest.mark.parametrize("schedule", [None, SCHEDULE], ids=["constant rate", "warm-up"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replayed_steps_have_the_eager_losses_to_rounding(name, schedule, on_gpu):
    _, expected = gpu_run(EagerStepper, name, on_gpu, schedule=schedule)
    stepper, losses = gpu_run(GraphStepper, name, on_gpu, schedule=schedule)
    assert set(stepper._recorded) == {5, 3}
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    for layer in masked_layers(stepper.model).values():
        assert not layer.weight[~layer.mask].any()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("net", ["conv2", "resnet20"])
def test_networks_with_convolutions_have_them_too_channels_last(net, precision, on_gpu):
    losses = {}
    # cuDNN may add in another order in every call, which ResNet-20 turns into 3 % of the loss within 12 steps.
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        for kind in (EagerStepper, GraphStepper):
            torch.manual_seed(0)
            model = network(net=net, device=on_gpu).to(memory_format=torch.channels_last)
            losses[kind] = make(kind, "sgd", model, precision=precision).advance(12)
    tolerance = 1e-3 if precision == "float32" else 5e-2
    torch.testing.assert_close(losses[GraphStepper], losses[EagerStepper], rtol=tolerance, atol=tolerance)


@pytest.mark.gpu
def test_dropout_draws_anew_in_every_replay_and_as_the_eager_steps_do(on_gpu):
    def run(kind):
        torch.manual_seed(5)
        draw = torch.Generator().manual_seed(0)
        model = models.build("lenet:32", (1, 8, 8), dropout=0.5, generator=draw).to(on_gpu)
        stepper = kind(
            model,
            torch.optim.SGD(model.parameters(), lr=2**-30, fused=True),
            nn.CrossEntropyLoss(),
            batches_of(loader(on_gpu, augment=False)),
        )
        return stepper.advance(STEPS)

    losses = run(GraphStepper)
    torch.testing.assert_close(losses, run(EagerStepper), rtol=1e-3, atol=1e-4)
    assert len(losses.unique()) == STEPS


@pytest.mark.gpu
@pytest.mark.parametrize("stop", [2, 11])
def test_a_resumed_graph_has_the_same_losses_to_rounding_and_evaluation_does_not_disturb_it(stop, on_gpu):
    _, expected = gpu_run(GraphStepper, "adam", on_gpu, steps=20, schedule=SCHEDULE)
    first, _ = gpu_run(GraphStepper, "adam", on_gpu, steps=stop, schedule=SCHEDULE)
    second = make(GraphStepper, "adam", network(device=on_gpu), schedule=SCHEDULE)
    second.model.load_state_dict(first.model.state_dict())
    saved = torch.utils._pytree.tree_map(
        lambda value: value.cpu() if torch.is_tensor(value) else value, first.optimizer.state_dict()
    )
    second.optimizer.load_state_dict(saved)
    second.iteration = stop
    losses = []
    while second.iteration < 20:
        losses.append(second.advance(1))
        evaluate(second.model, nn.CrossEntropyLoss(), loader(on_gpu, augment=False))
    torch.testing.assert_close(torch.cat(losses), expected[stop:], rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
def test_a_model_that_waits_for_the_device_cannot_be_recorded(on_gpu):
    class Waiting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(64, 10)

        def forward(self, images):
            outputs = self.layer(images.flatten(1))
            return outputs * float(outputs.detach().abs().max().item() < 1e9)

    stream = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        make(GraphStepper, model=Waiting().to(on_gpu)).advance(WARM_UP + 1)
    assert torch.cuda.current_stream() == stream
    torch.cuda.synchronize()
    assert gpu_run(GraphStepper, "adam", on_gpu)[1].isfinite().all()  # the device goes on working
