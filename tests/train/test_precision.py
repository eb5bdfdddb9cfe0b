from __future__ import annotations

import pytest
import torch
from torch import nn

from lth_fast.train import EagerStepper
from lth_fast.train.precision import PRECISIONS, float32_arithmetic, forward_precision

CPU = torch.device("cpu")


class OneBatch:
    """The same examples again and again."""

    per_epoch = 1

    def __init__(self):
        draw = torch.Generator().manual_seed(1)
        self.batch = torch.randn(32, 6, generator=draw), torch.randint(3, (32,), generator=draw)

    def start(self, iteration):
        pass

    def next(self):
        return self.batch


def losses(precision):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    stepper = EagerStepper(model, optimizer, nn.CrossEntropyLoss(), OneBatch(), precision=precision)
    found = stepper.advance(20)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return found


def test_bf16_multiplies_in_bfloat16_and_keeps_weights_and_losses_in_float32():
    with forward_precision("bf16", CPU):
        assert nn.Linear(3, 2)(torch.zeros(1, 3)).dtype == torch.bfloat16
    exact, coarse = losses("float32"), losses("bf16")
    assert coarse.dtype == torch.float32
    assert not torch.equal(exact, coarse)
    torch.testing.assert_close(coarse, exact, rtol=0.02, atol=0.02)
    assert coarse[-1] < coarse[0]


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_on_the_cpu_the_other_two_are_float32(precision):
    with forward_precision(precision, CPU):
        assert nn.Linear(3, 2)(torch.zeros(1, 3)).dtype == torch.float32


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensor_cores_round_float32_only_where_asked_for_and_the_setting_is_put_back(precision):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    with float32_arithmetic(precision):
        assert (matmul.allow_tf32, cudnn.allow_tf32) == (precision == "tf32",) * 2
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before
    with pytest.raises(KeyError), float32_arithmetic(precision):
        raise KeyError
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


NEWER_NAMES = {
    "matmul": torch.backends.cuda.matmul,
    "conv": torch.backends.cudnn.conv,
    "rnn": torch.backends.cudnn.rnn,
    "cpu": torch.backends.mkldnn.matmul,
}


def float32_settings():
    """What torch has been told, by its newer names, and by the older one as far as it can be read."""
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:
        older = "not to be read beside the newer names"
    return [*(of.fp32_precision for of in NEWER_NAMES.values()), older]


@pytest.fixture
def told(request):
    """What a user has told torch: by one of its newer names, or by the older one; all is put back."""
    name, value = request.param
    before = [of.fp32_precision for of in NEWER_NAMES.values()]
    if name in NEWER_NAMES:
        NEWER_NAMES[name].fp32_precision = value
    else:
        torch.set_float32_matmul_precision(value)
    yield
    torch.set_float32_matmul_precision("highest")
    for of, precision in zip(NEWER_NAMES.values(), before, strict=True):
        of.fp32_precision = precision


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "told", [("matmul", "tf32"), ("conv", "ieee"), ("older", "high"), ("older", "medium")], indirect=True, ids=str
)
def test_whatever_a_user_has_told_torch_holds_again_behind_the_block(told, precision):
    before = float32_settings()
    with float32_arithmetic(precision):
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (precision == "tf32",) * 2
        assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
    assert float32_settings() == before


@pytest.mark.gpu
def test_on_a_gpu_tf32_is_coarser_than_float32():
    draw = torch.Generator("cuda").manual_seed(0)
    left, right = (torch.randn(512, 512, device="cuda", generator=draw) for _ in range(2))
    expected = left.double() @ right.double()
    errors = {}
    for precision in ("float32", "tf32"):
        with float32_arithmetic(precision):
            errors[precision] = float((left @ right - expected).norm() / expected.norm())
    assert errors["float32"] < 1e-6 < 1e-5 < errors["tf32"] < 1e-2
