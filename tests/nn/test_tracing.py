"""Masked and sparse layers in graphs of ``torch.fx`` and in TorchScript."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.fx
from torch import nn

from lth_fast.nn import MaskedEmbedding, SparseConv2d, convert, restore


def converted(form: str) -> nn.Sequential:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    shapes = {"0.weight": (3, 2, 3, 3), "3.weight": (5, 48)}
    return convert(model, {name: torch.rand(shape) < 0.5 for name, shape in shapes.items()}, form)  # type: ignore[return-value]


@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_a_layer_is_one_node_that_follows_the_model(form):
    model, images = converted(form), torch.randn(4, 2, 6, 6)
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2", "3"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    assert torch.equal(traced(images), model(images))


def test_an_embedding_is_one_node():
    model = nn.Sequential(MaskedEmbedding(7, 3))
    model[0].mask = torch.rand(7, 3) < 0.5
    words = torch.tensor([[0, 6], [2, 2]])
    assert torch.equal(torch.fx.symbolic_trace(model)(words), model(words))


@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_features_are_extracted_by_the_names_of_layers(form):
    feature_extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model, images = converted(form), torch.randn(4, 2, 6, 6)
    features = feature_extraction.create_feature_extractor(model, ["0", "3"])(images)
    assert torch.equal(features["0"], model[0](images))
    assert torch.equal(features["3"], model(images))


def test_a_layer_by_itself_is_refused():
    with pytest.raises(torch.fx.proxy.TraceError, match="SparseConv2d: expected a layer inside of the model"):
        torch.fx.symbolic_trace(SparseConv2d(2, 3, 3))


@pytest.mark.filterwarnings("ignore:.torch.jit.(script|trace|trace_method). is deprecated")
@pytest.mark.parametrize(("form", "layer"), [("masked", "MaskedConv2d"), ("sparse", "SparseConv2d")])
def test_torchscript_traces_the_layers_and_scripts_plain_ones(form, layer):
    model, images = converted(form), torch.randn(4, 2, 6, 6)
    with pytest.raises(TypeError, match=rf"{layer}: torch.jit.script takes plain layers, script lth_fast.nn.restore"):
        torch.jit.script(model)
    assert torch.equal(torch.jit.trace(model, (images,))(images), model(images))
    twin = copy.deepcopy(model)
    traced = torch.jit.trace(twin, (images,))
    assert torch.equal(traced(images), model(images))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(1.0)
    outputs = traced(images)  # before the layers themselves see what was written
    assert torch.equal(outputs, twin(images))
    plain = torch.jit.script(restore(copy.deepcopy(model)))
    torch.testing.assert_close(plain(images), model(images))
