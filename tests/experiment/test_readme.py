"""What README says of models of one's own is a program that works, block after block, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import lth_fast

README = Path(__file__).parents[2] / "README.md"

# Hours of training become seconds.
SHORTER = {"iterations=5000": "iterations=5", "rounds=12": "rounds=3"}


def blocks():
    section = README.read_text().partition("\n## In your own model\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def names(fake_mnist, tmp_path, monkeypatch):
    """The names the blocks make. ``images`` is the reader's own; the data set is in ``./datasets``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").symlink_to(fake_mnist)
    torch.manual_seed(0)
    return {"images": torch.randn(16, 784)}


def test_the_blocks_of_readme_run_one_after_the_other(names, tmp_path):
    shorten = re.compile("|".join(SHORTER))
    program = blocks()
    assert all(long in "".join(program) for long in SHORTER)
    for block in program:
        exec(shorten.sub(lambda found: SHORTER[found[0]], block), names)
    assert [level.level for level in names["result"].levels] == [0, 1, 2, 3]
    assert names["result"].path.resolve().parent == tmp_path / "experiments"
    for branch in ("reinit", "random_mask"):
        assert names[branch].path.name.endswith(f"_{branch}")
        assert [level.density for level in names[branch].levels] == [level.density for level in names["result"].levels]
    assert [type(layer) for layer in names["model"]] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]


def test_the_sparsity_that_readme_states_is_the_models(names):
    first = blocks()[0]
    exec(first, names)
    stated = re.search(r"sparsity\(model\)  # ([\d.]+) %", first)
    assert stated is not None
    assert f"{lth_fast.prune.sparsity(names['model']):.1f}" == stated[1]
