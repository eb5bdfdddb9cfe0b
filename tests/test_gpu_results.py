"""What ``benchmarks/gpu.sh`` leaves: one file, whichever of its stages came to an end."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
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
