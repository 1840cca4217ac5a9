"""The strict zip reader: what torch and Python write is read; every lie about names, sizes and places is refused."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruning_core.errors import ModelError
from pruning_core.formats import read_model, write_model
from pruning_core.formats.archive import Archive
from tests.formats import surgery
from tests.formats.conftest import Exported

relaxed = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def original(exported: Exported) -> bytes:
    return exported("mlp", False).read_bytes()


def refused(data: bytes, folder: Path, message: str | None = None) -> None:
    (folder / "bad.pt2").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_model(folder / "bad.pt2")


@given(contents=st.dictionaries(st.text("abc/.", min_size=1, max_size=6), st.binary(max_size=50), max_size=6))
@relaxed
def test_what_python_writes_is_read_or_refused(contents: dict[str, bytes], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = surgery.write(tmp_path / "a.zip", contents, root="")
    try:
        archive = Archive(path)
    except ModelError:
        bad = any(p in ("", ".", "..") for name in contents for p in name.removesuffix("/").split("/"))
        assert bad or not contents or any(n.endswith("/") and d for n, d in contents.items())
    else:
        files = {name: data for name, data in contents.items() if not name.endswith("/")}
        assert {name: bytes(archive.view(name)) for name in archive.members} == files


@given(data=st.data())
@relaxed
def test_truncated_anywhere(data: st.DataObject, original: bytes, tmp_path: Path) -> None:
    cut = data.draw(st.integers(0, len(original) - 1))
    refused(original[:cut], tmp_path)


def test_truncated_at_every_edge(original: bytes, tmp_path: Path) -> None:
    edges = {0, 1, 4, 21, 22, len(original) - 1, len(original) - 22, len(original) - 42, len(original) - 98}
    with zipfile.ZipFile(io.BytesIO(original)) as archive:
        edges |= {info.header_offset for info in archive.infolist()}
    for cut in edges:
        refused(original[:cut], tmp_path)


@given(data=st.data())
@relaxed
def test_a_flipped_byte_is_refused_or_changes_no_weight(
    data: st.DataObject, exported, original: bytes, tmp_path
) -> None:
    at, flip = data.draw(st.integers(0, len(original) - 1)), data.draw(st.integers(1, 255))
    (tmp_path / "flip.pt2").write_bytes(original[:at] + bytes([original[at] ^ flip]) + original[at + 1 :])
    try:
        network = read_model(tmp_path / "flip.pt2")
    except ModelError:
        return
    whole = read_model(exported("mlp", False))
    assert all((network.weights[k] == whole.weights[k]).all() for k in whole.weights)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_are_never_inflated(compression: int, exported: Exported, tmp_path: Path) -> None:
    contents = surgery.members(exported("mlp"))
    contents["data/weights/weight_0"] = bytes(50 * 2**20)  # 50 MiB in 50 kB
    surgery.write(tmp_path / "bomb.pt2", contents, compression=compression)
    with pytest.raises(ModelError, match="compressed") as error:
        read_model(tmp_path / "bomb.pt2")
    assert "zip -0" in error.value.problem()["advice"]


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../../evil", "/etc/passwd", "a//b", "./a", "a/.", "a\\b", "C:a", "a\nb", "a\x00b", "x" * 1100],
)
def test_names_that_leave_the_archive(name: str, exported: Exported, tmp_path: Path) -> None:
    contents = surgery.members(exported("mlp"))
    longer = surgery.write(tmp_path / "long.pt2", {**contents, "extra/" + "y" * (len(name.encode()) + 8): b"x"})
    raw = longer.read_bytes().replace(b"m/extra/" + b"y" * (len(name.encode()) + 8), _padded(name))
    refused(raw, tmp_path, "name that is not allowed")


def _padded(name: str) -> bytes:
    """The name at the end of a path of fixed length: 16 bytes more than the name."""
    return (b"m/extra/zzzzzzz/" + name.encode())[-(len(name.encode()) + 16) :]


@pytest.mark.parametrize("second", ["data/weights/weight_0", "data/weights/WEIGHT_0"])
def test_duplicate_names(second: str, exported: Exported, tmp_path: Path) -> None:
    path = surgery.write(tmp_path / "bad.pt2", surgery.members(exported("mlp")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(f"m/{second}", b"other")
    with pytest.raises(ModelError, match="two members"):
        read_model(path)


def test_members_in_two_folders(exported: Exported, tmp_path: Path) -> None:
    path = surgery.write(tmp_path / "bad.pt2", surgery.members(exported("mlp")))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("n/archive_format", b"pt2")
    with pytest.raises(ModelError, match="one folder"):
        read_model(path)


def central(data: bytes, index: int) -> int:
    """Where an entry of the central directory begins."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.start_dir
    for _ in range(index):
        at = data.index(b"PK\x01\x02", at + 4)
    return at


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, struct.pack("<H", 1), "encrypted|disagrees"),
        (20, struct.pack("<L", 5), "compressed"),
        (24, struct.pack("<L", 2**30), "compressed"),
        (20, struct.pack("<2L", 2**30, 2**30), "disagrees|beyond"),
        (20, struct.pack("<2L", 2**32 - 1, 2**32 - 1), "64-bit size is missing"),
        (34, struct.pack("<H", 1), "encrypted"),
        (42, struct.pack("<L", 0), "disagrees|overlap"),
        (42, struct.pack("<L", 2**31), "header of member"),
        (28, struct.pack("<H", 60000), "cut short"),
        (16, struct.pack("<L", 7), "disagree"),
    ],
)
def test_directory_entries_that_lie(offset: int, value: bytes, message: str, original: bytes, tmp_path: Path) -> None:
    at = central(original, 3) + offset
    refused(original[:at] + value + original[at + len(value) :], tmp_path, message)


def test_a_damaged_weight_is_noticed(original: bytes, exported: Exported, tmp_path: Path) -> None:
    member = Archive(exported("mlp", False)).members["mlp-static/data/weights/weight_0"]
    at = member.offset + 5
    refused(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :], tmp_path, "checksum")


def test_members_that_overlap(exported: Exported, tmp_path: Path) -> None:
    contents = surgery.members(exported("mlp"))
    data = surgery.write(tmp_path / "a.pt2", contents).read_bytes()
    first, second = central(data, 0), central(data, 1)
    name = lambda at: data[at + 46 : at + 46 + int.from_bytes(data[at + 28 : at + 30], "little")]  # noqa: E731
    copy = data[first : first + 46] + name(first)[:-1] + b"9"
    assert len(name(first)) == len(name(second))
    refused(data[:second] + copy + data[second + len(copy) :], tmp_path, "disagrees|overlap")


@pytest.mark.parametrize("tail", [b"x", b"\x00" * 30])
def test_trailing_bytes_and_comments(tail: bytes, original: bytes, tmp_path: Path) -> None:
    refused(original + tail, tmp_path, "end of its directory")
    comment = original[:-2] + struct.pack("<H", len(tail)) + tail
    refused(comment, tmp_path, "end of its directory|comment")


def test_an_archive_that_python_wrote_is_read_and_patched(exported: Exported, tmp_path: Path) -> None:
    path = surgery.write(tmp_path / "python.pt2", surgery.members(exported("mlp")))
    network = read_model(path)
    zeros = {layer.weight: network.weights[layer.weight] * 0 for layer in network.layers}
    write_model(network.with_weights(zeros), path, tmp_path / "zeros.pt2")
    assert all(read_model(tmp_path / "zeros.pt2").weights[key].count_nonzero() == 0 for key in zeros)
    with zipfile.ZipFile(tmp_path / "zeros.pt2") as archive:
        assert archive.testzip() is None
