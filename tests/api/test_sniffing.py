"""What the first bytes say."""

from __future__ import annotations

import io
import pickle
import tarfile

import pytest

from api.sniff import SNIFFED_BYTES, sniff
from jobs.errors import UnsupportedMedia
from jobs.ids import UploadKind
from tests.api.live_api import safetensors_bytes, zip_bytes


def tar_bytes() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"), io.BytesIO())
    return out.getvalue()


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_the_formats_that_are_read_are_known(kind: UploadKind) -> None:
    assert sniff(kind, zip_bytes(10)) == "zip"
    assert sniff(kind, safetensors_bytes()) == "safetensors"


def test_a_model_may_be_onnx() -> None:
    head = b"\x08\x08\x12\x07pytorch\x1a\x05" + bytes(8)
    assert sniff("model", head) == "onnx"
    with pytest.raises(UnsupportedMedia, match="ONNX"):
        sniff("dataset", head)


def test_data_may_be_parquet_or_tar() -> None:
    assert sniff("dataset", b"PAR1" + bytes(10)) == "parquet"
    assert sniff("dataset", tar_bytes()[:SNIFFED_BYTES]) == "tar"


@pytest.mark.parametrize(
    ("head", "guess"),
    [
        (pickle.dumps({"weight": 1}), "pickle"),
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "HDF5"),
        (b"\x1f\x8b\x08\x00" + bytes(8), "gzip"),
        (b"\x89PNG\r\n\x1a\n" + bytes(8), "PNG"),
        (b"\x93NUMPY\x01\x00v\x00", ".npy"),
        (b"PAR1" + bytes(10), "Parquet"),
        (b"PK\x05\x06" + bytes(18), "empty zip"),
        (b'{"config": 1}', "JSON"),
        (b"just some words, more than a few", "text"),
        (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        (tar_bytes()[:SNIFFED_BYTES], "tar"),
    ],
)
def test_a_known_foreign_format_is_named(head: bytes, guess: str) -> None:
    with pytest.raises(UnsupportedMedia, match=guess) as caught:
        sniff("model", head)
    document = caught.value.problem()
    assert document["status"] == 415
    assert ".pt2" in document["expected"]
    assert guess in document["received"]
    assert document["advice"]


@pytest.mark.parametrize(
    "head",
    [
        b"\x00",
        b"PK",
        (2**40).to_bytes(8, "little") + b'{"',  # a header of a terabyte
        (0).to_bytes(8, "little") + b"{}",
        (64).to_bytes(8, "little") + b"[1]",
        bytes(range(200, 256)),
    ],
)
def test_what_is_not_known_is_shown_as_bytes(head: bytes) -> None:
    with pytest.raises(UnsupportedMedia) as caught:
        sniff("dataset", head)
    assert head[:16].hex(" ") in caught.value.problem()["received"]
    assert ".npz" in caught.value.problem()["expected"]
