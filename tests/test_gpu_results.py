"""What ``benchmarks/gpu.sh`` leaves: one file, whichever of its stages came to an end."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def results():
    specification = importlib.util.spec_from_file_location("gpu_results", BENCHMARKS / "gpu" / "results.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def logs(tmp_path):
    tmp_path = tmp_path / "logs"
    tmp_path.mkdir()
    (tmp_path / "build.status").write_text("0 42\n")
    (tmp_path / "build.log").write_text("x" * 100_000 + "built")
    (tmp_path / "memcheck.status").write_text("skipped 0\n")
    (tmp_path / "memcheck.log").write_text("compute-sanitizer is not installed\n")
    return tmp_path


def test_benchmarks_and_stages_end_up_in_one_file(results, logs, capsys):
    entry = {
        "name": "test_step",
        "stats": {"median": 2.0, "data": [1.0] * 99},
        "extra_info": {"ratio": 12.5, "bar": 10},
    }
    other = {"name": "test_layer", "stats": {"median": 1.0}, "extra_info": {}}
    (logs / "step.json").write_text(json.dumps({"benchmarks": [entry], "machine_info": {"cpu": "some"}}))
    (logs / "layer.json").write_text(json.dumps({"benchmarks": [other], "machine_info": {"cpu": "some"}}))
    target = logs.parent / "results.json"
    results.main(str(logs), str(target))
    written = json.loads(target.read_text())
    assert written["machine_info"] == {"cpu": "some"}
    medians = {benchmark["name"]: benchmark["stats"] for benchmark in written["benchmarks"]}
    assert medians == {"test_step": {"median": 2.0}, "test_layer": {"median": 1.0}}
    assert written["stages"]["build"]["status"] == 0
    assert written["stages"]["build"]["seconds"] == 42
    assert written["stages"]["build"]["end_of_output"].endswith("built")
    assert written["stages"]["memcheck"]["status"] == "skipped"
    assert target.stat().st_size < 20_000
    assert "test_step: 12.50 times (bar 10.00)" in capsys.readouterr().out


@pytest.mark.parametrize("measured", [None, "", '{"benchmarks": [{"na'])
def test_without_a_measurement_the_stages_are_there(results, logs, measured):
    if measured is not None:
        (logs / "step.json").write_text(measured)
    results.main(str(logs), str(logs.parent / "results.json"))
    written = json.loads((logs.parent / "results.json").read_text())
    assert set(written) == {"benchmarks", "stages"}
    assert written["benchmarks"] == []
    assert set(written["stages"]) == {"build", "memcheck"}


def test_without_git_what_was_measured_is_written_all_the_same(monkeypatch, tmp_path):
    specification = importlib.util.spec_from_file_location("benchmarks_conftest", BENCHMARKS / "conftest.py")
    conftest = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(conftest)
    monkeypatch.setenv("PATH", str(tmp_path))
    commit = {}
    conftest.pytest_benchmark_update_commit_info(None, commit)
    assert commit == {"short": "", "uncommitted": False}


def test_the_script_is_a_whole_one():
    script = BENCHMARKS / "gpu.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert script.stat().st_mode & 0o111


def test_without_a_device_it_ends_before_the_build_and_the_file_says_why(tmp_path):
    target = tmp_path / "results.json"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, "SECONDS_IN_ALL": "100"}
    ended = subprocess.run([BENCHMARKS / "gpu.sh", target], env=environment, capture_output=True, check=False)
    assert ended.returncode == 1
    stages = json.loads(target.read_text())["stages"]
    assert list(stages) == ["machine"]
    assert stages["machine"]["status"] == 1
    assert "finds no CUDA device" in stages["machine"]["end_of_output"]


@pytest.fixture
def stages(tmp_path):
    """``stages(name=code)`` is the script with a Python that runs ``code`` in the stage of that name, else nothing."""
    running = []

    def start(**codes):
        (tmp_path / "codes.json").write_text(json.dumps(codes))
        python = tmp_path / "python"
        python.write_text(
            f"#!{sys.executable}\n"
            "import json, os, sys\n"
            "given = ' '.join(sys.argv[1:])\n"
            "if 'results.py' in given or 'sysconfig' in given:\n"
            f"    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
            f"for called, code in json.load(open({str(tmp_path / 'codes.json')!r})).items():\n"
            "    if called in given:\n"
            "        exec(code)\n"
        )
        python.chmod(0o755)
        environment = {**os.environ, "PYTHON": str(python)}
        script = [BENCHMARKS / "gpu.sh", tmp_path / "results.json"]
        running.append(subprocess.Popen(script, env=environment, stdout=subprocess.PIPE, text=True))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("ends", "status"), [("sys.exit(0)", 0), ("sys.exit(5)", 0), ("sys.exit(1)", 1)])
def test_a_stage_that_fails_stops_no_other_and_shows_in_the_exit_status(stages, tmp_path, ends, status):
    script = stages(test_masked_linear=ends)
    script.communicate(timeout=100)
    assert script.returncode == status
    written = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert written["benchmark_masked_linear"]["status"] == int(ends[-2])
    assert written["tests_of_training"]["status"] == 0


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_the_stage_that_is_running_and_what_there_is_by_then_is_written(stages, tmp_path, sent):
    began = tmp_path / "began"
    wait = (
        f"import time\ntry: open({str(began)!r}, 'w'), time.sleep(50)\nexcept KeyboardInterrupt: print('interrupted')"
    )
    script = stages(test_masked_linear=wait)
    deadline = time.monotonic() + 50
    while not began.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    script.send_signal(sent)
    script.communicate(timeout=20)
    assert script.returncode == 143
    written = json.loads((tmp_path / "results.json").read_text())["stages"]
    assert written["benchmark_masked_linear"]["end_of_output"] == "interrupted\n"
    assert "tests_of_training" not in written
