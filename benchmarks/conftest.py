"""Machine and versions in the results file, and one readable table at the end."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lth_fast.experiment.environment import describe


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["lth_fast"] = describe(torch.device("cpu"))
    machine_info["mkl"] = torch.backends.mkl.is_available()


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    commit_info["short"] = _git("rev-parse", "--short", "HEAD")
    commit_info["uncommitted"] = bool(_git("status", "--porcelain", "--", ":/csrc", ":/lth_fast"))


def _git(*arguments: str) -> str:
    """What git says; nothing where it is not installed, and what was measured is written all the same."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


@pytest.fixture(params=["one", "all"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each comparison on one thread and on all of them."""
    everything = torch.get_num_threads()
    count = 1 if request.param == "one" else everything
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(everything)


@pytest.fixture
def denormals_flushed() -> Iterator[None]:
    """On both sides."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session", autouse=True)
def measured_times(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forms are chosen by times that are measured in this very session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTH_FAST_CACHE", str(tmp_path_factory.mktemp("calibration")))
        yield


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = []
    for entry in getattr(session, "benchmarks", []):
        extra = entry.extra_info
        compared = extra.get("rivals", {"": extra} if "ratio" in extra else {})
        for rival, result in compared.items():
            rows.append((f"{entry.name} {rival}".strip(), result, extra.get("note", "")))
    if not rows:
        return
    terminalreporter.section("times faster than the rival, medians, 95 % interval")
    width = max(len(name) for name, _, _ in rows)
    terminalreporter.write_line(f"{'':{width}}  {'ours ms':>10} {'rival ms':>10} {'ratio':>7}  interval        bar")
    for name, result, note in rows:
        bar = f"{result['bar']:.2f}" if "bar" in result else "-"
        missed = "MISSED  " if "bar" in result and result["high"] < result["bar"] else ""
        terminalreporter.write_line(
            f"{name:{width}}  {1e3 * result['ours']:10.3f} {1e3 * result['rival']:10.3f} {result['ratio']:7.2f}  "
            f"{result['low']:.2f} to {result['high']:.2f}  {bar:>6}  {missed}{note}"
        )
    missing = [peer for peer in ("SparseProp", "SparseLab") if importlib.util.find_spec(peer.lower()) is None]
    if missing and any("layer" in entry.extra_info for entry in session.benchmarks):
        names = " and ".join(missing)
        terminalreporter.write_line(f"without {names}: pip install --no-build-isolation -e '.[peers]' brings them")
