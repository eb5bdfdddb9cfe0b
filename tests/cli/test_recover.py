"""``--recover DIR``: what goes on, what is refused."""

from __future__ import annotations

import json
import shutil
from functools import reduce
from pathlib import Path

import pytest

from lth_fast.experiment.config import Config
from lth_fast.experiment.experiment import RETRAINS
from lth_fast.experiment.flags import BY_NAME, FLAGS
from lth_fast.prune import DISTRIBUTIONS, SCORES
from lth_fast.record import create_run, open_run

BASE = ("lenet:8", "digits", "--iter", "6", "--rounds", "1", "--seed", "1")

# For every setting another value than the one of a run BASE.
OTHER = {
    "validation": "0",
    "batch_size": "61",
    "optim": "sgd",
    "learn_rate": "0.5",
    "iter": "7",
    "rounds": "2",
    "replicates": "2",
    "step": "-1",
    "rewind": "3",
    "retrain": "finetune",
    "prune_rate": "0.3",
    "save": "elsewhere",
    "seed": "0",
    "init_seed": "1",
    "order_seed": "1",
    "threads": "2",
    "checkpoint_seconds": "1.0",
    "gpu": None,
    "preset": "openlth",
    "fc_rate": "0.3",
    "scope": "global",
    "score": "random",
    "distribution": "erk",
    "prune_global": None,
    "whole": "output",
    "count": "openlth",
    "prune_bias": None,
    "branch": "random_mask",
    "random": None,
    "init": "normal:0.1",
    "keep_optimizer": None,
    "keep": "0,3",
    "dropout": "0.5",
    "augment": None,
    "momentum": "0.5",
    "nesterov": None,
    "weight_decay": "0.5",
    "milestones": "2,3",
    "warmup": "3",
    "precision": "bf16",
    "plan": "sparse",
}
MAY_DIFFER = {"data"}


def given(flag, value):
    return [f"--{flag}"] if value is None else [f"--{flag}", value]


def interrupted(outcome):
    """``outcome`` as if its process had died at the end of level 1."""
    outcome.level(1).path.joinpath("summary.json").unlink()
    return outcome.run


def change_manifest(run, change):
    path = run.path / "meta.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def enclosing(manifest, place):
    """The object in which the last key of ``place`` is."""
    return reduce(lambda inside, key: inside[key], place[:-1], manifest)


@pytest.fixture
def stopped(command):
    return interrupted(command(*BASE))


def test_an_unfinished_level_is_trained_again_to_the_same_bits(command, spied_steps, bits):
    outcome = command(*BASE)
    expected = bits(outcome.run)
    run = interrupted(outcome)
    recovered = command("--recover", str(run.path), save=False)
    assert recovered.code == 0, recovered.err
    assert [(step.level, step.iteration) for step in recovered.steps] == [(0, i) for i in range(1, 7)]
    assert bits(run) == expected


@pytest.mark.parametrize(
    "flags",
    [
        *(f"--score {score}" for score in SCORES),
        *(f"--score {score} --scope global" for score in SCORES),
        *(f"--distribution {distribution}" for distribution in DISTRIBUTIONS),
        "--distribution erk --score grasp",
        *(f"--retrain {retrain} --rewind 2 --milestones 3" for retrain in RETRAINS),
    ],
)
def test_masks_that_were_lost_are_found_again_to_the_same_bits(flags, command, bits):
    outcome = command(*BASE, "--rounds", "2", *flags.split())
    assert outcome.code == 0, outcome.err
    expected = bits(outcome.run)
    for lost in ([2], [1, 2]):
        for number in lost:
            shutil.rmtree(outcome.level(number).path)
        recovered = command("--recover", str(outcome.run.path), save=False)
        assert recovered.code == 0, recovered.err
        assert bits(outcome.run) == expected


