"""Adam and SGD on the device, against torch's own optimizers on the same weights and gradients."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lth_fast.ops import pack_mask

FORMATS = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Below, at and above the weights of one block.
SHAPES = [(1,), (3, 5), (1024,), (41, 50), (0,), (6, 5, 3, 4)]


class MaskOrder(ctypes.Structure):
    _fields_ = (("channels", ctypes.c_int64), ("area", ctypes.c_int64))


class LearningRate(ctypes.Structure):
    _fields_ = (("number", ctypes.c_double), ("on_device", ctypes.c_void_p))


class AdamTensor(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("parameter", "gradient", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
        ("step", ctypes.c_void_p),
        ("mask_bits", ctypes.c_void_p),
        ("order", MaskOrder),
        ("count", ctypes.c_int64),
        ("step_is_double", ctypes.c_bool),
    )


class AdamSettings(ctypes.Structure):
    _fields_ = (
        ("lr", LearningRate),
        *((name, ctypes.c_double) for name in ("beta1", "beta2", "eps", "weight_decay")),
        ("decoupled_weight_decay", ctypes.c_bool),
        ("maximize", ctypes.c_bool),
    )


class SgdTensor(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("parameter", "gradient", "momentum_buffer", "mask_bits")),
        ("order", MaskOrder),
        ("count", ctypes.c_int64),
    )


class SgdSettings(ctypes.Structure):
    _fields_ = (
        ("lr", LearningRate),
        *((name, ctypes.c_double) for name in ("momentum", "dampening", "weight_decay")),
        *((name, ctypes.c_bool) for name in ("nesterov", "maximize", "first_step")),
    )


def address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def order_of(tensor: Tensor) -> MaskOrder:
    return MaskOrder(1, 1) if tensor.is_contiguous() else MaskOrder(tensor.shape[1], tensor.shape[2] * tensor.shape[3])


def random_parameters(dtype: torch.dtype) -> list[Tensor]:
    parameters = [torch.randn(shape).to(dtype) for shape in SHAPES]
    parameters[-1] = parameters[-1].to(memory_format=torch.channels_last)
    return parameters


def random_masks(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.rand(parameter.shape) < 0.6 for parameter in parameters]


def gradients_for(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.randn_like(parameter) for parameter in parameters]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for tensor, like in zip(found, expected, strict=True):
        error, size = (tensor.double() - like.double()).norm(), like.double().norm()
        assert error <= TOLERANCE[tensor.dtype] * size


class Adam:
    """The state of a masked Adam whose steps are taken by the kernels."""

    def __init__(self, kernels: ctypes.CDLL, parameters: Sequence[Tensor], masks: Sequence[Tensor] | None) -> None:
        self.kernels, self.parameters = kernels, parameters
        self.bits = [None] * len(parameters) if masks is None else [pack_mask(mask) for mask in masks]
        self.exp_avgs, self.exp_avg_sqs, self.max_exp_avg_sqs = (
            [torch.zeros_like(parameter) for parameter in parameters] for _ in range(3)
        )
        self.steps = [torch.zeros((), dtype=(torch.float32, torch.float64)[i % 2]) for i in range(len(parameters))]

    def step(
        self,
        gradients: Sequence[Tensor],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        maximize: bool = False,
        decoupled: bool = False,
        lr_tensor: Tensor | None = None,
    ) -> None:
        tensors = (AdamTensor * len(gradients))(
            *(
                AdamTensor(
                    address(self.parameters[i]),
                    address(gradients[i]),
                    address(self.exp_avgs[i]),
                    address(self.exp_avg_sqs[i]),
                    address(self.max_exp_avg_sqs[i] if amsgrad else None),
                    address(self.steps[i]),
                    address(self.bits[i]),
                    order_of(self.parameters[i]),
                    self.parameters[i].numel(),
                    self.steps[i].dtype == torch.float64,
                )
                for i in range(len(gradients))
            )
        )
        settings = AdamSettings(LearningRate(lr, address(lr_tensor)), *betas, eps, weight_decay, decoupled, maximize)
        dtype = FORMATS[self.parameters[0].dtype]
        self.kernels.adam(tensors, ctypes.c_int64(len(gradients)), dtype, ctypes.byref(settings))


def torch_steps(
    optimizer: type[torch.optim.Optimizer],
    parameters: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
    **settings: Any,
) -> list[Tensor]:
    """The parameters after torch's optimizer took a step per list of gradients, in float64."""
    leaves = [parameter.double().requires_grad_() for parameter in parameters]
    steps = optimizer(leaves, foreach=False, **settings)
    for of_one_step in gradients:
        for leaf, gradient in zip(leaves, of_one_step, strict=True):
            leaf.grad = gradient.double()
        steps.step()
    return [leaf.detach() for leaf in leaves]


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.1}, {"amsgrad": True}, {"maximize": True, "betas": (0.5, 0.7), "eps": 1e-3}],
    ids=["default", "weight decay", "amsgrad", "maximize"],
)
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_and_adamw_are_those_of_torch(
    kernels: ctypes.CDLL, optimizer: type[torch.optim.Optimizer], dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    parameters = random_parameters(dtype)
    gradients = [gradients_for(parameters) for _ in range(3)]
    expected = torch_steps(optimizer, parameters, gradients, lr=0.01, **{"weight_decay": 0.0, **settings})
    adam = Adam(kernels, parameters, None)
    for of_one_step in gradients:
        adam.step(of_one_step, lr=0.01, decoupled=optimizer is torch.optim.AdamW, **settings)
    assert_close(adam.parameters, expected)
    assert [step.item() for step in adam.steps] == [3] * len(SHAPES)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_adam_keeps_pruned_weights_and_moments_at_zero_and_lets_survivors_move_as_ever(
    kernels: ctypes.CDLL, dtype: torch.dtype
) -> None:
    parameters = random_parameters(dtype)
    masks = random_masks(parameters)
    masked, free = (Adam(kernels, copy.deepcopy(parameters), given) for given in (masks, None))
    for of_one_step in [gradients_for(parameters) for _ in range(2)]:
        free.step(of_one_step, lr=0.01, amsgrad=True)
        spoilt = [g.clone().masked_fill_(~mask, torch.nan) for g, mask in zip(of_one_step, masks, strict=True)]
        masked.step(spoilt, lr=0.01, amsgrad=True)
    for name in ("parameters", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"):
        for found, unmasked, mask in zip(getattr(masked, name), getattr(free, name), masks, strict=True):
            assert torch.equal(found, unmasked.masked_fill(~mask, 0.0))
            assert not found[~mask].signbit().any()


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_without_a_memory_the_first_moment_is_the_gradient_bit_for_bit(
    kernels: ctypes.CDLL, dtype: torch.dtype
) -> None:
    parameters = random_parameters(dtype)
    gradients = gradients_for(parameters)
    adam = Adam(kernels, parameters, None)
    for exp_avg in adam.exp_avgs:
        exp_avg.normal_(std=1e4)
    adam.step(gradients, lr=0.01, betas=(0.0, 0.999))
    assert all(torch.equal(moment, gradient) for moment, gradient in zip(adam.exp_avgs, gradients, strict=True))


def test_adam_takes_its_learning_rate_from_the_device_where_it_is_there(kernels: ctypes.CDLL) -> None:
    parameters = random_parameters(torch.float32)
    gradients = gradients_for(parameters)
    one, other = (Adam(kernels, copy.deepcopy(parameters), None) for _ in range(2))
    one.step(gradients, lr=0.01)
    other.step(gradients, lr=7.0, lr_tensor=torch.tensor(0.01, dtype=torch.float64))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))


