from __future__ import annotations

import hashlib
import io
import tarfile
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from lth_fast.data.files import DatasetFiles, obtain


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


CONTENT = {"images.gz": b"the images", "labels.gz": b"the labels"}
FILES = DatasetFiles(
    title="Toy",
    names=("images.gz", "labels.gz"),
    folders=("Toy/raw", "toy/Toy/raw", ""),
    md5={name: md5(content) for name, content in CONTENT.items()},
    mirrors=("http://one.invalid", "http://two.invalid"),
)


def pack(contents):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"toy-batches/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


ARCHIVE = pack({"train": b"to train", "test": b"to test"})
ARCHIVED = replace(
    FILES,
    names=("train", "test"),
    folders=("toy-batches", "toy/toy-batches", "toy", ""),
    md5={"toy.tar.gz": md5(ARCHIVE)},
    archive="toy.tar.gz",
)


def put(folder, contents):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("folder", FILES.folders)
def test_files_are_found_in_each_folder_without_touching_the_network(tmp_path, offline, folder):
    put(tmp_path / folder, CONTENT)
    assert [path.read_bytes() for path in obtain(FILES, tmp_path)] == list(CONTENT.values())
    assert obtain(FILES, str(tmp_path))[0].parent == tmp_path / folder
    assert offline == []


def test_files_unpacked_by_hand_are_found_too(tmp_path, offline):
    put(tmp_path / "Toy" / "raw", {"images": b"the images", "labels.gz": b"the labels"})
    assert [path.name for path in obtain(FILES, tmp_path)] == ["images", "labels.gz"]
    assert offline == []


def test_the_tilde_of_a_root_means_the_home_folder(tmp_path, offline, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "data" / "Toy" / "raw", CONTENT)
    assert obtain(FILES, "~/data") == [tmp_path / "data" / "Toy" / "raw" / name for name in CONTENT]


def test_missing_files_are_downloaded_into_the_first_folder_and_found_the_next_time(tmp_path, local_server):
    for name, content in CONTENT.items():
        local_server.serve(f"/{name}", content)
    files = replace(FILES, mirrors=(local_server.url(""),))
    expected = [tmp_path / "Toy" / "raw" / name for name in CONTENT]
    assert obtain(files, tmp_path) == expected
    assert [path.read_bytes() for path in expected] == list(CONTENT.values())
    assert obtain(files, tmp_path) == expected
    assert local_server.asked == ["/images.gz", "/labels.gz"]


def test_one_missing_file_is_downloaded_beside_the_others(tmp_path, local_server):
    put(tmp_path / "toy" / "Toy" / "raw", {"images.gz": b"the images"})
    local_server.serve("/labels.gz", CONTENT["labels.gz"])
    paths = obtain(replace(FILES, mirrors=(local_server.url(""),)), tmp_path)
    assert [path.parent for path in paths] == [tmp_path / "toy" / "Toy" / "raw"] * 2
    assert local_server.asked == ["/labels.gz"]


def test_of_several_folders_the_fullest_counts(tmp_path, offline):
    put(tmp_path / FILES.folders[0], {"images.gz": b"the images"})
    put(tmp_path / FILES.folders[1], CONTENT)
    assert {path.parent for path in obtain(FILES, tmp_path)} == {tmp_path / FILES.folders[1]}
    assert offline == []


def test_folders_with_the_names_of_files_are_not_taken_for_them(tmp_path, offline):
    """As the folders of other data sets are called."""
    (tmp_path / "images.gz").mkdir()
    put(tmp_path, {"images": b"the images", "labels.gz": b"the labels"})
    assert obtain(FILES, tmp_path) == [tmp_path / "images", tmp_path / "labels.gz"]
    for name in (*ARCHIVED.names, "toy-batches/toy.tar.gz"):
        (tmp_path / name).mkdir(parents=True)
    put(tmp_path / "toy", {"toy.tar.gz": ARCHIVE})
    assert [path.read_bytes() for path in obtain(ARCHIVED, tmp_path)] == [b"to train", b"to test"]
    assert offline == []


@pytest.mark.parametrize("files", [FILES, ARCHIVED], ids=["files", "archive"])
def test_the_patience_is_that_of_the_download(tmp_path, monkeypatch, files):
    timeouts = []

    def urlopen(request, timeout):
        timeouts.append(timeout)
        raise urllib.error.URLError("the network is down")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(FileNotFoundError):
        obtain(files, tmp_path, patience=3.0)
    assert timeouts == [1.5, 1.5]


