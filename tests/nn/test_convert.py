"""convert: each layer in the form that is fastest, the model's function and state unchanged."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import threading
import time
import warnings
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from lth_fast import _C, optim, prune
from lth_fast.nn import (
    MaskedLinear,
    SparseLinear,
    choices,
    convert,
    explain,
    masks,
    plan,
    restore,
    set_masks,
)

pytestmark = pytest.mark.usefixtures("calibration_folder")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 5))


def random_masks(model: nn.Module, density: float) -> dict[str, torch.Tensor]:
    """Exactly that share of every weight: the density that a layer is timed at does not hang on the draw."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
    return {
        name: (torch.randperm(weight.numel()) < round(density * weight.numel())).reshape(weight.shape)
        for name, weight in weights.items()
    }


@pytest.mark.parametrize("density", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("form", ["auto", "dense", "masked", "sparse"])
def test_a_converted_model_computes_what_the_masked_one_does_and_its_state_is_plain(form, density):
    torch.manual_seed(10 * len(form) + int(10 * density))
    model, inputs = network(), torch.randn(7, 4, 5)
    kept = random_masks(model, density)
    masked = set_masks(copy.deepcopy(model), kept)
    assert convert(model, kept, form=form, example_input=inputs) is model
    torch.testing.assert_close(model(inputs), masked(inputs), rtol=1e-5, atol=1e-6)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in network().state_dict().items()
    }
    for name, value in model.state_dict().items():
        assert torch.equal(value, masked.state_dict()[name])


def test_each_form_has_its_classes_and_restore_undoes_them_all():
    kept = random_masks(network(), 0.3)
    expected = {"dense": nn.Linear, "masked": MaskedLinear, "sparse": SparseLinear}
    for form, kind in expected.items():
        model = convert(network(), kept, form=form)
        assert [type(layer) for layer in model[1::2]] == [kind] * 3
        state = model.state_dict()
        restore(model)
        assert [type(layer) for layer in model[1::2]] == [nn.Linear] * 3
        assert choices(model) == {}
        assert list(model.state_dict()) == list(state)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_what_was_decided_for_a_part_gives_way_to_what_is_decided_for_the_whole():
    model = nn.Sequential(network(), nn.Linear(5, 2))
    kept = random_masks(model, 0.3)
    convert(model[0], {name.removeprefix("0."): mask for name, mask in kept.items() if name.startswith("0.")}, "sparse")
    assert set(plan(model).values()) == {"sparse"}
    convert(model, kept, form="masked")
    assert plan(model) == dict.fromkeys(kept, "masked")
    assert choices(restore(model)) == {}


def test_a_layer_whose_mask_was_removed_is_in_no_plan():
    model = network()
    kept = random_masks(model, 0.3)
    convert(model, kept, form={"3.weight": "sparse"})
    prune.remove(model[1], "weight")
    restore(model[3])
    assert plan(model) == {"5.weight": "masked"}


def test_a_layer_that_was_dense_and_has_got_a_mask_since_is_in_no_plan_that_would_drop_it(capsys):
    model = network()
    kept = random_masks(model, 0.3)
    convert(model, {"1.weight": kept["1.weight"]}, form="masked")
    assert plan(model)["3.weight"] == "dense"
    set_masks(model, {"3.weight": kept["3.weight"]})
    assert plan(model) == {"1.weight": "masked", "5.weight": "dense"}
    assert "3.weight" not in explain(model)
    assert set(masks(convert(model, form=plan(model)))) == {"1.weight", "3.weight"}


class Chooser(nn.Module):
    """Has parts and a list that other code, too, would call choices."""

    def __init__(self) -> None:
        super().__init__()
        self._choices = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Sequential(nn.Linear(8, 2))
        self.head._choices = ["a list"]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self._choices[1](self._choices[0](inputs)))


def test_what_a_user_calls_choices_is_left_alone():
    model, inputs = Chooser(), torch.randn(3, 8)
    kept = random_masks(model, 0.3)
    expected = set_masks(copy.deepcopy(model), kept)(inputs)
    convert(model, kept, form="sparse")
    assert set(plan(model)) == set(kept)
    torch.testing.assert_close(model(inputs), expected)
    torch.testing.assert_close(restore(model)(inputs), expected)
    assert model.head._choices == ["a list"]


@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_parameters_that_a_user_put_on_a_layer_stay_on_it(form):
    model = network()
    extra = nn.Parameter(torch.ones(3))
    model[1].register_parameter("extra", extra)
    convert(model, random_masks(model, 0.3), form=form)
    assert dict(model.named_parameters())["1.extra"] is extra
    assert dict(restore(model).named_parameters())["1.extra"] is extra


def test_a_model_goes_from_form_to_form_with_its_masks_and_gradients():
    torch.manual_seed(3)
    model = network()
    kept = random_masks(model, 0.3)
    convert(model, kept, form="masked")
    model(torch.randn(6, 20)).square().sum().backward()
    gradients = [layer.weight.grad.clone() for layer in model[1::2]]
    for form in ("sparse", "masked", "sparse"):
        convert(model, form=form)
        assert all(torch.equal(mask, kept[name]) for name, mask in masks(model).items())
    for layer, gradient in zip(model[1::2], gradients, strict=True):
        assert torch.equal(layer.values.grad, layer.collect(gradient))


