from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor, nn

from lth_fast.record.tensors import (
    read_checkpoint,
    read_masks,
    read_weights,
    write_checkpoint,
    write_masks,
    write_weights,
)

SHAPES = st.lists(st.integers(0, 7), max_size=4)


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Same names in the same order, same dtypes, shapes and bits."""
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert actual[name].shape == tensor.shape
        bits = [value.detach().contiguous().reshape(-1).view(torch.uint8) for value in (actual[name], tensor)]
        assert torch.equal(*bits)


def test_conjugates_and_negatives_that_were_never_computed_come_back(tmp_path: Path) -> None:
    spectrum = torch.complex(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    state = {"conjugate": spectrum.conj(), "negative": spectrum.conj().imag, "itself": spectrum}
    assert state["conjugate"].is_conj()
    assert state["negative"].is_neg()
    write_weights(tmp_path / "w", state)
    read = read_weights(tmp_path / "w")
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_a_dtype_that_cannot_be_stored_is_refused_with_the_tensors_name(tmp_path: Path) -> None:
    state = {"weight": torch.zeros(2), "spectrum": torch.zeros(2, dtype=torch.complex128)}
    with pytest.raises(TypeError, match=r"^'spectrum' should be of a dtype .*, got torch\.complex128"):
        write_weights(tmp_path / "w", state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "description", ["3", '"a"', '["a", "b"]', '[["a"]]', '{"a": 3}', '{"a": ["b"]}', '{"a": [-1, -8]}', '["a", 1]']
)
def test_a_file_of_another_program_with_metadata_of_its_own_is_refused_by_name(
    tmp_path: Path, description: str
) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(save({"a": torch.zeros(1, dtype=torch.uint8)}, {"names": description, "shapes": description}))
    with pytest.raises(ValueError, match=r"foreign\.safetensors is "):
        read_masks(path)
    if not description.startswith("{"):
        with pytest.raises(ValueError, match=r"foreign\.safetensors is "):
            read_weights(path)


@settings(deadline=None)
@given(st.lists(SHAPES, max_size=4), st.integers(0, 2**32 - 1))
def test_masks_of_any_shape_come_back(shapes: list[list[int]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = {f"layer{9 - i}.weight": torch.rand(shape, generator=generator) < 0.5 for i, shape in enumerate(shapes)}
    with tempfile.TemporaryDirectory() as folder:
        write_masks(Path(folder) / "masks", masks)
        assert_same(read_masks(Path(folder) / "masks"), masks)


def test_a_mask_takes_one_bit_per_weight_lowest_bit_first(tmp_path: Path) -> None:
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 0] = mask[0, 3] = mask[1, 4] = True
    write_masks(tmp_path / "masks", {"w": mask})
    assert (tmp_path / "masks").read_bytes()[-2:] == bytes([0b00001001, 0b00000010])


def test_masks_of_a_lenet_take_a_thirty_second_of_its_weights(tmp_path: Path) -> None:
    shapes = {"fc1.weight": (300, 784), "fc2.weight": (100, 300), "fc3.weight": (10, 100)}
    write_masks(tmp_path / "masks", {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()})
    weights = sum(np.prod(shape) for shape in shapes.values())
    assert weights / 8 <= (tmp_path / "masks").stat().st_size < weights / 8 + 1000


def test_a_non_contiguous_mask_is_packed_in_the_order_of_its_own_indices(tmp_path: Path) -> None:
    mask = (torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) < 0.5).T
    write_masks(tmp_path / "masks", {"w": mask})
    assert_same(read_masks(tmp_path / "masks"), {"w": mask})


def test_loaded_masks_may_be_changed(tmp_path: Path) -> None:
    write_masks(tmp_path / "masks", {"w": torch.ones(3, dtype=torch.bool)})
    masks = read_masks(tmp_path / "masks")
    masks["w"][1] = False
    assert masks["w"].tolist() == [True, False, True]
    assert read_masks(tmp_path / "masks")["w"].all()


@pytest.mark.parametrize("bits", [torch.zeros(1).byte(), torch.zeros(3).byte(), torch.zeros(2).char(), torch.zeros(2)])
def test_a_mask_of_other_bytes_than_its_shape_takes_is_damaged(tmp_path: Path, bits: Tensor) -> None:
    (tmp_path / "masks").write_bytes(save({"w": bits}, {"shapes": json.dumps({"w": [3, 5]})}))
    with pytest.raises(ValueError, match=r"masks is damaged: mask 'w' of shape \[3, 5\]"):
        read_masks(tmp_path / "masks")


def test_a_mask_that_is_not_bool_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'fc\.weight' should be a bool tensor, got torch\.float32"):
        write_masks(tmp_path / "masks", {"fc.weight": torch.ones(3)})
    with pytest.raises(TypeError, match=r"'fc\.weight' should be a bool tensor, got list"):
        write_masks(tmp_path / "masks", {"fc.weight": [True, False]})  # type: ignore[dict-item]
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (4, 5)])
def test_tensors_of_any_dtype_and_shape_come_back(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    state = {"x": (100 * torch.rand(shape, generator=torch.Generator().manual_seed(2))).to(dtype)}
    write_weights(tmp_path / "weights", state)
    assert_same(read_weights(tmp_path / "weights"), state)


def test_the_state_of_a_network_comes_back_in_its_order(tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = nn.Sequential(OrderedDict(z=nn.Conv2d(1, 4, 3), y=nn.BatchNorm2d(4), x=nn.Flatten(), w=nn.Linear(4, 2)))
    network(torch.rand(2, 1, 3, 3))
    write_weights(tmp_path / "weights", network.state_dict())
    loaded = read_weights(tmp_path / "weights")
    assert_same(loaded, network.state_dict())
    assert loaded["y.num_batches_tracked"].item() == 1


def test_tied_overlapping_and_non_contiguous_tensors_come_back(tmp_path: Path) -> None:
    base = torch.rand(4, 6, generator=torch.Generator().manual_seed(4))
    state: dict[str, Tensor] = {
        "tied": base,
        "again": base,
        "transposed": base.T,
        "row": base[1],
        "expanded": base[:1].expand(3, 6),
        "parameter": nn.Parameter(base),
    }
    write_weights(tmp_path / "weights", state)
    assert_same(read_weights(tmp_path / "weights"), state)


def test_nan_infinity_and_negative_zero_keep_their_bits(tmp_path: Path) -> None:
    state = {"x": torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45])}
    write_weights(tmp_path / "weights", state)
    assert_same(read_weights(tmp_path / "weights"), state)


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    state = {f"layer{i}": torch.full((i,), float(i)) for i in range(20)}
    write_weights(tmp_path / "a", state)
    write_weights(tmp_path / "b", state)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loaded_weights_do_not_change_with_the_file_nor_the_file_with_them(tmp_path: Path) -> None:
    write_weights(tmp_path / "weights", {"x": torch.zeros(1000)})
    loaded = read_weights(tmp_path / "weights")
    write_weights(tmp_path / "weights", {"x": torch.ones(1000)})
    assert not loaded["x"].any()
    loaded["x"].fill_(7)
    assert torch.equal(read_weights(tmp_path / "weights")["x"], torch.ones(1000))


@pytest.mark.parametrize("value", [3, None, torch.eye(3).to_sparse()], ids=["number", "none", "sparse"])
def test_what_is_not_a_dense_tensor_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=r"'extra' should be a dense tensor, got"):
        write_weights(tmp_path / "weights", {"extra": value})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tensors_of_a_gpu_come_back_on_the_cpu(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    write_weights(tmp_path / "weights", {"x": tensor.cuda().T})
    write_masks(tmp_path / "masks", {"x": tensor.cuda() > 2})
    write_checkpoint(tmp_path / "checkpoint", {"x": tensor.cuda()})
    assert_same(read_weights(tmp_path / "weights"), {"x": tensor.T})
    assert_same(read_masks(tmp_path / "masks"), {"x": tensor > 2})
    assert_same(read_checkpoint(tmp_path / "checkpoint"), {"x": tensor})


def test_a_checkpoint_of_a_training_comes_back(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.rand(3, generator=torch.Generator().manual_seed(5)))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    checkpoint: dict[str, Any] = {
        "iteration": 100,
        "model": {"w": parameter.detach()},
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "best": (0.25, None, "valid"),
    }
    write_checkpoint(tmp_path / "checkpoint", checkpoint)
    loaded = read_checkpoint(tmp_path / "checkpoint")
    assert_same(loaded["model"], checkpoint["model"])
    assert torch.equal(loaded["random"], checkpoint["random"])
    assert (loaded["iteration"], loaded["best"]) == (100, (0.25, None, "valid"))
    assert_same(loaded["optimizer"]["state"][0], optimizer.state_dict()["state"][0])
    assert loaded["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_checkpoint_that_could_not_be_loaded_is_refused_when_it_is_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"plain Python values only, got .*numpy"):
        write_checkpoint(tmp_path / "checkpoint", {"loss": np.float32(1)})
    assert not (tmp_path / "checkpoint").exists()


FILES: dict[str, tuple[Callable[[Path], None], Callable[[Path], dict[str, Any]]]] = {
    "weights": (lambda path: write_weights(path, {"a": torch.ones(50), "b": torch.ones(3)}), read_weights),
    "masks": (lambda path: write_masks(path, {"a": torch.ones(50, dtype=torch.bool)}), read_masks),
    "checkpoint": (lambda path: write_checkpoint(path, {"a": torch.ones(50)}), read_checkpoint),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, kind: str, share: float) -> None:
    write, read = FILES[kind]
    write(tmp_path / kind)
    whole = (tmp_path / kind).read_bytes()
    (tmp_path / kind).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=f"{kind} is not a whole"):
        read(tmp_path / kind)


@pytest.mark.parametrize("kind", FILES)
def test_a_file_with_one_wrong_bit_is_named_or_holds_what_was_written(tmp_path: Path, kind: str) -> None:
    write, read = FILES[kind]
    write(tmp_path / kind)
    whole = (tmp_path / kind).read_bytes()
    expected = {name: tensor.clone() for name, tensor in read(tmp_path / kind).items()}  # the file may be mapped
    named = 0
    for place in range(0, 8 * len(whole), 13):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / kind).write_bytes(damaged)
        try:
            found = read(tmp_path / kind)
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path / kind} is ")
            named += 1
        else:  # in what fills the archive up
            assert_same(found, expected)
    assert named > 0


@pytest.mark.parametrize(("written", "damaged"), [(b'"F32"', b'"I32"'), (b"[3,5]", b"[5,3]")])
def test_numbers_that_would_be_read_as_others_are_damaged(tmp_path: Path, written: bytes, damaged: bytes) -> None:
    write_weights(tmp_path / "w", {"a": torch.ones(3, 5)})
    content = (tmp_path / "w").read_bytes()
    assert content.count(written) == 1
    (tmp_path / "w").write_bytes(content.replace(written, damaged))
    with pytest.raises(ValueError, match="w is damaged: its content is not what was written"):
        read_weights(tmp_path / "w")


def test_a_file_of_before_checksums_is_read(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(save({"a": torch.ones(2)}, {"names": '["a"]'}))
    assert_same(read_weights(tmp_path / "w"), {"a": torch.ones(2)})


def test_a_checkpoint_has_checksums_whatever_was_told_to_torch(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        write_checkpoint(tmp_path / "checkpoint", {"iteration": 7})
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_checkpoint(tmp_path / "checkpoint") == {"iteration": 7}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    for other in FILES.keys() - {kind}:
        FILES[other][0](tmp_path / "file")
        with pytest.raises(ValueError, match="file is not a"):
            FILES[kind][1](tmp_path / "file")


@pytest.mark.parametrize("kind", FILES)
def test_a_missing_file_is_not_found(tmp_path: Path, kind: str) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        FILES[kind][1](tmp_path / "absent")
