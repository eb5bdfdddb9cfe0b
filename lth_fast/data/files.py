"""Where the files of a data set lie on disk, and how they get there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lth_fast.data.archive import unpack
from lth_fast.data.download import PATIENCE_SECONDS, download


@dataclass(frozen=True)
class DatasetFiles:
    """The files of one data set.

    Attributes:
        title: The data set's name in messages.
        names: The files a loader reads. One that ends in ``.gz`` may lie there unpacked, without the ending.
        folders: Where to look, relative to the root; the first is torchvision's, and where downloads go.
        md5: What the mirrors serve -> published MD5 digest: either each of ``names``, or one ``.tar.gz`` with all.
        mirrors: URLs of the folders that serve it.
        archive: The ``.tar.gz``, if the files come in one.
    """

    title: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    md5: Mapping[str, str]
    mirrors: tuple[str, ...]
    archive: str | None = None


def obtain(files: DatasetFiles, root: str | os.PathLike[str], patience: float = PATIENCE_SECONDS) -> list[Path]:
    """Return the paths of ``files.names``, downloading first what is missing.

    Args:
        files: What to look for.
        root: The data set's own folder, or the folder of several data sets; ``~`` is expanded.
        patience: Seconds without progress after which a download is given up, see :func:`download`.

    Raises:
        FileNotFoundError: Files are missing and no mirror serves them. The message says which, where they are expected
            and what was tried.
        ValueError: An archive is damaged.
    """
    base = Path(os.path.abspath(os.path.expanduser(root)))
    # Of several folders the fullest counts: one forgotten file is then reported as one, not as all.
    folders = [base / folder for folder in files.folders]
    folder = max(folders, key=lambda folder: sum(_lies_in(folder, name) for name in files.names))
    missing = [name for name in files.names if not _lies_in(folder, name)]
    if missing:
        attempt = "Downloading"
        try:
            if files.archive is None:
                download({name: files.md5[name] for name in missing}, files.mirrors, folder, patience)
            else:
                archive = next(filter(Path.is_file, (place / files.archive for place in [base, *folders])), None)
                if archive is None:
                    download(files.md5, files.mirrors, base, patience)
                    archive = base / files.archive
                attempt = f"Unpacking {archive}"
                unpack(archive, files.md5[files.archive], missing, folder)
        except OSError as error:
            raise FileNotFoundError(
                f"{files.title} is incomplete: {', '.join(missing)} missing from {folder}. "
                f"Put {'them' if files.archive is None else f'them or {files.archive}'} there, name another folder, "
                f"or use the data set 'digits', which needs no files. {attempt} failed: {error}"
            ) from error
    return [_path_in(folder, name) for name in files.names]


def _path_in(folder: Path, name: str) -> Path:
    as_published = folder / name
    return as_published if as_published.is_file() else folder / name.removesuffix(".gz")


def _lies_in(folder: Path, name: str) -> bool:
    return _path_in(folder, name).is_file()