def test_sparse_layers_and_their_parameters_stay_where_convert_fails():
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    convert(model, {"0.weight": torch.rand(6, 8) < 0.5}, form="sparse")
    before, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    ignored, optimizer = model._ddp_params_and_buffers_to_ignore, torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(2, 8)).sum().backward()
    with pytest.raises(RuntimeError, match="shape"):
        convert(model, example_input=torch.randn(2, 7))
    assert isinstance(model[0], SparseLinear)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model._ddp_params_and_buffers_to_ignore == ignored
    assert plan(model) == {"0.weight": "sparse", "2.weight": "dense"}
    assert model[0].extra_repr() == SparseLinear.from_dense(model[0].to_dense(), model[0].mask).extra_repr()
    optimizer.step()  # which would warn of parameters that are no longer the model's
    assert not torch.equal(model[0].weight, state["0.weight"])


def test_layers_and_their_parameters_stay_where_a_later_layer_has_diverged():
    model = network()
    convert(model, random_masks(model, 0.3), form={"1.weight": "sparse"})
    before = dict(model.named_parameters())
    with torch.no_grad():
        model[3].weight[masks(model)["3.weight"]] = float("nan")
    with pytest.raises(ValueError, match=r"'3.weight' of a sparse layer: expected finite weights at the survivors"):
        convert(model, form="sparse")
    assert [type(layer) for layer in model[1::2]] == [SparseLinear, MaskedLinear, MaskedLinear]
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert plan(model) == {"1.weight": "sparse", "3.weight": "masked", "5.weight": "masked"}


def test_the_order_of_parameters_stays_so_that_optimizers_mean_the_same():
    model = convert(network(), random_masks(network(), 0.3), form="sparse")
    assert [name for name, _ in model.named_parameters()] == [
        f"{layer}.{part}" for layer in (1, 3, 5) for part in ("values", "bias")
    ]


def test_a_bias_that_comes_before_its_weight_stays_there_in_every_form():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    weight = model[0].weight
    del model[0].weight
    model[0].weight = weight  # as torch.nn.utils.prune.remove and remove_weight_norm leave it
    before = [parameter.shape for parameter in model.parameters()]
    convert(model, random_masks(model, 0.5), form="sparse")
    assert [name for name, _ in model.named_parameters()] == ["0.bias", "0.values", "1.values", "1.bias"]
    for form in ("masked", "sparse", "dense"):
        convert(model, form=form)
    assert [parameter.shape for parameter in model.parameters()] == before


def test_hooks_and_attributes_that_a_user_put_on_a_layer_stay():
    model, seen = network(), []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    model[1].purpose = "first"
    model[1].register_buffer("scale", torch.ones(1))
    convert(model, random_masks(model, 0.3), form="sparse")
    model(torch.randn(2, 20))
    assert seen == [1]
    assert model[1].purpose == "first"
    assert "1.scale" in model.state_dict()


def test_a_layer_is_sparse_where_that_saves_a_twentieth_and_not_where_it_saves_less(timed):
    kept = random_masks(network(), 0.3)
    timed(1.0, 0.94)
    assert set(plan(convert(network(), kept, example_input=torch.randn(9, 20))).values()) == {"sparse"}


def test_a_layer_is_sparse_where_that_saves_exactly_a_twentieth(timed):
    kept = random_masks(network(), 0.3)
    timed(1.0, 0.95)
    assert set(plan(convert(network(), kept, example_input=torch.randn(9, 20))).values()) == {"sparse"}


@pytest.mark.parametrize(("survivors", "form"), [(480, "sparse"), (481, "masked")])
def test_a_layer_is_timed_up_to_a_density_of_four_fifths(survivors, form, timed):
    asked = timed(1.0, 0.5)
    model = convert(nn.Sequential(nn.Linear(20, 30)), {"0.weight": torch.arange(600).view(30, 20) < survivors})
    assert plan(model) == {"0.weight": form}
    assert len(asked) == (form == "sparse")


def test_a_layer_that_is_called_by_keyword_is_timed_on_what_it_is_given(timed):
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.layer(input=inputs)

    asked = timed(1.0, 0.5)
    convert(ByKeyword(), {"layer.weight": torch.eye(8) > 0}, example_input=torch.randn(3, 8))
    assert [shape for _, shape, _ in asked] == [(3, 8)]


def test_explain_is_a_table_of_density_form_times_and_reason(timed, capsys):
    timed(2e-3, 1e-3)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.Linear(10, 5))
    kept = {"0.weight": torch.arange(600).view(30, 20) < 150, "2.weight": torch.arange(300).view(10, 30) < 297}
    assert explain(convert(model, kept, example_input=torch.randn(9, 20))).splitlines() == [
        "layer     density  form    masked ms  sparse ms  reason",
        "0.weight  0.25     sparse  2          1          sparse takes 0.50 of masked's time",
        "2.weight  0.99     masked  -          -          denser than 0.8: not measured",
        "3.weight  1        dense   -          -          no mask",
    ]


def test_a_layer_stays_masked_where_sparse_saves_less_than_a_twentieth(timed):
    kept = random_masks(network(), 0.3)
    timed(1.0, 0.96)
    assert set(plan(convert(network(), kept, example_input=torch.randn(9, 20))).values()) == {"masked"}


