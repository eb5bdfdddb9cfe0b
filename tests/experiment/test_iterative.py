"""``lth_fast.iterative_pruning``: the loop for networks, data and pruning functions of one's own."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as stock
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

import lth_fast
from lth_fast import iterative_pruning, load_run, optim
from lth_fast.nn import masks
from lth_fast.prune import fetch_layers, prune_all, sparsity


class Network(nn.Module):
    """Carries its optimizer and its loss, as the reference project wants it."""

    def __init__(self, inputs=12, classes=3, seed=0, activation=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Flatten(), nn.Linear(inputs, 16), activation or nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, classes)
            )
        self.criterion = nn.CrossEntropyLoss()
        self.optim = torch.optim.Adam(self.parameters(), lr=0.01)

    def forward(self, inputs):
        return self.net(inputs)


def examples(count, seed, inputs=12):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return TensorDataset(torch.randn(count, inputs, generator=generator) + labels.unsqueeze(1), labels)


def loader(count=50, seed=1, **options):
    return DataLoader(examples(count, seed), batch_size=8, **options)


SHUFFLED = {
    "shuffled": lambda: loader(shuffle=True),
    "shuffled by a generator": lambda: loader(shuffle=True, generator=torch.Generator()),
    "shuffled by a sampler": lambda: loader(sampler=RandomSampler(range(50), generator=torch.Generator())),
}


def prune_with_stock(model):
    for layer, name in fetch_layers(model):
        stock.l1_unstructured(layer, name=name, amount=0.11)


def prune_with_ours(model):
    return prune_all(model, rate=0.2)


@pytest.fixture
def search(tmp_path):
    """A small search; every argument can be changed."""

    def run(model=None, data=None, iterations=15, rounds=2, prune_net=prune_with_stock, **changes):
        model = Network() if model is None else model
        data = loader(shuffle=True) if data is None else data
        options = {"seed": 1, "quiet": True, "step": 5, "save": tmp_path / "runs", **changes}
        return iterative_pruning(model, data, iterations, rounds, prune_net, **options)

    return run


def same_state(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def test_the_named_tuple_of_a_data_set_gives_everything_a_result_has(search, tmp_path):
    data = lth_fast.data.load_digits(train_batch_size=100)
    result = search(Network(64, 10), data, rounds=3, prune_net=prune_with_ours)
    assert result.path.parent == tmp_path / "runs"
    assert result.path.name.endswith("_Network_digits")
    assert [level.level for level in result.levels] == [0, 1, 2, 3]
    run = load_run(result.path)
    assert [row["level"] for row in run.levels] == [0, 1, 2, 3]
    for level, row in zip(result.levels, run.levels, strict=True):
        log = run.iterations(level.level)
        best = log["valid_loss"][~(log["valid_loss"] != log["valid_loss"])].min()
        assert level.early_stop_iteration == log["iteration"][log["valid_loss"] == best][0]
        assert level.early_stop_accuracy == pytest.approx(log["test_acc"][log["valid_loss"] == best][0], rel=1e-8)
        assert level.test_accuracy == pytest.approx(log["test_acc"][-1], rel=1e-8)
        assert level.test_loss == pytest.approx(log["test_loss"][-1], rel=1e-8)
        assert 0 < level.train_seconds < level.seconds
        assert level.density == row["density"]
    densities = [level.density for level in result.levels]
    assert densities == pytest.approx([1, 0.8133, 0.6630, 0.5414], abs=1e-4)
    assert run.manifest["examples"] == {"train": 1297, "validation": 250, "test": 250}


def test_a_result_has_the_fields_its_documentation_names_and_no_others(search):
    (level, *_) = search().levels
    assert set(vars(level)) == {field.name for field in dataclasses.fields(level)}
    assert all(field.name in type(level).__doc__ for field in dataclasses.fields(level))


def test_the_model_of_the_result_is_the_last_level_with_its_masks(search):
    result = search()
    run = load_run(result.path)
    assert type(result.model) is Network
    assert same_state(result.model.state_dict(), run.weights(2, "end"))
    assert same_state(masks(result.model), run.masks(2))
    assert sparsity(result.model) == pytest.approx(100 * (1 - result.levels[-1].density))


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_its_optimizer_and_the_global_random_state_are_left_as_they_were(search, fails):
    model = Network().eval()
    before = copy.deepcopy(model.state_dict())
    optimizer_before = copy.deepcopy(model.optim.state_dict())
    torch.manual_seed(5)
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()

    def failing(model):
        raise RuntimeError("as asked")

    if fails:
        with pytest.raises(RuntimeError, match="as asked"):
            search(model, prune_net=failing, threads=2)
    else:
        search(model, threads=2)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    assert same_state(model.state_dict(), before)
    assert model.optim.state_dict() == optimizer_before
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [type(layer) for layer in model.net] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


@pytest.mark.parametrize("prune_net", [prune_with_stock, lambda model: prune_with_stock(model) or model])
def test_stock_pruning_by_a_ninth_leaves_powers_of_its_complement(search, prune_net):
    result = search(rounds=6, prune_net=prune_net, iterations=5)
    assert [level.density for level in result.levels] == pytest.approx([0.89**n for n in range(7)], abs=5e-3)


def test_ones_own_validation_and_test_loaders_are_used(search):
    result = search(validation=loader(20, 2), test=loader(30, 3))
    assert load_run(result.path).manifest["examples"] == {"train": 50, "validation": 20, "test": 30}
    assert all(level.early_stop_iteration in (5, 10, 15) for level in result.levels)
    assert all(0 <= level.test_accuracy <= 1 for level in result.levels)


def test_without_a_validation_set_there_is_no_early_stop(search):
    for level in search().levels:
        assert level.early_stop_iteration is None
        assert level.early_stop_accuracy is None
        assert level.test_accuracy is None
    for level in search(test=loader(30, 3)).levels:
        assert level.early_stop_iteration is None
        assert 0 <= level.test_accuracy <= 1


def test_a_list_of_batches_will_do_as_data(search):
    batches = [(torch.randn(4, 12), torch.randint(3, (4,))) for _ in range(3)]
    assert len(search(data=batches, validation=batches).levels) == 3


def test_a_loader_may_have_any_name(search):
    data = loader()
    data.name = "group/set"
    assert search(data=data, rounds=0).path.name.endswith("_Network_group-set")


@pytest.mark.parametrize("as_batches", [False, True])
def test_a_plain_tuple_of_training_validation_and_test_data_will_do(as_batches, search):
    data = (loader(shuffle=True), loader(20, 2), loader(30, 3))
    if as_batches:
        data = tuple(list(part) for part in data)
    for level in search(data=data).levels:
        assert level.early_stop_iteration in (5, 10, 15)
        assert 0 <= level.test_accuracy <= 1


def test_a_tuple_of_three_batches_is_training_data(search):
    batches = tuple((torch.randn(4, 12), torch.randint(3, (4,))) for _ in range(3))
    assert all(level.test_accuracy is None for level in search(data=batches).levels)


def test_any_module_will_do_with_optimizer_and_loss_passed(search, optimizer_steps):
    model = nn.Sequential(nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5)
    search(model, optim=optimizer, criterion=lambda outputs, labels: nn.functional.cross_entropy(outputs, labels))
    assert {type(step.optimizer) for step in optimizer_steps} == {torch.optim.SGD}
    assert {rate for step in optimizer_steps for rate in step.rates} == {0.3}


def test_a_model_that_asks_states_for_its_version_is_rewound(search):
    class Versioned(Network):  # as torchvision's MNASNet
        _version = 2

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *others):
            if local_metadata.get("version") != 2:
                raise ValueError(f"expected version 2, got {local_metadata.get('version')}")
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)

    result = search(Versioned())
    assert same_state(result.model.state_dict(), load_run(result.path).weights(2, "end"))


def test_what_is_passed_goes_before_what_the_model_carries(search, optimizer_steps):
    def doubled(outputs, labels):
        return 2 * nn.functional.cross_entropy(outputs, labels)

    passed = search(optim="sgd", learn_rate=0.3, criterion=doubled)
    assert {type(step.optimizer) for step in optimizer_steps} == {optim.SGD}
    assert {rate for step in optimizer_steps for rate in step.rates} == {0.3}
    carried = search()
    losses = [load_run(result.path).iterations(0)["train_loss"][0] for result in (passed, carried)]
    assert losses[0] == pytest.approx(2 * losses[1], rel=1e-6)


def test_an_optimizer_with_several_groups_is_made_anew_for_every_level(search, optimizer_steps):
    model = Network()
    hidden, output = model.net[1], model.net[4]
    model.optim = torch.optim.Adam(
        [
            {"params": hidden.parameters(), "lr": 0.02, "betas": (0.5, 0.9)},
            {"params": [output.weight], "weight_decay": 0.1},
        ],
        lr=0.005,
    )
    # It has been at work: that state is not taken over, and the output's bias stays out.
    model(torch.randn(2, 12)).sum().backward()
    model.optim.step()
    model.zero_grad()
    optimizer_steps.clear()
    bias = output.bias.detach().clone()

    result = search(model)
    optimizers = list(dict.fromkeys(step.optimizer for step in optimizer_steps))
    assert len(optimizers) == 3
    for optimizer in optimizers:
        assert optimizer is not model.optim
        first, second = optimizer.param_groups
        assert (first["lr"], first["betas"], first["weight_decay"], len(first["params"])) == (0.02, (0.5, 0.9), 0, 2)
        assert (second["lr"], second["betas"], second["weight_decay"]) == (0.005, (0.9, 0.999), 0.1)
        assert [step.fresh for step in optimizer_steps if step.optimizer is optimizer] == [True, *[False] * 14]
    assert torch.equal(result.model.net[4].bias, bias)
    recorded = load_run(result.path).manifest["optimizer"]
    assert [group["parameters"] for group in recorded["groups"]] == [["net.1.weight", "net.1.bias"], ["net.4.weight"]]


@pytest.mark.parametrize("kind", SHUFFLED)
def test_a_shuffled_loader_is_seeded_and_every_level_has_its_own_order(kind, search):
    def losses(**changes):
        torch.manual_seed(len(changes))
        run = load_run(search(data=SHUFFLED[kind](), **changes).path)
        return [run.iterations(level)["train_loss"].tolist() for level in range(3)]

    first = losses()
    assert losses(order_seed=1) == first
    assert losses(seed=2, order_seed=None)[0] != first[0]
    assert losses(order_seed=2)[0] != first[0]


def test_every_level_shuffles_in_its_own_order(search):
    seen = []

    class Watched(TensorDataset):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    search(data=DataLoader(Watched(*examples(50, 1).tensors), batch_size=8, shuffle=True), iterations=7, rounds=1)
    first, second = seen[:50], seen[50:]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


@pytest.mark.parametrize("stop", [3, 7, 10, 19])
@pytest.mark.parametrize("kind", SHUFFLED)
def test_a_search_that_was_stopped_goes_on_to_the_same_bits(
    kind, stop, search, tmp_path, bits, interrupted_after, monkeypatch
):
    """Stopped inside an epoch of 7 batches, between two, and in a later level."""
    monkeypatch.setattr("lth_fast.experiment.level.CHUNK_SECONDS", 0.0)
    arguments = {"validation": SHUFFLED[kind](), "rewind": 2, "checkpoint_seconds": 0}
    reference = search(data=SHUFFLED[kind](), **arguments)

    with pytest.raises(KeyboardInterrupt):
        search(data=SHUFFLED[kind](), criterion=interrupted_after(stop), save=tmp_path / "stopped", **arguments)
    (path,) = (tmp_path / "stopped").iterdir()
    other = Network(seed=9)  # the weights it started from are on the disk
    result = search(other, data=SHUFFLED[kind](), recover=path, **{**arguments, "seed": None})
    assert bits(load_run(path).run) == bits(load_run(reference.path).run)
    assert same_state(result.model.state_dict(), reference.model.state_dict())
    assert [level.density for level in result.levels] == [level.density for level in reference.levels]


def test_recovering_a_complete_search_returns_its_result_without_training(search, optimizer_steps):
    first = search()
    optimizer_steps.clear()
    again = search(recover=first.path)
    assert not optimizer_steps
    assert again.path == first.path
    assert again.levels == first.levels
    assert same_state(again.model.state_dict(), first.model.state_dict())
    assert same_state(masks(again.model), masks(first.model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"iterations": 16}, "iterations is 15 in the run, 16 was given"),
        ({"rounds": 3}, "rounds is 2 in the run, 3 was given"),
        ({"step": 6}, "step is 5 in the run, 6 was given"),
        ({"rewind": 0.2}, "rewind is 0 in the run, 3 was given"),
        ({"seed": 2}, "seed is 1 in the run, 2 was given"),
        ({"order_seed": 2}, "order_seed is None in the run, 2 was given"),
        ({"threads": 2}, "threads is None in the run, 2 was given"),
        ({"optim": "adam", "learn_rate": 0.5}, "optimizer: expected the run's own"),
        ({"data": loader(51)}, "examples: expected the run's own, .*50.*, got .*51"),
        (
            {"model": Network(activation=nn.Tanh())},
            r"model: the run had \(2\): ReLU\(\), here is \(2\): Tanh\(\)\); use force",
        ),
        ({"criterion": nn.NLLLoss()}, "criterion: the run had CrossEntropyLoss.*, here is NLLLoss"),
        (
            {"criterion": nn.CrossEntropyLoss(label_smoothing=0.1)},
            r"criterion: the run had .* label_smoothing=0\.0, here is CrossEntropyLoss.* label_smoothing=0\.1\)",
        ),
        (
            {"criterion": nn.functional.cross_entropy},
            r"criterion: the run had CrossEntropyLoss.*, here is cross_entropy\)",
        ),
        ({"data": DataLoader(examples(50, 1), batch_size=10)}, "batches: expected the run's own, 7, got 5"),
        (
            {"model": Network(classes=4)},
            r"model: expected the network of the run .*, got net\.4\.weight of shape \[3, 16\]",
        ),
    ],
)
def test_recovering_with_other_arguments_is_refused_by_name(changes, message, search):
    first = search()
    with pytest.raises(ValueError, match=message):
        search(recover=first.path, **changes)


def smoothed(smoothing):
    return partial(nn.functional.cross_entropy, label_smoothing=smoothing)


def test_a_run_goes_on_with_a_loss_and_a_network_that_only_lie_elsewhere_in_memory(search):
    class Told(Network):
        def extra_repr(self):
            return repr(self.told)

    model = Told()
    model.told = object()
    first = search(model, criterion=smoothed(0.1))
    model.told = object()
    assert search(model, criterion=smoothed(0.1), recover=first.path).levels == first.levels
    with pytest.raises(ValueError, match=r"criterion: the run had .*smoothing=0\.1.*, here is .*smoothing=0\.2"):
        search(model, criterion=smoothed(0.2), recover=first.path)


def test_with_force_a_run_goes_on_that_an_earlier_version_or_another_torch_described_otherwise(search):
    first = search()
    file = first.path / "meta.json"
    manifest = json.loads(file.read_text())
    del manifest["criterion"]
    file.write_text(json.dumps(manifest))
    assert search(recover=first.path).levels == first.levels
    file.write_text(json.dumps({**manifest, "model": "Network()"}))
    with pytest.raises(ValueError, match=r"model: the run had Network\(\), here is Network\(\); use force=True"):
        search(recover=first.path)
    assert search(recover=first.path, force=True).levels == first.levels


def test_a_run_that_does_not_tell_its_batches_goes_on(search):
    """Those of earlier versions."""
    first = search()
    manifest = first.path / "meta.json"
    told = json.loads(manifest.read_text())
    assert told.pop("batches") == 7
    manifest.write_text(json.dumps(told))
    assert search(recover=first.path).levels == first.levels


def test_a_search_by_the_plan_of_a_run_goes_on_from_elsewhere_when_that_run_is_gone(search, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = search(plan="sparse")
    first = search(plan=other.path.relative_to(tmp_path))
    assert load_run(first.path).manifest["configuration"]["plan"] == str(other.path)
    other.path.rename(tmp_path / "moved")
    (first.path / "replicate_0" / "2" / "summary.json").unlink()
    monkeypatch.chdir(tmp_path.parent)
    again = search(recover=first.path)
    assert same_state(again.model.state_dict(), first.model.state_dict())
    forms = {name: entry["form"] for name, entry in load_run(again.path).manifest["plan"]["2"].items()}
    assert forms == {"net.1.weight": "sparse", "net.4.weight": "sparse"}


def test_recovering_a_run_of_the_command_line_is_refused(search, tmp_path):
    run = lth_fast.record.create_run(tmp_path, "lenet", "digits")
    run.save_manifest({"configuration": {"net": "lenet"}})
    with pytest.raises(ValueError, match="was made by the command line; go on with it there: --recover"):
        search(recover=run.path)


def test_recovering_a_run_that_was_stopped_before_it_was_set_up_is_refused(search, tmp_path):
    run = lth_fast.record.create_run(tmp_path, "Network", "TensorDataset")
    with pytest.raises(ValueError, match="this run was stopped before it was set up; start it anew"):
        search(recover=run.path)


@pytest.mark.parametrize("change", [{}, {"seed": "one"}], ids=["taken out", "no number"])
def test_recovering_a_run_whose_seed_was_changed_in_its_manifest_is_refused(change, search):
    first = search()
    path = first.path / "meta.json"
    manifest = json.loads(path.read_text())
    del manifest["configuration"]["seed"]
    manifest["configuration"].update(change)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"recover: .*meta\.json: configuration: seed: expected a whole number >= 0"):
        search(recover=first.path, seed=None)


def test_another_environment_is_refused_and_can_be_forced(search):
    first = search()
    path = first.path / "meta.json"
    manifest = json.loads(path.read_text())
    manifest["environment"]["torch"] = "1.0"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"torch: the run had 1\.0, here is .*use force=True to go on all the same"):
        search(recover=first.path)
    assert search(recover=first.path, force=True).levels == first.levels


def test_without_a_seed_one_is_drawn_and_recorded(search, bits):
    runs = [load_run(search(seed=None).path) for _ in range(2)]
    seeds = [run.manifest["configuration"]["seed"] for run in runs]
    assert seeds[0] != seeds[1]
    again = load_run(search(seed=seeds[0]).path)
    assert bits(again.run) == bits(runs[0].run)
    assert bits(runs[1].run) != bits(runs[0].run)


def test_zero_is_a_seed(search):
    assert load_run(search(seed=0).path).manifest["configuration"]["seed"] == 0


@pytest.mark.parametrize("rewind", [4, 0.3])
def test_levels_go_back_to_the_rewind_point(rewind, search):
    run = load_run(search(rewind=rewind, iterations=14).path)
    assert [row["first_iteration"] for row in run.levels] == [1, 5, 5]
    assert run.iterations(1)["iteration"].tolist() == [*range(5, 15)]


def test_milestones_may_be_an_array(search, optimizer_steps):
    search(rounds=0, optim="sgd", learn_rate=1, milestones=np.array([5, 10]))
    rates = [rate for step in optimizer_steps for rate in step.rates]
    assert rates == pytest.approx([1] * 5 + [0.1] * 5 + [0.01] * 5)


@pytest.mark.parametrize("where", ["prune_net", "criterion", "data"])
def test_exceptions_reach_the_caller(where, search):
    class Ours(Exception):
        pass

    def failing(*args):
        raise Ours

    class Failing(TensorDataset):
        __getitem__ = failing

    arguments = {"data": DataLoader(Failing(torch.zeros(8, 12)), batch_size=4)} if where == "data" else {where: failing}
    with pytest.raises(Ours):
        search(**arguments)


class Tied(nn.Module):
    """Its decoder shares the weight of its embedding."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.embedding, self.hidden = nn.Embedding(30, 16), nn.Linear(16, 16)
            self.decoder = nn.Linear(16, 30, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens):
        return self.decoder(torch.relu(self.hidden(self.embedding(tokens))))


