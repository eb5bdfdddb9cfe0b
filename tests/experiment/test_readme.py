"""What README says of models of one's own, and docs/experiments.md of runs, are programs that work as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import lth_fast
from lth_fast.cli import main
from lth_fast.record.tensors import read_masks, read_weights

README = Path(__file__).parents[2] / "README.md"
EXPERIMENTS = README.parent / "docs" / "experiments.md"

# Hours of training become seconds.
SHORTER = {"iterations=5000": "iterations=5", "rounds=12": "rounds=3"}


def blocks():
    return python_in(README.read_text().partition("\n## In your own model\n")[2].partition("\n## ")[0])


def python_in(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


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
    *search, ticket = program
    for block in search:
        exec(shorten.sub(lambda found: SHORTER[found[0]], block), names)
    assert [level.level for level in names["result"].levels] == [0, 1, 2, 3]
    assert names["result"].path.resolve().parent == tmp_path / "experiments"
    for branch in ("reinit", "random_mask"):
        assert names[branch].path.name.endswith(f"_{branch}")
        assert [level.density for level in names[branch].levels] == [level.density for level in names["result"].levels]
    assert [type(layer) for layer in names["model"]] == [nn.Flatten, nn.Linear, nn.ReLU, nn.Linear]

    exec(ticket, names)
    model, level = names["model"], names["result"].path / "replicate_0" / "3"
    masks, initial = read_masks(level / "masks.safetensors"), read_weights(level / "rewind.safetensors")
    for name, mask in masks.items():
        assert torch.equal(lth_fast.nn.masks(model)[name], mask)
        assert torch.equal(model.get_parameter(name), initial[name] * mask)
    assert lth_fast.prune.sparsity(model) == pytest.approx(100 * (1 - names["result"].levels[3].density))


def test_the_sparsity_that_readme_states_is_the_models(names):
    first = blocks()[0]
    exec(first, names)
    stated = re.search(r"sparsity\(model\)  # ([\d.]+) %", first)
    assert stated is not None
    assert f"{lth_fast.prune.sparsity(names['model']):.1f}" == stated[1]


def test_the_blocks_of_the_page_on_experiments_read_a_run_of_the_command_line(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="figures need matplotlib")
    monkeypatch.chdir(tmp_path)
    for arm in ((), ("--random",)):
        assert main(["lenet", "digits", "--iter", "5", "--rounds", "12", "--seed", "1", "--quiet", *arm]) == 0
    run, control = sorted((tmp_path / "experiments").iterdir(), key=lambda path: path.name.endswith("_reinit"))
    program = "".join(python_in(EXPERIMENTS.read_text()))
    (stated,) = set(re.findall(r"experiments/[\w-]+_lenet_digits(?=\")", program))
    program = program.replace(f"{stated}_reinit", f"experiments/{control.name}")
    names: dict[str, object] = {}
    exec(program.replace(stated, f"experiments/{run.name}"), names)
    assert lth_fast.prune.sparsity(names["net"]) == pytest.approx(100 * (1 - names["run"].levels[12]["density"]))
    assert [shown.path for shown in names["runs"]] == [run, control]
    assert (tmp_path / "tickets.png").read_bytes().startswith(b"\x89PNG")
