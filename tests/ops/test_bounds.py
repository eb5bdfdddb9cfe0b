"""What the kernels of sparse linear layers read ends where their tensors end: behind each is a page nobody may touch.

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

torch.manual_seed(0)
for layer in json.loads(sys.argv[2]):
    print("layer", layer, flush=True)
    compute(*layer)
if not json.loads(sys.argv[2]):
    ctypes.string_at(at_the_end_of_a_page(torch.zeros(1)).data_ptr(), 5)
"""
# Single survivors, short and long lines, one tile and several, values that no second-level cache holds.
LAYERS = [(7, 3, 5, 0.5), (784, 300, 60, 0.05), (300, 200, 150, 0.4), (1000, 1000, 64, 0.9), (40, 9000, 70, 0.02)]


def run(isa: str, layers: list[tuple[int, int, int, float]]) -> subprocess.CompletedProcess[str]:
    """Computes with all of them; with none, reads one byte too many."""
    command = [sys.executable, "-c", CHILD, isa, json.dumps(layers)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_nothing_behind_a_tensor_is_read(isa: str) -> None:
    done = run(isa, LAYERS)
    assert done.returncode == 0, done.stdout.splitlines()[-1] + done.stderr


def test_a_process_that_reads_behind_a_tensor_ends() -> None:
    assert run("scalar", []).returncode == -signal.SIGSEGV
