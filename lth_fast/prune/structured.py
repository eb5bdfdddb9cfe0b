"""The functions of ``torch.nn.utils.prune`` that prune whole channels, by name and arguments, without its hooks.

Repeated calls prune among the channels that have a survivor left, as stock's ``PruningContainer`` does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lth_fast.nn import set_masks
from lth_fast.nn.attributes import Model
from lth_fast.prune.functions import count_to_prune, parameter_and_mask, scores_to_rank
from lth_fast.prune.selection import prune_lowest, surviving


def ln_structured(
    module: Model, name: str, amount: float, n: float | str, dim: int, importance_scores: Tensor | None = None
) -> Model:
    """Prune the channels of ``module`` along ``dim`` that have the smallest norm; ties fall to the lowest channel.

    Args:
        module: As for :func:`~lth_fast.prune.l1_unstructured`.
        name: Name of a parameter of at least two dimensions.
        amount: Share in [0, 1] of the channels that have survivors if a float (rounded to the nearest count, halves to
            even), their number if an int.
        n: Order of the norm over all other dimensions: a number, ``inf`` and ``-inf`` among them, ``"fro"`` (2), or
            ``"nuc"`` (the nuclear norm, for parameters of three dimensions).
        dim: Dimension of the channels, 0 for the outputs of a layer; negative ones count from the end.
        importance_scores: Tensor of the parameter's shape to take the norms of, instead of the parameter.

    Returns:
        ``module``.

    Raises:
        ValueError: ``amount`` or ``n`` is out of range, the parameter has one dimension, or a norm is not finite.
        IndexError: The parameter has no dimension ``dim``.
    """
    weight, mask, dim, alive = _channels(module, name, dim)
    scores = scores_to_rank(weight, importance_scores, "importance_scores").index_select(dim, alive)
    k = count_to_prune(amount, alive.numel(), "channels that have survivors")
    norms = _norms(scores, n, dim)
    if not bool(norms.isfinite().all()):
        called = f"name: {name!r} of this {type(module).__name__}" if importance_scores is None else "importance_scores"
        raise ValueError(f"{called} has a channel whose norm is NaN or infinite; did the training diverge?")
    _prune_channels(module, name, mask, dim, alive, norms, k)
    return module


def random_structured(module: Model, name: str, amount: float, dim: int) -> Model:
    """Prune channels of ``module`` along ``dim`` at random, drawn from torch's global generator.

    Arguments and errors are those of :func:`ln_structured`.
    """
    _, mask, dim, alive = _channels(module, name, dim)
    k = count_to_prune(amount, alive.numel(), "channels that have survivors")
    # As stock: one number per channel, the lowest go, and nothing is drawn for nothing.
    draws = torch.rand(alive.numel()) if k else torch.zeros(alive.numel())
    _prune_channels(module, name, mask, dim, alive, draws.to(alive.device), k)
    return module


def _channels(module: nn.Module, name: str, dim: int) -> tuple[Tensor, Tensor, int, Tensor]:
    """The parameter, its mask, ``dim`` from the front, and the indices of the channels that have survivors."""
    weight, mask = parameter_and_mask(module, name)
    if weight.dim() < 2:
        raise ValueError(
            f"name: channels are pruned in parameters of two dimensions or more, {name} has {weight.dim()}"
        )
    if not -weight.dim() <= dim < weight.dim():
        raise IndexError(f"dim must be between {-weight.dim()} and {weight.dim() - 1} for {name}, got {dim}")
    dim %= weight.dim()
    kept = surviving(weight, mask)
    alive = kept.movedim(dim, 0).flatten(1).any(1).nonzero().squeeze(1)
    return weight, kept, dim, alive


def _norms(scores: Tensor, n: float | str, dim: int) -> Tensor:
    others = [d for d in range(scores.dim()) if d != dim]
    if n == "nuc":
        if len(others) != 2:
            raise ValueError(f"n: the nuclear norm needs a parameter of three dimensions, got one of {scores.dim()}")
        return torch.linalg.matrix_norm(scores, "nuc", dim=(others[0], others[1]))
    if n != "fro" and isinstance(n, str):
        raise ValueError(f"n: expected a number, 'fro' or 'nuc', got {n!r}")
    return torch.linalg.vector_norm(scores, 2 if n == "fro" else n, dim=others)


def _prune_channels(
    module: nn.Module, name: str, mask: Tensor, dim: int, alive: Tensor, scores: Tensor, k: int
) -> None:
    gone = alive[~prune_lowest([scores], k)[0]]
    set_masks(module, {name: mask.index_fill(dim, gone, False)})
