from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lth_fast.ops import pack_mask, sgd_step_
from lth_fast.ops.sgd_step import reference

Distance = Callable[[Tensor, Tensor], float]

# 8,192 weights are a chunk of the parallel loop.
SHAPES = [(0,), (1,), (7,), (8,), (9, 3), (3, 4, 5), (8_192,), (3, 5_461), ()]
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "dampening": {"dampening": 0.3},
    "nesterov, weight decay": {"nesterov": True, "weight_decay": 0.1},
    "maximize, weight decay": {"maximize": True, "weight_decay": 0.1},
    "first step": {"first_step": True, "dampening": 0.3},
    "first step, nesterov": {"first_step": True, "nesterov": True, "weight_decay": 0.1},
    "learning rate in a tensor": {"lr": 7.0, "lr_tensor": torch.tensor([0.02])},
}
PRECISION = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass
class Group:
    """A group of parameters at work."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    momentum_buffers: list[Tensor]
    masks: list[Tensor | None]

    @classmethod
    def random(cls, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32, momentum: bool = True) -> Group:
        def normal() -> list[Tensor]:
            return [torch.randn(shape).to(dtype) for shape in shapes]

        # Every second one is masked; a few of the masks' bytes are 0.
        masks = [torch.rand(shape) < 0.3 if i % 2 else None for i, shape in enumerate(shapes)]
        return cls(normal(), normal(), normal() if momentum else [], masks)

    def copy_as(self, dtype: torch.dtype) -> Group:
        twin = copy.deepcopy(self)
        for tensors in (twin.parameters, twin.gradients, twin.momentum_buffers):
            tensors[:] = [tensor.to(dtype) for tensor in tensors]
        return twin

    def written(self) -> list[Tensor]:
        return [*self.parameters, *self.momentum_buffers]

    def arguments(self) -> tuple[Any, ...]:
        bits = [None if mask is None else pack_mask(mask) for mask in self.masks]
        return (self.parameters, self.gradients, self.momentum_buffers, bits)

    def step(self, step: Callable[..., None] = sgd_step_, **settings: Any) -> None:
        momentum = 0.9 if self.momentum_buffers else 0.0
        step(*self.arguments(), **complete(**{"momentum": momentum, **settings}))


def complete(**settings: Any) -> dict[str, Any]:
    for name, value in settings.items():
        if isinstance(value, Tensor):  # made before the device of the test was known
            settings[name] = value.to(torch.get_default_device())
    default = {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "weight_decay": 0.0}
    return {**default, "nesterov": False, "maximize": False, "first_step": False, **settings}


def assert_close(group: Group, expected: Group, distance: Distance, precision: float) -> None:
    for found, wanted in zip(group.written(), expected.written(), strict=True):
        assert distance(found, wanted) <= precision, found.shape


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("momentum", [False, True], ids=["", "momentum"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_a_step_is_that_of_the_reference_in_float64(
    dtype: torch.dtype, settings: dict[str, Any], momentum: bool, distance: Distance
) -> None:
    group = Group.random(SHAPES, dtype, momentum)
    exact = group.copy_as(torch.float64)
    group.step(**settings)
    exact.step(reference, **settings)
    assert_close(group, exact, distance, PRECISION[dtype])


@pytest.mark.usefixtures("kernels")
def test_every_length_is_right(distance: Distance) -> None:
    group = Group.random([(size,) for size in range(70)])
    exact = group.copy_as(torch.float64)
    group.step()
    exact.step(reference)
    assert_close(group, exact, distance, 1e-6)


@pytest.mark.usefixtures("kernels")
def test_the_first_step_does_not_read_the_momentum(distance: Distance) -> None:
    group = Group.random([(9, 3), (20,)])
    exact = group.copy_as(torch.float64)
    for buffer in group.momentum_buffers:
        buffer.fill_(float("nan"))
    group.step(first_step=True, dampening=0.5)
    exact.step(reference, first_step=True, dampening=0.5)
    assert_close(group, exact, distance, 1e-6)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 6e4])
@pytest.mark.parametrize("dtype", PRECISION, ids=str)
def test_nothing_of_a_pruned_weight_is_kept_whatever_its_gradient(
    dtype: torch.dtype, value: float, distance: Distance
) -> None:
    group = Group.random([(4_099,), (9, 13)], dtype)
    group.masks = [torch.rand(4_099) < 0.3, torch.zeros(9, 13, dtype=torch.bool)]
    harmless = group.copy_as(torch.float64)
    for gradient, mask in zip(group.gradients, group.masks, strict=True):
        gradient[~mask] = value
    group.step(weight_decay=0.1)
    harmless.step(reference, weight_decay=0.1)
    assert_close(group, harmless, distance, PRECISION[dtype])
    for tensors in (group.parameters, group.momentum_buffers):
        for tensor, mask in zip(tensors, group.masks, strict=True):
            assert tensor[~mask].count_nonzero() == 0
            assert not tensor[~mask].signbit().any()


@pytest.mark.usefixtures("kernels")
def test_a_gradient_that_diverged_shows() -> None:
    group = Group.random([(3,), (17,)])
    group.masks = [None, torch.ones(17, dtype=torch.bool)]
    for gradient in group.gradients:
        gradient[1] = float("nan")
    group.step()
    for tensor in group.written():
        assert tensor.isnan().nonzero().tolist() == [[1]]


@pytest.mark.usefixtures("kernels")
def test_an_infinite_weight_has_no_part_in_a_step_without_weight_decay() -> None:
    group = Group.random([(9,)])
    group.parameters[0][3] = float("inf")
    group.step()
    assert group.parameters[0].isinf().nonzero().tolist() == [[3]]
    assert not any(tensor.isnan().any() for tensor in group.written())


@pytest.mark.usefixtures("isa")
def test_parameters_with_one_weight_in_common_take_their_steps_one_after_the_other() -> None:
    """In half precision, whose steps are taken on copies."""
    group = Group.random([(5,), (5,)], torch.bfloat16)
    together = torch.randn(9, dtype=torch.bfloat16)
    in_turn = together.clone()
    group.parameters = [together[:5], together[4:]]
    twin = copy.deepcopy(group)
    group.step()
    for i, parameter in enumerate((in_turn[:5], in_turn[4:])):
        Group([parameter], [twin.gradients[i]], [twin.momentum_buffers[i]], [twin.masks[i]]).step()
    assert torch.equal(together, in_turn)


@pytest.mark.usefixtures("isa")
def test_denormal_numbers_count_as_zero_and_the_mode_of_the_processor_is_as_it_was() -> None:
    group = Group.random([(20,)])
    group.gradients[0].zero_()
    group.momentum_buffers[0].fill_(torch.finfo(torch.float32).smallest_normal / 2)
    group.step()
    assert group.momentum_buffers[0].count_nonzero() == 0
    assert torch.full((20,), 1e-40).mul(0.5).count_nonzero() == 20


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_bits_depend_neither_on_the_number_of_threads_nor_on_the_instruction_set(
    on_threads: Callable[[int, Callable[[], Tensor]], Tensor],
    on_each_isa: Callable[[Callable[[], Tensor]], list[Tensor]],
    settings: dict[str, Any],
) -> None:
    """Shares of threads begin at any eighth weight, with a mask and without one."""
    group = Group.random([(50_000,), (300_007,), (100_000,), (3,)])

    def work() -> Tensor:
        twin = copy.deepcopy(group)
        twin.step(**settings)
        return torch.cat(twin.written())

    one, *others = [found for count in (1, 2, 3) for found in on_each_isa(partial(on_threads, count, work))]
    for other in others:
        assert torch.equal(other, one)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
}


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("first_step", [False, True])
@pytest.mark.parametrize("others", [None, *LAYOUTS])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mask_counts_in_flat_index_order_whatever_the_memory_layout(
    layout: str, others: str | None, first_step: bool, distance: Distance
) -> None:
    group = Group.random([(4, 3, 5, 3)] * 2)
    exact = group.copy_as(torch.float64)
    group.parameters = [LAYOUTS[layout](tensor) for tensor in group.parameters]
    if others is not None:
        for tensors in (group.gradients, group.momentum_buffers):
            tensors[:] = [LAYOUTS[others](tensor) for tensor in tensors]
    strides = [tensor.stride() for tensor in group.written()]
    group.step(first_step=first_step)
    exact.step(reference, first_step=first_step)
    assert_close(group, exact, distance, 1e-6)
    assert [tensor.stride() for tensor in group.written()] == strides


@pytest.mark.usefixtures("kernels")
def test_every_write_advances_a_version_counter() -> None:
    group = Group.random([(4, 3), (5,)])
    versions = [tensor._version for tensor in group.written()]
    unread = [tensor._version for tensor in group.gradients]
    group.step()
    assert all(tensor._version > version for tensor, version in zip(group.written(), versions, strict=True))
    assert [tensor._version for tensor in group.gradients] == unread


@pytest.mark.parametrize("momentum", [False, True], ids=["", "momentum"])
def test_the_registrations_are_consistent(momentum: bool) -> None:
    group = Group.random([(3, 4), (5,)], momentum=momentum)
    torch.library.opcheck(torch.ops.lth_fast.sgd_step_, group.arguments(), complete(momentum=0.9 * momentum))


def changed(name: str, value: Any) -> Callable[[Group], None]:
    def change(group: Group) -> None:
        getattr(group, name)[1] = value

    return change


WRONG: dict[str, tuple[Callable[[Group], Any], str]] = {
    "integer parameter": (
        changed("parameters", torch.zeros(5, dtype=torch.int32)),
        r"parameters\[1\] must be float32, float64, bfloat16 or float16, got Int",
    ),
    "gradient of another shape": (
        changed("gradients", torch.zeros(4)),
        r"gradients\[1\] must have shape, dtype and device of parameters\[1\] \(\[5\] Float on cpu\), got \[4\]",
    ),
    "momentum of another dtype": (
        changed("momentum_buffers", torch.zeros(5, dtype=torch.float64)),
        r"momentum_buffers\[1\] must have shape, dtype and device of .* got \[5\] Double on cpu",
    ),
    "expanded parameter": (
        changed("parameters", torch.zeros(1).expand(5)),
        r"parameters\[1\] must have a place in memory for each of its numbers, got shape \[5\] with strides \[0\]",
    ),
    "expanded momentum": (
        changed("momentum_buffers", torch.zeros(1).expand(5)),
        r"momentum_buffers\[1\] must have a place in memory for each of its numbers, got shape \[5\] with strides",
    ),
    "too few buffers": (
        lambda group: group.momentum_buffers.pop(),
        r"momentum_buffers must hold one entry per parameter \(2\), got 1",
    ),
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
    with pytest.raises(RuntimeError, match=r"sgd_step_: gradients must hold"):
        group.step()


@pytest.mark.parametrize("case", WRONG)
def test_wrong_tensors_are_refused_by_name_and_nothing_is_written(case: str) -> None:
    spoil, complaint = WRONG[case]
    group = Group.random([(3, 4), (5,)])
    spoil(group)
    before = group.parameters[0].clone()
    with pytest.raises(RuntimeError, match=f"sgd_step_: {complaint}"):
        group.step()
    assert torch.equal(group.parameters[0], before)


def test_a_learning_rate_that_is_not_one_number_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"sgd_step_: lr_tensor must be one floating-point number, got shape \[2\]"):
        Group.random([(3,)]).step(lr_tensor=torch.zeros(2))


def test_momentum_without_buffers_is_refused() -> None:
    group = Group.random([(3,)], momentum=False)
    before = group.parameters[0].clone()
    complaint = r"sgd_step_: momentum_buffers must hold one entry per parameter \(1\), got 0"
    with pytest.raises(RuntimeError, match=complaint):
        group.step(momentum=0.9)
    assert torch.equal(group.parameters[0], before)
