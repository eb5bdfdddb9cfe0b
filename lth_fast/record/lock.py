"""One writer per run: a lock on the run's folder that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class RunInUseError(RuntimeError):
    """Another process, or another part of this one, is writing the run."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder`` while the ``with`` block runs. It binds only those who ask for it; readers need not.

    Raises:
        RunInUseError: Someone else holds it. The message names the process.
    """
    # The file stays when the lock goes: a process that waits at a removed name would lock a file nobody else sees.
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip() or "another process"
            raise RunInUseError(f"run {folder} is being written by {holder}; wait until it ends or stop it") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        try:
            yield
        finally:
            # Closing is not enough where a forked child still has the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