def prune_embedding_with_stock(model):
    stock.l1_unstructured(model.embedding, "weight", amount=0.11)


@pytest.mark.parametrize(
    ("prune_net", "hidden", "shared"),
    # Of 256 and 480 weights; ours prunes the output layer at half the rate.
    [
        (prune_with_ours, 256 - 51, 480 - 48),
        (prune_with_stock, 256 - 28, 480 - 53),
        (prune_embedding_with_stock, 256, 480 - 53),
    ],
)
def test_a_weight_that_two_modules_share_is_pruned_and_counted_once(prune_net, hidden, shared, search):
    model = Tied()
    tokens = torch.randint(30, (2, 8), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    result = search(model, [tokens], prune_net=prune_net, rounds=1, optim=optimizer, criterion=nn.CrossEntropyLoss())
    assert result.levels[1].density == (hidden + shared) / (256 + 480)
    assert sparsity(result.model) == pytest.approx(100 * (1 - result.levels[1].density))
    assert result.model.decoder.weight is result.model.embedding.weight
    assert torch.equal(masks(result.model)["embedding.weight"], masks(result.model)["decoder.weight"])


def stock_pruned(layer):
    stock.l1_unstructured(layer, "weight", amount=0.5)


@pytest.mark.parametrize("compute", [nn.utils.parametrizations.spectral_norm, stock_pruned])
def test_a_weight_that_something_computes_is_refused_before_anything_is_created(compute, search, tmp_path):
    model = Network()
    compute(model.net[1])
    with pytest.raises(ValueError, match=r"model: expected parameters as the weights .*: net\.1\.weight"):
        search(model, optim="adam")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [np.float64, np.float32])
