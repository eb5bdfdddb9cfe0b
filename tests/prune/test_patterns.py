from __future__ import annotations

import pytest
import torch

from lth_fast.nn import set_masks
from lth_fast.prune import Blocks, NOfM


@pytest.mark.parametrize("shape", [(3, 8), (5, 12, 3, 3), (2, 4, 7), (0, 8)], ids=str)
@pytest.mark.parametrize("pattern", [NOfM(2, 4), NOfM(1, 4), NOfM(0, 2), NOfM(4, 4)], ids=str)
def test_the_n_highest_of_every_m_inputs_survive(pattern, shape):
    scores = torch.randn(shape).abs()
    mask = pattern.mask(scores)
    assert (mask.dtype, mask.shape, mask.is_contiguous()) == (torch.bool, scores.shape, True)
    assert pattern.fits(mask)
    for start in range(0, shape[1], pattern.m):
        group, kept = scores[:, start : start + pattern.m], mask[:, start : start + pattern.m]
        assert (kept.sum(1) == pattern.n).all()
        if 0 < pattern.n < pattern.m and scores.numel():
            lowest_kept = group.masked_fill(~kept, torch.inf).amin(1)
            highest_pruned = group.masked_fill(kept, -torch.inf).amax(1)
            assert (highest_pruned <= lowest_kept).all()


def test_among_equals_of_a_group_the_first_go():
    assert NOfM(2, 4).mask(torch.ones(1, 8)).tolist() == [[False, False, True, True] * 2]


def test_a_pruned_weight_stays_pruned_and_counts_among_those_that_go():
    scores = torch.tensor([[9.0, 1.0, 2.0, 3.0]])
    before = torch.tensor([[False, True, True, True]])
    assert NOfM(2, 4).mask(scores, before).tolist() == [[False, False, True, True]]
    nearly_empty = torch.tensor([[False, True, False, False]])
    assert NOfM(2, 4).mask(scores, nearly_empty).tolist() == nearly_empty.tolist()


def test_signed_scores_are_ranked_by_value():
    scores = torch.tensor([[-5.0, 0.0, -1.0, 2.0]])
    assert NOfM(2, 4).mask(scores).tolist() == [[False, True, False, True]]


def test_masks_of_another_form_do_not_fit():
    assert not NOfM(2, 4).fits(torch.tensor([[True, True, True, False]]))
    assert NOfM(2, 4).fits(torch.tensor([[True, False, True, False]]))
    assert not Blocks(2, 2).fits(torch.tensor([[True, True], [True, False]]))
    assert Blocks(2, 2).fits(torch.tensor([[True, True, False], [True, True, False]]))


@pytest.mark.parametrize("arguments", [(-1, 4), (5, 4), (0, 0), (1.5, 4), (2, 4.0), ("2", 4)])
def test_a_pattern_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match="n and m: expected 0 <= n <= m"):
        NOfM(*arguments)


def test_inputs_that_do_not_divide_into_groups_are_refused():
    with pytest.raises(ValueError, match=r"a multiple of 4 inputs, got \[3, 6\]"):
        NOfM(2, 4).mask(torch.rand(3, 6))


@pytest.mark.parametrize("prune", [NOfM(2, 4).mask, lambda scores: Blocks(1, 2).mask(scores, 1)])
def test_a_vector_has_no_inputs_to_form_a_pattern_of(prune):
    with pytest.raises(ValueError, match=r"expected a shape \[outputs, inputs, \.\.\.\]"):
        prune(torch.rand(4))


