from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lth_fast.record import Run, create_run, load_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two replicates: replicate 0 completed levels 0 and 1, replicate 1 level 0; its level 1 is training."""
    run = create_run(tmp_path, "lenet", "mnist")
    run.save_manifest({"seed": 3})
    for r, complete in ((0, 2), (1, 1)):
        run.replicate(r).level(0).save_kept(7, {"w": torch.tensor([7.0, float(r)])})
        for number in range(2):
            level = run.replicate(r).level(number)
            level.log.append(1, [10.0 * r + number, 0.5], 20.0 * number, {2: (0.1, 0.2, 0.3, 0.4)})
            if number < complete:
                level.save_masks({"w": torch.tensor([True, number == 0])})
                level.save_weights("end", {"w": torch.tensor([float(r), float(number)])})
                level.save_summary({"level": number, "density": 0.8**number, "layers": {"w": 0.8**number}})
    return run


def test_a_loaded_run_has_a_row_for_each_complete_level(run: Run) -> None:
    assert load_run(run.path).levels == [
        {"replicate": 0, "level": 0, "density": 1.0, "layers": {"w": 1.0}},
        {"replicate": 0, "level": 1, "density": 0.8, "layers": {"w": 0.8}},
        {"replicate": 1, "level": 0, "density": 1.0, "layers": {"w": 1.0}},
    ]


def test_a_loaded_run_has_its_manifest(run: Run) -> None:
    assert load_run(str(run.path)).manifest == {"format": 1, "net": "lenet", "dataset": "mnist", "seed": 3}


def test_the_log_masks_and_weights_of_any_level_are_at_hand(run: Run) -> None:
    loaded = load_run(run.path)
    np.testing.assert_array_equal(loaded.iterations(1, replicate=1)["train_loss"], [11.0, 0.5])
    np.testing.assert_array_equal(loaded.iterations(0)["test_acc"], [np.nan, 0.4])
    assert loaded.masks(1)["w"].tolist() == [True, False]
    assert loaded.weights(1)["w"].tolist() == [0.0, 1.0]
    assert loaded.weights(0, "end", replicate=1)["w"].tolist() == [1.0, 0.0]
    assert loaded.kept(7, replicate=1)["w"].tolist() == [7.0, 1.0]


def test_what_the_run_does_not_have_is_not_found(run: Run) -> None:
    loaded = load_run(run.path)
    with pytest.raises(FileNotFoundError, match="has no masks of level 1, replicate 1"):
        loaded.masks(1, replicate=1)
    with pytest.raises(FileNotFoundError, match="has no rewind weights of level 0, replicate 0"):
        loaded.weights(0, "rewind")
    with pytest.raises(FileNotFoundError, match="has no weights kept at iteration 8 of level 0, replicate 1"):
        loaded.kept(8, replicate=1)
    with pytest.raises(FileNotFoundError, match=r"replicate_0/7/iterations\.csv"):
        loaded.iterations(7)


def test_a_run_that_has_just_begun_loads_without_rows(tmp_path: Path) -> None:
    assert load_run(create_run(tmp_path, "lenet", "mnist").path).levels == []
