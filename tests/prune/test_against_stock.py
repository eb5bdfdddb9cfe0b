"""Every function of ``torch.nn.utils.prune`` on random models without ties: the same mask, level after level."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast import prune
from lth_fast.nn import masks

MODELS = 1_000
NAMES = [
    *("identity", "random_unstructured", "l1_unstructured", "random_structured", "ln_structured"),
    *("global_unstructured", "custom_from_mask", "remove", "is_pruned"),
]


def distinct_(*parameters: Tensor) -> None:
    """Random numbers of either sign, no two of the same magnitude; nor do sums of a few of them tie."""
    count = sum(parameter.numel() for parameter in parameters)
    values = (torch.randperm(count) + 1 + torch.rand(count) / 2) / count * torch.randn(count).sign()
    for parameter, part in zip(parameters, values.split([p.numel() for p in parameters]), strict=True):
        parameter.data.copy_(part.reshape(parameter.shape))


def random_model() -> nn.Sequential:
    size = [int(n) for n in torch.randint(1, 8, (4,))]
    layers = [
        nn.Conv2d(size[0], size[1], int(torch.randint(1, 4, ()))),
        nn.Linear(size[1], size[2], bias=bool(torch.rand(()) > 0.3)),
        nn.Conv1d(size[2], size[3], 2),
    ]
    model = nn.Sequential(*(layers[int(i)] for i in torch.randperm(3)[: int(torch.randint(1, 4, ()))]))
    distinct_(*model.parameters())
    return model


def random_amount() -> float:
    return round(float(torch.rand(())), 3) if torch.rand(()) > 0.1 else int(torch.rand(()) > 0.5)


def random_call(model: nn.Sequential) -> tuple[str, int, str, dict[str, Any]]:
    """A function, the place of a layer, a parameter, and the other arguments."""
    place = int(torch.randint(len(model), ()))
    layer: Any = model[place]
    function = NAMES[int(torch.randint(7, ()))]
    parameter = "bias" if layer.bias is not None and torch.rand(()) < 0.3 else "weight"
    arguments: dict[str, Any] = {} if function in ("identity", "custom_from_mask") else {"amount": random_amount()}
    if function.endswith("_structured"):
        parameter = "weight"
        arguments["dim"] = int(torch.randint(-layer.weight.dim(), layer.weight.dim(), ()))
    if function == "ln_structured":
        arguments["n"] = (1, 2, 0.5, math.inf, frobenius())[int(torch.randint(5, ()))]
    shape = getattr(layer, parameter).shape
    if function == "custom_from_mask":
        arguments["mask"] = (torch.rand(shape) > 0.3).float()
    if function in ("l1_unstructured", "ln_structured") and torch.rand(()) < 0.2:
        arguments["importance_scores"] = torch.empty(shape)
        distinct_(arguments["importance_scores"])
    return function, place, parameter, arguments


@functools.cache
def frobenius() -> str | int:
    """The name of the norm, where stock takes it for weights of four dimensions, which it does not in torch 2.11."""
    with contextlib.suppress(RuntimeError):
        stock.ln_structured(nn.Conv2d(1, 2, 1), "weight", amount=1, n="fro", dim=0)
        return "fro"
    return 2


def apply(functions: Any, model: nn.Sequential, call: tuple[str, int, str, dict[str, Any]]) -> str | None:
    """Both sides draw the same random numbers, and leave those of the test alone."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return refused(functions, model, call)


def refused(functions: Any, model: nn.Sequential, call: tuple[str, int, str, dict[str, Any]]) -> str | None:
    """The kind of error, if the call is refused."""
    function, place, parameter, arguments = call
    try:
        if function == "global_unstructured":
            pairs = [
                (layer, name)
                for layer in model
                for name in ("weight", "bias")
                if getattr(layer, name) is not None and (name == "weight" or parameter == "bias")
            ]
            method = stock.RandomUnstructured if arguments["amount"] > 0.5 else stock.L1Unstructured
            functions.global_unstructured(pairs, pruning_method=method, **arguments)
        else:
            getattr(functions, function)(model[place], parameter, **arguments)
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        return type(error).__name__
    return None


def stock_masks(model: nn.Module) -> dict[str, Tensor]:
    return {key.removesuffix("_mask"): buffer.bool() for key, buffer in model.named_buffers() if key.endswith("_mask")}


def test_a_thousand_random_models_get_the_masks_of_stock() -> None:
    called: set[str] = set()
    for _ in range(MODELS):
        ours = random_model()
        theirs = copy.deepcopy(ours)
        for _ in range(2):
            call = random_call(ours)
            called.add(call[0])
            # Stock refuses to prune more channels or weights than are left; ours does too, and both stop there.
            error = apply(stock, theirs, call)
            assert bool(apply(prune, ours, call)) == bool(error), call
            if error:
                break
            expected, found = stock_masks(theirs), masks(ours)
            assert found.keys() == expected.keys(), call
            assert all(torch.equal(found[name], expected[name]) for name in expected), call
    assert called == set(NAMES[:7])


@pytest.mark.parametrize("name", NAMES)
def test_the_arguments_are_those_of_stock(name: str) -> None:
    def arguments(function: Any) -> list[tuple[str, Any]]:
        parameters = inspect.signature(function).parameters.values()
        return [(parameter.name, parameter.default) for parameter in parameters]

    assert arguments(getattr(prune, name)) == arguments(getattr(stock, name))


def test_no_function_of_stock_is_missing() -> None:
    functions = {
        name
        for name, function in vars(stock).items()
        if inspect.isfunction(function) and not name.startswith("_") and function.__module__ == stock.__name__
    }
    assert functions == set(NAMES)
