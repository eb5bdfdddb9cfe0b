from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path

import pytest
import torch

from lth_fast.record import Level, Run, RunInUseError, create_run, open_run
from lth_fast.record import run as run_module

DiskWithRoomFor = Callable[[int], AbstractContextManager[None]]

CREATOR = """
import sys
from lth_fast.record import create_run
print("ready", flush=True)
sys.stdin.readline()
for _ in range(20):
    print(create_run(sys.argv[1], "lenet", "mnist").path.name)
"""

# One import for all of them: each dies in a child.
KILLED = """
import os, signal, sys
from lth_fast.record import create_run
save, *moments = sys.argv[1:]
for moment in moments:
    if os.fork() == 0:
        setattr(os, moment, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
        create_run(save, "lenet", "mnist")
        os._exit(0)
    assert os.wait()[1] == signal.SIGKILL
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return create_run(tmp_path, "lenet", "mnist")


@pytest.fixture
def level(run: Run) -> Level:
    return run.replicate(0).level(0)


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        @staticmethod
        def now() -> datetime:
            return datetime(2025, 1, 31, 14, 5, 9)

    monkeypatch.setattr(run_module, "datetime", Stopped)


def test_a_run_is_named_by_its_second_its_network_and_its_data_set(tmp_path: Path, stopped_clock: None) -> None:
    assert create_run(tmp_path, "lenet", "mnist").path == tmp_path / "2025-01-31T14-05-09_lenet_mnist"
    assert create_run(tmp_path, "conv2", "cifar10", "random-mask").path.name == (
        "2025-01-31T14-05-09_conv2_cifar10_random-mask"
    )


def test_a_run_stays_where_it_is_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    created = create_run("runs", "lenet", "mnist")
    opened = open_run(Path("runs", created.path.name))
    monkeypatch.chdir(created.path)
    here = open_run(".")
    monkeypatch.chdir(Path(__file__).parent)
    assert created.path.parent == tmp_path / "runs"
    assert created == opened == here
    assert created.manifest()["net"] == "lenet"


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    run = create_run("~/runs", "lenet", "mnist")
    assert run.path.parent == tmp_path / "runs"
    assert open_run(f"~/runs/{run.path.name}") == run


def test_runs_of_the_same_second_get_names_of_their_own_in_order(tmp_path: Path, stopped_clock: None) -> None:
    names = [create_run(tmp_path, "lenet", "mnist").path.name for _ in range(3)]
    first = "2025-01-31T14-05-09_lenet_mnist"
    assert names == sorted(names) == [first, f"{first}-2", f"{first}-3"]


def test_a_run_that_cannot_be_created_leaves_no_folder(tmp_path: Path, disk_with_room_for: DiskWithRoomFor) -> None:
    with disk_with_room_for(10), pytest.raises(OSError, match="too large"):
        create_run(tmp_path, "lenet", "mnist")
    assert not list(tmp_path.iterdir())


def test_a_creation_that_is_killed_leaves_nothing_that_looks_like_a_run(tmp_path: Path) -> None:
    moments = ["open", "write", "fsync", "replace", "rename"]
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), *moments], check=True)
    left = list(tmp_path.iterdir())
    assert len(left) == len(moments)
    assert all(re.fullmatch(r"\.[0-9a-f]{16}\.partial", path.name) for path in left)
    run = create_run(tmp_path, "lenet", "mnist")
    assert set(tmp_path.iterdir()) == {*left, run.path}


def test_a_run_takes_the_place_of_nothing_but_an_empty_folder(tmp_path: Path, stopped_clock: None) -> None:
    name = "2025-01-31T14-05-09_lenet_mnist"
    (tmp_path / name).write_text("a file")
    (tmp_path / f"{name}-2").symlink_to("nowhere")
    (tmp_path / f"{name}-3").mkdir()
    (tmp_path / f"{name}-3" / "notes").write_text("mine")
    (tmp_path / f"{name}-4").mkdir()
    assert create_run(tmp_path, "lenet", "mnist").path.name == f"{name}-4"
    assert (tmp_path / name).read_text() == "a file"
    assert (tmp_path / f"{name}-2").is_symlink()
    assert (tmp_path / f"{name}-3" / "notes").read_text() == "mine"


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_ctrl_c_while_a_run_is_created_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, moment, interrupt)
        create_run(tmp_path, "lenet", "mnist")
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_gets_no_folder_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks available"):
        create_run(tmp_path, "lenet", "mnist")
    assert not list(tmp_path.iterdir())


def test_threads_that_create_runs_at_once_share_none(tmp_path: Path, stopped_clock: None) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: create_run(tmp_path, "lenet", "mnist").path, range(24)))
    assert len(set(paths)) == len(list(tmp_path.iterdir())) == 24


def test_processes_that_create_runs_at_once_share_none(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CREATOR, str(tmp_path)]
    creators = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for creator in creators:
        assert creator.stdout is not None
        assert creator.stdout.readline() == "ready\n"
    for creator in creators:
        assert creator.stdin is not None
        creator.stdin.write("go\n")
        creator.stdin.flush()
    names = [name for creator in creators for name in creator.communicate()[0].split()]
    assert len(names) == len(set(names)) == 40
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert all(open_run(tmp_path / name).manifest()["net"] == "lenet" for name in names)


@pytest.mark.parametrize(
    ("net", "dataset", "suffix", "argument"),
    [("", "mnist", "", "net"), ("lenet", "../mnist", "", "dataset"), ("lenet", "mnist", "a\nb", "suffix")],
)
def test_names_that_cannot_be_part_of_a_folder_are_refused(
    tmp_path: Path, net: str, dataset: str, suffix: str, argument: str
) -> None:
    with pytest.raises(ValueError, match=f"{argument} should be printable, without /"):
        create_run(tmp_path / "runs", net, dataset, suffix)
    assert not (tmp_path / "runs").exists()


def test_a_run_has_exactly_the_documented_files(run: Run) -> None:
    weights = {"w": torch.ones(2)}
    run.save_report(b"png")
    replicate = run.replicate(3)
    replicate.save_initial(weights)
    level = replicate.level(12)
    level.log.append(1, [0.5], 0, {})
    level.save_masks({"w": torch.ones(2, dtype=torch.bool)})
    level.save_weights("rewind", weights)
    level.save_weights("early_stop", weights)
    level.save_weights("end", weights)
    level.save_kept(7, weights)
    level.save_optimizer({"state": {}})
    level.save_checkpoint({"iteration": 1})
    running = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert running == {
        "meta.json",
        "report.png",
        "replicate_3/initial.safetensors",
        "replicate_3/12/iterations.csv",
        "replicate_3/12/masks.safetensors",
        "replicate_3/12/rewind.safetensors",
        "replicate_3/12/early_stop.safetensors",
        "replicate_3/12/end.safetensors",
        "replicate_3/12/kept_7.safetensors",
        "replicate_3/12/optimizer.pt",
        "replicate_3/12/checkpoint.pt",
    }
    level.save_summary({"level": 12})
    complete = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert complete == running - {"replicate_3/12/checkpoint.pt"} | {"replicate_3/12/summary.json"}
    documented = re.findall(r"[a-z_7]+\.(?:json|csv|safetensors|pt|png)", run_module.__doc__.replace("<i>", "7"))
    assert {Path(path).name for path in running | complete} == set(documented)


def test_replicates_and_levels_that_were_begun_are_listed_by_number(run: Run) -> None:
    assert run.replicates() == []
    for r, numbers in ((10, [0]), (2, [10, 9, 0]), (0, [])):
        run.replicate(r).save_initial({})
        for number in numbers:
            run.replicate(r).level(number).log.append(1, [], 0, {})
    (run.path / "replicate_x").mkdir()
    (run.path / "replicate_07").mkdir()
    (run.path / "replicate_4").touch()
    assert run.replicates() == [run.replicate(r) for r in (0, 2, 10)]
    assert [level.number for level in run.replicate(2).levels()] == [0, 9, 10]
    assert run.replicate(2).levels()[2] == run.replicate(2).level(10)
    assert run.replicate(5).levels() == []


def test_asking_for_a_level_creates_nothing(run: Run) -> None:
    before = sorted(run.path.rglob("*"))
    level = run.replicate(0).level(0)
    assert (level.masks(), level.checkpoint(), level.summary(), level.complete) == (None, None, None, False)
    assert level.weights("rewind") is level.weights("early_stop") is level.weights("end") is None
    assert run.replicate(0).initial() is None
    assert sorted(run.path.rglob("*")) == before


def test_numbers_below_zero_are_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="replicate's number should be >= 0, got -1"):
        run.replicate(-1)
    with pytest.raises(ValueError, match="level's number should be >= 0, got -1"):
        run.replicate(0).level(-1)


def test_everything_saved_comes_back_from_the_opened_run(run: Run) -> None:
    masks = {"w": torch.tensor([[True, False], [False, True]])}
    saved = run.replicate(1)
    saved.save_initial({"w": torch.ones(2, 2)})
    saved.level(0).save_masks(masks)
    saved.level(0).save_weights("end", {"w": torch.full((2, 2), 3.0)})
    saved.level(0).save_checkpoint({"iteration": 7, "w": torch.zeros(1)})
    (opened,) = open_run(str(run.path)).replicates()
    assert torch.equal((opened.initial() or {})["w"], torch.ones(2, 2))
    (level,) = opened.levels()
    assert torch.equal((level.masks() or {})["w"], masks["w"])
    assert torch.equal((level.weights("end") or {})["w"], torch.full((2, 2), 3.0))
    assert (level.checkpoint() or {})["iteration"] == 7


def test_an_unknown_kind_of_weights_is_refused(level: Level) -> None:
    with pytest.raises(ValueError, match="kind should be one of rewind, early_stop, end, got 'final'"):
        level.save_weights("final", {})  # type: ignore[arg-type]


def test_weights_are_linked_from_a_level_a_file_and_the_initial_weights(run: Run) -> None:
    replicate = run.replicate(0)
    replicate.save_initial({"w": torch.ones(1)})
    replicate.level(0).link_weights("rewind", replicate.initial_file)
    replicate.level(1).link_weights("rewind", replicate.level(0))
    replicate.level(1).link_weights("end", replicate.level(1).weights_file("rewind"))
    linked = [
        replicate.level(0).weights_file("rewind"),
        replicate.level(1).weights_file("rewind"),
        replicate.level(1).weights_file("end"),
    ]
    assert all(file.samefile(replicate.initial_file) for file in linked)
    assert torch.equal((replicate.level(1).weights("end") or {})["w"], torch.ones(1))


def test_saving_over_linked_weights_leaves_the_others_alone(run: Run) -> None:
    replicate = run.replicate(0)
    replicate.save_initial({"w": torch.ones(1)})
    replicate.level(0).link_weights("rewind", replicate.initial_file)
    replicate.level(0).save_weights("rewind", {"w": torch.zeros(1)})
    assert torch.equal((replicate.initial() or {})["w"], torch.ones(1))


def test_linking_weights_that_were_not_saved_is_an_error(run: Run) -> None:
    with pytest.raises(FileNotFoundError, match=r"replicate_0/0/end\.safetensors"):
        run.replicate(0).level(1).link_weights("end", run.replicate(0).level(0))


def test_a_summary_makes_the_level_complete_and_ends_its_checkpoint(level: Level) -> None:
    level.save_checkpoint({"iteration": 7})
    assert not level.complete
    level.save_summary({"level": 0, "test_loss": float("nan"), "layers": {"fc1.weight": 0.5}})
    assert level.complete
    assert level.summary() == {"level": 0, "test_loss": None, "layers": {"fc1.weight": 0.5}}
    assert level.checkpoint() is None


def test_the_checkpoint_outlives_a_summary_that_could_not_be_saved(
    level: Level, disk_with_room_for: DiskWithRoomFor
) -> None:
    level.save_checkpoint({"iteration": 7})
    with disk_with_room_for(100), pytest.raises(OSError, match="too large"):
        level.save_summary({"layers": {f"layer{i}": 0.5 for i in range(100)}})
    assert not level.complete
    assert level.checkpoint() == {"iteration": 7}


def test_a_damaged_summary_is_named_rather_than_missed(level: Level) -> None:
    level.save_summary({"level": 0})
    (level.path / "summary.json").write_text('{"level"')
    with pytest.raises(ValueError, match=r"replicate_0/0/summary\.json is not a whole"):
        level.summary()


def test_a_new_run_knows_its_format_network_and_data_set(run: Run) -> None:
    assert run.manifest() == {"format": 1, "net": "lenet", "dataset": "mnist"}


def test_the_manifest_is_replaced_but_for_what_the_run_was_created_with(run: Run) -> None:
    run.save_manifest({"plan": ["native"], "seed": 3})
    run.save_manifest({"seed": 4, "net": "lenet_300_100"})
    assert open_run(run.path).manifest() == {"format": 1, "net": "lenet_300_100", "dataset": "mnist", "seed": 4}


def test_a_run_of_a_newer_format_is_refused(run: Run) -> None:
    (run.path / "meta.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(ValueError, match=r"meta\.json has format 2, this lth_fast reads up to format 1: a newer"):
        open_run(run.path)
    with pytest.raises(ValueError, match="format 2"):
        run.save_manifest({})


@pytest.mark.parametrize("content", ['{"net": "lenet"}', '{"format": "one"}', '{"format": 0}'])
def test_a_json_file_that_is_no_manifest_is_refused(run: Run, content: str) -> None:
    (run.path / "meta.json").write_text(content)
    with pytest.raises(ValueError, match=r"meta\.json is not the manifest of a run"):
        open_run(run.path)


def test_opening_what_is_no_run_says_what_a_run_looks_like(run: Run, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent: there is no such folder"):
        open_run(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"<date>T<time>_<net>_<dataset> and holds meta\.json and replicate_0"):
        open_run(tmp_path)


def test_a_run_has_one_writer_and_any_number_of_readers(run: Run) -> None:
    with run.lock():
        other = open_run(run.path)
        assert other.manifest()["net"] == "lenet"
        with pytest.raises(RunInUseError, match="is being written by process"), other.lock():
            pytest.fail("two writers")
    with other.lock():
        pass
