from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as stock

from lth_fast.nn import MaskedConv2d, MaskedLinear, SparseLinear, masks, set_masks
from lth_fast.prune import from_openlth, from_torch_prune, l1_unstructured, sparsity


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def stock_pruned() -> nn.Sequential:
    """The same one every time: stock's models cannot be copied."""
    torch.manual_seed(0)
    model = network()
    stock.random_unstructured(model[0], "weight", 0.25)
    stock.l1_unstructured(model[4], "weight", 0.5)
    stock.ln_structured(model[4], "weight", 1, 2, 0)  # a container of two
    stock.l1_unstructured(model[4], "bias", 2)
    return model


def test_the_masks_and_the_function_stay_and_the_hooks_go() -> None:
    theirs, ours = stock_pruned(), stock_pruned()
    assert from_torch_prune(ours) is ours
    expected = {key.removesuffix("_mask"): mask.bool() for key, mask in theirs.named_buffers() if key.endswith("_mask")}
    assert {name: mask.tolist() for name, mask in masks(ours).items()} == {
        name: mask.tolist() for name, mask in expected.items()
    }
    images = torch.randn(6, 1, 6, 6)
    assert torch.equal(ours(images), theirs(images))
    assert (type(ours[0]), isinstance(ours[4], MaskedLinear)) == (MaskedConv2d, True)
    assert not stock.is_pruned(ours)
    assert not any(key.endswith(("_mask", "_orig")) for key in ours.state_dict())


def test_with_weights_alone_pruned_state_dict_is_the_plain_models_again() -> None:
    model, plain = network(), network()
    stock.l1_unstructured(model[4], "weight", 0.5)
    assert list(from_torch_prune(model).state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())


def test_pruned_weights_are_zero_and_survivors_what_they_were() -> None:
    theirs = stock_pruned()
    original, mask = theirs[4].weight_orig.detach().clone(), theirs[4].weight_mask.clone()
    assert (original[mask == 0] != 0).all()
    ours: Any = from_torch_prune(theirs)
    assert torch.equal(ours[4].weight, original * mask)


def test_the_parameter_is_the_same_object_so_that_its_optimizer_goes_on() -> None:
    model: Any = network()
    stock.l1_unstructured(model[4], "weight", 0.5)
    parameter = model[4].weight_orig
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(torch.randn(6, 1, 6, 6)).square().sum().backward()
    optimizer.step()
    from_torch_prune(model)
    assert model[4].weight is parameter
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(6, 1, 6, 6)).square().sum().backward()
        before = parameter.detach().clone()
        optimizer.step()
        assert (parameter[~model[4].mask] == 0).all()
        assert (parameter != before)[model[4].mask].any()


def test_pruning_goes_on_among_the_survivors() -> None:
    model: Any = from_torch_prune(stock_pruned())
    left = model[0].survivors
    l1_unstructured(model[0], "weight", 0.5)
    assert model[0].survivors == left - round(0.5 * left)


def test_a_model_that_stock_has_not_pruned_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"model: expected one pruned by torch\.nn\.utils\.prune, this Sequential is not"
    ):
        from_torch_prune(network())
    pruned_by_ours = set_masks(network(), {"4.weight": torch.rand(5, 64) > 0.5})
    with pytest.raises(ValueError, match="this Sequential is not"):
        from_torch_prune(pruned_by_ours)


def test_a_recurrent_layer_is_refused_before_anything_changes() -> None:
    model = nn.ModuleDict({"linear": nn.Linear(3, 3), "lstm": nn.LSTM(3, 3)})
    stock.l1_unstructured(model["linear"], "weight", 0.5)
    stock.l1_unstructured(model["lstm"], "weight_ih_l0", 0.5)
    with pytest.raises(TypeError, match="model: the weight_ih_l0 of a LSTM is read around any mask; use its cell"):
        from_torch_prune(model)
    assert stock.is_pruned(model["linear"])


