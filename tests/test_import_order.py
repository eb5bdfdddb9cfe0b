"""Imports go downwards: each part of the package may import some of the others and no more."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lth_fast

_HELPERS = {"_names", "_require"}
_NATIVE = {"_C", "_build_info", "_machine"}
_BELOW_EXPERIMENT = {"ops", "nn", "optim", "prune", "models", "data", "record", "train"}

MAY_IMPORT: dict[str, set[str]] = {
    "ops": set(),
    "nn": {"ops", "_machine"},
    "optim": {"ops", "nn"},
    "prune": {"ops", "nn", "optim", "_survivors"},
    "models": _HELPERS,
    "data": _HELPERS,
    "record": set(),
    "train": {"ops", "nn", "optim", "prune", "data"} | _HELPERS,
    "experiment": {"__init__", "_survivors"} | _BELOW_EXPERIMENT | _HELPERS | _NATIVE,
    "report": {"record"} | _HELPERS,
    "cli": {"__init__", "experiment", "report"} | _BELOW_EXPERIMENT | _HELPERS | _NATIVE,
    "__init__": {"_compatibility", "experiment", "report"} | _BELOW_EXPERIMENT,
    "__main__": {"cli"},
    "_compatibility": {"_build_info"},
    "_build_info": set(),
    "_C": set(),
    "_machine": {"__init__", "_C", "_build_info"},
    "_names": set(),
    "_require": set(),
    "_survivors": set(),
}


def part_of(parts: tuple[str, ...]) -> str:
    """The part that a module or a folder right below the package belongs to."""
    return parts[0].removesuffix(".py") if parts else "__init__"


def imported_parts(
    tree: ast.Module, folder: tuple[str, ...], parts: set[str], package: str
) -> Iterator[tuple[int, str]]:
    """Line and part of every import of the package's own modules, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == package:
                    yield node.lineno, part_of(tuple(rest))
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                origin = (package, *folder)
                module = (*origin[: len(origin) - node.level + 1], *module)
            if module[0] != package:
                continue
            if len(module) > 1:
                yield node.lineno, part_of(module[1:])
            else:  # from package import name: a part, or something that the package's __init__ defines
                for alias in node.names:
                    yield node.lineno, alias.name if alias.name in parts else "__init__"


def violations(root: Path, may_import: dict[str, set[str]]) -> list[str]:
    """What is wrong with the imports of the package in the folder ``root``, one line each."""
    files = sorted(root.rglob("*.py"))
    places = {file: file.relative_to(root) for file in files}
    parts = {part_of(place.parts) for place in places.values()} | set(may_import)
    found = []
    for file, place in places.items():
        part = part_of(place.parts)
        if part not in may_import:
            found.append(f"{place}: nothing says what {part} may import")
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for line, other in imported_parts(tree, place.parts[:-1], parts, root.name):
            if other != part and other not in may_import[part]:
                found.append(f"{place}:{line}: {part} may not import {other}")
    return found


def test_every_import_of_the_package_goes_downwards() -> None:
    assert violations(Path(lth_fast.__file__).parent, MAY_IMPORT) == []


def test_the_rules_form_no_circle_below_the_package_itself() -> None:
    seen: set[str] = set()
    rules = {part: others - {"__init__"} for part, others in MAY_IMPORT.items() if part != "__init__"}
    while len(seen) < len(rules):
        free = [part for part, others in rules.items() if part not in seen and others & rules.keys() <= seen]
        assert free, f"these import one another: {rules.keys() - seen}"
        seen.update(free)


RULES = {"__init__": {"ops", "nn"}, "ops": set(), "nn": {"ops", "_machine"}, "_names": set()}


@pytest.mark.parametrize(
    ("place", "code", "complaint"),
    [
        ("ops/a.py", "from planted.nn import x", "ops/a.py:1: ops may not import nn"),
        ("ops/a.py", "import planted.nn.deeper as x", "ops/a.py:1: ops may not import nn"),
        ("ops/a.py", "import os, planted.nn", "ops/a.py:1: ops may not import nn"),
        ("ops/a.py", "from planted import ops, nn", "ops/a.py:1: ops may not import nn"),
        ("ops/a.py", "from .. import nn", "ops/a.py:1: ops may not import nn"),
        ("ops/a.py", "from ..nn.deeper import x", "ops/a.py:1: ops may not import nn"),
        ("ops/b/c.py", "from ...nn import x", "ops/b/c.py:1: ops may not import nn"),
        ("ops/__init__.py", "from ..nn import x", "ops/__init__.py:1: ops may not import nn"),
        ("ops/a.py", "import planted", "ops/a.py:1: ops may not import __init__"),
        ("ops/a.py", "from planted import VERSION", "ops/a.py:1: ops may not import __init__"),
        ("ops/a.py", "def f():\n    from planted.nn import x", "ops/a.py:2: ops may not import nn"),
        ("ops/a.py", "if TYPE_CHECKING:\n    import planted.nn", "ops/a.py:2: ops may not import nn"),
        ("_names.py", "from planted.ops import x", "_names.py:1: _names may not import ops"),
        ("new/a.py", "", "new/a.py: nothing says what new may import"),
    ],
)
def test_a_planted_violation_is_found(tmp_path: Path, place: str, code: str, complaint: str) -> None:
    file = tmp_path / "planted" / place
    file.parent.mkdir(parents=True)
    file.write_text(code)
    assert violations(tmp_path / "planted", RULES) == [complaint]


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("__init__.py", "from planted import ops, nn\nfrom planted.nn import x"),
        (
            "nn/a.py",
            "from planted.ops import x\nfrom ..ops.deeper import y\nfrom .b import z\nimport torch.nn, os.path",
        ),
        ("ops/a.py", "from . import b\nfrom planted.ops.b import x\nfrom torch import nn\nimport planted_elsewhere.nn"),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, place: str, code: str) -> None:
    file = tmp_path / "planted" / place
    file.parent.mkdir(parents=True)
    file.write_text(code)
    assert violations(tmp_path / "planted", RULES) == []
