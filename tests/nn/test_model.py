"""The masks of a whole model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lth_fast.nn import (
    MaskedConv2d,
    MaskedLinear,
    convert,
    dense_state,
    load_dense_state,
    masked_layers,
    masks,
    restore,
    set_masks,
)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Sequential(nn.Linear(2 * 4 * 4, 5), nn.Linear(5, 3))
    )


NAMES = ["0.weight", "3.0.weight", "3.1.weight"]


def random_masks(model: nn.Module, names: list[str] = NAMES) -> dict[str, Tensor]:
    return {name: torch.rand(model.get_parameter(name).shape) > 0.5 for name in names}


def assert_equal_masks(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, mask in expected.items():
        assert torch.equal(found[name], mask)


def test_masks_are_set_and_read_by_parameter_name() -> None:
    model = network()
    chosen = random_masks(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert set_masks(model, chosen) is model
    assert_equal_masks(masks(model), chosen)
    for name, mask in chosen.items():
        assert torch.equal(model.get_parameter(name), weights[name] * mask)


def test_layers_become_their_masked_twins_in_place() -> None:
    model = network()
    layers, parameters = list(model.modules()), list(model.parameters())
    set_masks(model, random_masks(model))
    assert all(after is before for after, before in zip(model.modules(), layers, strict=True))
    assert all(after is before for after, before in zip(model.parameters(), parameters, strict=True))
    assert [type(layer) for layer in masked_layers(model).values()] == [MaskedConv2d, MaskedLinear, MaskedLinear]
    assert list(masked_layers(model)) == NAMES
    assert list(model.state_dict()) == list(network().state_dict())


def test_layers_that_are_not_named_keep_what_they_have() -> None:
    model = network()
    first = random_masks(model, ["3.0.weight"])
    set_masks(model, first)
    assert_equal_masks(masks(model), first)
    assert type(model[0]) is nn.Conv2d
    second = random_masks(model, ["0.weight"])
    set_masks(model, second)
    assert_equal_masks(masks(model), {**second, **first})


def test_a_layer_alone_is_a_model_whose_parameter_is_called_weight() -> None:
    layer = nn.Linear(4, 3)
    mask = torch.rand(3, 4) > 0.5
    set_masks(layer, {"weight": mask})
    assert type(layer) is MaskedLinear
    assert_equal_masks(masks(layer), {"weight": mask})
    assert type(restore(layer)) is nn.Linear


def test_many_masks_walk_through_the_model_no_more_often_than_one() -> None:
    class Watched(nn.Sequential):
        walks = 0

        def named_modules(self, *args: Any, **kwargs: Any) -> Any:
            self.walks += 1
            return super().named_modules(*args, **kwargs)

    walks = []
    for layers in (1, 9):
        model = Watched(*(nn.Linear(3, 3) for _ in range(9)))
        set_masks(model, {f"{i}.weight": torch.eye(3) > 0 for i in range(layers)})
        walks.append(model.walks)
    assert walks[0] == walks[1]


def test_no_masks_change_nothing() -> None:
    model = network()
    set_masks(model, {})
    assert masks(model) == {}
    assert restore(model) is model


def test_restore_gives_back_the_plain_model_with_zeros() -> None:
    model, inputs = network().eval(), torch.randn(2, 1, 6, 6)
    parameters, keys = list(model.parameters()), vars(model[0]).keys()
    chosen = random_masks(model)
    out = set_masks(model, chosen)(inputs)
    nn.init.constant_(model[3][1].weight, 1.0)
    assert restore(model) is model
    assert masks(model) == {}
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in network().modules()]
    assert all(after is before for after, before in zip(model.parameters(), parameters, strict=True))
    assert vars(model[0]).keys() == keys
    assert not [name for name, _ in model.named_buffers() if "mask" in name]
    assert torch.equal(model[3][1].weight, chosen["3.1.weight"].float())
    assert out.shape == model(inputs).shape


def test_a_restored_model_trains_all_of_its_weights() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    set_masks(model, random_masks(model))
    restore(model)
    model(torch.randn(2, 1, 6, 6)).square().sum().backward()
    optimizer.step()
    assert model[0].weight.count_nonzero() == model[0].weight.numel()


def test_a_copied_model_has_masks_of_its_own() -> None:
    model = network()
    chosen = random_masks(model)
    set_masks(model, chosen)
    twin = copy.deepcopy(model)
    set_masks(twin, {name: torch.zeros_like(mask) for name, mask in chosen.items()})
    assert_equal_masks(masks(model), chosen)


def test_a_layer_registered_twice_is_masked_once() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer)
    mask = torch.rand(4, 4) > 0.5
    set_masks(model, {"1.weight": mask})
    assert_equal_masks(masks(model), {"0.weight": mask})


def shared_weight(sparse: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=sparse), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    return model


def expanded_weight() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5))
    model[0].weight = nn.Parameter(torch.randn(1, 4).expand(5, 4))
    return model


class Halved(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def shared_with_a_parametrization() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    nn.utils.parametrize.register_parametrization(model[0], "weight", Halved())
    return model


WRONG: dict[str, tuple[nn.Module, dict[str, Any], type[Exception], str]] = {
    "unknown name": (
        nn.Sequential(nn.Linear(4, 5)),
        {"weight": torch.ones(5, 4) > 0},
        KeyError,
        r"masks: the model has no parameter 'weight'; it has: 0\.weight, 0\.bias",
    ),
    "no tensor": (
        nn.Sequential(nn.Linear(4, 5)),
        {"0.weight": [[True]]},
        TypeError,
        r"masks\['0\.weight'\] must be a bool tensor of shape \[5, 4\], got list",
    ),
    "dtype": (
        nn.Sequential(nn.Linear(4, 5)),
        {"0.weight": torch.ones(5, 4)},
        TypeError,
        r"masks\['0\.weight'\] must be a bool tensor of shape \[5, 4\], got torch\.float32",
    ),
    "shape": (
        nn.Sequential(nn.Linear(4, 5)),
        {"0.weight": torch.ones(4, 5) > 0},
        ValueError,
        r"masks\['0\.weight'\] must have the weight's shape \[5, 4\], got \[4, 5\]",
    ),
    "weight not floating point": (
        nn.Sequential(nn.Linear(4, 5, dtype=torch.complex128)),
        {"0.weight": torch.ones(5, 4) > 0},
        TypeError,
        r"masks\['0\.weight'\]: expected a weight of one of torch\.float16, .*, got torch\.complex128",
    ),
    "weight without values": (
        nn.Sequential(nn.Linear(4, 5, device="meta")),
        {"0.weight": torch.ones(5, 4) > 0},
        ValueError,
        r"masks\['0\.weight'\]: expected a weight with values, got one on the meta device",
    ),
    "weight without a shape": (
        nn.Sequential(nn.LazyLinear(5)),
        {"0.weight": torch.ones(5, 4) > 0},
        ValueError,
        r"masks\['0\.weight'\]: expected a weight with a shape, got a lazy one; run the model on an input first",
    ),
    "two masks for one weight": (
        shared_weight(),
        {"0.weight": torch.zeros(5, 4) > 0, "1.weight": torch.ones(5, 4) > 0},
        ValueError,
        r"masks\['1\.weight'\]: expected the mask of '0\.weight', whose weight it shares, got another one",
    ),
    "sparse gradients": (
        shared_weight(sparse=True),
        {"1.weight": torch.ones(5, 4) > 0},
        TypeError,
        r"masks\['1\.weight'\]: expected an Embedding with sparse=False",
    ),
    "sparse gradients of bags": (
        nn.Sequential(nn.EmbeddingBag(5, 4, sparse=True)),
        {"0.weight": torch.ones(5, 4) > 0},
        TypeError,
        r"masks\['0\.weight'\]: expected an EmbeddingBag with sparse=False",
    ),
    "expanded weight": (
        expanded_weight(),
        {"0.weight": torch.rand(5, 4) > 0.5},
        ValueError,
        r"masks: expected parameters with a place for every number, got '0\.weight' expanded",
    ),
    "weight that is computed": (
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5))),
        {"0.weight": torch.ones(5, 4) > 0},
        TypeError,
        r"masks\['0\.weight'\]: expected a parameter, got a tensor that _WeightNorm computes",
    ),
    "weight that another parametrization computes with": (
        shared_with_a_parametrization(),
        {"1.weight": torch.ones(5, 4) > 0},
        TypeError,
        r"masks\['1\.weight'\]: expected a parameter that no parametrization computes with, got one under Halved",
    ),
}


class Versioned(nn.Linear):
    """Refuses a state that does not tell its version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *others: Any) -> None:
        if local_metadata.get("version") != 2:
            raise ValueError(f"expected version 2, got {local_metadata.get('version')}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *others)


def test_a_dense_state_knows_the_versions_of_its_modules_and_one_that_does_not_has_the_models() -> None:
    model = nn.Sequential(Versioned(4, 3), nn.Linear(3, 2))
    plain = copy.deepcopy(model)
    set_masks(model, {"0.weight": torch.eye(3, 4) > 0, "1.weight": torch.eye(2, 3) > 0})
    state = copy.deepcopy(dense_state(model))
    plain.load_state_dict(state)
    for given in (state, dict(state)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        load_dense_state(model, given)
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in dense_state(model).items())
    assert plain[0].weight.count_nonzero() == 3


@pytest.mark.parametrize("case", WRONG)
def test_all_masks_are_checked_before_the_first_is_set(case: str) -> None:
    wrong, chosen, error, complaint = WRONG[case]
    model = nn.Sequential(*wrong, nn.Linear(5, 5))
    name = f"{len(wrong)}.weight"
    plain = model[len(wrong)]
    before = plain.weight.detach().clone()
    with pytest.raises(error, match=complaint):
        set_masks(model, {name: torch.zeros(5, 5, dtype=torch.bool), **chosen})
    assert type(plain) is nn.Linear
    assert torch.equal(plain.weight, before)
    assert masks(model) == {}


def test_the_values_of_a_sparse_layer_take_no_mask_and_the_layer_stays_what_it_is() -> None:
    mask = torch.rand(5, 4) < 0.5
    model = convert(nn.Sequential(nn.Linear(4, 5)), {"0.weight": mask}, form="sparse")
    with pytest.raises(TypeError, match=r"masks\['0.values'\]: expected a layer that can take a mask, got"):
        set_masks(model, {"0.values": torch.ones(int(mask.sum())) > 0})
    assert_equal_masks(masks(model), {"0.weight": mask})


def test_a_name_of_nobody_is_refused_where_the_weight_of_a_masked_layer_is_computed() -> None:
    model = set_masks(nn.Sequential(nn.Linear(4, 5)), {"0.weight": torch.rand(5, 4) < 0.5})
    nn.utils.parametrizations.weight_norm(model[0])
    before = masks(model)
    with pytest.raises(KeyError, match="masks: the model has no parameter 'nobody'"):
        set_masks(model, {"nobody": torch.ones(5, 4) > 0})
    assert_equal_masks(masks(model), before)


def test_a_layer_without_a_shape_may_stand_beside_masked_ones_and_is_masked_later() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LazyLinear(3))
    first, second = torch.rand(6, 4) < 0.5, torch.rand(3, 6) < 0.5
    convert(model, {"0.weight": first}, form="masked")
    model(torch.randn(2, 4))
    set_masks(model, {"1.weight": second})
    assert_equal_masks(masks(model), {"0.weight": first, "1.weight": second})


