"""Reading datasets: what NumPy and safetensors write comes back exactly; hostile files are refused with a reason."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import save_file

from pruning_core.calibration import read_dataset
from pruning_core.errors import DatasetError


def npy(array: np.ndarray[Any, Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + data


def archive(path: Path, members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def refused(path: Path, **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read_dataset(path, **options)
    assert caught.value.problem()["status"] == 422
    return caught.value


NUMERIC = st.sampled_from(
    ["?", "i1", "<i2", ">i4", "<i8", "u1", ">u2", "<u4", "<u8", "<f2", ">f4", "<f4", ">f8", "<f8"]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_npz_comes_back_exactly(tmp_path: Path, data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(NUMERIC))
    shape = data.draw(hnp.array_shapes(max_dims=4, max_side=4))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    array = data.draw(hnp.arrays(dtype, shape, elements=hnp.from_dtype(dtype, **elements)))
    if data.draw(st.booleans()):
        array = np.asfortranarray(array)
    path = tmp_path / "data"
    with path.open("wb") as file:
        (np.savez_compressed if data.draw(st.booleans()) else np.savez)(file, x=array)
    raw = read_dataset(path)
    assert raw.format == "npz"
    assert raw["x"].is_contiguous()
    assert raw["x"].numpy().dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(raw["x"].numpy(), array)


def test_the_real_datasets_are_read(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 255, (50, 28, 28), dtype=np.uint8)
    np.savez_compressed(tmp_path / "d.npz", x=x, y=np.zeros(50, np.int64))
    raw = read_dataset(tmp_path / "d.npz")
    assert raw.samples == 50
    assert raw.has_labels
    assert sorted(raw) == ["x", "y"]


def test_deflated_constant_labels_are_no_bomb(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d", x=np.ones((60_000, 1), np.float32), y=np.zeros(60_000, np.int64))
    assert read_dataset(tmp_path / "d.npz").samples == 60_000


def test_one_copy_only(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d", x=np.random.default_rng(0).random((1000, 4096)))
    tracemalloc.start()
    raw = read_dataset(tmp_path / "d.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < raw["x"].nbytes + 8 * 2**20


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/pruning-worker-test-executed"),))


def test_pickled_objects_are_refused_and_run_nothing(tmp_path: Path) -> None:
    array = np.empty(1, dtype=object)
    array[0] = Harmful()
    error = refused(archive(tmp_path / "d", [("x.npy", npy(array))]))
    assert "pickle" in error.detail
    raw = header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(Harmful()))
    refused(archive(tmp_path / "e", [("x.npy", raw)]))
    refused(archive(tmp_path / "f", [("x.pkl", pickle.dumps(Harmful()))]))
    assert not Path("/tmp/pruning-worker-test-executed").exists()


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), 'shape': (4,), }",
        "{'descr': '<f4', 'fortran_order': False, }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2**2,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), } or 1",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), 'x': __import__('os'), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (4,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (4,), }",
        "{'descr': '<c8', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<U1', 'fortran_order': False, 'shape': (4,), }",
        "{'descr': '|V16', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': '<M8', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1, " * 20 + "4), }",
        "(" * 3000,
        "",
    ],
)
def test_headers_that_lie_are_refused(tmp_path: Path, text: str) -> None:
    refused(archive(tmp_path / "d", [("x.npy", header(text, bytes(16)))]))


def test_plain_header_in_other_words_is_read(tmp_path: Path) -> None:
    text = "{'shape':(2L, 2L),'fortran_order':True,'descr':'<f4'}"
    data = np.arange(4, dtype="<f4").tobytes()
    raw = read_dataset(archive(tmp_path / "d", [("x.npy", header(text, data, version=2))]))
    assert raw["x"].tolist() == [[0, 2], [1, 3]]


def test_oversized_header_and_wrong_magic(tmp_path: Path) -> None:
    text = "{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }" + " " * 5000
    assert "header" in refused(archive(tmp_path / "d", [("x.npy", header(text, bytes(16)))])).detail
    assert "no npy array" in refused(archive(tmp_path / "e", [("x.npy", b"hello world")])).detail
    refused(archive(tmp_path / "f", [("x.npy", header(text, version=4))]))


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/x.npy", "a\\x.npy", "x", "x.npy.exe", ".npy", "x\n.npy"])
def test_member_names_that_are_paths_are_refused(tmp_path: Path, name: str) -> None:
    refused(archive(tmp_path / "d", [(name, npy(np.zeros(3)))]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_members_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "d", [("x.npy", npy(np.zeros(3))), ("x.npy", npy(np.ones(3)))])
    assert "twice" in refused(path).detail


def test_zip_bomb_is_refused_before_inflating(tmp_path: Path) -> None:
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (100000000,), }"
    path = archive(tmp_path / "d", [("x.npy", header(text) + bytes(10**8))], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    assert "bomb" in refused(path).detail
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 2**20


def test_more_than_declared_or_other_bytes_than_the_checksum(tmp_path: Path) -> None:
    content = npy(np.random.default_rng(0).random(1000))
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = archive(tmp_path / "d", [("x.npy", content)], compression)
        good = path.read_bytes()
        directory = good.rindex(b"PK\x01\x02")
        shorter = bytearray(good)
        struct.pack_into("<I", shorter, directory + 24, len(content) - 8)
        path.write_bytes(shorter)
        refused(path)
        flipped = bytearray(good)
        flipped[directory - 20] ^= 1
        path.write_bytes(flipped)
        refused(path)


def test_many_members_and_big_totals(tmp_path: Path) -> None:
    content = npy(np.zeros(2))
    error = refused(archive(tmp_path / "d", [(f"a{i}.npy", content) for i in range(65)]))
    assert "members" in error.detail
    error = refused(archive(tmp_path / "e", [("x.npy", npy(np.zeros(1000)))]), max_bytes=4000)
    assert error.expected == 4000


def test_forged_end_record_cannot_hide_a_huge_directory(tmp_path: Path) -> None:
    path = archive(tmp_path / "d", [(f"a{i:05}.npy", b"") for i in range(3000)])
    data = bytearray(path.read_bytes())
    end = data.rindex(b"PK\x05\x06")
    struct.pack_into("<HH", data, end + 8, 1, 1)
    path.write_bytes(data)
    assert "members" in refused(path).detail


@pytest.mark.parametrize("save", ["npz", "npz-deflated", "safetensors"])
def test_truncation_at_every_boundary_is_refused(tmp_path: Path, save: str) -> None:
    path = tmp_path / "d"
    x, y = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(4)
    if save == "safetensors":
        save_file({"x": torch.from_numpy(x), "y": torch.from_numpy(y)}, path)
    else:
        with path.open("wb") as file:
            (np.savez if save == "npz" else np.savez_compressed)(file, x=x, y=y)
    whole = path.read_bytes()
    read_dataset(path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        refused(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused_never_worse(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "d"
    if data.draw(st.booleans()):
        save_file({"x": torch.ones(4, 3), "y": torch.arange(4)}, path)
    else:
        with path.open("wb") as file:
            np.savez_compressed(file, x=np.ones((4, 3), np.float32), y=np.arange(4))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(DatasetError):
        read_dataset(path)


def safetensors_bytes(entries: object, data: bytes) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_safetensors_comes_back(tmp_path: Path) -> None:
    save_file({"x": torch.randn(5, 3), "labels": torch.arange(5)}, tmp_path / "d", metadata={"k": "v"})
    raw = read_dataset(tmp_path / "d")
    assert raw.format == "safetensors"
    assert raw.has_labels
    assert raw["labels"].tolist() == [0, 1, 2, 3, 4]


F32 = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("entries", "size"),
    [
        ({"x": {**F32, "shape": [2, 3]}}, 16),
        ({"x": {**F32, "shape": [2**40, 2**40]}}, 16),
        ({"x": {**F32, "shape": [-2, -2]}}, 16),
        ({"x": {**F32, "shape": [True, 4]}}, 16),
        ({"x": {**F32, "shape": [1] * 20}}, 16),
        ({"x": {**F32, "dtype": "F8_E5M2"}}, 16),
        ({"x": {**F32, "dtype": ["F32"]}}, 16),
        ({"x": {**F32, "data_offsets": [16, 32]}}, 32),
        ({"x": F32, "y": F32}, 16),
        ({"x": F32}, 20),
        ({"x": F32}, 12),
        ({"x": {"dtype": "F32"}}, 16),
        ({"x": []}, 16),
        ({f"x{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(65)}, 65),
        (b'{"x": ' + b"[" * 5000, 16),
        (
            b'{"x": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}, '
            b'"x": {"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
            1,
        ),
        (b"{]", 0),
        ({}, 0),
    ],
)
def test_hostile_safetensors_headers_are_refused(tmp_path: Path, entries: object, size: int) -> None:
    (tmp_path / "d").write_bytes(safetensors_bytes(entries, bytes(size)))
    refused(tmp_path / "d")


def test_safetensors_header_length_is_capped(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(struct.pack("<Q", 2**62) + b"{}" + bytes(100))
    assert "header" in refused(tmp_path / "d").detail
    save_file({"x": torch.zeros(1000)}, tmp_path / "e")
    assert refused(tmp_path / "e", max_bytes=3999).expected == 3999


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x04K\x01.", b"PAR1", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)]
)
def test_unknown_formats_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d").write_bytes(content)
    refused(tmp_path / "d")


def test_a_lone_npy_says_how_to_save(tmp_path: Path) -> None:
    (tmp_path / "d").write_bytes(npy(np.zeros(3)))
    assert "savez" in str(refused(tmp_path / "d").advice)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros((0, 3))}, "no samples"),
        ({"x": np.zeros((3, 0))}, "no samples"),
        ({"x": np.float32(3)}, "single number"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(4, int)}, "disagree"),
        ({"x": np.array([[0, 1], [np.nan, 2]])}, "(1, 0)"),
        ({"x": np.array([[0, 1], [2, -np.inf]], np.float16)}, "(1, 1)"),
        ({}, "no array"),
    ],
)
def test_what_no_dataset_may_be(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "d", **arrays)
    if not arrays:
        refused(tmp_path / "d.npz")
    else:
        assert words in refused(tmp_path / "d.npz").detail


def test_the_first_nan_is_named_beyond_the_first_chunk(tmp_path: Path) -> None:
    x = np.zeros((3000, 2000), np.float32)
    x[2500, 7] = np.nan
    x[2900, 0] = np.inf
    np.savez(tmp_path / "d", images=x)
    error = refused(tmp_path / "d.npz")
    assert error.extensions == {"array": "images", "index": [2500, 7]}
