"""Replicates trained at once against each trained alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lth_fast import models
from lth_fast.data import ResidentLoader
from lth_fast.nn import masked_layers, masks, restore, set_masks
from lth_fast.prune import prunable, prune_all
from lth_fast.train import EagerStepper, OptimizerRecipe, ResidentBatches, Seeds, evaluate
from lth_fast.train.graph_stepper import capture
from lth_fast.train.replicate_stepper import ReplicateStepper
from lth_fast.train.schedule import StepSchedule
from lth_fast.train.stacking import (
    StackedLinear,
    criterion_refusal,
    cross_entropy,
    evaluate_stacked,
    stack,
    stacking_refusal,
)

REPLICATES, STEPS = 3, 50
OPTIMIZERS = {
    "adam": (1.2e-3, {}),
    "adamw": (1.2e-3, {"weight_decay": 0.01}),
    "sgd": (0.05, {"momentum": 0.9, "weight_decay": 1e-4}),
    "rmsprop": (1e-3, {}),
    "adagrad": (1e-2, {}),
}


def recipe_of(name, device="cpu"):
    """The fastest implementation on ``device``."""
    rate, settings = OPTIMIZERS[name]
    return OptimizerRecipe.named(name, rate, torch.device(device), **settings)


def loader(device="cpu"):
    """53 images in batches of 10: the last batch of an epoch has 3."""
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(10, (53,), generator=draw)
    images = torch.randint(0, 100, (53, 1, 8, 8), generator=draw) + 15 * labels.view(-1, 1, 1, 1)
    return ResidentLoader(
        images.to(torch.uint8),
        labels,
        name="toy",
        classes=10,
        mean=(0.4,),
        std=(0.3,),
        batch_size=10,
        shuffle=True,
        augment=True,
    ).to(device)


def batches_of(data, replicate, iteration=0):
    seeds = Seeds(7)
    batches = ResidentBatches(
        data,
        lambda epoch: seeds.stream("order", replicate, 0, epoch),
        lambda epoch: seeds.stream("noise", replicate, 0, epoch + 1),
    )
    batches.start(iteration)
    return batches


def networks(density, device="cpu", count=REPLICATES):
    found = []
    for replicate in range(count):
        draw = torch.Generator().manual_seed(100 + replicate)
        model = models.build("lenet:24-16", (1, 8, 8), generator=draw)
        kept = {
            name: torch.rand(layer.weight.shape, generator=draw) < density for name, layer in prunable(model).items()
        }
        if density == 1.0:
            kept.popitem()  # a plain layer among masked ones
        found.append(set_masks(model.to(device), kept))
    return found


def at_once(models, recipe, data, iteration=0, **options):
    batches = [batches_of(data, number) for number in range(len(models))]
    return ReplicateStepper(models, recipe.build, batches, iteration, **options)


def alone(model, recipe, data, replicate, iteration=0, **options):
    batches = batches_of(data, replicate, iteration)
    return EagerStepper(model, recipe.build(model), nn.CrossEntropyLoss(), batches, iteration, **options)


@pytest.mark.parametrize("density", [1.0, 0.5, 0.05])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_replicate_has_the_losses_and_weights_it_has_alone(name, density):
    data, recipe = loader(), recipe_of(name)
    together = networks(density)
    stepper = at_once(together, recipe, data)
    losses = stepper.advance(STEPS)
    assert losses.shape == (STEPS, REPLICATES)
    for replicate, single in enumerate(networks(density)):
        expected = alone(single, recipe, data, replicate).advance(STEPS)
        torch.testing.assert_close(losses[:, replicate], expected, rtol=1e-5, atol=1e-6)
        if density > 0.1:
            assert expected[-10:].mean() < expected[:10].mean()
        for (name, value), (_, other) in zip(
            together[replicate].state_dict().items(), single.state_dict().items(), strict=True
        ):
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_their_gradients_and_moments_are_zero_after_every_step(name):
    together = networks(0.3)
    stepper = at_once(together, recipe_of(name), loader())
    kept = {
        key: torch.stack([masked_layers(model)[key].mask for model in together]) for key in masked_layers(together[0])
    }
    for _ in range(6):
        stepper.advance(1)
        for key, parameter in stepper.model.named_parameters():
            if key in kept:
                state = stepper.optimizer.state[parameter].values()
                tensors = [value for value in state if torch.is_tensor(value) and value.shape == parameter.shape]
                for value in (parameter, parameter.grad, *tensors):
                    assert not value[~kept[key]].any()


def test_a_network_in_the_stack_is_pruned_as_one_of_the_same_weights_alone():
    together = networks(0.5)
    stepper = at_once(together, recipe_of("adam"), loader())
    stepper.advance(10)
    for replicate, alone in enumerate(networks(0.5)):
        alone.load_state_dict({name: value[replicate] for name, value in stepper.model.state_dict().items()})
        pruned, expected = masks(prune_all(together[replicate], 0.3)), masks(prune_all(alone, 0.3))
        assert pruned.keys() == expected.keys()
        for name, mask in expected.items():
            assert torch.equal(pruned[name], mask)
            assert mask.sum() < 0.8 * 0.5 * mask.numel() or name.endswith("fc3.weight")


def test_a_replicate_is_the_same_to_rounding_whatever_the_others_are():
    data, recipe = loader(), recipe_of("adam")
    three = at_once(networks(0.5), recipe, data).advance(STEPS)
    two = at_once(networks(0.5, count=2), recipe, data).advance(STEPS)
    torch.testing.assert_close(three[:, :2], two, rtol=1e-5, atol=1e-6)


def test_a_network_without_masks_among_masked_ones_trains_all_of_its_weights():
    def mixed():
        first, second, third = networks(0.5)
        return [first, restore(second), third]

    data, recipe = loader(), recipe_of("adam")
    losses = at_once(mixed(), recipe, data).advance(STEPS)
    for replicate, single in enumerate(mixed()):
        expected = alone(single, recipe, data, replicate).advance(STEPS)
        torch.testing.assert_close(losses[:, replicate], expected, rtol=1e-5, atol=1e-6)


def test_a_schedule_and_a_start_in_the_middle_are_each_replicates_own():
    data, recipe, schedule = loader(), recipe_of("sgd"), StepSchedule(warmup=6, milestones=(20,))
    losses = at_once(networks(0.5), recipe, data, iteration=3, schedule=schedule).advance(30)
    for replicate, single in enumerate(networks(0.5)):
        expected = alone(single, recipe, data, replicate, iteration=3, schedule=schedule).advance(30)
        torch.testing.assert_close(losses[:, replicate], expected, rtol=1e-5, atol=1e-6)


def test_the_networks_hold_the_weights_of_the_moment():
    together = networks(0.5)
    stepper = at_once(together, recipe_of("adam"), loader())
    for _ in range(3):
        stepper.advance(4)
        stacked = dict(stepper.model.named_parameters())
        for replicate, model in enumerate(together):
            for name, parameter in model.named_parameters():
                assert torch.equal(parameter, stacked[name][replicate])


def test_evaluation_at_once_is_the_evaluation_of_each():
    together, data = networks(0.5), loader()
    stacked = stack(together)
    data.augment = False
    found = evaluate_stacked(stacked, REPLICATES, data)
    for model, evaluation in zip(together, found, strict=True):
        expected = evaluate(model, nn.CrossEntropyLoss(), data)
        assert evaluation.loss == pytest.approx(expected.loss, rel=1e-6)
        assert evaluation.accuracy == expected.accuracy
    assert len({evaluation.loss for evaluation in found}) == REPLICATES
    assert all(value != value for evaluation in evaluate_stacked(stacked, 2, []) for value in evaluation)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", range(3))
def test_the_derivative_of_a_stacked_layer_is_that_of_its_layers(case, bias):
    draw = torch.Generator().manual_seed(case)
    layers = [nn.Linear(5, 4, bias=bias).double() for _ in range(3)]
    models = [set_masks(nn.Sequential(layer), {"0.weight": torch.rand(4, 5, generator=draw) < 0.6}) for layer in layers]
    inputs = torch.randn(3, 6, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    gain = torch.randn(3, 6, 4, generator=draw, dtype=torch.float64)
    references = copy.deepcopy(models)
    stacked = StackedLinear(layers)
    (stacked(inputs) * gain).sum().backward()
    for number, reference in enumerate(references):
        own = inputs.detach()[number].requires_grad_()
        (reference(own) * gain[number]).sum().backward()
        torch.testing.assert_close(inputs.grad[number], own.grad)
        torch.testing.assert_close(stacked.weight.grad[number], reference[0].weight.grad)
        if bias:
            torch.testing.assert_close(stacked.bias.grad[number], reference[0].bias.grad)


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_of_each_replicate_is_its_own_mean(seed):
    draw = torch.Generator().manual_seed(seed)
    outputs, labels = torch.randn(4, 7, 5, generator=draw), torch.randint(5, (4, 7), generator=draw)
    expected = [nn.functional.cross_entropy(*pair) for pair in zip(outputs, labels, strict=True)]
    torch.testing.assert_close(cross_entropy(outputs, labels), torch.stack(expected))


class Transposing(nn.Module):
    """Adds over the batch: with an axis of replicates in front it would add over those."""

    def __init__(self):
        super().__init__()
        self.flatten, self.layer = nn.Flatten(), nn.Linear(64, 10)

    def forward(self, images):
        outputs = self.layer(self.flatten(images))
        return outputs - outputs.sum(0, keepdim=True)


class Reshaping(Transposing):
    def forward(self, images):
        return self.layer(images.reshape(len(images), 64))


class Unpacking(Transposing):
    def forward(self, images):
        batch, channels, height, width = images.shape
        return self.layer(images.reshape(batch, channels * height * width))


class Insisting(Transposing):
    def forward(self, images):
        assert images.dim() == 4
        return self.layer(self.flatten(images))


def test_what_can_be_stacked_is_not_refused():
    inputs = torch.randn(4, 1, 8, 8)
    before = networks(0.5)[0]
    weights = copy.deepcopy(before.state_dict())
    assert stacking_refusal(before, inputs) is None
    assert all(torch.equal(value, weights[name]) for name, value in before.state_dict().items())
    assert stacking_refusal(nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False)), inputs) is None


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (lambda: models.build("lenet", (1, 8, 8), dropout=0.1), "classifier.dropout1 is a Dropout; it takes Flatten"),
        (lambda: models.build("conv2", (1, 8, 8)), "is a Conv2d; it takes Flatten, Linear and ReLU layers"),
        (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(64, 10)), "0 is a Flatten; it takes"),
        (Transposing, "Transposing computes something else with an axis of replicates"),
        (Reshaping, "Reshaping does not take an axis of replicates (shape"),
        (Unpacking, "Unpacking does not take an axis of replicates (too many values to unpack"),
        (Insisting, "Insisting does not take an axis of replicates ("),
    ],
)
def test_what_cannot_be_stacked_says_why(network, reason):
    assert reason in stacking_refusal(network(), torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)))


def test_only_plain_cross_entropy_has_a_loss_per_replicate():
    assert criterion_refusal(nn.CrossEntropyLoss()) is None
    for other in (nn.CrossEntropyLoss(label_smoothing=0.1), nn.CrossEntropyLoss(torch.ones(10)), nn.MSELoss(), max):
        assert criterion_refusal(other) == "the loss is not plain cross-entropy"


def test_what_it_cannot_train_is_refused_by_name():
    data, adam = loader(), recipe_of("adam")
    with pytest.raises(ValueError, match="batches: expected one for each of 3 networks, got 1"):
        ReplicateStepper(networks(0.5), adam.build, [batches_of(data, 0)])
    with pytest.raises(ValueError, match="make_optimizer: Adafactor does not treat every weight by itself"):
        at_once(networks(0.5), OptimizerRecipe.named("adafactor"), data)

    class Own(torch.optim.SGD):
        """Who knows what its step does."""

    with pytest.raises(ValueError, match="make_optimizer: Own does not treat every weight by itself"):
        at_once(networks(0.5), OptimizerRecipe(Own, {"lr": 0.1}), data)
    with pytest.raises(ValueError, match="precision: expected float32 or tf32, got 'bf16'"):
        at_once(networks(0.5), adam, data, precision="bf16")


@pytest.mark.gpu
@pytest.mark.parametrize("record", [None, capture], ids=["launched", "replayed"])
@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_on_a_gpu_each_replicate_has_the_losses_it_has_alone(name, record):
    device = torch.device("cuda")
    data, recipe, schedule = loader(device), recipe_of(name, device), StepSchedule(warmup=6, milestones=())
    stepper = at_once(networks(0.5, device, count=8), recipe, data, schedule=schedule, record=record)
    losses = stepper.advance(STEPS)
    assert len(stepper._recorded) == (0 if record is None else 2)
    for replicate, single in enumerate(networks(0.5, device, count=8)):
        expected = alone(single, recipe, data, replicate, schedule=schedule).advance(STEPS)
        torch.testing.assert_close(losses[:, replicate], expected, rtol=1e-3, atol=1e-5)
