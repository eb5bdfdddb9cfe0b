"""Masked and sparse layers beside the rest of torch: compilation, several processes, accumulation, clipping."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel

from lth_fast.nn import convert, distributed, explain, masks, plan, restore, set_masks, sparse_layers
from lth_fast.nn.dynamic_sizes import compile_for_any_number_of_survivors
from lth_fast.prune import prune_all


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10), nn.ReLU(), nn.Linear(10, 5))


def random_masks(model: nn.Module, density: float) -> dict[str, torch.Tensor]:
    return {name: torch.rand(weight.shape) < density for name, weight in model.named_parameters() if weight.dim() > 1}


@pytest.mark.parametrize("form", ["masked", "sparse"])
@pytest.mark.usefixtures("forget_compiled_code")
def test_one_compiled_model_serves_27_levels(form):
    torch.manual_seed(len(form))
    model, inputs = network(), torch.randn(8, 20)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in model.named_parameters()}
    kept = {name: mask for name, mask in kept.items() if mask.dim() > 1}
    for _ in range(27):
        kept = {name: mask & (torch.rand(mask.shape) < 0.8) for name, mask in kept.items()}
        convert(model, kept, form=form)
        for parameter in model.parameters():
            parameter.grad = None
        compiled(inputs).square().sum().backward()
        found = [parameter.grad.clone() for parameter in model.parameters()]
        for parameter in model.parameters():
            parameter.grad = None
        model(inputs).square().sum().backward()
        for gradient, parameter in zip(found, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


def test_a_users_dynamic_sources_stay():
    with torch.compiler.config.patch(dynamic_sources="L['x']"):
        for _ in range(2):
            compile_for_any_number_of_survivors(("rows", "columns"))
        first, *others = torch.compiler.config.dynamic_sources.split(",")
    assert first == "L['x']"
    assert len(others) == 3


def gradients(model: nn.Module, batches: list[torch.Tensor], norm: float) -> list[torch.Tensor]:
    for batch in batches:
        model(batch).square().sum().backward()
    total = nn.utils.clip_grad_norm_(model.parameters(), norm)
    assert total > norm
    return [parameter.grad for parameter in model.parameters()]


def test_accumulated_and_clipped_gradients_are_those_of_the_masked_form():
    torch.manual_seed(7)
    model = network()
    kept = random_masks(model, 0.3)
    masked, sparse = (convert(copy.deepcopy(model), kept, form=form) for form in ("masked", "sparse"))
    batches = [torch.randn(4, 20) for _ in range(3)]
    expected, found = gradients(masked, batches, 0.1), gradients(sparse, batches, 0.1)
    layers = {id(layer.values): layer for layer in sparse_layers(sparse).values()}
    for dense, compact, parameter in zip(expected, found, sparse.parameters(), strict=True):
        layer = layers.get(id(parameter))
        torch.testing.assert_close(compact, dense if layer is None else layer.collect(dense))


def _train_on_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = network()
    torch.manual_seed(100 + rank)  # each process would prune differently
    kept = random_masks(model, 0.3)
    convert(model, kept, form={"0.weight": "sparse", "2.weight": "sparse"})
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        parallel(torch.randn(6, 20)).square().sum().backward()
        optimizer.step()
    result = {"own": kept, "masks": masks(model), "state": model.state_dict(), "synced": len(parallel.modules_buffers)}
    with torch.no_grad():  # as after updates that rounded differently
        restore(model)[0].weight.add_(torch.randn(30, 20))
    result["pruned"] = masks(prune_all(model, 0.5))
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()  # none goes while the other one still talks to it: gloo aborts the process then, now and again
    dist.destroy_process_group()


def test_two_processes_train_the_masks_of_the_first_and_sync_none_of_them(tmp_path: Path):
    processes.spawn(_train_on_two, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for name, mask in first["own"].items():
        assert torch.equal(first["masks"][name], mask)
        assert torch.equal(second["masks"][name], mask)
        assert not torch.equal(second["own"][name], mask)
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name])
    assert all(torch.equal(second["pruned"][name], mask) for name, mask in first["pruned"].items())
    assert first["synced"] == second["synced"] == 0


def test_masks_on_other_parameters_than_those_of_the_first_process_are_refused(monkeypatch):
    monkeypatch.setattr(distributed, "_several_processes", lambda: True)
    monkeypatch.setattr(distributed, "from_first", lambda names: ["2.weight"])
    model = set_masks(network(), {"0.weight": torch.rand(30, 20) < 0.5})
    with pytest.raises(ValueError, match="expected masks on the same parameters in every process"):
        distributed.broadcast_masks(model)


def test_set_masks_keeps_masks_out_of_the_sync_and_a_users_list_stays():
    model = network()
    model._ddp_params_and_buffers_to_ignore = ["4.bias"]
    set_masks(model, random_masks(model, 0.5))
    assert model._ddp_params_and_buffers_to_ignore == ["0.mask_bits", "2.mask_bits", "4.bias", "4.mask_bits"]
    restore(model)
    assert model._ddp_params_and_buffers_to_ignore == ["4.bias"]


@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_a_frozen_linear_layer_keeps_no_input_for_the_backward_and_a_first_one_no_weight(form):
    model = nn.Sequential(nn.Linear(40, 30))
    convert(model, {"0.weight": torch.rand(30, 40) < 0.5}, form=form)
    weight = next(model.parameters())

    def kept(inputs: torch.Tensor) -> list[torch.Tensor]:
        saved: list[torch.Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda it: it):
            model(inputs).square().sum().backward()
        return saved

    inputs = torch.randn(7, 40)
    assert not any(tensor is weight for tensor in kept(inputs))
    expected = (2 * model(inputs).detach()).t() @ inputs
    mask = model[0].mask
    dense = weight.grad if form == "masked" else model[0].spread(weight.grad)
    torch.testing.assert_close(dense, expected * mask)
    weight.requires_grad_(False)
    inputs.requires_grad_()
    assert inputs.shape not in [tensor.shape for tensor in kept(inputs)]
    torch.testing.assert_close(inputs.grad, (2 * model(inputs).detach()) @ model[0].weight)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use of it, in jvp
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # and in linearize
@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_transforms_and_forward_mode_see_the_masked_model(form):
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5))
    convert(model, {name: torch.rand(model.get_parameter(name).shape) < 0.5 for name in ("0.weight", "3.weight")}, form)
    set_masks(model, {"3.bias": torch.arange(5) < 3})
    inputs, labels = torch.randn(4, 2, 6, 6), torch.randint(5, (4,))
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters, inputs, labels):
        outputs = torch.func.functional_call(model, parameters, (inputs.unsqueeze(0),))
        return nn.functional.cross_entropy(outputs, labels.unsqueeze(0))

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, inputs, labels)
    for sample in range(4):
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs[sample : sample + 1]), labels[sample : sample + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(each[name][sample], parameter.grad)
    _, forward_mode = torch.func.jvp(lambda given: model(given), (inputs,), (torch.ones_like(inputs),))
    step = 1e-3
    torch.testing.assert_close(
        forward_mode, (model(inputs + step) - model(inputs - step)) / (2 * step), rtol=0.02, atol=0.02
    )
    with forward_ad.dual_level():
        output = model(forward_ad.make_dual(inputs, torch.ones_like(inputs)))
        torch.testing.assert_close(forward_ad.unpack_dual(output).tangent, forward_mode)
    _, along = torch.func.linearize(lambda given: model(given), inputs)
    torch.testing.assert_close(along(torch.ones_like(inputs)), forward_mode)


def _jagged(dense: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor([dense[:2], dense[2:]], layout=torch.jagged)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
@pytest.mark.parametrize(
    "kind", [_jagged, torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr], ids=["jagged", "coo", "csr"]
)
@pytest.mark.parametrize("form", ["masked", "sparse"])
def test_nested_and_sparse_inputs_give_what_dense_ones_give(form, kind):
    torch.manual_seed(1)
    model = convert(nn.Sequential(nn.Linear(6, 4)), {"0.weight": torch.rand(4, 6) < 0.5}, form=form)
    dense = torch.randn(5, 6).relu()
    results = []
    for inputs in (dense, kind(dense)):
        model.zero_grad()
        output = model(inputs)
        output = output.values() if output.is_nested else output
        output.square().sum().backward()
        results.append((output.detach(), *[parameter.grad.clone() for parameter in model.parameters()]))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_masked_embedding_takes_nested_indices():
    torch.manual_seed(2)
    model = set_masks(nn.Sequential(nn.Embedding(7, 3)), {"0.weight": torch.rand(7, 3) < 0.5})
    indices = torch.tensor([0, 3, 3, 1, 6])
    gradients = []
    for given in (indices, _jagged(indices)):
        model.zero_grad()
        rows = model(given)
        torch.testing.assert_close(rows.values() if rows.is_nested else rows, model[0].weight[indices])
        (rows.values() if rows.is_nested else rows).sum().backward()
        gradients.append(model[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert not gradients[1][~model[0].mask].any()


def test_a_layer_whose_input_is_nested_or_sparse_stays_masked_and_says_so(capsys):
    for inputs in (_jagged(torch.randn(5, 6)), torch.randn(5, 6).to_sparse()):
        model = convert(nn.Sequential(nn.Linear(6, 4)), {"0.weight": torch.eye(4, 6) > 0}, example_input=inputs)
        assert plan(model) == {"0.weight": "masked"}
        assert "its input is a nested or sparse tensor" in explain(model)


def _prune_inside(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/inside", rank=rank, world_size=2)
    torch.manual_seed(rank)
    wrapped = DistributedDataParallel(network())
    prune_all(wrapped, 0.5)
    wrapped(torch.randn(3, 20)).sum().backward()
    result = {"ignored": sorted(wrapped.parameters_to_ignore), "refused": ""}
    try:
        convert(wrapped, form="sparse")
    except ValueError as error:
        result["refused"] = str(error)
    result["sparse"] = list(sparse_layers(wrapped))
    torch.save(result, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # past the end of gloo's threads, which aborts the process now and again


def test_a_wrapped_model_may_be_pruned_and_is_not_made_sparse(tmp_path: Path):
    processes.spawn(_prune_inside, (str(tmp_path),), nprocs=2)
    for rank in (0, 1):
        result = torch.load(tmp_path / f"{rank}.pt")
        assert result["ignored"] == ["0.mask_bits", "2.mask_bits", "4.mask_bits"]
        assert "before DistributedDataParallel wraps it" in result["refused"]
        assert result["sparse"] == []