def test_settings_of_an_optimizer_may_be_numbers_of_numpy(number, search, bits):
    """A rate out of ``logspace``: checkpoints and records hold Python's numbers."""

    def levels(rate):
        model = Network()
        model.optim = torch.optim.SGD(model.parameters(), lr=rate, momentum=rate)
        return load_run(search(model, checkpoint_seconds=0).path)

    loaded = levels(number(0.125))
    assert bits(loaded.run) == bits(levels(0.125).run)
    assert loaded.manifest["optimizer"]["lr"] == 0.125


def test_pruning_that_sets_no_mask_is_refused(search):
    with pytest.raises(ValueError, match="prune_net set no mask"):
        search(prune_net=lambda model: model)


class Endless(IterableDataset):
    def __iter__(self):
        return itertools.repeat(examples(1, 1)[0])


def under_masks():
    return prune_all(Network(), 0.5)


def sparse():
    return lth_fast.nn.convert(under_masks(), form="sparse")


def with_its_loss_as_a_layer():
    model = nn.Sequential(nn.Linear(12, 3))
    model.criterion = nn.CrossEntropyLoss()
    return model


def with_lbfgs():
    model = Network()
    model.optim = torch.optim.LBFGS(model.parameters())
    return model


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"iterations": 0}, ValueError, "iterations: expected a whole number >= 1, got 0"),
        ({"iterations": 2.5}, ValueError, "iterations: expected a whole number >= 1, got 2.5"),
        ({"iterations": np.float32(2.5)}, ValueError, "iterations: expected a whole number >= 1, got np.float32(2.5)"),
        ({"rounds": torch.tensor(2.5)}, ValueError, "rounds: expected a whole number >= 0, got tensor(2.5000)"),
        ({"seed": np.True_}, ValueError, "seed: expected a whole number >= 0, got np.True_"),
        ({"rewind": np.True_}, ValueError, "rewind: expected an iteration"),
        ({"keep_optimizer": "false"}, ValueError, "keep_optimizer: expected True or False, got 'false'"),
        ({"gpu": "no"}, ValueError, "gpu: expected True or False, got 'no'"),
        ({"rewind": 10**400}, ValueError, "rewind: expected an iteration"),
        ({"rounds": -1}, ValueError, "rounds: expected a whole number >= 0, got -1"),
        ({"step": 0}, ValueError, "step: expected a whole number >= 1 or -1, got 0"),
        ({"rewind": 15}, ValueError, "rewind: expected an iteration before the last one (15), got 15"),
        ({"rewind": -1}, ValueError, "rewind: expected an iteration"),
        ({"seed": -1}, ValueError, "seed: expected a whole number >= 0, got -1"),
        ({"seed": True}, ValueError, "seed: expected a whole number >= 0, got True"),
        ({"order_seed": 0.5}, ValueError, "order_seed: expected a whole number >= 0, got 0.5"),
        ({"threads": 0}, ValueError, "threads: expected a whole number >= 1 and <= 1024, got 0"),
        ({"checkpoint_seconds": -1}, ValueError, "checkpoint_seconds: expected a number >= 0, got -1"),
        ({"model": lambda x: x}, TypeError, "model: expected an nn.Module, got function"),
        ({"prune_net": 0.2}, TypeError, "prune_net: expected a function of the model, got float"),
        ({"data": 3}, TypeError, "data: expected (train, validation, test) as lth_fast.data.load_… returns it, or a"),
        ({"data": "digits"}, TypeError, "data: expected (train, validation, test) as lth_fast.data.load_… returns it"),
        ({"data": iter([])}, TypeError, "data: expected (train, validation, test) as"),
        ({"validation": iter([])}, TypeError, "validation: expected a loader of (inputs, labels), iterable again and"),
        ({"test": 3}, TypeError, "test: expected a loader of (inputs, labels), iterable again and again, got int"),
        ({"data": []}, ValueError, "data: the training loader has no batches"),
        ({"validation": []}, ValueError, "validation: expected a loader with batches or None, got one without"),
        ({"test": DataLoader([], 8)}, ValueError, "test: expected a loader with batches or None, got one without"),
        ({"data": (loader(), [], None)}, ValueError, "validation: expected a loader with batches or None, got one"),
        ({"model": nn.Linear(12, 3)}, ValueError, "criterion: expected a loss function here or as model.criterion"),
        (
            {"model": nn.Linear(12, 3), "criterion": nn.CrossEntropyLoss()},
            ValueError,
            "optim: expected a torch optimizer or the name of one, here or as model.optim, got NoneType",
        ),
        (
            {"model": Network().to("meta")},
            ValueError,
            "model: expected weights with values, got some on the meta device",
        ),
        ({"model": nn.LazyLinear(3)}, ValueError, "model: expected weights with values, got some on the meta device"),
        ({"model": nn.Flatten()}, ValueError, "model: expected parameters to train, got none that requires a gradient"),
        ({"model": Network().requires_grad_(False)}, ValueError, "model: expected parameters to train, got none that"),
        (
            {"criterion": nn.MSELoss},
            ValueError,
            "criterion: expected a loss function here or as model.criterion, got the",
        ),
        ({"replicates": 2, "initialize": "glorot"}, TypeError, "initialize: expected a function of the model, got str"),
        ({"data": DataLoader(Endless(), 8)}, TypeError, "data: expected a training loader with a length, got one"),
        ({"save": 3}, TypeError, "save: expected the path of a folder, got int"),
        ({"save": "/proc/runs"}, ValueError, "save: expected a folder to write to, got '/proc/runs'"),
        ({"recover": 3}, TypeError, "recover: expected the path of a folder, got int"),
        ({"model": under_masks()}, ValueError, "model: expected one without masks, got masks of net.1.weight, net.4.w"),
        ({"model": sparse()}, ValueError, "model: expected one without masks, got masks of net.1.weight, net.4.weight"),
        (
            {"model": with_its_loss_as_a_layer(), "optim": "adam"},
            ValueError,
            "criterion: expected as an argument for an nn.Sequential, got it as model.criterion",
        ),
        ({"model": with_lbfgs()}, ValueError, "optim: expected an optimizer whose step needs no closure, got LBFGS"),
        ({"keep": [3, 16]}, ValueError, "keep: expected iterations up to 15, got 16"),
        ({"data": (loader(), loader())}, TypeError, "data: expected (train, validation, test) as lth_fast.data.load_…"),
        ({"data": (loader(), 3, None)}, TypeError, "validation: expected a loader of (inputs, labels), iterable again"),
        ({"save": __file__}, ValueError, f"save: expected a folder to write to, got {__file__!r}"),
        ({"save": "a\0b"}, ValueError, "save: expected a folder to write to, got 'a\\x00b'"),
        ({"save": "a\ud800b"}, ValueError, "save: expected a folder to write to, got 'a\\ud800b'"),
        ({"save": "a name too long " * 20}, ValueError, "save: expected a folder to write to, got 'a name"),
        ({"optim": "adm"}, ValueError, "optim: expected an optimizer of torch.optim"),
        ({"optim": Network().optim}, ValueError, "optim: the optimizer holds a parameter that is not the model's"),
        ({"learn_rate": 0.1}, ValueError, "learn_rate: expected with a name in optim"),
        ({"optim": "sgd", "learn_rate": 0}, ValueError, "learn_rate: expected a number > 0, got 0"),
    ],
)
def test_a_wrong_argument_is_refused_by_name_and_nothing_is_created(changes, error, message, search, tmp_path):
    with pytest.raises(error) as refusal:
        search(**changes)
    assert str(refusal.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_a_validation_set_without_a_length_is_evaluated(search):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(examples(16, 1))

    assert search(validation=DataLoader(Stream(), 8)).levels[0].early_stop_iteration is not None


@pytest.mark.parametrize(
    ("result", "error", "got"),
    [
        (lambda losses: losses, ValueError, r"a tensor of shape \[8\]"),
        (lambda losses: losses.mean().item(), TypeError, "float"),
        (lambda losses: (losses.mean(), len(losses)), TypeError, "tuple"),
    ],
)
def test_a_criterion_that_does_not_return_one_number_is_named(result, error, got, search):
    with pytest.raises(error, match=rf"criterion: expected the mean loss of a batch.*, got {got}"):
        search(criterion=lambda outputs, labels: result(F.cross_entropy(outputs, labels, reduction="none")))


def test_a_criterion_may_return_its_number_in_a_vector(search):
    plain, in_a_vector = (
        search(criterion=criterion, validation=loader(20, 2), test=loader(20, 3))
        for criterion in (F.cross_entropy, lambda outputs, labels: F.cross_entropy(outputs, labels).reshape(1))
    )
    assert same_state(in_a_vector.model.state_dict(), plain.model.state_dict())
    assert [row.test_loss for row in in_a_vector.levels] == [row.test_loss for row in plain.levels]


@pytest.mark.parametrize(
    "batch", [{"inputs": torch.ones(2, 12)}, (np.ones((2, 12)), np.ones(2)), torch.ones(3, 12), "ab"]
)
@pytest.mark.parametrize("argument", ["data", "validation", "test"])
def test_batches_that_are_not_inputs_and_labels_are_named(batch, argument, search):
    with pytest.raises(TypeError, match=rf"expected batches of \(inputs, labels\), .*got {type(batch).__name__}"):
        search(**{argument: [batch] * 3})


def test_validation_inside_the_data_and_beside_it_is_refused(search):
    with pytest.raises(ValueError, match="validation and test: expected inside data or beside a training loader"):
        search(Network(64), lth_fast.data.load_digits(), validation=loader())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_gpu_asking_for_it_is_refused(search, tmp_path):
    with pytest.raises(ValueError, match="gpu: expected a CUDA device, found none"):
        search(gpu=True)
    assert not list(tmp_path.iterdir())


def test_the_folder_and_the_progress_are_printed_unless_quiet(search, capsys):
    result = search(quiet=False)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == f"run:     {result.path}"
    assert sum(line.startswith("INFO     [round: ") for line in err.splitlines()) == 9
    search(quiet=True)
    assert capsys.readouterr() == ("", "")
