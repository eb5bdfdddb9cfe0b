"""Writing the records may not slow the training down."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch
from torch import nn

from lth_fast import data, models
from lth_fast.experiment import level as level_module
from lth_fast.experiment.experiment import Loaders
from lth_fast.experiment.lottery import run_replicate
from lth_fast.experiment.progress import Monitor
from lth_fast.prune import prune_all
from lth_fast.train import OptimizerRecipe


@pytest.mark.long
@pytest.mark.real_data
def test_records_and_checkpoints_take_two_percent_of_a_level_at_most(make_experiment, record, data_root, monkeypatch):
    spent = []

    def timed(function):
        def call(*args):
            begun = time.perf_counter()
            try:
                return function(*args)
            finally:
                spent.append(time.perf_counter() - begun)

        return call

    for name in ("_save_checkpoint", "store", "complete"):
        monkeypatch.setattr(level_module._Training, name, timed(getattr(level_module._Training, name)))
    splits = data.load("mnist", data_root)
    experiment = make_experiment(
        model=models.build("lenet", generator=torch.Generator().manual_seed(1)),
        loaders=Loaders(*splits),
        criterion=nn.CrossEntropyLoss(),
        optimizer=OptimizerRecipe.named("adam", 1.2e-3),
        prune_net=partial(prune_all, rate=0.2),
        iterations=3000,
        rounds=0,
        evaluate_every=100,
        checkpoint_seconds=10.0,
    )
    (summary,) = run_replicate(experiment, record, Monitor())
    assert spent
    assert sum(spent) <= 0.02 * summary["seconds"]