@pytest.mark.parametrize("mode", [contextlib.nullcontext, torch.no_grad, torch.inference_mode])
def test_times_are_taken_on_the_shapes_that_the_example_shows_and_once_only(timed, mode):
    asked = timed(1.0, 0.5)
    for _ in range(2):
        model = network()
        with mode():
            convert(model, random_masks(model, 0.3), example_input=torch.randn(9, 20))
    assert [(shape, wants_grad) for _, shape, wants_grad in asked] == [
        ((9, 20), False),
        ((9, 30), True),
        ((9, 10), True),
    ]


def test_without_an_example_a_batch_of_64_is_assumed_and_said(timed):
    asked = timed(1.0, 0.5)
    model = network()
    convert(model, random_masks(model, 0.3))
    assert [shape for _, shape, _ in asked] == [(64, 20), (64, 30), (64, 10)]
    assert all("assumed batch of 64" in choice.reason for choice in choices(model).values())


def test_without_an_example_a_convolution_is_sparse_up_to_a_tenth_of_its_weights(timed):
    asked = timed(1.0, 0.5)
    model = nn.Sequential(nn.Conv2d(5, 8, 5), nn.Conv2d(8, 5, 5))
    kept = {
        name: torch.arange(1000).view(weight.shape) < 100
        for name, weight in model.named_parameters()
        if weight.dim() > 1
    }
    kept["1.weight"].view(-1)[100] = True
    convert(model, kept)
    assert plan(model) == {"0.weight": "sparse", "1.weight": "masked"}
    assert {choice.reason for choice in choices(model).values()} == {"no example input: sparse up to a density of 0.1"}
    assert asked == []


def test_nothing_is_measured_where_the_answer_is_known(timed):
    asked = timed(1.0, 0.5)
    model = network()
    kept = random_masks(model, 0.3)
    kept["1.weight"] = torch.ones(30, 20, dtype=torch.bool)
    kept["3.weight"] = torch.zeros(10, 30, dtype=torch.bool)
    kept["5.weight"][:] = True
    kept["5.weight"][0, 0] = False
    convert(model, kept, example_input=torch.randn(9, 20))
    assert plan(model) == {"1.weight": "dense", "3.weight": "sparse", "5.weight": "masked"}
    assert asked == []


def test_a_layer_that_the_example_gives_no_samples_stays_masked(timed):
    asked = timed(1.0, 0.5)
    model = network()
    convert(model, random_masks(model, 0.3), example_input=torch.randn(0, 20))
    reason = "its forward does not run on the example input in evaluation mode"
    assert {choice.reason for choice in choices(model).values()} == {reason}
    assert asked == []


@pytest.mark.parametrize(("preferred", "form"), [(True, "masked"), (False, "dense")])
def test_a_whole_layer_stays_masked_where_masked_layers_multiply_faster(preferred, form):
    model = nn.Sequential(nn.Linear(300, 200), nn.Linear(200, 10), nn.Linear(300, 200).double(), nn.Conv2d(30, 20, 10))
    previous = _C.prefers_onednn()
    _C.force_onednn(preferred)
    try:
        weights = {name: weight for name, weight in model.named_parameters() if weight.dim() > 1}
        convert(model, {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})
    finally:
        _C.force_onednn(previous)
    assert plan(model) == {"0.weight": form, "1.weight": "dense", "2.weight": "dense", "3.weight": "dense"}
    assert "all weights survive" in choices(model)["0.weight"].reason


def test_how_fast_a_whole_layer_multiplies_is_judged_by_its_samples_and_features(monkeypatch):
    sizes = []
    monkeypatch.setitem(convert.__globals__, "masked_linear_beats_plain", lambda *size: sizes.append(size) or True)
    whole = {"0.weight": torch.ones(200, 300, dtype=torch.bool)}
    convert(nn.Sequential(nn.Linear(300, 200)), whole)
    convert(nn.Sequential(nn.Linear(300, 200)), whole, example_input=torch.randn(2, 5, 300))
    assert sizes == [(64, 300, 200), (10, 300, 200)]


def test_a_whole_layer_that_cannot_be_sparse_is_plain(monkeypatch):
    monkeypatch.setitem(convert.__globals__, "masked_linear_beats_plain", lambda *_: True)
    whole = {name: torch.ones(8, 8, dtype=torch.bool) for name in ("read.weight", "normal.weight")}
    model = convert(Unusual(), whole, example_input=torch.randn(3, 4, 8))
    assert (plan(model)["read.weight"], plan(model)["normal.weight"]) == ("dense", "masked")


def test_a_whole_layer_is_sparse_where_that_is_asked_for():
    model = convert(nn.Sequential(nn.Linear(8, 6)), {"0.weight": torch.ones(6, 8, dtype=torch.bool)}, form="sparse")
    assert plan(model) == {"0.weight": "sparse"}
    assert choices(model)["0.weight"].reason == "asked for"


def test_a_layer_that_a_form_by_name_leaves_out_is_masked_for_that_reason():
    model = convert(network(), random_masks(network(), 0.3), form={"1.weight": "sparse", "5.weight": "masked"})
    reasons = {name: choice.reason for name, choice in choices(model).items()}
    assert reasons == {"1.weight": "asked for", "3.weight": "not named in form", "5.weight": "asked for"}


