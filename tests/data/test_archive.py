from __future__ import annotations

import io
import shutil
import tarfile

import pytest

from lth_fast.data.archive import unpack
from lth_fast.data.download import md5_of


@pytest.fixture
def archive(tmp_path):
    """An archive with the files ``batch_1`` and ``batch_2`` and some unpleasant company."""
    path = tmp_path / "data.tar.gz"
    with tarfile.open(path, "w:gz") as tar:

        def add(name, content=b"", **fields):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(content))

        add("batches-py", type=tarfile.DIRTYPE)
        add("batches-py/batch_1", b"one")
        add("batches-py/../../escaped", b"out of the folder")
        add("/absolute", b"out of the folder")
        add("batches-py/batch_2", b"two", mode=0)
        add("batches-py/link", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add("batches-py/readme.html", b"not asked for")
    return path


def test_the_named_files_are_written_and_nothing_else(archive, tmp_path):
    folder = tmp_path / "out" / "batches"
    unpack(archive, md5_of(archive), ["batch_1", "batch_2"], folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"batch_1": b"one", "batch_2": b"two"}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["batch_1", "batch_2", "batches", "data.tar.gz", "out"]


def test_a_link_is_not_taken_for_a_file(archive, tmp_path):
    with pytest.raises(ValueError, match=r"data\.tar\.gz: expected it to hold link, which it lacks"):
        unpack(archive, md5_of(archive), ["batch_1", "link"], tmp_path / "out")
    assert not (tmp_path / "out" / "link").exists()


def test_an_archive_cut_short_is_refused_before_anything_is_written(archive, tmp_path):
    intact = md5_of(archive)
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"data\.tar\.gz is damaged: expected md5 {intact}, got {md5_of(archive)}"):
        unpack(archive, intact, ["batch_1"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unpacking_that_is_interrupted_leaves_no_part_of_a_file(archive, tmp_path, monkeypatch):
    def interrupt(content, file):
        file.write(content.read(1))
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfileobj", interrupt)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, md5_of(archive), ["batch_1"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
