"""Random programs: whatever is done to a model in whatever order, it is the plain one with zeros written by hand."""

from __future__ import annotations

import copy
import functools
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lth_fast import optim, prune
from lth_fast.nn import SparseLayer, convert, dense_state, load_dense_state, masks, restore, set_masks, sparse_layers

assert_close = functools.partial(torch.testing.assert_close, atol=1e-8, rtol=1e-8)


def convolutions() -> nn.Module:
    first = nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular")
    second = nn.Conv2d(4, 6, (2, 3), stride=(2, 1), dilation=(1, 2), groups=2, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.Tanh(), second, nn.Tanh(), nn.Flatten(), nn.Linear(12, 3))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.hidden, self.decoder = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7)
        self.again, self.decoder.weight = self.hidden, self.embedding.weight  # one layer, and one weight, of two names

    def forward(self, words: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.again(torch.tanh(self.hidden(self.embedding(words))))))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.after = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5, bias=False), nn.GELU(), nn.Linear(5, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.before(inputs)
        return self.after(tokens + self.attention(tokens, tokens, tokens)[0])


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "convolutions": (convolutions, lambda: torch.randn(3, 2, 5, 5, dtype=torch.float64)),
    "tied weights": (Language, lambda: torch.randint(7, (4, 3))),
    "attention": (Attention, lambda: torch.randn(2, 3, 3, dtype=torch.float64)),
}
# What steps the model, what steps the plain one, and how. A large eps: rounding alone must not turn into steps.
OPTIMIZERS: list[tuple[Any, Any, dict[str, Any]]] = [
    (optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    (optim.AdamW, torch.optim.AdamW, {"lr": 0.01, "eps": 1e-3, "amsgrad": True}),
    (torch.optim.SGD, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "nesterov": True}),
    (torch.optim.Adam, torch.optim.Adam, {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}),
]