def test_more_parameters_than_one_launch_takes_are_all_stepped_once(kernels: ctypes.CDLL) -> None:
    parameters = [torch.randn(3) for _ in range(101)]
    gradients = gradients_for(parameters)
    adam = Adam(kernels, parameters, None)
    expected = torch_steps(torch.optim.Adam, parameters, [gradients], lr=0.01)
    adam.step(gradients, lr=0.01)
    assert_close(parameters, expected)
    assert [step.item() for step in adam.steps] == [1] * 101


def sgd_step(
    kernels: ctypes.CDLL,
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor] | None,
    masks: Sequence[Tensor] | None,
    lr: float,
    first_step: bool,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
) -> None:
    bits = [None] * len(parameters) if masks is None else [pack_mask(mask) for mask in masks]
    tensors = (SgdTensor * len(parameters))(
        *(
            SgdTensor(
                address(parameter),
                address(gradients[i]),
                address(None if buffers is None else buffers[i]),
                address(bits[i]),
                order_of(parameter),
                parameter.numel(),
            )
            for i, parameter in enumerate(parameters)
        )
    )
    settings = SgdSettings(LearningRate(lr, None), momentum, dampening, weight_decay, nesterov, maximize, first_step)
    dtype = FORMATS[parameters[0].dtype]
    kernels.sgd(tensors, ctypes.c_int64(len(parameters)), dtype, ctypes.byref(settings))


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1, "maximize": True},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True},
    ],
    ids=["plain", "weight decay", "momentum", "dampening", "nesterov"],
)
def test_sgd_is_that_of_torch(kernels: ctypes.CDLL, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    parameters = random_parameters(dtype)
    gradients = [gradients_for(parameters) for _ in range(3)]
    expected = torch_steps(torch.optim.SGD, parameters, gradients, lr=0.1, **settings)
    # What the buffers hold before the first step is not read.
    buffers = [torch.full_like(parameter, torch.nan) for parameter in parameters] if "momentum" in settings else None
    for step, of_one_step in enumerate(gradients):
        sgd_step(kernels, parameters, of_one_step, buffers, None, 0.1, step == 0, **settings)
    assert_close(parameters, expected)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_sgd_keeps_pruned_weights_and_momentum_at_zero_and_lets_survivors_move_as_ever(
    kernels: ctypes.CDLL, dtype: torch.dtype
) -> None:
    parameters = random_parameters(dtype)
    masks = random_masks(parameters)
    masked, free = copy.deepcopy(parameters), copy.deepcopy(parameters)
    masked_buffers, free_buffers = ([torch.ones_like(parameter) for parameter in parameters] for _ in range(2))
    for of_one_step in [gradients_for(parameters) for _ in range(2)]:
        sgd_step(kernels, free, of_one_step, free_buffers, None, 0.1, False, momentum=0.9)
        spoilt = [g.clone().masked_fill_(~mask, torch.nan) for g, mask in zip(of_one_step, masks, strict=True)]
        sgd_step(kernels, masked, spoilt, masked_buffers, masks, 0.1, False, momentum=0.9)
    for found, unmasked, mask in zip([*masked, *masked_buffers], [*free, *free_buffers], masks * 2, strict=True):
        assert torch.equal(found, unmasked.masked_fill(~mask, 0.0))
        assert not found[~mask].signbit().any()
