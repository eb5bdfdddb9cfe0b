"""Files fetched from the first mirror that serves them intact: patient with slow networks, not with dead ones."""

from __future__ import annotations

import glob
import hashlib
import itertools
import os
import queue
import secrets
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

PATIENCE_SECONDS = 20.0
_CHUNK_BYTES = 1 << 16
_DAY_SECONDS = 24 * 3600.0


class DownloadError(OSError):
    """A file could not be had from any mirror, or not be kept; the message lists what was tried and why it failed."""


def download(md5: Mapping[str, str], mirrors: Sequence[str], folder: Path, patience: float = PATIENCE_SECONDS) -> None:
    """Fetch files into ``folder``, which is created if need be. A file appears there whole and verified, or not at all.

    Args:
        md5: File name -> published MD5 digest, in hexadecimal.
        mirrors: URLs which, followed by ``/`` and the file name, serve the files; tried in order.
        folder: Where the files go.
        patience: Seconds without a single byte, over all mirrors of a file, after which to give up. A download that
            makes progress may take any time.

    Raises:
        DownloadError: No mirror served a file with the right digest, or the disk did not take it, which no other
            mirror can change. Later files are not tried.
    """
    for name, digest in md5.items():
        failures = []
        for mirror in mirrors:
            url = f"{mirror}/{name}"
            try:
                _fetch(url, digest, folder / name, patience / len(mirrors))
            except OSError as error:
                failures.append(f"{url}: {error}")
                if error.errno is not None:  # the disk's: those of the network have no number (see _stream)
                    raise DownloadError("; ".join(failures)) from error
            else:
                # A mirror that made us wait is not asked first again.
                mirrors = [mirror, *(other for other in mirrors if other != mirror)]
                break
        else:
            raise DownloadError("; ".join(failures) or "no mirror is known")


def md5_of(path: Path) -> str:
    """Return the MD5 digest of a file in hexadecimal: the check its publisher offers, not a protection."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of ``path`` when the block ends without an error, and vanishes otherwise.

    What killed processes left of such files goes when nothing was written to it for a day: a younger one may be another
    process's.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _DAY_SECONDS:
                left.unlink()
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as file:
            yield file
            # Else a power failure may leave the name and not the bytes, and nobody looks at a digest again.
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _fetch(url: str, md5: str, path: Path, patience: float) -> None:
    print(f"downloading {url}", file=sys.stderr)
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    chunks = _stream(url, patience)
    first = next(chunks, b"")
    # Only now: a server that does not answer leaves no empty folder behind.
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_atomically(path) as file:
        for chunk in itertools.chain([first], chunks):
            received += len(chunk)
            digest.update(chunk)
            file.write(chunk)
        if digest.hexdigest() != md5:
            raise OSError(f"expected a file with md5 {md5}, got {received} bytes with md5 {digest.hexdigest()}")


def _stream(url: str, patience: float) -> Iterator[bytes]:
    # A timeout of the socket covers neither the name look-up nor a server that feeds header lines forever, so a thread
    # reads and this side watches the clock.
    arrived: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    abandoned = threading.Event()

    def read() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "lth_fast"})
            with urllib.request.urlopen(request, timeout=patience) as response:
                while not abandoned.is_set():
                    chunk = response.read1(_CHUNK_BYTES)
                    arrived.put(chunk)
                    if not chunk:
                        return
        except Exception as error:  # handed to the other side, whatever it is
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    try:
        while True:
            try:
                chunk = arrived.get(timeout=patience)
            except queue.Empty:
                raise TimeoutError(f"nothing arrived for {patience:.3g} s") from None
            if isinstance(chunk, Exception):
                raise OSError(str(chunk) or type(chunk).__name__) from chunk
            if not chunk:
                return
            yield chunk
    finally:
        abandoned.set()