def test_a_plan_may_be_repeated_on_the_model_that_has_it():
    model = convert(network(), random_masks(network(), 0.3), form={"1.weight": "sparse", "5.weight": "dense"})
    decided = plan(model)
    assert plan(convert(model, form={"1.weight": "sparse"}))["1.weight"] == "sparse"
    assert decided == {"1.weight": "sparse", "3.weight": "masked", "5.weight": "dense"}


def test_a_plan_repeats_the_forms_without_measuring(timed):
    asked = timed(1.0, 0.5)
    kept = random_masks(network(), 0.3)
    model = convert(network(), kept, form={"1.weight": "sparse", "5.weight": "dense"})
    assert plan(model) == {"1.weight": "sparse", "3.weight": "masked", "5.weight": "dense"}
    assert plan(convert(network(), kept, form=plan(model))) == plan(model)
    assert asked == []


def test_the_example_run_leaves_no_trace():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model[2].eval()
    modes = [module.training for module in model.modules()]
    kept, inputs = random_masks(model, 0.3), torch.randn(5, 6)
    set_masks(model, kept)
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    convert(model, kept, example_input=inputs)
    assert all(choice.sparse_seconds is not None for choice in choices(model).values())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Adapted(nn.Module):
    """Merges what is learned beside its weight into it for evaluation, as LoRA does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.learned, self.merged = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 8)), False

    def train(self, mode: bool = True) -> Adapted:
        with torch.no_grad():
            self.layer.weight += (self.merged - (not mode)) * -self.learned
        self.merged = not mode
        return super().train(mode)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs) if self.merged else self.layer(inputs) + inputs @ self.learned.T


def test_the_example_run_does_not_do_what_a_model_does_besides_when_it_is_evaluated():
    model = Adapted()
    set_masks(model, {"layer.weight": torch.rand(8, 8) < 0.5})
    before = copy.deepcopy(model.state_dict())
    convert(model, form="masked", example_input=torch.randn(2, 8))
    assert model.training
    assert not model.merged
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class InPlace(nn.Module):
    """Writes to its inputs, which come as a dictionary and as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, batch: dict[str, torch.Tensor], images: list[torch.Tensor]) -> torch.Tensor:
        return self.layer(batch["first"].mul_(2)) + self.layer(images[0].add_(1))


def test_the_example_stays_what_it_is_and_may_come_from_inference_mode():
    model = InPlace()
    with torch.inference_mode():
        first, image = torch.randn(2, 8), torch.randn(2, 8)
        before = first.clone(), image.clone()
        convert(model, {"layer.weight": torch.rand(8, 8) < 0.5}, "sparse", ({"first": first}, [image]))
    assert plan(model) == {"layer.weight": "sparse"}
    assert torch.equal(first, before[0])
    assert torch.equal(image, before[1])


def test_a_list_or_a_tuple_with_names_is_one_input_and_a_tuple_is_several():
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.reader, self.layer = nn.LSTM(8, 8), nn.Linear(8, 8)

        def forward(self, words: PackedSequence) -> torch.Tensor:
            return self.layer(self.reader(words)[0].data)

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
            return [self.layer(image) for image in images]

    images = [torch.randn(2, 8), torch.randn(3, 8)]
    for example in (images, (images,)):
        model = convert(Detector(), {"layer.weight": torch.rand(8, 8) < 0.5}, "sparse", example)
        assert plan(model) == {"layer.weight": "sparse"}
    words = pack_padded_sequence(torch.randn(5, 2, 8), torch.tensor([5, 3]))
    assert plan(convert(Reader(), {"layer.weight": torch.rand(8, 8) < 0.5}, "sparse", words)) == {
        "layer.weight": "sparse"
    }


def test_a_dict_by_names_of_forwards_arguments_is_keyword_arguments_alone_or_behind_inputs():
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.given: list[tuple[torch.Tensor, ...]] = []

        def forward(self, embeds=None, attention_mask=None, *, labels=None) -> torch.Tensor:
            self.given.append((embeds, attention_mask, labels))
            return self.layer(embeds * attention_mask)

    class OnlyByName(Encoder):
        def forward(self, **named: torch.Tensor) -> torch.Tensor:
            return super().forward(**named)

    embeds, attention_mask, labels = torch.randn(2, 8), torch.rand(2, 8), torch.arange(2)
    named = {"attention_mask": attention_mask, "labels": labels}
    examples = [{"embeds": embeds, **named}, UserDict(embeds=embeds, **named), ({"embeds": embeds, **named},)]
    for kind, example in [*itertools.product((Encoder, OnlyByName), examples), (Encoder, (embeds, named))]:
        model = kind()
        convert(model, {"layer.weight": torch.rand(8, 8) < 0.5}, "sparse", example)
        assert plan(model) == {"layer.weight": "sparse"}
        ((first, second, third),) = model.given
        assert torch.equal(first, embeds)
        assert torch.equal(second, attention_mask)
        assert torch.equal(third, labels)
        assert first is not embeds