@pytest.mark.parametrize("name", ["mask", "density", "mask_bits", "values", "collect"])
@pytest.mark.parametrize("kind", ["buffer", "parameter", "attribute"])
def test_what_a_user_has_put_on_a_plain_layer_by_a_name_of_ours_stays_beside_the_mask(name, kind):
    model, inputs = nn.Sequential(nn.Linear(6, 5)), torch.randn(3, 6)
    own = nn.Parameter(torch.ones(5, 6)) if kind == "parameter" else torch.ones(5, 6)
    if kind == "buffer":
        model[0].register_buffer(name, own)
    else:
        setattr(model[0], name, own)
    mask = torch.rand(5, 6) < 0.5
    expected = nn.functional.linear(inputs, model[0].weight * mask, model[0].bias)
    set_masks(model, {"0.weight": mask})
    for form in ("masked", "sparse"):
        convert(model, form=form, example_input=inputs)
        assert torch.equal(masks(model)["0.weight"], mask)
        torch.testing.assert_close(model(inputs), expected)
        assert getattr(model[0], name) is own
    assert type(restore(model)[0]) is nn.Linear
    assert getattr(model[0], name) is own
    assert torch.equal(own, torch.ones(5, 6))


def test_a_layer_that_was_copied_in_sparse_form_becomes_masked_again_as_any_plain_one():
    model, mask = nn.Sequential(nn.Linear(6, 5)), torch.rand(5, 6) < 0.5
    model = copy.deepcopy(convert(model, {"0.weight": mask}, "sparse")).double()
    model(torch.randn(3, 6).double())
    assert type(set_masks(restore(model), {"0.weight": mask})[0]) is MaskedLinear
