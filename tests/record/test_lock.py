from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lth_fast.record import RunInUseError, lock
from lth_fast.record.lock import lock_folder

# lock.py needs the standard library only, so a child may run it alone and start at once.
HOLDER = """
import runpy, sys
from pathlib import Path
lock = runpy.run_path(sys.argv[1])
with lock["lock_folder"](Path(sys.argv[2])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_writes_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, lock.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        with pytest.raises(RunInUseError, match=f"being written by process {holder.pid} on"), lock_folder(tmp_path):
            pytest.fail("two processes hold the lock")
        holder.kill()
    with lock_folder(tmp_path):  # the kernel released the lock of the killed process
        pass


def test_a_second_lock_in_the_same_process_is_refused(tmp_path: Path) -> None:
    with lock_folder(tmp_path), pytest.raises(RunInUseError), lock_folder(tmp_path):
        pytest.fail("the lock is held twice")


def test_the_lock_ends_with_its_block_also_on_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock_folder(tmp_path):
        raise ZeroDivisionError
    with lock_folder(tmp_path):
        pass


def test_locks_of_different_runs_are_independent(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with lock_folder(tmp_path / "a"), lock_folder(tmp_path / "b"):
        for name in ("a", "b"):
            with pytest.raises(RunInUseError), lock_folder(tmp_path / name):
                pass
