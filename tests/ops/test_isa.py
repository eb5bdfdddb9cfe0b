from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from lth_fast import _C
from lth_fast.ops import pack_mask

# The choice is made once in a process, so each one needs a fresh process; refused names leave it open.
CHILD = """
import json, os, sys, torch
from lth_fast import _C
from lth_fast.ops import pack_mask
answers = {}
for name in json.loads(sys.argv[1]):
    os.environ["LTH_FAST_ISA"] = name
    try:
        bits = pack_mask(torch.ones(11, dtype=torch.bool)).tolist()
        answers[name] = [_C.active_isa(), bits]
    except ValueError as error:
        answers[name] = str(error)
print(json.dumps(answers))
"""


def answers(*names: str) -> dict[str, Any]:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(names)], capture_output=True, text=True, check=True, env=os.environ
    )
    return json.loads(child.stdout)


def test_the_environment_variable_forces_an_instruction_set_and_refuses_others_by_name() -> None:
    unusable = [name for name in _C.built_isas() if name not in _C.usable_isas()]
    found = answers("nonsense", "AVX2", *unusable, "scalar")
    assert found.pop("scalar") == ["scalar", [255, 7]]
    usable = ", ".join(_C.usable_isas())
    assert len(found) == 2 + len(unusable)
    for name, message in found.items():
        assert message.startswith(
            f"the environment variable LTH_FAST_ISA names the instruction set '{name}'; "
            f"this build on this CPU can use: {usable}"
        )


def test_an_empty_environment_variable_means_the_best_instruction_set() -> None:
    assert answers("") == {"": [_C.usable_isas()[0], [255, 7]]}


def test_the_portable_kernels_are_always_built_and_usable() -> None:
    assert "scalar" in _C.usable_isas()
    assert set(_C.usable_isas()) <= set(_C.built_isas())


def test_an_instruction_set_can_be_forced_in_the_process(isa: str) -> None:
    assert _C.active_isa() == isa
    assert pack_mask(torch.ones(11, dtype=torch.bool)).tolist() == [255, 7]


def test_forcing_an_unknown_instruction_set_is_refused_and_changes_nothing() -> None:
    before = _C.active_isa()
    with pytest.raises(ValueError, match=f"'nonsense'; this build on this CPU can use: {', '.join(_C.usable_isas())}"):
        _C.force_isa("nonsense")
    assert _C.active_isa() == before
