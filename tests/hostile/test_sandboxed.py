"""A few of the corpus through the real sandbox, as the supervisor sees them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import base, corpus
from worker import sandbox
from worker.sandbox import Limits, Result

LIMITS = Limits(memory_bytes=2**30, cpu_seconds=60, file_bytes=2**22, wall_seconds=60)


def inspect(kind: str, data: bytes, folder: Path) -> Result:
    (folder / kind).write_bytes(data)
    return sandbox.run(f"inspect_{kind}", folder, {}, limits=LIMITS, on_progress=lambda _: None, stop=lambda: None)


def too_large() -> bytes:
    """An array of 1.5 GiB by its header, whose numbers (8 MiB, packed) are never reached."""
    size = 3 * 2**29
    head = base.npy("'|u1'", f"({size},)", body=b"")
    deflate = zlib.compressobj(wbits=-15)
    packed = deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH) + b"\0\0\0\xff\xff" * 1_700_000  # empty blocks
    sizes = struct.pack("<3L2H", 0, len(packed), len(head) + size, 5, 0)
    local = struct.pack("<4s5H", b"PK\3\4", 20, 0, 8, 0, 0) + sizes + b"x.npy" + packed
    entry = struct.pack("<4s6H", b"PK\1\2", 20, 20, 0, 8, 0, 0) + sizes + bytes(14) + b"x.npy"
    return local + entry + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local), 0)


def first(cases: Any, name: str) -> bytes:
    return next(case.files[0] for case in cases if case.name == name)


@pytest.mark.parametrize("name", ["pickle in the table of weights", "expressions and guards"])
def test_payloads_do_not_run(name: str, tmp_path: Path) -> None:
    data = first(corpus.code(tmp_path / "marker"), name)
    found = inspect("model", data, tmp_path)
    assert found.status == ("ok" if name.startswith("expressions") else "failed"), found
    assert not (tmp_path / "marker").exists()


def test_what_inflates_beyond_the_memory_ends_with_that_limit(tmp_path: Path) -> None:
    found = inspect("dataset", too_large(), tmp_path)
    assert found.status == "failed", found
    assert found.problem is not None
    assert found.problem.get("limit") == "memory_bytes", found.problem