def test_nan_is_refused_among_the_survivors_only():
    scores = torch.tensor([[1.0, torch.nan, 2.0, 3.0]])
    with pytest.raises(ValueError, match="NaN among the survivors"):
        NOfM(2, 4).mask(scores)
    assert NOfM(2, 4).mask(scores, ~scores.isnan()).tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("shape", [(6, 8), (7, 9), (4, 3, 3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("blocks", [Blocks(2, 4), Blocks(1, 1), Blocks(3, 2), Blocks(16, 16)], ids=str)
def test_exactly_k_whole_blocks_of_the_lowest_mean_go(blocks, shape):
    scores = torch.randn(shape)
    matrix = scores.flatten(1)
    means = {
        (row, column): float(matrix[row : row + blocks.rows, column : column + blocks.columns].mean())
        for row in range(0, matrix.shape[0], blocks.rows)
        for column in range(0, matrix.shape[1], blocks.columns)
    }
    for k in {0, 1, len(means) // 2, len(means)}:
        mask = blocks.mask(scores, k)
        assert mask.shape == scores.shape
        assert blocks.fits(mask)
        gone = {place for place in means if not mask.flatten(1)[place]}
        assert gone == set(sorted(means, key=means.__getitem__)[:k])
        assert int(mask.sum()) == sum(
            matrix[row : row + blocks.rows, column : column + blocks.columns].numel()
            for row, column in means.keys() - gone
        )


def test_further_blocks_go_among_those_that_survive_and_the_first_of_equals():
    first = Blocks(2, 2).mask(torch.ones(4, 4), 1)
    assert first.tolist() == [[False] * 2 + [True] * 2] * 2 + [[True] * 4] * 2
    second = Blocks(2, 2).mask(torch.ones(4, 4), 1, first)
    assert second.tolist() == [[False] * 4] * 2 + [[True] * 4] * 2
    with pytest.raises(ValueError, match="k must be between 0 and the 2 survivors, got 3"):
        Blocks(2, 2).mask(torch.ones(4, 4), 3, second)


def test_a_mask_that_cuts_through_blocks_is_refused():
    with pytest.raises(ValueError, match="mask: expected whole blocks of 2 x 2, got some in part"):
        Blocks(2, 2).mask(torch.ones(2, 4), 1, torch.tensor([[True, False, True, True]] * 2))


@pytest.mark.parametrize("sizes", [(0, 4), (1.5, 4), (2, 4.0)])
def test_sizes_below_one_or_of_parts_are_refused(sizes):
    with pytest.raises(ValueError, match="rows and columns: expected sizes >= 1"):
        Blocks(*sizes)


def test_a_patterns_mask_goes_onto_a_layer():
    layer = torch.nn.Linear(8, 3)
    set_masks(layer, {"weight": NOfM(2, 4).mask(layer.weight.abs())})
    assert layer.density == 0.5


@pytest.mark.parametrize("prune", [NOfM(2, 4).mask, lambda scores, mask: Blocks(1, 2).mask(scores, 1, mask)])
def test_a_mask_of_another_shape_or_dtype_is_refused(prune):
    scores = torch.rand(4, 8)
    for shape in ((2, 8), (4, 4), (1, 8), (4, 8, 1)):
        with pytest.raises(ValueError, match=r"mask: expected the shape of scores \[4, 8\], got \["):
            prune(scores, torch.ones(shape, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask: expected a bool tensor, got torch\.float32"):
        prune(scores, torch.ones(4, 8))


@pytest.mark.parametrize("prune", [NOfM(2, 4).mask, lambda scores, mask=None: Blocks(2, 2).mask(scores, 1, mask)])
def test_tensors_without_values_are_refused_by_name(prune):
    scores, kept = torch.rand(4, 8), torch.ones(4, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"^scores: expected a tensor with values, got one on the meta device"):
        prune(scores.to("meta"))
    with pytest.raises(ValueError, match=r"^mask: expected a tensor with values, got one on the meta device"):
        prune(scores, kept.to("meta"))


def test_the_mean_of_a_block_in_half_precision_is_taken_beyond_its_range():
    scores = torch.full((8, 4), 6e4, dtype=torch.float16)
    scores[4:] = 5e4
    assert Blocks(4, 4).mask(scores, 1).any(1).tolist() == [True] * 4 + [False] * 4
