"""Processes that are killed, interrupted or out of disk space, and what ``--recover`` makes of what they left."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lth_fast import load_run

DIGITS = ("lenet", "digits", "--iter", "300", "--rounds", "2", "--seed", "1", "--step", "50", "--rewind", "30")
PATIENCE = 300.0


class Started:
    """A run in a process of its own, from the moment its folder is set up."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lth_fast", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # A shell that puts the tests into the background has them, and their children, ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert line.startswith("run:     "), line + self.process.stderr.read()
        self.path = Path(line.removeprefix("run:     ").rstrip("\n"))

    def wait_for(self, log_bytes: float) -> None:
        """Wait until the logs of all levels together have this size, or the process ends."""
        end = time.monotonic() + PATIENCE
        while log_size(self.path) < log_bytes and self.process.poll() is None:
            assert time.monotonic() < end, "the run makes no progress"
            time.sleep(0.002)

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send the signal; the exit code and the rest of stderr."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, err


def log_size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("replicate_0/*/iterations.csv"))


def read_everything(path: Path) -> None:
    """A run can be read at any moment."""
    loaded = load_run(path)
    for row in loaded.levels:
        assert len(loaded.iterations(row["level"])["iteration"]) == row["iterations"]
        assert loaded.masks(row["level"])
        assert loaded.weights(row["level"])


def kill_again_and_again(arguments, kills, reference, save, seed):
    """Kill a run ``kills`` times at random moments, going on with it in between; how many kills met it at work."""
    drawn = random.Random(seed)
    total = log_size(reference.path)
    next_arguments = [*arguments, "--save", str(save)]
    met = 0
    for share in sorted(drawn.uniform(0, 0.95) for _ in range(kills)):
        started = Started(*next_arguments)
        started.wait_for(share * total)
        time.sleep(drawn.uniform(0, 0.05))
        code, err = started.end(signal.SIGKILL)
        met += code == -signal.SIGKILL
        assert code in (-signal.SIGKILL, 0), err
        read_everything(started.path)
        next_arguments = ["--recover", str(started.path)]
        if code == 0:
            break
    return started.path, met


@pytest.mark.parametrize("checkpoint_seconds", ["0", "0.05"])
def test_a_run_killed_at_random_moments_goes_on_to_the_same_bits(checkpoint_seconds, command, bits, tmp_path, request):
    arguments = (*DIGITS, "--checkpoint_seconds", checkpoint_seconds)
    reference = command(*arguments).run
    path, met = kill_again_and_again(arguments, 2, reference, tmp_path / "killed", seed=request.node.name)
    assert met >= 1
    recovered = command("--recover", str(path), save=False)
    assert recovered.code == 0, recovered.err
    assert bits(load_run(path).run) == bits(reference)


@pytest.mark.long
@pytest.mark.real_data
def test_a_run_on_mnist_killed_twenty_times_goes_on_to_the_same_bits(command, bits, data_root, tmp_path):
    arguments = ["lenet", "mnist", "--data", str(data_root), "--iter", "1000", "--rounds", "3", "--seed", "1"]
    arguments += ["--checkpoint_seconds", "0.05"]
    reference = command(*arguments).run
    path, met = kill_again_and_again(arguments, 20, reference, tmp_path / "killed", seed=20)
    assert met >= 18
    recovered = command("--recover", str(path), save=False)
    assert recovered.code == 0, recovered.err
    assert bits(load_run(path).run) == bits(reference)


@pytest.mark.parametrize("case", range(2))
def test_a_run_killed_while_it_is_set_up_can_be_recovered_or_says_that_it_must_be_started_anew(
    case, command, bits, tmp_path
):
    arguments = ("lenet:8", "digits", "--iter", "5", "--rounds", "1", "--seed", "1")
    save = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "lth_fast", *arguments, "--quiet", "--save", str(save)],
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + PATIENCE
    while not (save.is_dir() and any(save.glob("[!.]*"))) and time.monotonic() < end:
        time.sleep(0.0005)
    time.sleep(random.Random(case).uniform(0, 0.01))
    process.kill()
    _, err = process.communicate(timeout=PATIENCE)
    assert err == ""
    (path,) = save.iterdir()
    recovered = command("--recover", str(path), save=False)
    if recovered.code == 0:
        assert bits(load_run(path).run) == bits(command(*arguments).run)
    else:
        assert recovered.code == 2
        (line,) = recovered.err.splitlines()
        assert "stopped before it was set up; start it anew" in line


