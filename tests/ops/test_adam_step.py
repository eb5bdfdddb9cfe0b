from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lth_fast.ops import adam_step_, pack_mask
from lth_fast.ops.adam_step import reference

Distance = Callable[[Tensor, Tensor], float]

# 8,192 weights are a chunk of the parallel loop.
SHAPES = [(0,), (1,), (7,), (8,), (9, 3), (3, 4, 5), (8_192,), (3, 5_461), ()]
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "weight decay": {"weight_decay": 0.1},
    "decoupled weight decay": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    "maximize": {"maximize": True, "weight_decay": 0.1},
    "short memory": {"beta1": 0.3, "beta2": 0.5},
    "no memory": {"beta1": 0.0, "beta2": 0.0},
    "learning rate in a tensor": {"lr": 7.0, "lr_tensor": torch.tensor([0.02])},
}
PRECISION = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass
class Group:
    """A group of parameters at work: as after 3 steps."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    masks: list[Tensor | None]

    @classmethod
    def random(cls, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, amsgrad: bool = False) -> Group:
        def normal() -> list[Tensor]:
            return [torch.randn(shape).to(dtype) for shape in shapes]

        return cls(
            parameters=normal(),
            gradients=normal(),
            exp_avgs=normal(),
            exp_avg_sqs=[value.square() for value in normal()],
            max_exp_avg_sqs=[value.square() for value in normal()] if amsgrad else [],
            steps=[torch.tensor(3.0) for _ in shapes],
            # Every second one is masked; a few of the masks' bytes are 0.
            masks=[torch.rand(shape) < 0.3 if i % 2 else None for i, shape in enumerate(shapes)],
        )

    def copy_as(self, dtype: torch.dtype) -> Group:
        twin = copy.deepcopy(self)
        for tensors in (twin.parameters, twin.gradients, *twin.written):
            tensors[:] = [tensor.to(dtype) for tensor in tensors]
        return twin

    @property
    def written(self) -> list[list[Tensor]]:
        return [self.parameters, self.exp_avgs, self.exp_avg_sqs, self.max_exp_avg_sqs]

    def every_written(self) -> list[Tensor]:
        return [tensor for tensors in self.written for tensor in tensors]

    def arguments(self) -> tuple[Any, ...]:
        bits = [None if mask is None else pack_mask(mask) for mask in self.masks]
        return (*self.written[:1], self.gradients, *self.written[1:], self.steps, bits)

    def step(self, step: Callable[..., None] = adam_step_, **settings: Any) -> None:
        step(*self.arguments(), **complete(**settings))


def complete(**settings: Any) -> dict[str, Any]:
    for name, value in settings.items():
        if isinstance(value, Tensor):  # made before the device of the test was known
            settings[name] = value.to(torch.get_default_device())
    default = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    return {**default, "decoupled_weight_decay": False, "maximize": False, **settings}


def assert_close(group: Group, expected: Group, distance: Distance, precision: float) -> None:
    for kind, wanted_kind in zip(group.written, expected.written, strict=True):
        for found, wanted in zip(kind, wanted_kind, strict=True):
            # One number may be what two larger ones leave of each other: its error is theirs, and counts beside others.
            pair = (found, wanted) if found.numel() != 1 else (flat(kind), flat(wanted_kind))
            assert distance(*pair) <= precision, found.shape


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_steps_are_those_of_the_reference_in_float64(
    dtype: torch.dtype, settings: dict[str, Any], amsgrad: bool, distance: Distance
) -> None:
    group = Group.random(SHAPES, dtype, amsgrad)
    exact = group.copy_as(torch.float64)
    for number in range(3):
        group.step(**settings)
        exact.step(reference, **settings)
        assert_close(group, exact, distance, PRECISION[dtype] * (number + 1))
    assert [float(step) for step in group.steps] == [6.0] * len(SHAPES)


@pytest.mark.usefixtures("kernels")
def test_every_length_is_right(distance: Distance) -> None:
    group = Group.random([(size,) for size in range(70)], amsgrad=True)
    exact = group.copy_as(torch.float64)
    group.step()
    exact.step(reference)
    assert_close(group, exact, distance, 1e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 6e4])
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_nothing_of_a_pruned_weight_is_kept_whatever_its_gradient(
    dtype: torch.dtype, value: float, distance: Distance
) -> None:
    group = Group.random([(4_099,), (9, 13)], dtype, amsgrad=True)
    group.masks = [torch.rand(4_099) < 0.3, torch.zeros(9, 13, dtype=torch.bool)]
    harmless = group.copy_as(torch.float64)
    for gradient, mask in zip(group.gradients, group.masks, strict=True):
        gradient[~mask] = value
    group.step(weight_decay=0.1)
    harmless.step(reference, weight_decay=0.1)
    assert_close(group, harmless, distance, PRECISION[dtype])
    for tensors in group.written:
        for tensor, mask in zip(tensors, group.masks, strict=True):
            assert tensor[~mask].count_nonzero() == 0
            assert not tensor[~mask].signbit().any()


@pytest.mark.usefixtures("kernels")
def test_a_gradient_that_diverged_shows() -> None:
    group = Group.random([(3,), (17,)], amsgrad=True)
    group.masks = [None, torch.ones(17, dtype=torch.bool)]
    for gradient in group.gradients:
        gradient[1] = float("nan")
    group.step()
    for tensor in group.every_written():
        assert tensor.isnan().nonzero().tolist() == [[1]]


@pytest.mark.usefixtures("kernels")
def test_without_memory_the_moment_is_the_gradient_to_the_bit() -> None:
    group = Group.random([(20,)])
    group.exp_avgs[0].fill_(1e4)  # beside which a gradient would lose digits
    group.step(beta1=0.0)
    assert torch.equal(group.exp_avgs[0], group.gradients[0])


@pytest.mark.usefixtures("kernels")
def test_an_infinite_weight_has_no_part_in_a_step_without_weight_decay() -> None:
    group = Group.random([(9,)])
    group.parameters[0][3] = float("inf")
    group.step()
    assert group.parameters[0].isinf().nonzero().tolist() == [[3]]
    assert not any(tensor.isnan().any() for tensor in group.every_written())


@pytest.mark.usefixtures("kernels")
def test_a_maximum_that_diverged_stays_so() -> None:
    group = Group.random([(3,)], amsgrad=True)
    group.max_exp_avg_sqs[0][1] = float("nan")
    group.step()
    assert group.max_exp_avg_sqs[0].isnan().tolist() == [False, True, False]


@pytest.mark.usefixtures("isa")
def test_denormal_numbers_count_as_zero_and_the_mode_of_the_processor_is_as_it_was() -> None:
    group = Group.random([(20,)])
    group.gradients[0].zero_()
    for moment in (group.exp_avgs[0], group.exp_avg_sqs[0]):
        moment.fill_(torch.finfo(torch.float32).smallest_normal / 2)
    before = group.parameters[0].clone()
    group.step()
    assert group.exp_avgs[0].count_nonzero() == 0
    assert group.exp_avg_sqs[0].count_nonzero() == 0
    assert torch.equal(group.parameters[0], before)
    assert torch.full((20,), 1e-40).mul(0.5).count_nonzero() == 20


@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_bits_depend_neither_on_the_number_of_threads_nor_on_the_instruction_set(
    on_threads: Callable[[int, Callable[[], Tensor]], Tensor],
    on_each_isa: Callable[[Callable[[], Tensor]], list[Tensor]],
    settings: dict[str, Any],
    amsgrad: bool,
) -> None:
    """Shares of threads begin at any eighth weight, with a mask and without one."""
    group = Group.random([(50_000,), (300_007,), (100_000,), (3,)], amsgrad=amsgrad)

    def work() -> Tensor:
        twin = copy.deepcopy(group)
        twin.step(**settings)
        return torch.cat(twin.every_written())

    one, *others = [found for count in (1, 2, 3) for found in on_each_isa(partial(on_threads, count, work))]
    for other in others:
        assert torch.equal(other, one)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "offset": lambda t: torch.cat([t.new_zeros(3), t.flatten()])[3:].view(t.shape),
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("others", [None, *LAYOUTS])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mask_counts_in_flat_index_order_whatever_the_memory_layout(
    layout: str, others: str | None, dtype: torch.dtype, distance: Distance
) -> None:
    group = Group.random([(4, 3, 5, 3)] * 2, dtype, amsgrad=True)
    exact = group.copy_as(torch.float64)
    group.parameters = [LAYOUTS[layout](tensor) for tensor in group.parameters]
    if others is not None:
        for tensors in (group.gradients, group.exp_avgs, group.exp_avg_sqs, group.max_exp_avg_sqs):
            tensors[:] = [LAYOUTS[others](tensor) for tensor in tensors]
    strides = [tensor.stride() for tensor in group.every_written()]
    group.step()
    exact.step(reference)
    assert_close(group, exact, distance, PRECISION[dtype])
    assert [tensor.stride() for tensor in group.every_written()] == strides


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("layout", ["offset", "channels last"])
def test_every_write_advances_a_version_counter(layout: str) -> None:
    group = Group.random([(4, 3, 5, 3)] * 2, amsgrad=True)
    group.parameters = [LAYOUTS[layout](tensor) for tensor in group.parameters]
    written = [*group.every_written(), *group.steps]
    versions = [tensor._version for tensor in written]
    unread = [tensor._version for tensor in group.gradients]
    group.step()
    assert all(tensor._version > version for tensor, version in zip(written, versions, strict=True))
    assert [tensor._version for tensor in group.gradients] == unread


def test_parameters_may_require_gradients_under_no_grad() -> None:
    group = Group.random([(5,)])
    group.parameters[0].requires_grad_()
    before = group.parameters[0].detach().clone()
    with torch.no_grad():
        group.step()
    assert group.parameters[0].is_leaf
    assert not torch.equal(group.parameters[0].detach(), before)


def test_inference_tensors_may_be_stepped(distance: Distance) -> None:
    with torch.inference_mode():
        group = Group.random([(9, 3), (5,)])
        exact = group.copy_as(torch.float64)
        group.step()
        exact.step(reference)
        assert_close(group, exact, distance, 1e-6)


@pytest.mark.usefixtures("kernels")
def test_step_counts_may_be_float64_and_differ() -> None:
    group = Group.random([(3,), (3,)])
    group.steps = [torch.tensor(0.0, dtype=torch.float64), torch.tensor([41.0])]
    group.step()
    assert [float(step) for step in group.steps] == [1.0, 42.0]


@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
def test_the_registrations_are_consistent(amsgrad: bool) -> None:
    group = Group.random([(3, 4), (5,)], amsgrad=amsgrad)
    torch.library.opcheck(torch.ops.lth_fast.adam_step_, group.arguments(), complete())


def changed(name: str, value: Any) -> Callable[[Group], None]:
    def change(group: Group) -> None:
        getattr(group, name)[1] = value

    return change


WRONG: dict[str, tuple[Callable[[Group], Any], str]] = {
    "integer parameter": (
        changed("parameters", torch.zeros(5, dtype=torch.int32)),
        r"parameters\[1\] must be float32, float64, bfloat16 or float16, got Int",
    ),
    "two dtypes": (
        changed("parameters", torch.zeros(5, dtype=torch.float64)),
        r"parameters must have one dtype, got Float in parameters\[0\] and Double in parameters\[1\]",
    ),
    "expanded parameter": (
        changed("parameters", torch.zeros(1).expand(5)),
        r"parameters\[1\] must have a place in memory for each of its numbers, got shape \[5\] with strides \[0\]",
    ),
    **{
        f"expanded {name}": (
            changed(name, torch.zeros(1).expand(5)),
            rf"{name}\[1\] must have a place in memory for each of its numbers, got shape \[5\] with strides \[0\]",
        )
        for name in ("exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs")
    },
    "gradient of another shape": (
        changed("gradients", torch.zeros(4)),
        r"gradients\[1\] must have shape, dtype and device of parameters\[1\] \(\[5\] Float on cpu\), got \[4\]",
    ),
    "gradient of another dtype": (
        changed("gradients", torch.zeros(5, dtype=torch.bfloat16)),
        r"gradients\[1\] must have shape, dtype and device of .* got \[5\] BFloat16 on cpu",
    ),
    "moment of another shape": (changed("exp_avgs", torch.zeros(5, 1)), r"exp_avgs\[1\] must have shape"),
    "maximum of another shape": (changed("max_exp_avg_sqs", torch.zeros(6)), r"max_exp_avg_sqs\[1\] must have shape"),
    "too few gradients": (
        lambda group: group.gradients.pop(),
        r"gradients must hold one entry per parameter \(2\), got 1",
    ),
    "too few maxima": (lambda group: group.max_exp_avg_sqs.pop(), r"max_exp_avg_sqs must hold one entry .* got 1"),
    "too few steps": (lambda group: group.steps.pop(), r"steps must hold one entry per parameter \(2\), got 1"),
    "two step counts": (
        changed("steps", torch.zeros(2)),
        r"steps\[1\] must be one float32 or float64 number, got shape \[2\]",
    ),
    "integer step count": (changed("steps", torch.tensor(1)), r"steps\[1\] must be one float32 .* got shape \[\] Long"),
    "mask of another shape": (
        changed("masks", torch.ones(9, dtype=torch.bool)),
        r"mask_bits must have shape \[1\] for the parameter of shape \[5\], got \[2\]",
    ),
    "too few masks": (lambda group: group.masks.pop(), r"mask_bits must hold one entry per parameter \(2\), got 1"),
}


def test_of_no_parameters_there_is_nothing_to_step() -> None:
    Group.random([]).step()
    group = Group.random([(3,)])
    group.parameters.clear()
    with pytest.raises(RuntimeError, match=r"adam_step_: gradients must hold"):
        group.step()


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors_are_refused_by_name_and_nothing_is_written(case: str) -> None:
    spoil, complaint = WRONG[case]
    group = Group.random([(3, 4), (5,)], amsgrad=True)
    spoil(group)
    before = group.parameters[0].clone()
    with pytest.raises(RuntimeError, match=f"adam_step_: {complaint}"):
        group.step()
    assert torch.equal(group.parameters[0], before)
    assert group.steps[0].item() == 3.0


@pytest.mark.parametrize("value", [torch.zeros(2), torch.tensor(1)], ids=["two numbers", "an integer"])
def test_a_learning_rate_that_is_not_one_number_is_refused(value: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"adam_step_: lr_tensor must be one floating-point number, got shape"):
        Group.random([(3,)]).step(lr_tensor=value)


@pytest.mark.parametrize("name", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_a_decay_rate_out_of_range_is_refused(name: str, value: float) -> None:
    group = Group.random([(3,)])
    before = group.parameters[0].clone()
    with pytest.raises(RuntimeError, match=f"adam_step_: {name} must be between 0 and 1 \\(excluded\\), got {value:g}"):
        group.step(**{name: value})
    assert torch.equal(group.parameters[0], before)
    assert group.steps[0].item() == 3.0