def test_a_run_by_the_plan_of_another_goes_on_from_elsewhere_when_that_one_is_gone(
    command, bits, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    other = command(*BASE, "--plan", "sparse").run.path
    outcome = command(*BASE, "--plan", str(other.relative_to(tmp_path)))
    assert outcome.configuration["plan"] == str(other)
    expected = bits(outcome.run)
    run = interrupted(outcome)
    other.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path.parent)
    recovered = command("--recover", str(run.path), save=False)
    assert recovered.code == 0, recovered.err
    assert bits(run) == expected


def test_a_complete_run_prints_its_report_again_wherever_it_was_made(command, spied_steps, bits):
    outcome = command(*BASE)
    before = bits(outcome.run)
    change_manifest(outcome.run, lambda manifest: manifest["environment"].update(torch="1.0", isa="none"))
    again = command("--recover", str(outcome.run.path), save=False)
    assert (again.code, again.out, again.err) == (0, outcome.out, "")
    assert not again.steps
    assert bits(outcome.run) == before


@pytest.mark.parametrize("number", [0, 1])
def test_a_checkpoint_that_a_kill_left_in_a_complete_level_goes(number, command, bits):
    outcome = command(*BASE)
    expected = bits(outcome.run)
    if number == 0:
        interrupted(outcome)
    outcome.level(number).save_checkpoint({})
    recovered = command("--recover", str(outcome.run.path), save=False)
    assert recovered.code == 0, recovered.err
    assert not list(outcome.run.path.rglob("checkpoint.pt"))
    assert bits(outcome.run) == expected


def test_half_a_checkpoint_that_a_kill_left_goes_with_its_level_though_no_other_is_written(command, stopped):
    left = stopped.replicate(0).level(1).path / ".checkpoint.pt.partial"
    left.write_bytes(b"half a checkpoint")
    recovered = command("--recover", str(stopped.path), save=False)
    assert recovered.code == 0, recovered.err
    assert not left.exists()


def test_its_own_settings_may_be_repeated(command, stopped):
    configuration = stopped.manifest()["configuration"]
    recorded = {flag.name: configuration.get(flag.name) for flag in FLAGS if flag.parse}
    same = [f"--{name}={value}" for name, value in recorded.items() if value not in (None, [])]
    assert len(same) > 15
    outcome = command("LENET:8", "digits", "--recover", str(stopped.path), *same, save=False)
    assert outcome.code == 0, outcome.err


def test_every_setting_has_a_value_that_contradicts():
    assert OTHER.keys() | MAY_DIFFER == {flag.name for flag in FLAGS}


@pytest.mark.parametrize("flag", OTHER)
def test_a_contradicting_flag_is_refused_by_name(flag, command, stopped, bits):
    before = bits(stopped)
    outcome = command("--recover", str(stopped.path), *given(flag, OTHER[flag]), save=False)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: --recover goes on with the run's own settings: ")
    setting, value = BY_NAME[flag].stands_for or (flag, OTHER[flag] or True)
    value = BY_NAME[setting].read(value)
    recorded = getattr(Config.from_record(stopped.manifest()["configuration"]), setting)
    remedy = ", for which --force is needed" if flag == "threads" else ""
    assert line.endswith(f" {setting} is {recorded} in the run, {value} was given{remedy}")
    assert bits(stopped) == before


def test_another_network_or_data_set_is_refused(command, stopped):
    outcome = command("lenet:9", "mnist", "--recover", str(stopped.path), save=False)
    assert outcome.code == 2
    assert "net is lenet:8 in the run, lenet:9 was given" in outcome.err
    assert "dataset is digits in the run, mnist was given" in outcome.err


def test_all_contradictions_are_named_at_once(command, stopped):
    outcome = command("--recover", str(stopped.path), "--iter", "9", "--seed", "3", save=False)
    assert "seed is 1 in the run, 3 was given" in outcome.err
    assert "iter is 6 in the run, 9 was given" in outcome.err