def test_without_network_one_error_says_what_is_missing_where_it_goes_and_what_was_tried(tmp_path, offline):
    with pytest.raises(FileNotFoundError) as error:
        obtain(FILES, tmp_path)
    message = str(error.value)
    assert f"Toy is incomplete: images.gz, labels.gz missing from {tmp_path / 'Toy' / 'raw'}." in message
    assert "http://one.invalid/images.gz: <urlopen error the network is down>" in message
    assert "http://two.invalid/images.gz" in message
    assert "'digits', which needs no files" in message
    assert offline == ["http://one.invalid/images.gz", "http://two.invalid/images.gz"]


def test_the_error_names_only_the_file_that_is_missing(tmp_path, offline):
    put(tmp_path, {"images.gz": b"the images"})
    with pytest.raises(FileNotFoundError, match=r"incomplete: labels\.gz missing from") as error:
        obtain(FILES, tmp_path)
    assert f"missing from {tmp_path}." in str(error.value)


def test_the_folder_in_the_error_is_absolute_even_for_a_relative_root(tmp_path, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        obtain(FILES, "data")
    assert str(tmp_path / "data" / "Toy" / "raw") in str(error.value)


def test_a_root_that_is_a_file_is_reported_like_missing_files(tmp_path, local_server):
    (tmp_path / "data").write_bytes(b"no folder")
    local_server.serve("/images.gz", CONTENT["images.gz"])
    with pytest.raises(FileNotFoundError, match="Toy is incomplete"):
        obtain(replace(FILES, mirrors=(local_server.url(""),)), tmp_path / "data")


def test_an_archive_is_downloaded_beside_the_folder_it_fills(tmp_path, local_server):
    local_server.serve("/toy.tar.gz", ARCHIVE)
    files = replace(ARCHIVED, mirrors=(local_server.url(""),))
    paths = obtain(files, tmp_path)
    assert paths == [tmp_path / "toy-batches" / "train", tmp_path / "toy-batches" / "test"]
    assert [path.read_bytes() for path in paths] == [b"to train", b"to test"]
    assert (tmp_path / "toy.tar.gz").read_bytes() == ARCHIVE
    obtain(files, tmp_path)
    assert local_server.asked == ["/toy.tar.gz"]


@pytest.mark.parametrize("folder", ["", "toy", "toy-batches"])
def test_an_archive_that_lies_there_already_is_unpacked_without_network(tmp_path, offline, folder):
    put(tmp_path / folder, {"toy.tar.gz": ARCHIVE})
    assert [path.read_bytes() for path in obtain(ARCHIVED, tmp_path)] == [b"to train", b"to test"]
    assert offline == []


def test_of_an_archive_only_the_missing_files_are_unpacked(tmp_path, offline):
    put(tmp_path / "toy-batches", {"toy.tar.gz": ARCHIVE, "train": b"somebody's own"})
    assert [path.read_bytes() for path in obtain(ARCHIVED, tmp_path)] == [b"somebody's own", b"to test"]


def test_a_damaged_archive_is_an_error_that_names_it(tmp_path, offline):
    put(tmp_path, {"toy.tar.gz": ARCHIVE[:-1]})
    with pytest.raises(ValueError, match="is damaged: expected md5") as error:
        obtain(ARCHIVED, tmp_path)
    assert str(tmp_path / "toy.tar.gz") in str(error.value)


def test_without_network_the_missing_archive_is_named(tmp_path, offline):
    with pytest.raises(FileNotFoundError, match=r"Put them or toy\.tar\.gz there") as error:
        obtain(ARCHIVED, tmp_path)
    assert f"train, test missing from {Path(tmp_path, 'toy-batches')}." in str(error.value)


def test_an_archive_that_cannot_be_unpacked_is_not_said_to_have_failed_to_download(tmp_path, offline):
    """A file in the place of the folder: as on a disk that takes nothing, it cannot be written to."""
    put(tmp_path, {"toy.tar.gz": ARCHIVE, "toy-batches": b"no folder"})
    with pytest.raises(FileNotFoundError, match="Toy is incomplete") as error:
        obtain(ARCHIVED, tmp_path)
    assert f"Unpacking {tmp_path / 'toy.tar.gz'} failed: [Errno " in str(error.value)
    assert "Downloading" not in str(error.value)
    assert offline == []


def test_a_tilde_of_nobody_is_a_name_like_any_other(tmp_path, offline, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "~nobody_of_this_name", CONTENT)
    assert [path.name for path in obtain(FILES, "~nobody_of_this_name")] == list(CONTENT)