def test_ctrl_c_takes_one_line_that_says_how_to_go_on(command, bits, tmp_path):
    reference = command(*DIGITS).run
    started = Started(*DIGITS, "--checkpoint_seconds", "0", "--save", str(tmp_path / "a folder"))
    started.wait_for(log_size(reference.path) / 3)
    code, err = started.end(signal.SIGINT)
    assert code == 130, err
    assert err.splitlines()[-1] == f"error: interrupted; go on with: python -m lth_fast --recover '{started.path}'"
    assert "Traceback" not in err
    assert not load_run(started.path).run.replicate(0).level(2).complete
    recovered = command("--recover", str(started.path), save=False)
    assert recovered.code == 0, recovered.err
    assert bits(load_run(started.path).run) == bits(reference)


def test_a_second_process_on_the_same_folder_is_refused(command, tmp_path):
    started = Started(*DIGITS, "--iter", "90000", "--checkpoint_seconds", "0", "--save", str(tmp_path / "runs"))
    started.wait_for(1)
    second = command("--recover", str(started.path), save=False)
    code, err = started.end(signal.SIGKILL)
    assert code == -signal.SIGKILL, err
    assert second.code == 2
    assert second.err.startswith(f"error: run {started.path} is being written by process {started.process.pid} on ")


@contextlib.contextmanager
def files_limited_to(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# The weights of LeNet on digits take 202 kB, a checkpoint in the beginning of the run 620 kB, one behind an evaluation
# 820 kB.
@pytest.mark.parametrize("kilobytes", [150, 400, 700])
def test_files_that_cannot_grow_any_more_end_the_run_with_a_clear_message(kilobytes, command, bits):
    arguments = (*DIGITS, "--checkpoint_seconds", "0")
    with files_limited_to(1000 * kilobytes):
        outcome = command(*arguments)
    assert outcome.code == 1
    path = outcome.run.path
    assert outcome.err.splitlines()[-1] == (
        f"error: [Errno 27] File too large; go on with: python -m lth_fast --recover '{path}'"
    )
    assert not list(path.glob("**/.*.partial"))
    read_everything(path)
    recovered = command("--recover", str(path), save=False)
    assert recovered.code == 0, recovered.err
    assert bits(outcome.run) == bits(command(*arguments).run)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of its own, where the machine lets us."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a small file system takes privileges that this machine does not give")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_a_clear_message(small_disk, command, bits):
    arguments = (*DIGITS, "--checkpoint_seconds", "0")
    outcome = command(*arguments, "--save", str(small_disk), save=False)
    assert outcome.code == 1
    (path,) = (file for file in small_disk.iterdir() if file.is_dir())
    assert outcome.err.splitlines()[-1] == (
        f"error: no space is left for {path} ([Errno 28] No space left on device); free some, then go on with: "
        f"python -m lth_fast --recover {path}"
    )
    read_everything(path)
    again = command("--recover", str(path), save=False)
    assert again.code == 1
    assert "no space is left" in again.err
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    recovered = command("--recover", str(path), save=False)
    assert recovered.code == 0, recovered.err
    assert bits(load_run(path).run) == bits(command(*arguments).run)


def test_a_disk_that_is_full_from_the_beginning_is_one_clear_error(small_disk, command):
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(4096))
            ballast.flush()
    outcome = command(*DIGITS, "--save", str(small_disk / "runs"), save=False)
    assert outcome.code == 1
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: ")
    assert "No space left on device" in line