def test_a_dict_by_other_names_is_an_input_and_so_is_one_with_an_empty_one_behind_it():
    class Inputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)
            self.given: list[object] = []

        def forward(self, batch, meta=None) -> torch.Tensor:
            self.given.append((list(batch), meta))
            return self.layer(batch["batch"] if "batch" in batch else batch["image"])

    image, mask = torch.randn(2, 8), {"layer.weight": torch.rand(8, 8) < 0.5}
    for example, given in (
        ({"image": image}, (["image"], None)),
        (({"image": image},), (["image"], None)),
        (({"image": image}, {}), (["image"], None)),
        (({"image": image}, {"size": 2}), (["image"], {"size": 2})),
        (({"image": image}, {"meta": {"size": 2}}), (["image"], {"size": 2})),
        (({"batch": image}, {}), (["batch"], None)),
        ({"batch": {"image": image}, "meta": 3}, (["image"], 3)),
    ):
        for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager"), nn.DataParallel):
            model = set_masks(Inputs(), mask)
            convert(wrap(model), form="sparse", example_input=example)
            assert isinstance(model.layer, SparseLinear)
            assert model.given == [given]


def test_a_dict_by_names_that_forward_neither_takes_nor_reads_is_refused_with_those_it_takes():
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, embeds=None, mask=None) -> torch.Tensor:
            return self.layer(embeds)

    model = Encoder()
    with pytest.raises(
        TypeError, match=r"example_input: expected .* Encoder.forward \(embeds, mask\), .* got one of 'embed', 'mask'"
    ) as refused:
        convert(model, example_input={"embed": torch.randn(2, 8), "mask": None})
    assert isinstance(refused.value.__cause__, TypeError)
    with pytest.raises(RuntimeError, match="shape"):  # the model's own error where the names are right
        convert(model, example_input={"embeds": torch.randn(2, 7)})