def test_a_wrong_value_is_refused_before_it_contradicts(command, stopped):
    outcome = command("--recover", str(stopped.path), "--iter", "many", save=False)
    assert outcome.err == "error: --iter: expected a whole number >= 1, got 'many'\n"


@pytest.mark.parametrize("what", ["torch", "lth_fast", "isa", "cpu", "device", "cuda_kernels", "threads"])
def test_another_environment_is_refused_by_name_and_forced_on_record(what, command, spied_steps, stopped):
    change_manifest(stopped, lambda manifest: manifest["environment"].update({what: "another"}))
    outcome = command("--recover", str(stopped.path), save=False)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert f"going on here may not give the same bits ({what}: the run had another, here is " in line
    assert line.endswith("use --force to go on all the same")
    assert not outcome.steps
    assert "recovered_in" not in stopped.manifest()

    forced = command("--recover", str(stopped.path), "--force", save=False)
    assert forced.code == 0, forced.err
    assert forced.steps
    (found,) = stopped.manifest()["recovered_in"]
    assert found[what] != "another"
    assert stopped.manifest()["environment"][what] == "another"


def test_other_threads_can_be_forced(command, spied_steps, stopped):
    outcome = command("--recover", str(stopped.path), "--threads", "2", "--force", save=False)
    assert outcome.code == 0, outcome.err
    assert {step.threads for step in outcome.steps} == {2}
    assert stopped.manifest()["recovered_in"][0]["threads"] == 2


def test_force_without_recover_is_refused(command):
    outcome = command(*BASE, "--force")
    assert outcome.code == 2
    assert outcome.err == "error: --force: expected together with --recover\n"


def test_the_data_may_have_moved(command, fake_mnist, tmp_path, bits):
    outcome = command("lenet:8", "mnist", "--data", str(fake_mnist), *BASE[2:])
    expected = bits(outcome.run)
    run = interrupted(outcome)
    moved = tmp_path / "moved"
    shutil.copytree(fake_mnist, moved)
    recovered = command("--recover", str(run.path), "--data", str(moved), save=False)
    assert recovered.code == 0, recovered.err
    assert bits(run) == expected


def ticket_as_recorded(run):
    return run.manifest()["configuration"]["ticket"]


def ticket_as_earlier_versions_recorded_it(run):
    """Relative to the working directory."""
    ticket = f"runs/{Path(ticket_as_recorded(run)).name}"
    change_manifest(run, lambda manifest: manifest["configuration"].update(ticket=ticket))
    return ticket


