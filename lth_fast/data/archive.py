"""Known files taken out of a ``.tar.gz`` archive, and nothing else."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Collection
from pathlib import Path

from lth_fast.data.download import md5_of, replace_atomically


def unpack(archive: Path, md5: str, names: Collection[str], folder: Path) -> None:
    """Write the regular files ``names`` of ``archive``, whatever folder they have in it, into ``folder``.

    Paths, links, owners and modes in the archive are not followed: it decides about the content of these files only.

    Raises:
        ValueError: The archive has another MD5 digest than ``md5``, or lacks a file; the message names it.
    """
    given = md5_of(archive)
    if given != md5:
        raise ValueError(
            f"{archive} is damaged: expected md5 {md5}, got {given} ({archive.stat().st_size} bytes); "
            "delete it and it is downloaded again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    wanted = set(names)
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = member.name.rpartition("/")[2]
            content = tar.extractfile(member) if name in wanted and member.isreg() else None
            if content is not None:
                with content, replace_atomically(folder / name) as file:
                    shutil.copyfileobj(content, file)
                wanted.discard(name)
    if wanted:
        raise ValueError(f"{archive}: expected it to hold {', '.join(sorted(wanted))}, which it lacks")