def test_threads_that_convert_at_a_time_leave_torch_compile_at_work():
    runs, both_are_there = [], threading.Barrier(2)

    class Meeting(nn.Module):
        """Waits for the other thread's model, unless only one of them can run."""

        def __init__(self, leaves_first: bool) -> None:
            super().__init__()
            self.layer, self.leaves_first = nn.Linear(8, 8), leaves_first

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            with contextlib.suppress(threading.BrokenBarrierError):
                both_are_there.wait(0.5)
                time.sleep(0 if self.leaves_first else 0.2)
            return self.layer(inputs)

    def converting(leaves_first: bool) -> None:
        time.sleep(0 if leaves_first else 0.1)  # comes last, and leaves last
        model, mask = Meeting(leaves_first), torch.rand(8, 8) < 0.5
        convert(model, {"layer.weight": mask}, "masked", torch.randn(2, 8))

    threads = [threading.Thread(target=converting, args=(first,)) for first in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def count(graph, inputs):
        runs.append(graph)
        return graph.forward

    try:
        torch.compile(nn.ReLU(), backend=count)(torch.randn(2))
    finally:
        torch.compiler.set_stance("default")
    assert len(runs) == 1


class Unusual(nn.Module):
    """Reads one weight around its layer, never runs another, shares a third, and has a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(8, 8)
        self.idle = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.normal = nn.Linear(8, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mixed, _ = self.attention(inputs, inputs, inputs)
        assert self.read.weight.shape == (8, 8)
        return self.normal(mixed) @ self.read.weight


def test_what_cannot_be_sparse_stays_masked_and_explain_tells_why(capsys):
    model = Unusual()
    kept = {name: torch.rand(8, 8) < 0.2 for name in ("read.weight", "idle.weight", "normal.weight")}
    kept["attention.out_proj.weight"] = torch.rand(8, 8) < 0.2
    convert(model, kept, form="sparse", example_input=torch.randn(3, 4, 8))
    reasons = {name: choice.reason for name, choice in choices(model).items()}
    assert reasons["read.weight"] == "its weight is read outside of its forward"
    assert reasons["idle.weight"] == "its forward does not run on the example input in evaluation mode"
    assert "NonDynamicallyQuantizableLinear" in reasons["attention.out_proj.weight"]
    assert {name: form for name, form in plan(model).items() if form == "sparse"} == {"normal.weight": "sparse"}
    table = explain(model)
    assert capsys.readouterr().out == table + "\n"
    assert all(name in table and reason in table for name, reason in reasons.items())


@pytest.mark.parametrize("form", ["auto", "masked", "sparse"])
def test_a_layer_whose_forward_was_replaced_stays_masked_and_keeps_zeros_in_every_moment(form):
    """As accelerate replaces it: by a function that calls what was there before."""
    model, inputs = network(), torch.randn(4, 20)
    layer, kept = model[1], random_masks(model, 0.3)
    layer.forward = lambda inputs, before=layer.forward: 2 * before(inputs)
    expected = model(inputs)
    convert(model, {"1.weight": torch.ones(30, 20, dtype=torch.bool)}, "masked")
    torch.testing.assert_close(model(inputs), expected)
    convert(model, kept, form, inputs)
    assert plan(model)["1.weight"] == "masked"
    assert form == "masked" or choices(model)["1.weight"].reason == "its forward was replaced by another one"
    assert all(parameter.grad is None for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        model(inputs).square().sum().backward()
        optimizer.step()
    for value in (layer.weight, optimizer.state[layer.weight]["momentum_buffer"]):
        assert value[~kept["1.weight"]].count_nonzero() == 0
        assert value[kept["1.weight"]].count_nonzero() > 0


def test_a_weight_read_around_its_sparse_layer_is_its_dense_form():
    model = Unusual()
    kept = {"read.weight": torch.rand(8, 8) < 0.3}
    inputs = torch.randn(3, 4, 8)
    expected = set_masks(copy.deepcopy(model), kept)(inputs)
    convert(model, kept, form="sparse")
    output = model(inputs)
    torch.testing.assert_close(output, expected)
    output.sum().backward()
    assert model.read.values.grad.shape == (int(kept["read.weight"].sum()),)


def test_masked_weights_of_subclasses_have_no_parameter_in_common_with_absent_biases():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(2)), Special(8, 8), Special(8, 8))
    kept = {name: torch.rand(8, 8) < 0.5 for name in ("2.weight", "3.weight")}
    convert(model, kept, form={"0.weight": "dense", "2.weight": "masked", "3.weight": "auto"})
    assert plan(model) == {"0.weight": "dense", "1.weight": "dense", "2.weight": "masked", "3.weight": "masked"}


def test_half_precision_layers_stay_masked():
    model = nn.Sequential(nn.Linear(8, 8)).to(torch.bfloat16)
    convert(model, {"0.weight": torch.rand(8, 8) < 0.2}, form="sparse")
    assert "bfloat16" in choices(model)["0.weight"].reason
    assert plan(model) == {"0.weight": "masked"}


def test_under_autocast_a_sparse_layer_computes_densely_in_half_precision():
    layer = nn.Linear(8, 8)
    sparse = SparseLinear.from_dense(layer, torch.rand(8, 8) < 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sparse(torch.randn(3, 8)).dtype == torch.bfloat16


def test_copies_and_pickles_keep_forms_and_reasons():
    model = convert(network(), random_masks(network(), 0.3), form="sparse")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert choices(twin) == choices(model)
        inputs = torch.randn(3, 20)
        assert torch.equal(twin(inputs), model(inputs))


def test_wrong_arguments_are_named_with_what_was_expected_and_given():
    model = convert(network(), random_masks(network(), 0.3), form="sparse")
    with pytest.raises(ValueError, match=r"form: expected one of auto, dense, masked, sparse, got 'fast'"):
        convert(model, form="fast")
    with pytest.raises(ValueError, match=r"form\['1.weight'\]: expected one of .*, got 'quick'"):
        convert(model, form={"1.weight": "quick"})
    with pytest.raises(ValueError, match=r"form: expected names of weights of Linear or Conv2d, got '7.weight'"):
        convert(model, form={"7.weight": "sparse"})
    with pytest.raises(TypeError, match=r"masks\['1.weight'\]: expected a layer that can take a mask, got a sparse"):
        set_masks(model, {"1.weight": torch.ones(30, 20) > 0})
    unusual = Unusual()
    kept = {"read.weight": torch.rand(8, 8) < 0.3}
    with pytest.raises(ValueError, match=r"form\['read.weight'\]: .* got 'sparse': its weight is read outside"):
        convert(unusual, kept, form={"read.weight": "sparse"}, example_input=torch.randn(3, 4, 8))
    projection = {"attention.out_proj.weight": torch.rand(8, 8) < 0.3}  # of a subclass
    for form in ("dense", "sparse"):
        complaint = rf"form\['attention.out_proj.weight'\]: .* got '{form}': a mask on the weight of a NonDynamically"
        with pytest.raises(ValueError, match=complaint):
            convert(Unusual(), projection, form=dict.fromkeys(projection, form))


OPTIMIZERS = {
    "torch's SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "torch's Adam": torch.optim.Adam,
    "our Adam": optim.Adam,
}


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("copied", [False, True], ids=["itself", "a copy"])
def test_a_weight_that_is_read_around_its_masked_layer_stays_zero_where_pruned(make_optimizer, copied):
    model, inputs = Unusual(), torch.randn(3, 4, 8)
    mask = torch.rand(8, 8) < 0.3
    convert(model, {"read.weight": mask}, form="masked", example_input=inputs)
    model = copy.deepcopy(model) if copied else model
    optimizer, weight = make_optimizer(model.parameters()), model.read.weight
    for _ in range(3):
        optimizer.zero_grad()
        model(inputs).square().sum().backward()
        optimizer.step()
        for value in (weight, weight.grad, *optimizer.state[weight].values()):
            if value.shape == mask.shape:
                assert value[~mask].count_nonzero() == 0
                assert value[mask].count_nonzero() > 0


@pytest.mark.parametrize("when", ["before", "behind"])
def test_a_weight_is_read_around_its_layer_whether_before_or_behind_the_layers_forward(when):
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            before = self.layer.weight.square().sum() if when == "before" else 0
            outputs = self.layer(inputs)
            return outputs + (self.layer.weight.square().sum() if when == "behind" else before)

    model = convert(Penalised(), {"layer.weight": torch.rand(8, 8) < 0.3}, example_input=torch.randn(3, 8))
    assert choices(model)["layer.weight"].reason == "its weight is read outside of its forward"


class Twice(nn.Module):
    """Runs one layer twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = self.first

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(inputs)))


def test_a_module_that_is_used_twice_is_one_layer_and_can_be_sparse():
    model, inputs = Twice(), torch.randn(5, 8)
    mask = torch.rand(8, 8) < 0.3
    masked = set_masks(copy.deepcopy(model), {"first.weight": mask})
    convert(model, {"second.weight": mask}, form="sparse", example_input=inputs)
    assert plan(model) == {"first.weight": "sparse"}
    assert model.second is model.first
    with pytest.raises(
        TypeError, match=r"masks\['second.weight'\]: expected a layer that can take a mask, got a sparse"
    ):
        set_masks(model, {"second.weight": mask})
    assert list(model.state_dict()) == list(masked.state_dict())
    for network in (model, masked):
        network(inputs).square().sum().backward()
    torch.testing.assert_close(model(inputs), masked(inputs))
    torch.testing.assert_close(model.first.values.grad, model.first.collect(masked.first.weight.grad))


