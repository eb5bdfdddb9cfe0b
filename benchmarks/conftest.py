"""Machine and versions in the results file, and one readable table at the end."""

from __future__ import annotations

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
    commit_info["uncommitted"] = bool(_git("status", "--porcelain", "--", "csrc", "lth_fast"))


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


@pytest.fixture(params=["one", "all"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Each comparison on one thread and on all of them."""
    everything = torch.get_num_threads()
    count = 1 if request.param == "one" else everything
    torch.set_num_threads(count)
    yield count
    torch.set_num_threads(everything)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [entry for entry in getattr(session, "benchmarks", []) if "ratio" in entry.extra_info]
    if not rows:
        return
    terminalreporter.section("times faster than the rival, medians, 95 % interval")
    width = max(len(entry.name) for entry in rows)
    terminalreporter.write_line(f"{'':{width}}  {'ours ms':>10} {'rival ms':>10} {'ratio':>7}  interval        bar")
    for entry in rows:
        extra = entry.extra_info
        bar = f"{extra['bar']:.2f}" if "bar" in extra else "-"
        terminalreporter.write_line(
            f"{entry.name:{width}}  {1e3 * extra['ours']:10.3f} {1e3 * extra['rival']:10.3f} {extra['ratio']:7.2f}  "
            f"{extra['low']:.2f} to {extra['high']:.2f}  {bar:>6}  {extra.get('note', '')}"
        )
