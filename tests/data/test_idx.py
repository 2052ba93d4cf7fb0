from __future__ import annotations

import gzip

import numpy as np
import pytest

from gendiff.data.idx import find_idx, parse_idx, read_idx, write_idx

DTYPES = ["uint8", "int8", "int16", "int32", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_round_trip(tmp_path, dtype, suffix):
    array = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
    path = tmp_path / f"array{suffix}"
    write_idx(path, array)
    found = read_idx(path)
    assert found.dtype == array.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, array)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_bytes_are_those_of_the_format():
    data = bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0x01, 0x02, 0xFF, 0xFE])
    np.testing.assert_array_equal(parse_idx(data), [[258, -2]])


def test_equal_arrays_give_equal_gzip_files(tmp_path):
    for name in ("a.gz", "b.gz"):
        write_idx(tmp_path / name, np.ones(3, np.uint8))
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data[:9], "truncated"),
        (lambda data: data + b"!", "longer than its header says"),
        (lambda data: b"", "not an IDX file"),
        (lambda data: b"PK" + data[2:], "not an IDX file"),
        (lambda data: data[:2] + b"\x07" + data[3:], "not an IDX file"),
    ],
)
def test_damaged_files_are_named(tmp_path, edit, message):
    path = tmp_path / "digits"
    write_idx(path, np.zeros((2, 3), np.uint8))
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(ValueError, match=f"digits.*{message}"):
        read_idx(path)


def test_broken_gzip(tmp_path):
    path = tmp_path / "digits.gz"
    whole = gzip.compress(bytes(1000))
    for data in (b"plain", whole[:-9]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"digits\.gz is not a whole gzip file"):
            read_idx(path)


@pytest.mark.parametrize("array", [np.zeros(3, np.int64), np.zeros(3, bool), np.float32(1)])
def test_arrays_the_format_does_not_hold(tmp_path, array):
    with pytest.raises(ValueError, match="IDX holds"):
        write_idx(tmp_path / "array", array)
    assert not list(tmp_path.iterdir())


def test_find_prefers_the_plain_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither digits nor digits\.gz"):
        find_idx(tmp_path, "digits")
    (tmp_path / "digits.gz").touch()
    assert find_idx(tmp_path, "digits").name == "digits.gz"
    (tmp_path / "digits").touch()
    assert find_idx(tmp_path, "digits").name == "digits"