def test_a_layer_whose_bias_is_under_a_mask_too_stays_masked():
    model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))
    masks = {"0.weight": torch.rand(10, 20) < 0.2, "0.bias": torch.arange(10) % 2 == 0}
    set_masks(model, masks)
    inputs = torch.randn(4, 20)
    expected = model(inputs)

    for form in ("auto", "sparse"):
        convert(model, form=form, example_input=inputs)
        assert choices(model)["0.weight"].form == "masked"
        assert "bias" in choices(model)["0.weight"].reason
        assert torch.equal(model(inputs), expected)


def test_a_parametrized_weight_stays_dense_and_a_mask_for_it_is_refused():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Linear(5, 2))
    kept = {"1.weight": torch.rand(2, 5) < 0.5}
    convert(model, kept, form="sparse", example_input=torch.randn(3, 6))
    assert plan(model) == {"0.weight": "dense", "1.weight": "sparse"}
    with pytest.raises(TypeError, match=r"masks\['0.weight'\]: expected a parameter, got a tensor that _WeightNorm"):
        convert(model, {"0.weight": torch.rand(5, 6) < 0.5})


@pytest.mark.parametrize("form", ["auto", "masked", "sparse"])
@pytest.mark.parametrize("training", [True, False])
def test_modes_stay_and_the_form_has_the_layers(form, training, timed):
    timed(1.0, 0.5)
    model = network().train(training)
    convert(model, random_masks(model, 0.3), form=form, example_input=torch.randn(3, 20))
    assert all(module.training is training for module in model.modules())


@pytest.mark.parametrize("form", ["auto", "dense", "masked", "sparse"])
def test_to_convert_again_changes_nothing(form, timed):
    asked = timed(1.0, 0.5)
    model, inputs = network(), torch.randn(9, 20)
    convert(model, random_masks(model, 0.3), form=form, example_input=inputs)
    state, chosen, found = copy.deepcopy(model.state_dict()), choices(model), masks(model)
    timings = len(asked)
    convert(model, form=form, example_input=inputs)
    assert len(asked) == timings
    assert plan(model) == {name: choice.form for name, choice in chosen.items()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert masks(model).keys() == found.keys()
    assert all(torch.equal(mask, found[name]) for name, mask in masks(model).items())


def test_a_restored_model_is_converted_as_a_new_one_is():
    torch.manual_seed(5)
    model, inputs = network(), torch.randn(9, 20)
    expected = set_masks(copy.deepcopy(model), random_masks(model, 0.3))
    restore(convert(model, masks(expected), form="sparse", example_input=inputs))
    convert(model, form="sparse", example_input=inputs)
    assert set(plan(model).values()) == {"dense"}
    assert {choice.reason for choice in choices(model).values()} == {"no mask"}
    convert(model, masks(expected), form="sparse", example_input=inputs)
    assert set(plan(model).values()) == {"sparse"}
    torch.testing.assert_close(model(inputs), expected(inputs))


WRONG_MASKS = {
    "unknown name": (
        {"7.weight": torch.rand(30, 20) < 1},
        KeyError,
        r"masks: the model has no parameter '7.weight'; it",
    ),
    "shape": (
        {"1.weight": torch.rand(20, 30) < 1},
        ValueError,
        r"masks\['1.weight'\] must have the weight's shape \[30, 20\], got \[20, 30\]",
    ),
    "dtype": (
        {"1.weight": torch.ones(30, 20)},
        TypeError,
        r"masks\['1.weight'\] must be a bool tensor of shape \[30, 20\], got torch.float32",
    ),
    "no values": (
        {"1.weight": torch.ones(30, 20, dtype=torch.bool, device="meta")},
        ValueError,
        r"masks\['1.weight'\] must have values, got a mask on the meta device",
    ),
}


@pytest.mark.parametrize("given", WRONG_MASKS)
@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_wrong_masks_are_named_whatever_form_the_layers_have_and_the_model_works_on(form, given):
    wrong, error, complaint = WRONG_MASKS[given]
    model, inputs = network(), torch.randn(4, 20)
    convert(model, random_masks(model, 0.3), form=form)
    before, found = model(inputs), masks(model)
    with pytest.raises(error, match=complaint):
        convert(model, {"3.weight": torch.zeros(10, 30, dtype=torch.bool), **wrong}, form=form)
    torch.testing.assert_close(model(inputs), before)
    assert all(torch.equal(mask, found[name]) for name, mask in masks(model).items())


@pytest.mark.parametrize("layer", [nn.Linear(8, 6), nn.Conv2d(3, 4, 3)], ids=["linear", "conv2d"])
def test_a_layer_that_turned_sparse_tells_its_density(layer):
    mask = torch.rand(layer.weight.shape) < 0.5
    model = convert(nn.Sequential(layer), {"0.weight": mask}, form="sparse")
    assert model[0].density == pytest.approx(mask.float().mean().item())
    assert f"density={model[0].density:.4g}" in repr(model)
    assert "density" not in repr(convert(restore(model), form="dense"))


@pytest.mark.parametrize("layer", [nn.Linear(8, 6), nn.Conv2d(8, 6, 1)], ids=["linear", "conv2d"])
def test_a_bias_that_got_a_mask_in_a_sparse_layer_keeps_it_in_the_other_forms(layer):
    model, inputs = (
        nn.Sequential(copy.deepcopy(layer)),
        torch.randn(8, 1, 1) if layer.weight.dim() > 2 else torch.ones(8),
    )
    bias, on_bias = model[0].bias, torch.arange(6) % 2 == 0
    convert(model, {"0.weight": torch.rand(layer.weight.shape) < 0.5}, form="sparse")
    set_masks(model, {"0.bias": on_bias})
    expected, found = model(inputs), masks(model)
    expected.sum().backward()
    gradient = bias.grad.clone()
    with pytest.raises(RuntimeError):
        convert(model, example_input=torch.randn(7))
    assert torch.equal(model(inputs), expected)
    for form in ("masked", "sparse", "dense"):
        convert(model, form=form)
        torch.testing.assert_close(model(inputs), expected)
        assert torch.equal(masks(model)["0.bias"], on_bias)
        assert form == "dense" or torch.equal(masks(model)["0.weight"], found["0.weight"])
    assert type(restore(model)[0]) is type(layer)
    assert model[0].bias is bias
    assert torch.equal(bias.grad, gradient)
    torch.testing.assert_close(model(inputs), expected)


def test_a_sparse_layer_whose_bias_something_else_computes_is_refused_by_its_name():
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 4))
    convert(model, random_masks(model, 0.5), form="sparse")
    nn.utils.prune.l1_unstructured(model[1], "bias", 0.5)
    for change in (convert, restore):
        with pytest.raises(TypeError, match=r"got '1.bias' computed by .*torch.nn.utils.prune; remove it first"):
            change(model)
        assert [type(layer) for layer in model] == [SparseLinear, SparseLinear]