@pytest.mark.parametrize("recorded", [ticket_as_recorded, ticket_as_earlier_versions_recorded_it])
@pytest.mark.parametrize("moved", [False, True])
def test_a_control_arm_goes_on_from_another_working_directory_and_where_its_runs_have_moved(
    recorded, moved, command, tmp_path, bits, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    outcome = command(*BASE, "--save", "runs", "--branch", "random_mask", save=False)
    assert outcome.code == 0, outcome.err
    (control,) = (open_run(path) for path in Path("runs").iterdir() if path.name.endswith("random_mask"))
    expected = bits(control)
    recorded(control)
    control.replicate(0).level(1).path.joinpath("summary.json").unlink()
    folder = tmp_path / ("elsewhere" if moved else "runs")
    (tmp_path / "runs").rename(folder)
    (tmp_path / "another").mkdir()
    monkeypatch.chdir(tmp_path / "another")
    recovered = command("--recover", str(folder / control.path.name), save=False)
    assert recovered.code == 0, recovered.err
    assert bits(open_run(folder / control.path.name)) == expected


def test_a_control_arm_whose_ticket_run_is_gone_names_it(command, tmp_path, monkeypatch):
    outcome = command(*BASE, "--branch", "random_mask")
    (control,) = (open_run(path) for path in outcome.save.iterdir() if path.name.endswith("random_mask"))
    control.replicate(0).level(1).path.joinpath("summary.json").unlink()
    ticket = ticket_as_recorded(control)
    shutil.rmtree(ticket)
    recovered = command("--recover", str(control.path), save=False)
    assert recovered.code == 2
    assert recovered.err == f"error: no run at {ticket}: there is no such folder\n"


def test_other_data_is_refused(command, spied_steps, stopped):
    change_manifest(stopped, lambda manifest: manifest["examples"].update(train=1300))
    outcome = command("--recover", str(stopped.path), save=False)
    assert outcome.code == 2
    assert "examples: expected the run's own, {'test': 250, 'train': 1300, " in outcome.err
    assert not outcome.steps


def test_a_second_process_on_the_same_folder_is_refused(command, stopped, bits):
    before = bits(stopped)
    with stopped.lock():
        outcome = command("--recover", str(stopped.path), save=False)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: run {stopped.path} is being written by process ")
    assert bits(stopped) == before
    assert command("--recover", str(stopped.path), save=False).code == 0


def missing(path):
    return "there is no such folder"


def empty(path):
    path.mkdir()
    return "the folder of a run is named"


def no_folder(path):
    path.touch()
    return "there is no such folder"


def damaged(path):
    path.mkdir()
    (path / "meta.json").write_text('{"format": 1, "net"')
    return "is not a whole JSON document"


def of_a_newer_lth_fast(path):
    path.mkdir()
    (path / "meta.json").write_text('{"format": 999, "net": "lenet", "dataset": "digits"}')
    return "a newer lth_fast wrote it"


def stopped_at_its_very_start(path):
    create_run(path.parent / "new", "lenet", "digits").path.rename(path)
    return "this run was stopped before it was set up; start it anew"


def made_in_python(path):
    run = create_run(path.parent / "new", "Sequential", "TensorDataset")
    run.save_manifest({"configuration": {"made_by": "lth_fast.iterative_pruning"}})
    run.path.rename(path)
    return "was made by lth_fast.iterative_pruning; go on with it there: recover='"


@pytest.mark.parametrize(
    "make", [missing, empty, no_folder, damaged, of_a_newer_lth_fast, stopped_at_its_very_start, made_in_python]
)
def test_what_is_no_run_of_the_command_line_is_refused(make, command, tmp_path):
    path = tmp_path / "run"
    expected = make(path)
    outcome = command("--recover", str(path), save=False)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert str(path) in line
    assert expected in line


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("net",), None, "net: expected a text, got None"),
        (("configuration",), 3, "configuration: expected a JSON object, got 3"),
        (("configuration",), {"iter": 6}, "configuration: the record should name a network and a data set"),
        (("configuration", "iter"), 6.5, "the record's iter: expected a whole number >= 1, got 6.5"),
        (("configuration", "iter"), [6], "the record's iter: expected a whole number >= 1, got [6]"),
        (("configuration", "checkpoint_seconds"), None, "the record's checkpoint_seconds: expected a number >= 0"),
        (("configuration", "whole"), None, "the record's whole: expected some of "),
        (("configuration", "ticket"), 3, "the record lacks the folder of its ticket run"),
        (("configuration", "sources"), 3, "the record lacks sources"),
        (("environment",), [], "environment: expected a JSON object, got []"),
        (("stepper",), "eager", "stepper: expected a JSON object, got 'eager'"),
        (("plan",), None, "plan: expected level, parameter name, form"),
        (("plan", "1"), {"fc.weight": 3}, "plan: expected level, parameter name, form"),
    ],
)
def test_a_manifest_that_was_changed_is_refused_in_words(place, value, message, command, spied_steps, stopped):
    file = stopped.path / "meta.json"
    change_manifest(stopped, lambda manifest: enclosing(manifest, place).update({place[-1]: value}))
    outcome = command("--recover", str(stopped.path), save=False)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert str(file) in line
    assert message in line
    assert not outcome.steps


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("configuration", "seed"), "configuration: the record lacks seed"),
        (("configuration", "iter"), "configuration: the record lacks iter"),
        (("optimizer",), "optimizer: expected the run's own, None, got "),
        (("examples",), "examples: expected the run's own, None, got "),
        (("environment",), "torch: the run had None, here is "),
        (("stepper",), "stepper: the run had None, here is native"),
        (("stepper", "name"), "stepper: the run had None, here is native"),
    ],
)
def test_a_manifest_that_lacks_something_is_refused_in_words(place, message, command, spied_steps, stopped):
    change_manifest(stopped, lambda manifest: enclosing(manifest, place).pop(place[-1]))
    outcome = command("--recover", str(stopped.path), save=False)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: {stopped.path}")
    assert message in line
    assert not outcome.steps