class Pair:
    """A model under masks, and beside it the plain one, in which everything pruned is zeroed by hand."""

    def __init__(self, network: str, seed: int) -> None:
        self.random, (make, self.draw) = random.Random(seed), NETWORKS[network]
        self.plain = make().double()
        self.model = copy.deepcopy(self.plain)
        self.weights = dict(self.plain.named_parameters())
        first = {weight: name for name, weight in self.weights.items()}
        self.first = {name: first[weight] for name, weight in self.plain.named_parameters(remove_duplicate=False)}
        self.masks: dict[str, Tensor] = {}
        self.new_optimizers()

    def held(self, name: str) -> nn.Parameter:
        """The model's Parameter behind the plain one's ``name``."""
        path, _, attribute = name.rpartition(".")
        layer: Any = self.model.get_submodule(path)
        if parametrize.is_parametrized(layer, attribute):
            return layer.parametrizations[attribute].original
        return layer.values if isinstance(layer, SparseLayer) and attribute == "weight" else getattr(layer, attribute)

    def drawn_masks(self) -> dict[str, Tensor]:
        """Masks on some parameters, under any of their names, that revive nothing."""
        chosen = {self.first[name]: name for name in self.random.sample(list(self.first), 3)}
        density = self.random.choice([0.0, 0.2, 0.8, 1.0])
        drawn = {name: torch.rand(self.weights[name].shape) < density for name in chosen}
        drawn = {name: mask & self.masks.get(name, torch.tensor(True)) for name, mask in drawn.items()}
        self.masks |= drawn
        return {chosen[name]: mask for name, mask in drawn.items()}

    def zero_by_hand(self) -> None:
        for name, mask in self.masks.items():
            weight = self.weights[name]
            state = [value for value in self.plain_optimizer.state.get(weight, {}).values() if value.dim()]
            for tensor in (weight.detach(), weight.grad, *state):
                if tensor is not None:
                    tensor.masked_fill_(~mask, 0)

    def new_optimizers(self) -> None:
        ours, plain, self.settings = self.random.choice(OPTIMIZERS)
        self.optimizer = ours([self.held(name) for name in self.weights], **self.settings)
        self.plain_optimizer = plain(self.weights.values(), **self.settings)

    def keep_state(self, change: Callable[[], Any]) -> None:
        """Make the optimizer anew around a ``change`` that may give layers new Parameters, with its state."""
        state = optim.dense_optimizer_state(self.optimizer, self.model)
        change()
        self.optimizer = type(self.optimizer)([self.held(name) for name in self.weights], **self.settings)
        optim.load_dense_optimizer_state(self.optimizer, self.model, state)

    def sets_masks(self) -> None:
        if sparse_layers(self.model):
            self.keep_state(lambda: convert(self.model, form="masked"))
        set_masks(self.model, self.drawn_masks())

    def converts(self) -> None:
        form, drawn = self.random.choice(["masked", "sparse", "sparse"]), self.random.choice([None, self.drawn_masks])
        example = self.random.choice([None, self.draw()])
        self.keep_state(lambda: convert(self.model, drawn and drawn(), form, example))

    def prunes(self) -> None:
        score, scope = self.random.choice(["magnitude", "random"]), self.random.choice(["layerwise", "global"])
        self.keep_state(lambda: prune.prune_by_score(self.model, 0.3, score, scope))
        found = {self.first[name]: mask for name, mask in masks(self.model).items()}
        assert all(found[name].logical_not()[~mask].all() for name, mask in self.masks.items())  # nothing is revived
        self.masks = found

    def unmasks(self) -> None:
        self.random.choice([restore, lambda model: convert(model, form="dense")])(self.model)
        self.masks = {self.first[name]: self.masks[self.first[name]] for name in masks(self.model)}
        self.new_optimizers()  # momentum that was pruned must not come back

    def writes(self) -> None:
        name = self.random.choice(list(self.weights))
        values, held, layer = torch.randn_like(self.weights[name]), self.held(name), sparse_layers(self.model).get(name)
        with torch.no_grad():
            self.weights[name].copy_(values)
            held.copy_(values if layer is None else layer.collect(values))

    def loads(self) -> None:
        weights = {name: torch.randn_like(weight) for name, weight in self.weights.items()}
        state = self.plain.state_dict() | {name: weights[first] for name, first in self.first.items()}
        self.plain.load_state_dict(state)
        load_dense_state(self.model, state)

    def copies(self) -> None:
        both = (self.model, self.optimizer)
        parametrized = any(map(parametrize.is_parametrized, self.model.modules()))  # torch does not pickle those
        self.model, self.optimizer = copy.deepcopy(both) if parametrized else pickle.loads(pickle.dumps(both))
        nn.ModuleList([self.model, self.plain]).zero_grad()  # pickle keeps none
        prune.prune_all(restore(both[0]), 0.5)  # of which the copy sees nothing

    def visits_the_meta_device(self) -> None:
        state = {name: value.clone() for name, value in dense_state(self.model).items()}
        if len(self.first) == len(self.weights):  # tied ones become two there
            self.keep_state(lambda: self.model.to("meta").to_empty(device="cpu"))
        load_dense_state(self.model, state)
        nn.ModuleList([self.model, self.plain]).zero_grad()

    def trains(self) -> None:
        if self.random.random() < 0.7:
            nn.ModuleList([self.model, self.plain]).zero_grad()
        inputs = self.draw()
        outputs, expected = self.model(inputs), self.plain(inputs)
        assert_close(outputs, expected)
        (outputs.square().mean() + expected.square().mean()).backward()
        self.check()
        self.optimizer.step()
        self.plain_optimizer.step()
        self.zero_by_hand()
        found = optim.dense_optimizer_state(self.optimizer, self.model)["state"]
        assert_close(found, self.plain_optimizer.state_dict()["state"])

    def check(self) -> None:
        """What has to hold after every operation."""
        self.zero_by_hand()
        assert_close({self.first[name]: mask for name, mask in masks(self.model).items()}, self.masks)
        for name, weight in self.weights.items():
            gradient, layer = self.held(name).grad, sparse_layers(self.model).get(name)
            assert_close(gradient if layer is None or gradient is None else layer.spread(gradient), weight.grad)
        if self.random.random() < 0.5:  # which masks what was written: the next forward may have to do it itself
            assert_close(dense_state(self.model), dict(self.plain.state_dict()))


OPERATIONS = [Pair.sets_masks, Pair.converts, Pair.converts, Pair.prunes, Pair.unmasks, Pair.writes, Pair.loads]
OPERATIONS += [Pair.copies, Pair.visits_the_meta_device, *[Pair.trains] * 6]


@pytest.mark.filterwarnings("ignore:.*pruned weights are not zero in the state dict")
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("network", NETWORKS)
def test_a_model_is_the_plain_one_with_zeros_whatever_is_done_to_it(network: str, seed: int) -> None:
    pair = Pair(network, seed)
    for _ in range(25):
        operation = pair.random.choice(OPERATIONS)
        print(operation.__name__)  # the program, where it fails
        operation(pair)
        pair.check()
