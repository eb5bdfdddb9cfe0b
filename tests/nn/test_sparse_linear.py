from __future__ import annotations

import pytest
import torch

from lth_fast.nn import SparseLinear


def test_repr_names_sizes_and_density() -> None:
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[0, 0] = True
    assert repr(SparseLinear(4, 2, mask=mask)) == (
        "SparseLinear(in_features=4, out_features=2, bias=True, density=0.125)"
    )


@pytest.mark.parametrize("shape", [(33,), (0, 33), (2, 3, 33)], ids=str)
def test_an_input_may_have_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    layer = SparseLinear(33, 20, mask=torch.rand(20, 33) < 0.3)
    inputs = torch.randn(shape)
    out, expected = layer(inputs), layer.to_dense()(inputs)
    assert out.shape == expected.shape
    assert torch.allclose(out, expected, atol=1e-5)
