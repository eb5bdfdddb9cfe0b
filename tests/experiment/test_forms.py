"""The forms of layers in the lottery loop: decided once, noted, replayed."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lth_fast import data, prune
from lth_fast.experiment.experiment import Loaders
from lth_fast.experiment.forms import obstacle, plan_source
from lth_fast.experiment.lottery import run_replicate
from lth_fast.experiment.progress import Monitor
from lth_fast.models import build
from lth_fast.nn import calibration
from lth_fast.nn.calibration import Times
from lth_fast.record import create_run
from lth_fast.train import OptimizerRecipe


@pytest.fixture
def fickle_times(monkeypatch, tmp_path):
    """Measurements that change their mind with every layer, and are not remembered."""
    winners = itertools.cycle((0.5, 2.0, 2.0))
    folders = itertools.count()
    monkeypatch.setenv("LTH_FAST_CACHE", str(tmp_path / "times"))

    def measure(*_):
        monkeypatch.setenv("LTH_FAST_CACHE", str(tmp_path / "times" / str(next(folders))))
        return Times(1.0, next(winners))

    monkeypatch.setattr(calibration, "_measure", measure)


def forms(run, level=1):
    return {name: entry["form"] for name, entry in run.plan(level).items()}


def losses(run, level=1):
    return torch.as_tensor(run.replicate(0).level(level).log.read()["train_loss"])


def test_the_plan_of_every_level_is_noted_with_its_reasons(make_experiment, new_run, fickle_times):
    run = new_run()
    run_replicate(make_experiment(), run.replicate(0), Monitor())
    assert set(forms(run, 0).values()) == {"dense"}
    assert len(set(forms(run, 1).values())) == 2
    assert "sparse takes 0.50 of masked's time" in {entry["reason"] for entry in run.plan(1).values()}


def test_an_interrupted_level_goes_on_with_the_forms_it_had(make_experiment, new_run, fickle_times, bits):
    class Interrupting(Monitor):
        def stepped(self, iteration, losses):
            if self.level == 1 and iteration == 7:
                raise KeyboardInterrupt

        def level_begins(self, level, *others):
            self.level = level

    run, reference = new_run(), new_run()
    experiment = make_experiment(checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        run_replicate(experiment, run.replicate(0), Interrupting())
    decided = run.plan(1)
    run_replicate(experiment, run.replicate(0), Monitor())
    assert run.plan(1) == decided
    reference.save_manifest({"plan": run.manifest()["plan"]})
    run_replicate(experiment, reference.replicate(0), Monitor())
    assert bits(run) == bits(reference)


def test_an_interrupted_level_that_has_diverged_goes_on_in_its_sparse_layers(make_experiment, new_run, bits):
    class Diverging(nn.CrossEntropyLoss):
        steps = 0

        def forward(self, outputs, labels):
            self.steps += outputs.requires_grad
            loss = super().forward(outputs, labels)
            return loss * float("nan") if outputs.requires_grad and self.steps == 18 else loss

    class Interrupting(Monitor):
        def stepped(self, iteration, losses):
            if losses.isnan().any() and iteration >= 10:
                raise KeyboardInterrupt

    run, reference = new_run(), new_run()
    settings = {"checkpoint_seconds": 0.0, "plan": "sparse", "rounds": 1}
    run_replicate(make_experiment(**settings, criterion=Diverging()), reference.replicate(0), Monitor())
    experiment = make_experiment(**settings, criterion=Diverging())
    with pytest.raises(KeyboardInterrupt):
        run_replicate(experiment, run.replicate(0), Interrupting())
    assert "sparse" in forms(run).values()
    run_replicate(experiment, run.replicate(0), Monitor())
    assert losses(run).isnan().any()
    assert bits(run) == bits(reference)


def test_all_replicates_share_the_plan(make_experiment, new_run, fickle_times):
    run = new_run()
    run_replicate(make_experiment(), run.replicate(0), Monitor())
    decided = run.manifest()["plan"]
    run_replicate(make_experiment(replicate=1), run.replicate(1), Monitor())
    assert run.manifest()["plan"] == decided


@pytest.mark.parametrize("keep_optimizer", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "adagrad"])
def test_masked_and_sparse_forms_agree(make_experiment, new_run, optimizer, keep_optimizer):
    recipe = OptimizerRecipe.named(optimizer, 0.01, momentum=0.9 if optimizer == "sgd" else 0.0)
    masked, sparse = new_run(), new_run()
    for plan, run in (("masked", masked), ("sparse", sparse)):
        experiment = make_experiment(optimizer=recipe, plan=plan, keep_optimizer=keep_optimizer)
        run_replicate(experiment, run.replicate(0), Monitor())
    assert "sparse" in forms(sparse).values()
    for level in (0, 1, 2):
        torch.testing.assert_close(losses(sparse, level), losses(masked, level), rtol=1e-4, atol=1e-6)


@pytest.mark.real_data
def test_losses_of_both_forms_agree_on_mnist_for_twenty_steps(make_experiment, new_run, data_root):
    splits = data.load_MNIST(data_root)
    found = []
    for plan in ("masked", "sparse"):
        run = new_run()
        experiment = make_experiment(
            model=build("lenet", splits.train.input_shape, 10, generator=torch.Generator().manual_seed(5)),
            loaders=Loaders(splits.train),
            optimizer=OptimizerRecipe.named("adam", 1.2e-3),
            prune_net=lambda net: prune.prune_all(net, 0.8),
            iterations=20,
            rounds=2,
            plan=plan,
        )
        run_replicate(experiment, run.replicate(0), Monitor())
        found.append(torch.stack([losses(run, level) for level in (1, 2)]))
    assert torch.isfinite(found[0]).all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=0)


def test_the_plan_of_another_run_never_drops_a_mask(make_experiment, new_run):
    """What was dense there, because nothing was pruned, has a mask here."""
    run = new_run()
    plan = {name: {"form": "dense"} for name in ("0.weight", "5.weight", "7.weight")}
    run.save_plan(1, plan)
    run_replicate(make_experiment(rounds=1), run.replicate(0), Monitor())
    level = run.replicate(0).level(1)
    end = level.weights("end")
    assert all((end[name][~mask] == 0).all() for name, mask in level.masks().items())


def test_a_layer_that_the_plan_has_sparse_is_plain_where_nothing_of_it_is_pruned(make_experiment, new_run):
    """As in a replicate whose threshold spares the layer."""
    run = new_run()
    run.save_plan(0, {"5.weight": {"form": "sparse"}})
    run_replicate(make_experiment(rounds=0), run.replicate(0), Monitor())
    assert run.replicate(0).level(0).complete


def test_a_plan_for_another_network_is_refused(make_experiment, new_run):
    run = new_run()
    run.save_plan(0, {"9.weight": {"form": "sparse"}})
    with pytest.raises(ValueError, match=r"plan of level 0: .* got '9.weight'"):
        run_replicate(make_experiment(), run.replicate(0), Monitor())


def test_layers_keep_their_storage_for_optimizers_that_look_at_shapes(make_experiment):
    class Own(torch.optim.SGD):
        pass

    assert obstacle(make_experiment()) is None
    assert "Own" in obstacle(make_experiment(optimizer=OptimizerRecipe(Own, {"lr": 0.1})))
    assert "bf16" in obstacle(make_experiment(precision="bf16"))


def test_a_user_may_read_weights_of_layers_that_turn_sparse(make_experiment, new_run):
    class Regularised(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.output = nn.Linear(36, 8), nn.Linear(8, 3)

        def forward(self, images):
            outputs = self.output(torch.relu(self.hidden(images.flatten(1))))
            return outputs + 0.01 * self.hidden.weight.square().mean()

    masked, sparse = new_run(), new_run()
    torch.manual_seed(0)
    model = Regularised()
    for plan, run in (("masked", masked), ("auto", sparse)):
        run_replicate(make_experiment(model=model, plan=plan), run.replicate(0), Monitor())
    torch.testing.assert_close(losses(sparse), losses(masked), rtol=1e-4, atol=1e-6)
    assert run.plan(1)["hidden.weight"]["reason"] == "its weight is read outside of its forward"


def test_a_plan_is_a_rule_or_a_run_that_has_one(make_experiment, new_run, tmp_path):
    run = new_run()
    run_replicate(make_experiment(), run.replicate(0), Monitor())
    for given in ("auto", "masked", "sparse", str(run.path), str(run.path / "meta.json")):
        assert plan_source(given) == given
    empty = create_run(tmp_path, "small", "noise")
    for given in (str(empty.path), str(tmp_path / "nothing"), "dense", ""):
        with pytest.raises(ValueError, match="auto, masked, sparse, or the folder of a run that holds a plan"):
            plan_source(given)


def test_a_plan_in_the_home_folder_is_named_absolutely(make_experiment, new_run, monkeypatch):
    run = new_run()
    run_replicate(make_experiment(), run.replicate(0), Monitor())
    monkeypatch.setenv("HOME", str(run.path.parent))
    assert plan_source(f"~/{run.path.name}") == str(run.path)


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        ([1], "plan: expected level, parameter name, form"),
        ({"1": {"5.weight": "sparse"}}, "plan: expected level, parameter name, form"),
        ({"1": {"5.weight": {}}}, "plan: expected level, parameter name, form"),
        (
            {"1": {"5.weight": {"form": "spares"}}, "2": {"5.weight": {"form": "sparse"}}},
            "expected dense, masked or sparse for '5.weight', got 'spares'",
        ),
    ],
)
def test_a_plan_that_someone_has_spoilt_is_refused_before_anything_runs(new_run, plan, complaint):
    run = new_run()
    run.save_manifest({"plan": plan})
    with pytest.raises(ValueError, match=complaint):
        plan_source(str(run.path))


def test_forms_are_found_under_a_default_dtype_that_the_network_does_not_have(make_experiment, new_run):
    experiment, runs = make_experiment(), [new_run(), new_run()]
    torch.set_default_dtype(torch.float64)
    try:
        run_replicate(experiment, runs[0].replicate(0), Monitor())
    finally:
        torch.set_default_dtype(torch.float32)
    run_replicate(experiment, runs[1].replicate(0), Monitor())
    assert all(runs[0].plan(level).keys() == runs[1].plan(level).keys() for level in range(3))
