from __future__ import annotations

import pytest
import torch

import lth_fast  # noqa: F401  registers the operators

OPERATORS = sorted(name for name in torch._C._dispatch_get_all_op_names() if name.startswith("lth_fast::"))


@pytest.mark.parametrize("device", ["CPU", "CUDA", "Meta"])
@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_is_served_on_every_device(op: str, device: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op, device)
