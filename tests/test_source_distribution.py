"""The source distribution holds what a build needs, and nothing that a build made."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> set[Path]:
    """The files of the source distribution of a tree in which the package was built."""
    tree, target = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for name in FILES:
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "csrc", tree / "csrc")
    shutil.copytree(ROOT / "lth_fast", tree / "lth_fast", ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for built in ("_C.so", "_build_info.py"):
        (tree / "lth_fast" / built).write_text("")
    subprocess.run([sys.executable, "setup.py", "-q", "sdist", "-d", target], cwd=tree, check=True, capture_output=True)
    (archive,) = target.iterdir()
    with tarfile.open(archive) as tar:
        return {Path(*Path(member.name).parts[1:]) for member in tar if member.isfile()}


def test_it_holds_all_sources_of_the_package_and_its_native_libraries(packed: set[Path]) -> None:
    sources = {path.relative_to(ROOT) for path in (ROOT / "csrc").rglob("*") if path.is_file()}
    sources |= {
        path.relative_to(ROOT) for path in (ROOT / "lth_fast").rglob("*.py*") if "__pycache__" not in path.parts
    }
    assert len(sources) > 100
    assert sources - {Path("lth_fast/_build_info.py")} <= packed
    assert {Path(name) for name in FILES} <= packed


def test_it_holds_nothing_that_a_build_made(packed: set[Path]) -> None:
    assert not [path for path in packed if path.suffix == ".so" or path.name == "_build_info.py"]
