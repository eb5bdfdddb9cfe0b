from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

from lth_fast.data.unpickle import unpickle


class Attack:
    """Would make a folder when it is unpickled by ``pickle.load``."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_plain_data_come_back_whatever_the_protocol(tmp_path, protocol):
    array = np.random.default_rng(protocol).integers(0, 256, (4, 5), dtype=np.uint8)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": array, "labels": [3, 1], "batch_label": "one of two"}, protocol=protocol))
    content = unpickle(path)
    assert np.array_equal(content["data"], array)
    assert content["data"].dtype == np.uint8
    assert (content["labels"], content["batch_label"]) == ([3, 1], "one of two")


def test_a_batch_written_by_python_2_is_read(tmp_path):
    # cPickle, protocol 2, numpy 1.7: {'data': array([[1, 255]], dtype=uint8)}
    path = tmp_path / "batch"
    path.write_bytes(
        b"\x80\x02}q\x01U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85"
        b"U\x01b\x87Rq\x05(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x01\xfftbs."
    )
    assert unpickle(path)["data"].tolist() == [[1, 255]]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("code", ["<i4", ">i4", ">f8", "?"])
def test_numbers_of_either_byte_order_come_back(tmp_path, code, protocol):
    array = np.arange(6).reshape(2, 3).astype(code)
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps(array, protocol=protocol))
    content = unpickle(path)
    assert (content.dtype.kind, content.dtype.itemsize) == (array.dtype.kind, array.dtype.itemsize)
    assert np.array_equal(content, array)


def test_addresses_that_call_themselves_numbers_are_refused(tmp_path):
    """Flags of 0 after the type "object" made numpy take bytes of the file for pointers to objects."""
    path = tmp_path / "batch"
    path.write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01\x85"
        b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08AAAAAAAAtb."
    )
    with pytest.raises(ValueError, match=r"batch: .* it asks for an array of 'O8', where data has numbers"):
        unpickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, protocol):
    path, folder = tmp_path / "batch", tmp_path / "made-by-the-attack"
    path.write_bytes(pickle.dumps({"data": Attack(folder)}, protocol=protocol))
    with pytest.raises(ValueError, match=r"batch: expected a pickle file of plain data, got: it asks for \w+\.mkdir"):
        unpickle(path)
    assert not folder.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "numpy.load", "numpy.ndarray.tofile", "os.system", "codecs.decode"])
def test_no_other_function_can_be_named(tmp_path, name):
    module, _, function = name.rpartition(".")
    path = tmp_path / "batch"
    path.write_bytes(f"c{module}\n{function}\n.".encode())
    with pytest.raises(ValueError, match=f"it asks for {name}"):
        unpickle(path)


def test_only_the_harmless_codec_is_open_to_a_file(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(b"c_codecs\nencode\n(Vabc\nVrot13\ntR.")
    with pytest.raises(ValueError, match="it asks for the encoding rot13"):
        unpickle(path)


def test_a_file_cut_short_is_refused_with_its_name(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": np.zeros(100, dtype=np.uint8)})[:-40])
    with pytest.raises(ValueError, match="expected a pickle file of plain data") as error:
        unpickle(path)
    assert str(path) in str(error.value)


def test_what_is_no_pickle_file_is_refused(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="batch: expected a pickle file of plain data"):
        unpickle(path)
