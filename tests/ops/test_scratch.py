"""The memory that a thread keeps for its kernels (``csrc/cpu/scratch.h``), through a few lines of C++."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths, library_paths

LINE = 64
NEST = """
#include <algorithm>

#include "cpu/scratch.h"

extern "C" int64_t bytes_that_a_thread_keeps() { return 2 * lth_fast::level2_cache_bytes(); }

// Takes memory of these sizes, one inside of the other, and returns how many bytes another one wrote over. With `kept`,
// the thread keeps large blocks of it, too.
extern "C" int64_t nest(int64_t count, const int64_t* sizes, bool kept, uintptr_t* addresses) {
  if (count == 0) return 0;
  const lth_fast::Scratch<char> scratch(*sizes, kept);
  *addresses = reinterpret_cast<uintptr_t>(scratch.data());
  std::fill_n(scratch.data(), *sizes, static_cast<char>(count));
  const int64_t spoiled = nest(count - 1, sizes + 1, kept, addresses + 1);
  return spoiled + *sizes - std::count(scratch.data(), scratch.data() + *sizes, static_cast<char>(count));
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("scratch")
    (folder / "nest.cpp").write_text(NEST)
    folders = [f"-I{Path(__file__).parents[2] / 'csrc'}", *(f"-isystem{path}" for path in include_paths())]
    libraries = [f"-L{library_paths()[0]}", "-lc10"]
    command = [os.environ.get("CXX", "c++"), "-std=c++20", "-fPIC", "-shared", *folders, folder / "nest.cpp"]
    subprocess.run([*command, "-o", folder / "nest.so", *libraries], check=True, timeout=300)
    library = ctypes.CDLL(str(folder / "nest.so"))
    library.nest.restype = library.bytes_that_a_thread_keeps.restype = ctypes.c_int64
    return library


@pytest.fixture
def nest(library: ctypes.CDLL) -> Callable[..., list[int]]:
    """``nest(*sizes)``: where memory of these sizes lies, whose bytes stay what they are while others are written."""

    def addresses(*sizes: int, kept: bool = False) -> list[int]:
        found = (ctypes.c_size_t * len(sizes))()
        each = (ctypes.c_int64 * len(sizes))(*sizes)
        spoiled = library.nest(ctypes.c_int64(len(sizes)), each, ctypes.c_bool(kept), found)
        assert spoiled == 0
        assert all(address % LINE == 0 for address in found)
        return list(found)

    return addresses


def test_memory_is_taken_in_lines_of_the_cache_and_given_out_again(nest: Callable[..., list[int]]) -> None:
    first, second, third = nest(1, LINE + 1, LINE)
    assert (second - first, third - second) == (LINE, 2 * LINE)
    assert nest(100_000) == [first]


def test_a_thread_gives_all_that_it_keeps_and_no_more(library: ctypes.CDLL, nest: Callable[..., list[int]]) -> None:
    kept = library.bytes_that_a_thread_keeps()
    (begin,) = nest(kept)
    assert nest(LINE, kept - 2 * LINE, LINE) == [begin, begin + LINE, begin + kept - LINE]
    inside = range(begin, begin + kept)
    for sizes, fits in {
        (kept + 1,): [False],
        (kept, 1): [True, False],
        (LINE, kept): [True, False],
        (LINE, kept - LINE, 1): [True, True, False],
        (kept - LINE, LINE + 1, LINE): [True, False, True],
    }.items():
        assert [address in inside for address in nest(*sizes)] == fits


def test_large_blocks_that_are_kept_lie_apart_and_where_they_lay_before(
    library: ctypes.CDLL, nest: Callable[..., list[int]]
) -> None:
    level2, large = library.bytes_that_a_thread_keeps() // 2, 16 << 20
    (small,) = nest(level2, kept=True)
    assert nest(level2) == [small]  # no larger than the cache: among those that stay in it
    (begin,) = nest(large, kept=True)
    assert begin != small
    sizes = level2 + 1, LINE, level2 + LINE, level2
    first, second, third, fourth = nest(*sizes, kept=True)
    assert (first, second) == (begin, small)
    assert third == begin + (level2 + 1 + LINE - 1) // LINE * LINE
    assert fourth == small + LINE
    assert nest(*sizes, kept=True) == [first, second, third, fourth]
    inside = range(begin, begin + large)
    assert [address in inside for address in nest(large + 1, large, level2 + 1, kept=True)] == [False, True, False]


def test_every_thread_has_memory_of_its_own(nest: Callable[..., list[int]]) -> None:
    here, elsewhere = nest(LINE), []
    other = threading.Thread(target=lambda: elsewhere.extend(nest(LINE)))
    other.start()
    other.join()
    assert elsewhere != here
    assert nest(LINE) == here