def test_a_bias_keeps_its_mask_where_the_weight_becomes_dense():
    bias = torch.arange(8) % 2 == 0
    for form in ("auto", {"0.weight": "dense"}):
        model = nn.Sequential(nn.Linear(8, 8))
        set_masks(model, {"0.weight": torch.ones(8, 8, dtype=torch.bool), "0.bias": bias})
        convert(model, form=form)
        assert set(masks(model)) == {"0.bias"}
        assert torch.equal(masks(model)["0.bias"], bias)
        assert torch.equal(model(torch.zeros(1, 8))[0] != 0, bias)
        restore(model)
        assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("later", ["masked", "sparse"])
@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_a_backward_adds_to_a_gradient_that_changed_its_form_in_inference_mode(form, later):
    model, inputs = network(), torch.randn(4, 20)
    convert(model, random_masks(model, 0.3), form=form)
    twin = copy.deepcopy(model)
    model(inputs).sum().backward()
    with torch.inference_mode():
        convert(model, form=later)
    model(inputs).sum().backward()
    for _ in range(2):
        twin(inputs).sum().backward()
    convert(twin, form=later)
    for parameter, expected in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_a_compiled_model_shows_its_layers_to_the_example_input():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    compiled = torch.compile(model, backend="eager")
    set_masks(model, {"0.weight": torch.rand(64, 64) < 0.1})
    convert(compiled, form="sparse", example_input=torch.randn(4, 64))
    assert isinstance(model[0], SparseLinear)


def test_asking_a_weight_for_its_size_or_kind_does_not_count_as_reading_it():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 5)

        def forward(self, inputs):
            weight = self.layer.weight
            inputs = inputs.cuda() if weight.is_cuda else inputs
            assert weight.is_floating_point()
            return self.layer(inputs) / (weight.size(1) * weight.dim() * len(weight) * weight.nbytes)

    model = Asks()
    convert(model, {"layer.weight": torch.rand(5, 6) < 0.5}, form="sparse", example_input=torch.randn(2, 6))
    assert plan(model) == {"layer.weight": "sparse"}


def test_a_masked_weight_that_was_parametrized_later_stays_masked_in_every_form():
    for wrap in (nn.utils.parametrizations.weight_norm, nn.utils.weight_norm):
        model = set_masks(nn.Sequential(nn.Linear(6, 6)), {"0.weight": torch.rand(6, 6) < 0.5})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of nn.utils.weight_norm
            wrap(model[0])
        inputs = torch.randn(2, 6)
        expected = model(inputs)
        for form in ("auto", "dense", "masked"):
            convert(model, form=form)
            assert choices(model)["0.weight"].reason == "its weight is computed, not a parameter"
            torch.testing.assert_close(model(inputs), expected)
        with pytest.raises(TypeError, match=r"got '0\.weight' computed from others"):
            restore(model)
        torch.testing.assert_close(model(inputs), expected)


class OwnLinear(nn.Linear):
    """Its mask is a parametrization."""


@pytest.mark.parametrize("kind", [nn.Linear, OwnLinear])
def test_explain_tells_the_density_that_a_layer_has_now(kind, capsys):
    model = nn.Sequential(kind(10, 10))
    convert(model, {"0.weight": torch.arange(100).view(10, 10) < 80}, form="masked")
    set_masks(model, {"0.weight": torch.arange(100).view(10, 10) < 20})
    assert explain(model).splitlines()[1].split()[:3] == ["0.weight", "0.2", "masked"]
