from __future__ import annotations

import errno
import hashlib
import http.client
import os
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from lth_fast.data.download import DownloadError, download, md5_of, replace_atomically


def md5(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def content():
    return os.urandom(200_000)


def test_a_file_is_fetched_and_its_folder_made(local_server, tmp_path, content):
    local_server.serve("/mnist/images.gz", content)
    download({"images.gz": md5(content)}, [local_server.url("/mnist")], tmp_path / "MNIST" / "raw")
    assert (tmp_path / "MNIST" / "raw" / "images.gz").read_bytes() == content
    assert [path.name for path in (tmp_path / "MNIST" / "raw").iterdir()] == ["images.gz"]


def test_a_file_with_the_wrong_checksum_makes_way_for_the_next_mirror(local_server, tmp_path, content):
    local_server.serve("/bad/images.gz", content[:-1])
    local_server.serve("/good/images.gz", content)
    download({"images.gz": md5(content)}, [local_server.url("/bad"), local_server.url("/good")], tmp_path)
    assert local_server.asked == ["/bad/images.gz", "/good/images.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["images.gz"]
    assert (tmp_path / "images.gz").read_bytes() == content


def test_the_mirror_that_served_the_first_file_is_asked_first_for_the_next(local_server, tmp_path, content):
    local_server.serve("/good/images.gz", content)
    local_server.serve("/good/labels.gz", content)
    files = {"images.gz": md5(content), "labels.gz": md5(content)}
    download(files, [local_server.url("/bad"), local_server.url("/good")], tmp_path)
    assert local_server.asked == ["/bad/images.gz", "/good/images.gz", "/good/labels.gz"]


def test_a_mirror_that_lacks_one_file_makes_way_for_the_others_of_that_file_too(local_server, tmp_path, content):
    local_server.serve("/one/images.gz", content)
    local_server.serve("/two/labels.gz", content)
    files = {"images.gz": md5(content), "labels.gz": md5(content)}
    download(files, [local_server.url("/one"), local_server.url("/two")], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.gz", "labels.gz"]


def test_an_empty_answer_is_no_file_and_makes_way_for_the_next(local_server, tmp_path, content):
    local_server.serve("/empty/images.gz", b"")
    local_server.serve("/good/images.gz", content)
    download({"images.gz": md5(content)}, [local_server.url("/empty"), local_server.url("/good")], tmp_path)
    assert (tmp_path / "images.gz").read_bytes() == content


def test_each_download_is_announced_on_stderr(local_server, tmp_path, content, capsys):
    local_server.serve("/images.gz", content)
    download({"images.gz": md5(content)}, [local_server.url("")], tmp_path)
    assert capsys.readouterr() == ("", f"downloading {local_server.url('/images.gz')}\n")


def test_servers_are_told_who_asks(local_server, tmp_path):
    """Some refuse Python's own name."""
    names = []
    local_server.answers["/images.gz"] = lambda handler: names.append(handler.headers["User-Agent"])
    with pytest.raises(DownloadError):
        download({"images.gz": md5(b"")}, [local_server.url("")], tmp_path)
    assert names == ["lth_fast"]


def test_a_hanging_mirror_makes_way_for_the_next(local_server, tmp_path, content):
    local_server.hang("/hanging/images.gz")
    local_server.serve("/good/images.gz", content)
    mirrors = [local_server.url("/hanging"), local_server.url("/good")]
    download({"images.gz": md5(content)}, mirrors, tmp_path, patience=1.0)
    assert (tmp_path / "images.gz").read_bytes() == content


@pytest.mark.parametrize("beginning", [b"", b"the first few bytes"])
def test_when_every_mirror_hangs_it_gives_up_within_its_patience_and_leaves_nothing(local_server, tmp_path, beginning):
    mirrors = [local_server.url(f"/{name}") for name in ("one", "two", "three")]
    for name in ("one", "two", "three"):
        local_server.hang(f"/{name}/images.gz", beginning)
    started = time.monotonic()
    with pytest.raises(DownloadError, match=r"/one/images\.gz: .*/two/images\.gz: .*/three/images\.gz: ") as error:
        download({"images.gz": md5(b""), "labels.gz": md5(b"")}, mirrors, tmp_path / "raw", patience=0.3)
    assert time.monotonic() - started < 3
    assert "labels" not in str(error.value)
    assert not list(tmp_path.rglob("*.gz*"))


def test_mirrors_share_the_patience_and_a_hanging_one_keeps_no_program_from_ending(tmp_path, monkeypatch):
    asked = []

    def urlopen(request, timeout):
        asked.append((timeout, threading.current_thread().daemon))
        raise urllib.error.URLError("the network is down")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(DownloadError):
        download({"images.gz": md5(b"")}, ["http://one.invalid", "http://two.invalid"], tmp_path, patience=3.0)
    assert asked == [(1.5, True)] * 2


def test_a_name_look_up_that_hangs_is_given_up(tmp_path, monkeypatch):
    """The timeout of the socket does not cover it."""
    done = threading.Event()

    def urlopen(request, timeout):
        done.wait(5)
        raise urllib.error.URLError("no such name")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(DownloadError, match=r"nothing arrived for 0\.2 s"):
        download({"images.gz": md5(b"")}, ["http://one.invalid"], tmp_path, patience=0.2)
    done.set()


@pytest.mark.parametrize(
    ("error", "said"), [(http.client.BadStatusLine("SSH-2.0"), "SSH-2.0"), (ConnectionResetError(), "ConnectionReset")]
)
def test_whatever_goes_wrong_with_a_mirror_makes_way_for_the_next_and_is_said(tmp_path, monkeypatch, error, said):
    def urlopen(request, timeout):
        raise error if "one" in request.full_url else urllib.error.URLError("the network is down")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    with pytest.raises(DownloadError, match=rf"http://one\.invalid/images\.gz: {said}.*; .*the network is down"):
        download({"images.gz": md5(b"")}, ["http://one.invalid", "http://two.invalid"], tmp_path)


def test_without_a_mirror_that_is_said(tmp_path):
    with pytest.raises(DownloadError, match="no mirror is known"):
        download({"images.gz": md5(b"")}, [], tmp_path)


def test_where_the_disk_takes_no_file_no_other_mirror_is_asked(local_server, tmp_path, content, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    local_server.serve("/one/images.gz", content)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DownloadError, match=r"/one/images\.gz: .*No space left on device$"):
        download({"images.gz": md5(content)}, [local_server.url("/one"), local_server.url("/two")], tmp_path)
    assert local_server.asked == ["/one/images.gz"]
    assert list(tmp_path.iterdir()) == []


def test_a_transfer_ends_where_its_bytes_cannot_be_kept(local_server, tmp_path):
    ended = threading.Event()

    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(1 << 40))
        handler.end_headers()
        try:
            while not local_server.closing.wait(0.001):
                handler.wfile.write(bytes(10_000))
        except OSError:
            ended.set()

    local_server.answers["/images.gz"] = answer
    (tmp_path / "raw").write_bytes(b"no folder")
    with pytest.raises(DownloadError, match="raw"):
        download({"images.gz": md5(b"")}, [local_server.url("")], tmp_path / "raw")
    assert ended.wait(5)


def test_a_download_that_makes_progress_may_take_longer_than_the_patience(local_server, tmp_path):
    content = os.urandom(1200)  # less than is read at a time
    local_server.serve_slowly("/slow/images.gz", content, pieces=12, pause=0.08)
    started = time.monotonic()
    download({"images.gz": md5(content)}, [local_server.url("/slow")], tmp_path, patience=0.7)
    assert time.monotonic() - started > 0.7
    assert (tmp_path / "images.gz").read_bytes() == content


def test_downloads_of_one_file_at_a_time_do_not_disturb_each_other(local_server, tmp_path, content):
    local_server.serve_slowly("/images.gz", content, pieces=4, pause=0.05)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: download({"images.gz": md5(content)}, [local_server.url("")], tmp_path), range(2)))
    assert local_server.asked == ["/images.gz"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["images.gz"]
    assert (tmp_path / "images.gz").read_bytes() == content


def test_the_error_says_what_each_mirror_did(local_server, tmp_path, content):
    local_server.serve("/page/images.gz", b"<html>please log in</html>" * 10_000)
    mirrors = [local_server.url("/none"), local_server.url("/page")]
    with pytest.raises(DownloadError) as error:
        download({"images.gz": md5(content)}, mirrors, tmp_path / "raw")
    assert f"{mirrors[0]}/images.gz: HTTP Error 404" in str(error.value)
    assert f"{mirrors[1]}/images.gz: expected a file with md5 {md5(content)}, got 260000 bytes" in str(error.value)


def test_a_dead_network_leaves_no_folder_behind(offline, tmp_path):
    with pytest.raises(DownloadError, match="the network is down"):
        download({"images.gz": md5(b"")}, ["http://mirror.invalid"], tmp_path / "MNIST" / "raw")
    assert list(tmp_path.iterdir()) == []


def test_the_digest_of_a_file_is_that_of_its_content(tmp_path, content):
    (tmp_path / "file").write_bytes(content * 12)
    assert md5_of(tmp_path / "file") == md5(content * 12)


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replace_atomically(path) as file:
        file.write(b"ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_has_reached_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    path = tmp_path / "file"
    on_disk = []

    def fsync(descriptor):
        (partial,) = tmp_path.iterdir()
        assert os.path.samestat(os.fstat(descriptor), partial.stat())
        on_disk.append((partial.name != path.name, partial.read_bytes(), partial.stat().st_ino))

    monkeypatch.setattr(os, "fsync", fsync)
    with replace_atomically(path) as file:
        file.write(b"content")
    assert on_disk == [(True, b"content", path.stat().st_ino)]


def test_what_killed_downloads_of_a_file_left_goes_unless_it_may_be_another_processs(local_server, tmp_path, content):
    old, young = 90_000, 60
    ages = {"images[1].gz.0a1b.part": old, "images[1].gz.2c3d.part": young, "labels.gz.4e5f.part": old}
    for name, age in {**ages, "images[1].gz.old": old, "images1.gz.0a1b.part": old}.items():
        (tmp_path / name).write_bytes(b"a beginning")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    (tmp_path / "images[1].gz.6a7b.part").mkdir()  # another process has been faster, or it cannot be removed
    os.utime(tmp_path / "images[1].gz.6a7b.part", (time.time() - old,) * 2)
    local_server.serve("/images[1].gz", content)
    download({"images[1].gz": md5(content)}, [local_server.url("")], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "images1.gz.0a1b.part",
        "images[1].gz",
        "images[1].gz.2c3d.part",
        "images[1].gz.6a7b.part",
        "images[1].gz.old",
        "labels.gz.4e5f.part",
    ]
