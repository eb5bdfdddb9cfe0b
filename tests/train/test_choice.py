from __future__ import annotations

import pytest
import torch
from torch import nn

from lth_fast.train import EagerStepper, GraphStepper, LoaderBatches, OptimizerRecipe
from lth_fast.train.choice import StepperChoice, choose_stepper, graph_refusal, replay_refusal

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def constant(loss):
    return lambda steps: torch.full((steps,), loss)


def eager_stepper(optimizer="adam"):
    model = nn.Linear(3, 2)
    batches = LoaderBatches([(torch.zeros(1, 3), torch.zeros(1, dtype=torch.int64))], lambda epoch: epoch, CPU)
    return EagerStepper(model, OptimizerRecipe.named(optimizer).build(model), nn.CrossEntropyLoss(), batches)


def test_the_first_candidate_that_can_run_runs_and_the_faster_ones_say_why_they_do_not():
    asked = []

    def check(name, reason):
        return lambda: asked.append(name) or reason

    choice = choose_stepper({"a": check("a", "too new"), "b": check("b", None), "c": check("c", None)})
    assert choice == StepperChoice("b", {"a": "too new"})
    assert asked == ["a", "b"]
    assert str(choice) == "b; a not used: too new"


def test_eager_steps_are_always_left():
    assert choose_stepper({}) == StepperChoice("eager")
    assert str(choose_stepper({"a": lambda: "no", "b": lambda: "never"})) == "eager; a not used: no; b not used: never"


def test_replayed_steps_draw_the_numbers_that_the_eager_ones_drew():
    assert replay_refusal(torch.rand, torch.rand, CPU) is None


def test_on_the_cpu_nothing_is_tried():
    def trial(kind):
        raise AssertionError("made a stepper")

    assert graph_refusal(CPU, trial) == "the training is on the CPU"


def test_a_data_loader_is_a_reason():
    assert graph_refusal(GPU, lambda kind: eager_stepper()) == "the data comes from a list, batch by batch"


@pytest.mark.parametrize("loss", [1.0, float("nan")])
def test_the_same_losses_are_no_reason(loss):
    assert replay_refusal(constant(loss), constant(loss), CPU) is None


def test_other_losses_are_a_reason():
    reason = replay_refusal(constant(2.0), constant(2.5), CPU)
    assert reason == "replayed steps have other losses (2.5, eager ones 2)"
    assert replay_refusal(constant(2.0), constant(float("nan")), CPU) is not None


def test_what_recording_raises_is_a_reason_in_its_own_words():
    def fail(steps):
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA_LAUNCH_BLOCKING=1 …")

    reason = replay_refusal(constant(1.0), fail, CPU)
    assert reason == "it cannot be recorded (operation not permitted when stream is capturing)"


def test_what_recording_raises_without_a_word_is_a_reason_by_its_name():
    def fail(steps):
        raise IndexError

    assert replay_refusal(constant(1.0), fail, CPU) == "it cannot be recorded (IndexError)"


def test_the_trial_leaves_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    replay_refusal(constant(1.0), constant(1.0), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_names_differ():
    assert len({EagerStepper.name, GraphStepper.name}) == 2
