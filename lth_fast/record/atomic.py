"""Files that are whole or absent: whatever happens while one is written, a reader finds the old one or the new one."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path``, creating its folder where needed.

    The bytes go to the hidden neighbour ``.<name>.partial``, reach the disk, and only then take the name ``path``.
    On any error, a full disk or Ctrl-C included, the neighbour is removed and the old ``path`` stays as it was.
    A killed process may leave the neighbour behind; the next write of the same file uses it up, :func:`remove_file`
    removes it.

    Raises:
        OSError: The file cannot be written (no space, no permission, ...).
    """
    make_folder(path.parent)
    temporary = _partial(path)
    with _only_writer_of(temporary) as descriptor:
        write_all(descriptor, data)
        os.fsync(descriptor)
        os.replace(temporary, path)
    sync_folder(path.parent)


def remove_file(path: Path) -> None:
    """Remove ``path`` and what a killed writer of it may have left, if they are there."""
    path.unlink(missing_ok=True)
    _partial(path).unlink(missing_ok=True)


def link_file(source: Path, target: Path) -> None:
    """Give ``target`` the content of ``source``: a second name for the same bytes if the file system can, else a copy.

    Sharing bytes is safe because no file of a run but its logs is changed in place, and logs are not linked.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        OSError: ``target`` cannot be written.
    """
    make_folder(target.parent)
    try:
        os.link(source, target)
    except OSError:  # the target exists, lies on another file system, or this file system has no hard links
        if target.exists() and target.samefile(source):
            return
        replace_file(target, source.read_bytes())
    else:
        sync_folder(target.parent)


def make_folder(path: Path) -> None:
    """Create the folder ``path`` and its parents where missing, so that they outlive a power failure."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring the names in the folder ``path`` to the disk; syncing a file alone does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of ``data``: one call to the system may take a part only, e.g. just before the disk is full."""
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


@contextmanager
def _only_writer_of(path: Path) -> Iterator[int]:
    """Open ``path``, emptied, for one writer at a time; the kernel releases the lock of a process that dies.

    On any error, also while it waits for the lock, ``path`` is removed unless another writer has it.
    """
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            # The writer waited for has renamed or removed its file: what is open here may be the finished one.
            if _is_at(descriptor, path):
                os.ftruncate(descriptor, 0)
                yield descriptor
                return
        except BaseException:
            with suppress(OSError):  # from the lock of another writer
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(descriptor, path):
                    path.unlink()
            raise
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
