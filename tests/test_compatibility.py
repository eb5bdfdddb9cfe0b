from __future__ import annotations

import pytest
import torch

from lth_fast._build_info import TORCH_VERSION
from lth_fast._compatibility import check_build


@pytest.mark.parametrize(
    ("built_for", "found"),
    [("2.15.0", "2.15.0"), ("2.15.0+cu132", "2.15.0+cpu"), ("2.15.0", "2.15.3"), ("2.15.0", "2.15.0a0+git1234")],
)
def test_a_build_serves_every_torch_of_its_minor_version(built_for: str, found: str) -> None:
    check_build(built_for, found)


@pytest.mark.parametrize(
    ("built_for", "found"), [("2.15.0+cu132", "2.16.0"), ("2.1.0", "2.15.0"), ("2.15.0", "3.15.0")]
)
def test_a_build_for_another_torch_is_refused_with_both_versions_and_the_command(built_for: str, found: str) -> None:
    with pytest.raises(ImportError) as refusal:
        check_build(built_for, found)
    assert str(refusal.value) == (
        f"lth_fast was built for torch {built_for}, but torch {found} is installed; rebuild lth_fast against it: "
        "pip install --no-build-isolation --no-deps -e . (in the folder of its sources)"
    )


def test_a_missing_build_is_refused_with_the_command() -> None:
    with pytest.raises(ImportError) as refusal:
        check_build(None, "2.15.0")
    assert str(refusal.value) == (
        "the native libraries of lth_fast are not built; with torch 2.15.0 installed, rebuild lth_fast against it: "
        "pip install --no-build-isolation --no-deps -e . (in the folder of its sources)"
    )


def test_this_build_serves_this_torch() -> None:
    check_build(TORCH_VERSION, torch.__version__)
