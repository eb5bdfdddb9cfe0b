from __future__ import annotations

import pytest
import torch

import lth_fast  # noqa: F401  registers the operators

OPERATORS = [
    "pack_mask",
    "unpack_mask",
    "masked_apply",
    "masked_apply_",
    "masked_linear",
    "masked_linear_weight_grad",
    "masked_conv2d",
    "magnitude_threshold",
    "sparse_pattern",
    "sparse_linear",
    "sparse_linear_input_grad",
    "sparse_linear_values_grad",
    "sparse_linear_backward",
]


@pytest.mark.parametrize("device", ["CPU", "CUDA", "Meta"])
@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_is_served_on_every_device(op: str, device: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lth_fast::{op}", device)
