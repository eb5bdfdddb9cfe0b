"""Fixtures for every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def measured_times(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Times of layers are kept in a folder of the test session, which child processes share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTH_FAST_CACHE", str(tmp_path_factory.mktemp("calibration")))
        yield


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of genuine data sets, ``<folder>/<dataset>/...``, from the environment variable LTH_FAST_DATA."""
    folder = os.environ.get("LTH_FAST_DATA")
    if not folder:
        pytest.skip("LTH_FAST_DATA is not set: it names the folder of the genuine data sets")
    return Path(folder)
