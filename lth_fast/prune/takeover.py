"""Masks that other programs made: models pruned by ``torch.nn.utils.prune``, and mask files of OpenLTH."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast.nn import masks, set_masks
from lth_fast.nn.attributes import Model
from lth_fast.nn.masked import check_mask
from lth_fast.nn.model import check_user, plain_users
from lth_fast.prune.layers import pruned_by_stock


def from_torch_prune(model: Model) -> Model:
    """Turn a model that ``torch.nn.utils.prune`` has pruned into one with masks of ours, in place.

    Every pruned parameter gets its plain name back: ``weight_orig`` becomes ``weight``, the same Parameter object (an
    optimizer that holds it goes on, its momentum is cleared where pruned before its next step), its pruned values and
    gradients become 0, and stock's hooks and ``weight_mask`` buffers are gone. The values that ``weight_orig`` kept
    under the mask are lost: a pruned weight is 0 here, in every module that shares it. Where there is a mask of
    ours already, what either prunes is pruned.

    Args:
        model: Any module with parameters pruned by functions or classes of ``torch.nn.utils.prune``.

    Returns:
        ``model``.

    Raises:
        ValueError: Nothing in it is pruned so, or modules that share a Parameter prune it differently.
        TypeError: A pruned parameter cannot carry a mask of ours (see :func:`lth_fast.nn.set_masks`); nothing was
            changed.
    """
    found = pruned_by_stock(model)
    if not found:
        raise ValueError(f"model: expected one pruned by torch.nn.utils.prune, this {type(model).__name__} is not")
    for _, module, parameter, _ in found:
        if isinstance(module, nn.RNNBase):
            raise TypeError(
                f"model: the {parameter} of a {type(module).__name__} is read around any mask; use its cell"
            )
    held: dict[int, Tensor] = {}
    users = plain_users(model)
    for name, module, parameter, mask in found:
        original = module.get_parameter(f"{parameter}_orig")
        if not torch.equal(held.setdefault(id(original), mask), mask):
            layer = name.removesuffix(f".{parameter}")
            raise ValueError(f"model: expected one mask for a Parameter that modules share, {layer!r} has another one")
        # What set_masks would refuse, as it is too late to do so when stock's masks are gone.
        check_mask(mask, original, name)
        for user, attribute in users[id(original)]:
            check_user(user, attribute.removesuffix("_orig"), name)
    before = masks(model)
    after = {}
    for name, module, parameter, mask in found:
        after[name] = mask & before[name] if name in before else mask
        stock.remove(module, parameter)
        # Stock put its parameters last; state_dict and parameters() have weight and bias first.
        plain = module._parameters
        for other in sorted(plain, key=lambda entry: ({"weight": 0, "bias": 1}).get(entry, 2)):
            plain[other] = plain.pop(other)
    return set_masks(model, after)


def from_openlth(mask_file: str | Path) -> dict[str, Tensor]:
    """Read a mask file of OpenLTH (``…/main/mask.pth``), without running anything it may hold (``weights_only``).

    Args:
        mask_file: A dict of parameter name → tensor of zeros and ones, as ``torch.save`` wrote it.

    Returns:
        Name → bool CPU tensor, ``True`` where the weight survives, names and order as in the file. For a model of other
        names, rename the keys before :func:`lth_fast.nn.set_masks`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is something else. The message names it.
    """
    if Path(mask_file).is_dir():
        raise ValueError(f"{mask_file} is not a mask file of OpenLTH: it is a folder")
    with Path(mask_file).open("rb") as file:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # anything from EOFError to UnpicklingError, by what is damaged or refused
            raise ValueError(f"{mask_file} is not a mask file of OpenLTH: {error}") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(
            f"{mask_file} is not a mask file of OpenLTH: expected masks by name, got {type(found).__name__}"
        )
    for name, mask in found.items():
        if not isinstance(name, str) or not isinstance(mask, Tensor) or not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"{mask_file} is not a mask file of OpenLTH: {name!r} is not a tensor of zeros and ones")
    return {name: mask != 0 for name, mask in found.items()}