def tied_to_an_embedding_of_sparse_gradients() -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 3, sparse=True), "decoder": nn.Linear(3, 5)})
    model["decoder"].weight = model["embedding"].weight
    stock.l1_unstructured(model["decoder"], "weight", 0.5)
    return model


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (
            lambda: stock.l1_unstructured(nn.Embedding(5, 3, sparse=True), "weight", 0.5),
            r"other\.weight.*: expected an Embedding with sparse=False",
        ),
        (tied_to_an_embedding_of_sparse_gradients, r"decoder\.weight.*: expected an Embedding with sparse=False"),
        (
            lambda: stock.l1_unstructured(nn.Linear(3, 3, dtype=torch.complex64), "weight", 0.5),
            r"other\.weight.*: expected a weight of one of .*, got torch\.complex64",
        ),
    ],
    ids=["embedding of sparse gradients", "tied to one", "complex numbers"],
)
def test_a_parameter_that_cannot_carry_a_mask_of_ours_is_refused_and_stocks_masks_stay(
    make: Callable[[], nn.Module], complaint: str
) -> None:
    model = nn.ModuleDict({"linear": stock.l1_unstructured(nn.Linear(4, 4), "weight", 0.5), "other": make()})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(TypeError, match=complaint):
        from_torch_prune(model)
    assert stock.is_pruned(model["linear"])
    assert stock.is_pruned(model["other"])
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def openlth_masks() -> dict[str, Tensor]:
    """As OpenLTH saves them: int32, names of its own."""
    return {"fc_layers.0.weight": torch.randint(2, (30, 784)).int(), "fc.weight": torch.randint(2, (10, 30)).int()}


def test_a_mask_file_of_openlth_is_read_as_bool_by_name(tmp_path: Path) -> None:
    saved = openlth_masks()
    torch.save(saved, tmp_path / "mask.pth")
    found = from_openlth(tmp_path / "mask.pth")
    assert list(found) == list(saved)
    for name, mask in found.items():
        assert mask.dtype == torch.bool
        assert torch.equal(mask, saved[name] == 1)


def test_masks_of_floats_are_read_too_and_go_onto_a_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2))
    torch.save({"0.weight": (torch.rand(4, 6) > 0.5).float()}, str(tmp_path / "mask.pth"))
    found = from_openlth(str(tmp_path / "mask.pth"))
    set_masks(model, found)
    assert torch.equal(masks(model)["0.weight"], found["0.weight"])


def test_what_a_mask_of_ours_prunes_stays_pruned() -> None:
    layer = l1_unstructured(nn.Linear(8, 6), "weight", 0.5)
    ours = layer.mask
    stock.random_unstructured(layer, "weight", 0.5)
    both = ours & layer.weight_mask.bool()
    assert sparsity(layer) == pytest.approx(100 * (1 - both.float().mean().item()))
    assert torch.equal(from_torch_prune(layer).mask, both)
    assert not layer.weight[~both].any()


def test_stock_masks_on_the_values_of_a_sparse_layer_are_refused_and_nothing_is_changed() -> None:
    layer = SparseLinear(8, 6, mask=torch.rand(6, 8) < 0.5)
    stock.l1_unstructured(layer, "values", 0.5)
    inputs = torch.randn(2, 8)
    before = layer(inputs)
    with pytest.raises(TypeError, match="values: expected a layer that can take a mask, got a sparse one"):
        from_torch_prune(layer)
    assert stock.is_pruned(layer)
    assert torch.equal(layer(inputs), before)


class Evil:
    ran = False

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return setattr, (Evil, "ran", True)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"fc.weight": torch.tensor([0.0, 2.0])}, "'fc.weight' is not a tensor of zeros and ones"),
        ({"fc.weight": torch.tensor([0.0, torch.nan])}, "'fc.weight' is not a tensor of zeros and ones"),
        ({"fc.weight": [0, 1]}, "'fc.weight' is not a tensor of zeros and ones"),
        ({3: torch.ones(2)}, "3 is not a tensor of zeros and ones"),
        ({}, "expected masks by name, got dict"),
        ([torch.ones(2)], "expected masks by name, got list"),
        (Evil(), "Weights only load failed"),
    ],
    ids=["two", "NaN", "list", "number", "empty", "sequence", "code"],
)
def test_a_file_of_something_else_is_refused_by_name_and_runs_nothing(
    content: Any, complaint: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "mask.pth")
    with pytest.raises(ValueError, match=rf"mask.pth is not a mask file of OpenLTH: .*{complaint}"):
        from_openlth(tmp_path / "mask.pth")
    assert not Evil.ran


def test_a_damaged_or_missing_file_is_told_apart(tmp_path: Path) -> None:
    torch.save(openlth_masks(), tmp_path / "mask.pth")
    whole = (tmp_path / "mask.pth").read_bytes()
    (tmp_path / "mask.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a mask file of OpenLTH"):
        from_openlth(tmp_path / "mask.pth")
    with pytest.raises(FileNotFoundError):
        from_openlth(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="is not a mask file of OpenLTH: it is a folder"):
        from_openlth(tmp_path)
