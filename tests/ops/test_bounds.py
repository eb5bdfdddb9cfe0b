"""What the kernels of sparse linear layers read, numbers or bytes of images, ends where their tensors end: behind each
is a page nobody may touch.

A process that touches it ends at once, so this runs in one of its own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys

CHILD = """
import ctypes, json, mmap, sys
import torch
from lth_fast import _C
from lth_fast.ops import sparse_pattern

_C.force_isa(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
mapped = []

def at_the_end_of_a_page(tensor):
    if tensor.numel() == 0:
        return tensor
    size = tensor.numel() * tensor.element_size()
    readable = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, readable + mmap.PAGESIZE)
    mapped.append(memory)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(ctypes.c_void_p(begin + readable), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0  # readable no more
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=readable - size)
    return copy.copy_(tensor.flatten()).view(tensor.shape)

def compute(in_features, out_features, batch, density):
    mask = torch.rand(out_features, in_features) < density
    pattern = [at_the_end_of_a_page(part) for part in sparse_pattern(mask)]
    for dtype in torch.float32, torch.float64:
        shapes = [(batch, in_features), (int(mask.sum()),), (out_features,), (batch, out_features)]
        inputs, values, bias, gradient = [at_the_end_of_a_page(torch.randn(shape, dtype=dtype)) for shape in shapes]
        out = torch.ops.lth_fast.sparse_linear(inputs, values, bias, *pattern, False)
        grads = torch.ops.lth_fast.sparse_linear_backward(gradient, inputs, values, *pattern, (True, True, True))
        assert all(tensor.isfinite().all() for tensor in (out, *grads))

def compute_from_images(channels, height, width, count):
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)
    tensors = (images, torch.zeros(count, dtype=torch.int64), *torch.randn(2, channels, 1, 1))
    network = torch.classes.lth_fast.LinearNetwork(*map(at_the_end_of_a_page, tensors), count)
    inputs = channels * height * width
    for outputs in 30, 7:
        mask = torch.rand(outputs, inputs) < 0.3
        pattern = [at_the_end_of_a_page(part) for part in sparse_pattern(mask)]
        values, bias = at_the_end_of_a_page(torch.randn(int(mask.sum()))), at_the_end_of_a_page(torch.randn(outputs))
        network.add_layer("sparse", values, bias, pattern, True)
        inputs = outputs
    assert network.outputs(0, count).isfinite().all()
    assert network.outputs(count // 2, count - count // 2).isfinite().all()

torch.manual_seed(0)
for shape in json.loads(sys.argv[3]):
    print("images", shape, flush=True)
    compute_from_images(*shape)
for layer in json.loads(sys.argv[2]):
    print("layer", layer, flush=True)
    compute(*layer)
if not json.loads(sys.argv[2]):
    ctypes.string_at(at_the_end_of_a_page(torch.zeros(1)).data_ptr(), 5)
"""
# Single survivors, short and long lines, one tile and several, values that no second-level cache holds.
LAYERS = [(7, 3, 5, 0.5), (784, 300, 60, 0.05), (300, 200, 150, 0.4), (1000, 1000, 64, 0.9), (40, 9000, 70, 0.02)]

IMAGES = [(1, 28, 28, 70), (3, 5, 5, 64), (1, 1, 3, 5), (2, 4, 4, 1)]


def run(
    isa: str, layers: list[tuple[int, int, int, float]], images: list[tuple[int, int, int, int]]
) -> subprocess.CompletedProcess[str]:
    """Computes with all of them; without layers, reads one byte too many."""
    command = [sys.executable, "-c", CHILD, isa, json.dumps(layers), json.dumps(images)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_nothing_behind_a_tensor_is_read(isa: str) -> None:
    done = run(isa, LAYERS, IMAGES)
    assert done.returncode == 0, done.stdout.splitlines()[-1] + done.stderr


def test_a_process_that_reads_behind_a_tensor_ends() -> None:
    assert run("scalar", [], []).returncode == -signal.SIGSEGV