def test_a_setting_that_the_version_of_the_run_did_not_know_has_its_default(command, stopped):
    def as_before_scores(manifest):
        del manifest["configuration"]["score"], manifest["configuration"]["sources"]["score"]

    change_manifest(stopped, as_before_scores)
    outcome = command("--recover", str(stopped.path), save=False)
    assert outcome.code == 0, outcome.err


def cut_off(file):
    half = file.read_bytes()[: file.stat().st_size // 2]
    file.unlink()  # the file alone, not the others that share its bytes
    file.write_bytes(half)


@pytest.mark.parametrize("damage", [cut_off, Path.unlink], ids=["cut off", "missing"])
@pytest.mark.parametrize("name", ["0/masks", "0/end", "0/rewind", "0/summary", "1/masks", "initial"])
def test_what_is_said_about_a_damaged_or_missing_file_helps(name, damage, command, stopped, bits):
    expected = bits(command(*BASE).run)
    folder = stopped.path / "replicate_0"
    (file,) = folder.glob(f"{name}.*")
    if name in ("0/masks", "0/end"):  # what the masks of level 1 are made of
        (folder / "1" / "masks.safetensors").unlink()
    damage(file)
    outcome = command("--recover", str(stopped.path), save=False)
    made_anew = damage == Path.unlink and name in ("0/summary", "1/masks", "initial")
    if not made_anew:
        assert outcome.code == 1
        last = outcome.err.splitlines()[-1]
        named = f"{stopped.path}: {file} is" if damage == cut_off else f"{file.parent}: a file"
        assert last.startswith(f"error: {named} ")
        if name == "initial":
            assert last.endswith("; delete it, and recovering the run writes it again")
            file.unlink()
        else:
            assert f"; delete the folder {file.parent}, and recovering its run trains the level again" in last
            shutil.rmtree(file.parent)
        outcome = command("--recover", str(stopped.path), save=False)
    assert outcome.code == 0, outcome.err
    assert bits(stopped) == expected


def test_a_log_that_lost_rows_is_named_and_not_papered_over(command, stopped):
    level = stopped.replicate(0).level(1)
    level.save_checkpoint({"iteration": 3, "log_size": level.log.size + 1})
    outcome = command("--recover", str(stopped.path), save=False)
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"error: {stopped.path}: {level.log.path} has {level.log.size} bytes, expected at least ")
    assert last.endswith(f"; delete the folder {level.path}, and recovering its run trains the level again")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", bytes(100)])
def test_a_damaged_checkpoint_is_named_and_not_papered_over(content, command, stopped, bits):
    path = stopped.replicate(0).level(1).path / "checkpoint.pt"
    path.write_bytes(content)
    outcome = command("--recover", str(stopped.path), save=False)
    assert outcome.code == 1
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"error: {stopped.path}: {path} is not a whole checkpoint: ")
    assert last.endswith("; delete it, and the level begins anew")
    assert not stopped.replicate(0).level(1).complete
    path.unlink()
    assert command("--recover", str(stopped.path), save=False).code == 0
    assert bits(stopped) == bits(command(*BASE).run)
