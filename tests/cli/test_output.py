"""What a person sees: log lines, a bar on a terminal, the table; nothing with --quiet; one line for an error."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.request

import pytest
import torch

from lth_fast import cli
from lth_fast.experiment import build, session
from lth_fast.experiment.environment import cpu_name
from lth_fast.record import open_run
from lth_fast.report import comparison

BASE = ("lenet:8", "digits", "--rounds", "1", "--seed", "1")
LOG_LINE = re.compile(
    r"INFO     \[round: (\d+) \| epoch: (\d+)\] train: ([\d.e-]+) validation: ([\d.e-]+|nan) \| "
    r"sparsity: ([\d.]+)% \| duration: \d+\.\ds"
)


def test_off_a_terminal_there_is_a_line_per_epoch_in_the_words_of_the_reference(command):
    outcome = command(*BASE, "--iter", "50", "--batch_size", "60", "--step", "-1")
    run, stepper, *lines = outcome.err.splitlines()
    assert run == f"run:     {outcome.run.path}"
    assert stepper == "stepper: native; CUDA graph not used: the training is on the CPU"
    found = [LOG_LINE.fullmatch(line) for line in lines]
    assert all(found), lines
    per_epoch = 22
    assert [(match[1], match[2]) for match in found] == [(level, epoch) for level in "01" for epoch in "123"]
    for level in (0, 1):
        log = outcome.level(level).log.read()
        for epoch, match in enumerate(found[3 * level : 3 * level + 3]):
            rows = slice(per_epoch * epoch, min(per_epoch * (epoch + 1), 50))
            assert float(match[3]) == pytest.approx(log["train_loss"][rows].mean(), rel=1e-3)
            assert float(match[4]) == pytest.approx(log["valid_loss"][rows][-1], rel=1e-3)
            assert float(match[5]) == pytest.approx(log["sparsity"][0], abs=0.01)
    assert found[0][5] == "0"


def test_a_line_says_nothing_of_validation_where_there_is_none(command):
    outcome = command(*BASE, "--iter", "6", "--validation", "0")
    lines = [line for line in outcome.err.splitlines() if line.startswith("INFO")]
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(
            r"INFO     \[round: \d \| epoch: 1\] train: [\d.e-]+ \| sparsity: .*% \| duration: .*s", line
        )


def test_the_table_and_the_figure_come_last_on_stdout(command):
    outcome = command(*BASE, "--iter", "6")
    title, header, dense, pruned, figure = outcome.out.splitlines()
    assert title == f"{outcome.run.path.name}: 2 of 2 levels complete"
    assert header.split()[:2] == ["level", "density"]
    assert dense.split()[:2] == ["0", "100.00"]
    assert pruned.split()[0] == "1"
    assert figure == f"figure: {outcome.run.path / 'report.png'}"


def test_quiet_prints_nothing_and_leaves_the_same_run(command, bits):
    loud = command(*BASE, "--iter", "6")
    quiet = command(*BASE, "--iter", "6", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    assert bits(quiet.run) == bits(loud.run)


def test_quiet_draws_the_figure_all_the_same(tmp_path, capsys):
    assert cli.main([*BASE, "--iter", "3", "--quiet", "--save", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert (path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr() == ("", "")


def test_quiet_prints_nothing_of_downloads_but_that_they_failed(command, monkeypatch, tmp_path):
    def urlopen(*args, **kwargs):
        raise urllib.error.URLError("the network is down")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    outcome = command("lenet", "mnist", "--data", str(tmp_path), "--quiet")
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith("error: MNIST is incomplete: ")
    assert "the network is down" in line


def test_quiet_prints_errors(command):
    outcome = command("lenet", "digits", "--iter", "0", "--quiet")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "error: --iter: expected a whole number >= 1, got '0'\n"


def test_without_matplotlib_the_table_is_there_and_the_missing_extra_is_named(command, monkeypatch):
    def failing(run):
        raise ImportError("drawing a figure needs matplotlib; install it with: pip install 'lth_fast[plot]'")

    monkeypatch.setattr(cli, "figure", failing)
    outcome = command(*BASE, "--iter", "3")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1].startswith("no figure: drawing a figure needs matplotlib")


def test_a_figure_that_cannot_be_written_is_one_error_after_the_table(command, monkeypatch):
    def failing(run):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cli, "figure", failing)
    outcome = command(*BASE, "--iter", "3")
    assert outcome.code == 1
    assert "2 of 2 levels complete" in outcome.out
    assert outcome.err.splitlines()[-1] == (
        "error: the figure cannot be written ([Errno 28] No space left on device); "
        f"draw it with: python -m lth_fast report '{outcome.run.path}'"
    )


def test_a_training_that_diverges_is_one_clear_error(command):
    outcome = command(*BASE, "--iter", "30", "-o", "sgd", "--learn_rate", "1e30")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith(f"error: {outcome.run.path}: ")
    assert outcome.err.splitlines()[-1].endswith("did the training diverge?")
    assert not outcome.level(1).complete


def test_a_missing_data_set_without_network_is_one_clear_error(tmp_path):
    """The network is there and answers nothing: a proxy that cannot be reached."""
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    environment = {name: value for name, value in environment.items() if name.lower() != "no_proxy"}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "lth_fast", "lenet", "mnist", "--data", "data", "--save", "runs"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert time.monotonic() - begun < 60
    assert done.returncode == 2
    assert done.stdout == ""
    *downloads, error = done.stderr.splitlines()
    assert all(line.startswith("downloading ") for line in downloads)
    assert error.startswith("error: MNIST is incomplete: train-images-idx3-ubyte.gz, ")
    assert str(tmp_path / "data") in error
    assert "or use the data set 'digits', which needs no files" in error
    assert not list(tmp_path.iterdir())


def test_a_package_that_is_missing_is_one_clear_error(command, monkeypatch, tmp_path):
    def failing(*args, **kwargs):
        raise ImportError("the data set digits needs sklearn; install it with: pip install 'lth_fast[digits]'")

    monkeypatch.setattr(build.data, "load", failing)
    outcome = command(*BASE)
    assert outcome.code == 2
    assert outcome.err == (
        "error: the data set digits needs sklearn; install it with: pip install 'lth_fast[digits]'\n"
    )
    assert not list(tmp_path.iterdir())


def test_ctrl_c_before_anything_was_started_says_so(command, monkeypatch, tmp_path):
    def interrupting(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(build.data, "load", interrupting)
    outcome = command(*BASE)
    assert (outcome.code, outcome.err) == (130, "error: interrupted before anything was started\n")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_before_a_run_was_set_up_says_that_it_starts_anew(command, monkeypatch):
    """There is nothing yet that could be recovered."""

    def interrupting(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "choose", interrupting)
    outcome = command(*BASE)
    said = "error: interrupted; start it anew, it was not set up yet"
    assert (outcome.code, outcome.err.splitlines()[-1]) == (130, said)


def test_ctrl_c_while_the_figure_is_drawn_says_how_to_get_it(command, monkeypatch):
    def interrupting(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "figure", interrupting)
    outcome = command(*BASE, "--iter", "3")
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == (
        f"error: interrupted; go on with: python -m lth_fast --recover '{outcome.run.path}'"
    )


def read_terminal(master, until, seconds=60):
    """What the program wrote to its terminal until ``until`` appeared or it ended."""
    text = ""
    end = time.monotonic() + seconds
    while time.monotonic() < end and not re.search(until, text):
        if select.select([master], [], [], 0.1)[0]:
            try:
                text += os.read(master, 65536).decode(errors="replace")
            except OSError:  # Linux: the other side is closed
                break
    return text


def test_on_a_terminal_there_is_a_bar_with_speed_and_time_left_and_ctrl_c_takes_one_line(tmp_path):
    arguments = (*BASE, "--iter", "90000", "--step", "500")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "lth_fast", *arguments, "--save", str(tmp_path / "run")],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # as an interactive shell has it
    )
    os.close(slave)
    try:
        # level 0/1 at 100 %:   8%|▊         | 320/90000 [00:00<00:05, 640.12 iterations/s, loss 1.2]
        bar = r"level 0/1 at 100 %: +\d+%\|.*\| \d+/90000 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ iterations/s, loss [\d.e-]+\]"
        text = read_terminal(master, bar)
        assert re.search(bar, text), text
        os.kill(process.pid, signal.SIGINT)
        text = read_terminal(master, r"--recover \S+\r\n")
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.wait()
        os.close(master)
    (path,) = (tmp_path / "run").iterdir()
    assert f"error: interrupted; go on with: python -m lth_fast --recover {path}" in text
    assert "Traceback" not in text


def test_info_tells_versions_build_and_devices(capsys):
    assert cli.main(["info"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = dict(re.split(r"  +", line, maxsplit=1) for line in out.splitlines())
    assert rows["torch"] == torch.__version__
    assert rows["cpu"] == cpu_name()
    assert {"lth_fast", "numpy", "python", "isa", "threads", "gpu", "cuda kernels", "stepper"} <= set(rows)


@pytest.mark.parametrize("words", [["info", "extra"], ["report"], ["report", "--foo", "x"]])
def test_info_and_report_refuse_what_they_do_not_take(words, capsys):
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("words", [["info"], ["lenet", "digits"]])
def test_an_instruction_set_that_cannot_be_used_is_refused_in_one_line_and_leaves_no_folder(words, tmp_path):
    environment = {**os.environ, "LTH_FAST_ISA": "nonsense"}
    command = [sys.executable, "-m", "lth_fast", *words]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: the environment variable LTH_FAST_ISA names the instruction set 'nonsense'")
    assert len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_report_prints_the_table_and_draws_the_figure_of_a_run(command, tmp_path, capsys):
    run = command(*BASE, "--iter", "3").run
    with pytest.MonkeyPatch.context() as patch:
        from lth_fast.report import figure

        patch.setattr(cli, "figure", figure)
        assert cli.main(["report", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{run.path.name}: 2 of 2 levels complete"
    assert out.splitlines()[-1] == f"figure: {run.path / 'report.png'}"
    assert (run.path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_report_of_a_run_that_is_not_complete_tells_what_there_is(command, capsys):
    run = command(*BASE, "--iter", "3").run
    (run.replicate(0).level(1).path / "summary.json").unlink()
    assert cli.main(["report", str(run.path)]) == 0
    assert f"{run.path.name}: 1 of 2 levels complete" in capsys.readouterr().out


def test_a_control_arm_says_how_to_see_it_beside_its_ticket_run_and_report_shows_both(tmp_path, capsys):
    base = (*BASE, "--iter", "6", "--seed", "1", "--save", str(tmp_path / "my runs"))
    assert cli.main([*base]) == 0
    assert "beside" not in capsys.readouterr().out
    assert cli.main([*base, "--random"]) == 0
    *_, hint = capsys.readouterr().out.splitlines()
    ticket, control = sorted((tmp_path / "my runs").iterdir(), key=lambda path: path.name.endswith("_reinit"))
    assert hint.startswith("beside its ticket run: python -m lth_fast ")
    words = shlex.split(hint.removeprefix("beside its ticket run: python -m lth_fast "))
    assert words == ["report", str(ticket), str(control)]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (
        f"{comparison([open_run(ticket), open_run(control)])}\nfigure: {tmp_path / 'my runs' / 'comparison.png'}\n",
        "",
    )
    assert (tmp_path / "my runs" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main([*base, "--branch", "random_mask", "--quiet"]) == 0  # finds its ticket run beside the picture
    assert capsys.readouterr() == ("", "")


def test_runs_whose_figure_cannot_be_written_are_shown_and_how_to_draw_it_again(command, capsys, monkeypatch):
    run = command(*BASE, "--iter", "3").run
    monkeypatch.setattr(cli, "comparison_figure", lambda runs: (run.path / "gone" / "comparison.png").write_bytes(b""))
    assert cli.main(["report", str(run.path), str(run.path)]) == 1
    out, err = capsys.readouterr()
    assert out == f"{comparison([run, run])}\n"
    assert err.endswith(f"draw it with: python -m lth_fast report '{run.path}' '{run.path}'\n")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_report_of_no_run_is_refused(make, tmp_path, capsys):
    make(tmp_path / "run")
    assert cli.main(["report", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"error: no run at {tmp_path / 'run'}: ")


def test_a_terminal_that_lacks_a_character_gets_the_table_all_the_same(command):
    run = command(*BASE, "--iter", "3", "--replicates", "2").run
    done = subprocess.run(
        [sys.executable, "-m", "lth_fast", "report", str(run.path)],
        env={**os.environ, "PYTHONIOENCODING": "ascii:strict"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 of 4 levels complete (2 replicates; mean ? sample sd)" in done.stdout


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_is_closed_does_not_end_the_run(closed, tmp_path):
    words = " ".join([sys.executable, "-m", "lth_fast", *BASE, "--iter", "3", "--save", str(tmp_path / "runs")])
    redirections = {"stdout": ">&-", "stderr": "2>&-"}
    done = subprocess.run(f"{words} {redirections[closed]}", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    assert all(open_run(path).replicate(0).level(number).complete for number in (0, 1))
    assert (path / "report.png").exists()


def test_a_reader_that_has_seen_enough_ends_the_program_quietly():
    process = subprocess.Popen(
        [sys.executable, "-m", "lth_fast", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()  # as `| head -1` does after its line
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait() == 1
