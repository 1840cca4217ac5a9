"""Mask files: what is read, and what is refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from pruning_core.errors import MaskError
from pruning_core.formats.masks import MAX_MASKS, read_masks, write_masks

MASKS = {"b.weight": torch.tensor([[True, False, True]]), "a.weight": torch.tensor([False])}


def header(entries: dict[str, object], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(first: int, last: int, *shape: int, dtype: str = "BOOL") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def test_what_is_written_is_read_by_us_and_by_the_library(tmp_path: Path) -> None:
    write_masks(MASKS, tmp_path / "masks")
    for found in (read_masks(tmp_path / "masks"), load_file(tmp_path / "masks")):
        assert sorted(found) == ["a.weight", "b.weight"]
        assert all(torch.equal(found[name], mask) and found[name].dtype == torch.bool for name, mask in MASKS.items())
    first = (tmp_path / "masks").read_bytes()
    write_masks(dict(reversed(MASKS.items())), tmp_path / "masks")
    assert (tmp_path / "masks").read_bytes() == first


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no safetensors"),
        (b"PK\x03\x04 zip", "no safetensors"),
        ((2**62).to_bytes(8, "little") + b"{}", "no safetensors"),
        (header({}), "holds 0 masks"),
        (save({"w": torch.ones(3)}), "not boolean"),
        (save({"w": torch.ones(3, dtype=torch.uint8)}), "not boolean"),
        (save({"w": torch.ones(0, dtype=torch.bool)}), "empty"),
        (header({"w": entry(0, 2, 2)}, b"\x01\x02"), "neither 0 nor 1"),
        (header({"w": entry(0, 10**15, 10**15)}, b"\x01"), "beyond the end"),
        (header({"w": entry(0, 2, 2)}, b"\x01"), "beyond the end"),
        (header({"v": entry(0, 2, 2), "w": entry(1, 3, 2)}, bytes(3)), "does not begin"),
        (header({"w": entry(0, 1, 1)}, bytes(3)), "belong to no tensor"),
        (header({"w": entry(0, 4, -2, -2)}, bytes(4)), "another size"),
        (header({"w": {"dtype": "BOOL"}}), "w"),
        (header({"x" * 2000: entry(0, 1, 1)}, bytes(1)), "too long"),
        (header({f"w{n}": entry(n, n + 1, 1) for n in range(MAX_MASKS + 1)}, bytes(MAX_MASKS + 1)), "masks"),
        ((7).to_bytes(8, "little") + b'{"w": [', "JSON"),
    ],
)
def test_what_is_no_mask_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "masks").write_bytes(data)
    with pytest.raises(MaskError, match=words) as caught:
        read_masks(tmp_path / "masks")
    problem = caught.value.problem()
    assert (problem["status"], problem["type"]) == (422, "urn:pruning-service:problem:invalid-mask")
    assert problem["advice"]
