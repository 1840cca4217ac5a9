"""The compact form: every byte comes back, it is smaller than zstd alone, and nothing hostile costs memory or time."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning_core.compact import LEVEL, MAGIC, Array, CompactError, compress, expand


def sparse(sparsity: float, count: int = 50_000, dtype: str = "float32", seed: int = 0) -> bytes:
    random = np.random.default_rng(seed)
    numbers = (random.standard_normal(count) * 0.03).astype(dtype)
    numbers[random.random(count) < sparsity] = 0
    return numbers.tobytes()


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("float16", 2), ("float64", 8)])
def test_every_byte_comes_back_and_it_is_smaller_than_zstd_alone(sparsity: float, dtype: str, itemsize: int) -> None:
    first, second = sparse(sparsity, dtype=dtype), sparse(sparsity, 1000, dtype, seed=1)
    data = b"header" + first + b"between" + second + b"end"
    made = compress(data, [Array(data=second, itemsize=itemsize), Array(data=first, itemsize=itemsize)])
    assert expand(made) == data
    alone = len(zstandard.ZstdCompressor(level=LEVEL).compress(data))
    assert len(made) < alone + 300  # header, digest
    if 0.5 <= sparsity < 1 and itemsize == 4:
        assert len(made) < 0.88 * alone


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(st.tuples(st.binary(max_size=20), st.lists(st.integers(0, 3), max_size=700)), max_size=4),
    itemsize=st.sampled_from([1, 2, 4, 8]),
    missing=st.binary(min_size=1, max_size=8),
)
def test_any_file_comes_back(parts: list[tuple[bytes, list[int]]], itemsize: int, missing: bytes) -> None:
    # Weights may be alike, overlap, or stand nowhere in the file.
    weights = [np.array(numbers, dtype=f"uint{8 * itemsize}").tobytes() for _, numbers in parts]
    data = b"".join(before + weight for (before, _), weight in zip(parts, weights, strict=True))
    arrays = [Array(data=weight, itemsize=itemsize) for weight in [*weights, missing * itemsize]]
    assert expand(compress(data, arrays)) == data


def test_the_sign_of_zero_is_kept() -> None:
    weight = np.array([0.0, -0.0, 1.0, 0.0], dtype=np.float32).tobytes()
    assert expand(compress(weight, [Array(data=weight, itemsize=4)])) == weight


def packed(header: dict[str, object], *streams: bytes) -> bytes:
    packer = zstandard.ZstdCompressor()
    described = packer.compress(json.dumps(header).encode())
    return MAGIC + len(described).to_bytes(8, "little") + described + b"".join(streams)


def test_truncated_or_changed_files_are_refused() -> None:
    weight = sparse(0.9, 500)
    made = compress(b"x" + weight, [Array(data=weight, itemsize=4)])
    for end in range(len(made)):
        with pytest.raises(CompactError):
            expand(made[:end])
    for place in range(0, len(made), 7):
        changed = bytearray(made)
        changed[place] ^= 0x55
        with pytest.raises(CompactError):
            expand(bytes(changed))
    with pytest.raises(CompactError):
        expand(made + b"more")


SPAN = {"offset": 0, "count": 4, "itemsize": 4, "kept": 1, "code": "bitmap", "places": 1}


@pytest.mark.parametrize(
    ("size", "spans"),
    [
        (2**62, []),
        (16, [{**SPAN, "count": 5}]),  # beyond the end
        (16, [{**SPAN, "kept": 5}]),
        (32, [SPAN, {**SPAN, "offset": 8}]),  # overlap
        (32, [{**SPAN, "offset": 16}, SPAN]),  # out of order
        (16, [{**SPAN, "itemsize": 3}]),
        (16, [{**SPAN, "offset": -1}]),
        (16, [{**SPAN, "places": 2**40}]),
        (16, [{**SPAN, "code": "pickle"}]),
    ],
)
def test_lies_in_the_header_are_refused_before_anything_is_allocated(size: int, spans: list[object]) -> None:
    streams = [zstandard.ZstdCompressor().compress(part) for part in (b"", b"\x80", b"abcd")]
    header = {"size": size, "sha256": "0" * 64, "spans": spans, "streams": [len(part) for part in streams]}
    with pytest.raises(CompactError):
        expand(packed(header, *streams))


def test_a_bomb_is_not_inflated() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(2**28))
    header = {"size": 10, "sha256": "0" * 64, "spans": [], "streams": [len(bomb), 0, 0]}
    with pytest.raises(CompactError):
        expand(packed(header, bomb))
    with pytest.raises(CompactError):
        expand(MAGIC + len(bomb).to_bytes(8, "little") + bomb, max_bytes=2**20)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", MAGIC, MAGIC + b"\xff" * 8, MAGIC + bytes(8)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(CompactError):
        expand(data)
