from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lth_fast.record import atomic
from lth_fast.record.atomic import link_file, make_folder, remove_file, replace_file

SIZE = 300_000
DiskWithRoomFor = Callable[[int], AbstractContextManager[None]]

# atomic.py needs the standard library only, so a child may run it alone and start at once.
WRITER = """
import os, runpy, signal, sys
from pathlib import Path
file, target, die_in = sys.argv[1:]
atomic = runpy.run_path(file)
if die_in:
    setattr(os, die_in, lambda *arguments: os.kill(os.getpid(), signal.SIGKILL))
for number in range(1, 2 if die_in else 100_000):
    atomic["replace_file"](Path(target), bytes([1 + number % 255]) * 300_000)
"""


def start_writer(target: Path, die_in: str = "") -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", WRITER, atomic.__file__, str(target), die_in])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_holds_what_was_written_last(tmp_path: Path) -> None:
    replace_file(tmp_path / "file", b"a longer first version")
    replace_file(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"second"
    assert names(tmp_path) == ["file"]


def test_missing_folders_are_created(tmp_path: Path) -> None:
    replace_file(tmp_path / "a" / "b" / "file", b"")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b""
    make_folder(tmp_path / "a" / "b")


def test_a_folder_that_another_process_makes_at_the_same_time_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there = Path.is_dir

    def made_right_after(path: Path) -> bool:
        there = is_there(path)
        if not there:
            os.mkdir(path)
        return there

    monkeypatch.setattr(Path, "is_dir", made_right_after)
    make_folder(tmp_path / "folder")
    assert os.path.isdir(tmp_path / "folder")


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> dict[int, set[str]]:
    """The names that have reached the disk, by the inode of their folder."""
    found: dict[int, set[str]] = {}
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            found[os.fstat(descriptor).st_ino] = set(os.listdir(descriptor))

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_names_of_files_links_and_folders_outlive_a_power_failure(tmp_path: Path, on_disk: dict[int, set[str]]) -> None:
    replace_file(tmp_path / "new" / "inner" / "file", b"")
    assert on_disk[tmp_path.stat().st_ino] == {"new"}
    assert on_disk[(tmp_path / "new").stat().st_ino] == {"inner"}
    assert on_disk[(tmp_path / "new" / "inner").stat().st_ino] == {"file"}
    link_file(tmp_path / "new" / "inner" / "file", tmp_path / "link")
    assert on_disk[tmp_path.stat().st_ino] == {"new", "link"}


def test_removing_a_file_takes_away_what_a_killed_writer_left_whichever_is_there(tmp_path: Path) -> None:
    for there in ([], ["file"], [".file.partial"], ["file", ".file.partial"]):
        for name in there:
            (tmp_path / name).write_bytes(b"")
        remove_file(tmp_path / "file")
        assert names(tmp_path) == []


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_bytes(b"")
    replace_file(tmp_path / "file", b"")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    draw = random.Random(20250)
    target = tmp_path / "file"
    seen = set()
    for _ in range(6):
        replace_file(target, b"\0" * SIZE)
        with start_writer(target) as writer:
            while target.read_bytes()[:1] == b"\0":
                assert writer.poll() is None
            time.sleep(draw.uniform(0, 0.02))
            writer.kill()
        content = target.read_bytes()
        assert content == content[:1] * SIZE
        seen.add(content[:1])
        assert set(names(tmp_path)) <= {"file", ".file.partial"}
    assert b"\0" not in seen


@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_what_a_killed_writer_leaves_behind_goes_with_the_next_write(tmp_path: Path, moment: str) -> None:
    target = tmp_path / "file"
    replace_file(target, b"old")
    with start_writer(target, die_in=moment) as writer:
        pass
    assert writer.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == [".file.partial", "file"]
    replace_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, disk_with_room_for: DiskWithRoomFor) -> None:
    target = tmp_path / "file"
    replace_file(target, b"old")
    with disk_with_room_for(SIZE // 2), pytest.raises(OSError, match="too large"):
        replace_file(target, b"n" * SIZE)
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("moment", ["ftruncate", "write", "fsync", "replace"])
def test_ctrl_c_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "file"
    replace_file(target, b"old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, moment, interrupt)
        replace_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("another_writes", [False, True])
def test_ctrl_c_at_the_lock_leaves_no_neighbour_but_that_of_another_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, another_writes: bool
) -> None:
    target, partial = tmp_path / "file", tmp_path / ".file.partial"
    replace_file(target, b"old")
    lock = fcntl.flock

    def interrupt(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            raise KeyboardInterrupt
        lock(descriptor, how)

    with contextlib.ExitStack() as held:
        if another_writes:
            file = held.enter_context(partial.open("wb"))
            lock(file, fcntl.LOCK_EX)
            file.write(b"half")
            file.flush()
        monkeypatch.setattr(fcntl, "flock", interrupt)
        with pytest.raises(KeyboardInterrupt):
            replace_file(target, b"new")
        assert names(tmp_path) == ([".file.partial", "file"] if another_writes else ["file"])
        assert not another_writes or partial.read_bytes() == b"half"
    assert target.read_bytes() == b"old"


def test_ctrl_c_at_the_lock_leaves_the_neighbour_of_a_writer_that_came_after_the_one_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, partial = tmp_path / "file", tmp_path / ".file.partial"
    lock = fcntl.flock

    def interrupt(descriptor: int, how: int) -> None:
        if how == fcntl.LOCK_EX:
            partial.rename(target)
            partial.write_bytes(b"half")
            raise KeyboardInterrupt
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace_file(target, b"new")
    assert partial.read_bytes() == b"half"


def test_writers_of_the_same_file_wait_for_each_other(tmp_path: Path) -> None:
    target = tmp_path / "file"

    def write(number: int) -> bytes:
        replace_file(target, bytes([number]) * SIZE)
        return target.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        contents = list(pool.map(write, range(40)))
    assert all(content == content[:1] * SIZE for content in contents)
    assert names(tmp_path) == ["file"]


def test_a_link_shares_the_bytes_of_its_source(tmp_path: Path) -> None:
    replace_file(tmp_path / "source", b"weights")
    link_file(tmp_path / "source", tmp_path / "folder" / "target")
    assert (tmp_path / "folder" / "target").samefile(tmp_path / "source")


def test_replacing_a_link_leaves_its_source_alone(tmp_path: Path) -> None:
    replace_file(tmp_path / "source", b"weights")
    link_file(tmp_path / "source", tmp_path / "target")
    replace_file(tmp_path / "target", b"others")
    assert (tmp_path / "source").read_bytes() == b"weights"


def test_linking_twice_changes_nothing(tmp_path: Path) -> None:
    replace_file(tmp_path / "source", b"weights")
    link_file(tmp_path / "source", tmp_path / "target")
    link_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").samefile(tmp_path / "source")
    assert names(tmp_path) == ["source", "target"]


def test_linking_replaces_an_older_target(tmp_path: Path) -> None:
    replace_file(tmp_path / "source", b"new")
    replace_file(tmp_path / "target", b"old")
    link_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"new"
    assert names(tmp_path) == ["source", "target"]


def test_without_hard_links_the_bytes_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no hard links here")

    replace_file(tmp_path / "source", b"weights")
    monkeypatch.setattr(os, "link", refuse)
    link_file(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"weights"
    assert not (tmp_path / "target").samefile(tmp_path / "source")


def test_linking_what_is_not_there_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        link_file(tmp_path / "absent", tmp_path / "target")
    assert names(tmp_path) == []
