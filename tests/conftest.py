"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of genuine data sets, ``<folder>/<dataset>/...``, from the environment variable LTH_FAST_DATA."""
    folder = os.environ.get("LTH_FAST_DATA")
    if not folder:
        pytest.skip("LTH_FAST_DATA is not set: it names the folder of the genuine data sets")
    return Path(folder)
