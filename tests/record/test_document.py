from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lth_fast.record.document import _plain, read_document, write_document

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_plain_values_become_themselves(document: dict[str, object]) -> None:
    assert json.loads(json.dumps(_plain(document, "document"), sort_keys=True, allow_nan=False)) == document


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    document = {"seed": 3, "rate": 0.2, "layers": {"fc1.weight": 0.512}, "early_stop_iteration": None, "name": "µ"}
    write_document(tmp_path / "file.json", document)
    assert read_document(tmp_path / "file.json") == document


def test_the_text_is_sorted_indented_and_independent_of_the_order_of_keys(tmp_path: Path) -> None:
    write_document(tmp_path / "a.json", {"b": 1, "a": {"d": 2, "c": [3]}})
    write_document(tmp_path / "b.json", {"a": {"c": [3], "d": 2}, "b": 1})
    text = (tmp_path / "a.json").read_text()
    assert text == '{\n  "a": {\n    "c": [\n      3\n    ],\n    "d": 2\n  },\n  "b": 1\n}\n'
    assert (tmp_path / "b.json").read_text() == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), np.float64("nan")])
def test_numbers_that_json_lacks_are_written_as_null(tmp_path: Path, value: float) -> None:
    write_document(tmp_path / "file.json", {"value": value, "inside": [{"deep": (value,)}]})
    assert read_document(tmp_path / "file.json") == {"value": None, "inside": [{"deep": [None]}]}


def test_numpy_scalars_and_paths_become_plain_values(tmp_path: Path) -> None:
    write_document(tmp_path / "file.json", {"n": np.int64(3), "x": np.float32(0.5), "b": np.True_, "p": Path("a/b")})
    assert read_document(tmp_path / "file.json") == {"n": 3, "x": 0.5, "b": True, "p": "a/b"}


@pytest.mark.parametrize(("document", "place"), [({"a": [{"b": {1, 2}}]}, r"a\[0\]: b"), ({"a": {1: 2}}, "a: keys")])
def test_what_json_cannot_hold_is_refused_by_its_place(tmp_path: Path, document: dict[str, object], place: str) -> None:
    with pytest.raises(TypeError, match=rf"file\.json: {place}"):
        write_document(tmp_path / "file.json", document)
    assert not (tmp_path / "file.json").exists()


@pytest.mark.parametrize("content", ["", '{"a": 1', "[1, 2]", "\xff", "[" * 100_000])
def test_a_damaged_document_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "file.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=r"file\.json"):
        read_document(tmp_path / "file.json")
