"""The hostile corpus, continued: ``.pt2`` archives as torch 2.4 to 2.8 wrote them, with files of torch.save inside."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile import base
from tests.hostile.base import Contents, central_entries, patched, torch_file
from tests.hostile.case import Bomb, Case

GRAPH, STATE, CONSTANTS = "serialized_exported_program.json", "serialized_state_dict.pt", "serialized_constants.pt"
INPUTS = "serialized_example_inputs.pt"
#: The same in the layout of torch 2.8.
_IN_FOLDERS = {GRAPH: base.GRAPH, STATE: "data/weights/model.pt", CONSTANTS: "data/constants/model.pt"}
_IN_FOLDERS |= {INPUTS: "data/sample_inputs/model.pt"}


def contents(major: int = 8, **tensors: Any) -> Contents:
    """The members of a sound archive of torch 2.7, its tensors with other claims where they are given."""
    whole = base.document()
    whole["schema_version"] = {"major": major, "minor": 7}
    return {
        GRAPH: json.dumps(whole).encode(),
        STATE: torch_file({name: {"sizes": sizes} | tensors for name, sizes in base.SHAPES.items()}),
        CONSTANTS: torch_file({}),
        INPUTS: torch_file({}),
        "version": b"8.7",
    }


def old(change: Callable[[Contents], Any] = lambda _: None) -> tuple[bytes, bytes]:
    """A sound archive in both layouts, or what ``change`` made of it."""
    members = contents()
    change(members)
    folded = {_IN_FOLDERS.get(name, f"extra/{name}"): data for name, data in members.items()}
    plain = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"3\n"}
    return base.zipped(members, ""), base.zipped({**folded, **plain})


def put(name: str, data: bytes) -> tuple[bytes, bytes]:
    return old(lambda members: members.update({name: data}))


def archives(marker: Path) -> Iterator[Case]:
    """Pickles that call, sizes that lie, archives within archives that do."""
    bomb = pickle.dumps(Bomb(marker), 2)
    called = base.zipped({"data.pkl": bomb, "version": b"3\n", "byteorder": b"little"}, "archive/")
    inside = base.zipped({"data.pkl": pickle.dumps({"x": Bomb(marker)}, 2), "version": b"3\n"}, "archive/")
    sound = torch_file({name: {"sizes": sizes} for name, sizes in base.SHAPES.items()})
    yield Case(name="sound archives of older layouts", files=old(), outcome="read")
    yield Case(
        name="pickles in older layouts",
        files=tuple(file for name in (STATE, CONSTANTS) for data in (bomb, called, inside) for file in put(name, data)),
        says="truncated or damaged|more in it than tensors",
    )
    yield Case(
        name="pickles where older layouts are never opened",
        files=(*put(INPUTS, bomb), *put(INPUTS, called), *put("extra_files/x.pkl", bomb)),
        outcome="read",
    )
    huge = 2**31 - 1
    claims: tuple[dict[str, Any], ...] = (
        {"count": huge},
        {"sizes": [10**6, 10**6], "strides": [0, 0]},
        {"sizes": [huge, huge], "strides": [0, 0]},
        {"sizes": [2] * 60, "strides": [0] * 60},
        {"sizes": [1] * 65, "strides": [1] * 65},
        {"sizes": [4, 3], "strides": [huge, 1]},
        {"sizes": [1, 3], "strides": [2**63 - 1, 1]},
        {"offset": huge},
        {"offset": 1},
        {"sizes": [4, 3], "strides": [1]},
        {"sizes": [-1, 3]},
        {"sizes": [4, -(2**63)], "strides": [4, 1]},
    )
    yield Case(
        name="tensors of older layouts that claim too much",
        files=tuple(
            file
            for claim in claims
            for name, tensors in ((STATE, base.SHAPES), (CONSTANTS, {"c": [4, 3]}))
            for file in put(name, torch_file({key: {"sizes": size, **claim} for key, size in tensors.items()}))
        ),
    )
    yield Case(name="files within that lie", files=tuple(f for data in _lies(sound) for f in put(STATE, data)))
    names = ("../x", "/etc/x", "extra_files/../../x", "serialized_state_dict.pt/archive/data/0", STATE.upper())
    names += ("serialized_state_dict.json", "archive/data.pkl", "x.so", "extra_files//x", "model.json", "extra_files")
    yield Case(
        name="members of older layouts that should not be there",
        files=tuple(put(name, b"x")[0] for name in names),
        says="not known|not allowed|two members|compiled code",
    )
    yield Case(
        name="archives of two layouts at once",
        files=(
            base.pt2(lambda m: m.update({"data/weights/model.pt": sound})),
            base.zipped({**contents(), **{f"m/{name}": data for name, data in base.contents().items()}}, ""),
            base.zipped({**base.contents(), GRAPH: contents()[GRAPH]}),
        ),
        says="two forms|not known",
    )
    yield Case(
        name="archives of older layouts that lack something",
        files=tuple(
            file
            for name in (STATE, CONSTANTS, GRAPH)
            for file in old(lambda m, n=name: m.pop(n))  # type: ignore[misc]
        ),
    )
    yield Case(
        name="versions of the schema that no fixture proves",
        files=tuple(base.zipped(contents(major), "") for major in (-1, 0, 1, 4, 6, 9, 2**62)),
        says="version of the export schema",
    )
    yield Case(
        name="weights of another network",
        files=put(STATE, torch_file({name: {"sizes": [2, 2]} for name in ("0.weight", "0.bias", "2.weight")})),
        says="no values",
    )


def _lies(sound: bytes) -> Iterator[bytes]:
    """Files of torch.save whose archive is not what it says."""
    with_more = (
        *({"../x": b""}, {"/x": b""}, {"x.so": b""}, {"code/x.py": b""}, {"constants.pkl": b"."}, {"DATA.PKL": b"."}),
        *({"byteorder": b"big"}, {"data.pkl": b""}, {"data.pkl": bytes(2**25)}, {"data/0": b""}, {"data/x": b""}),
    )
    for more in with_more:
        yield torch_file({name: {"sizes": sizes} for name, sizes in base.SHAPES.items()}, **more)
    yield torch_file({"x": {"sizes": [4096]}}, compression=zipfile.ZIP_DEFLATED)
    first, second = central_entries(sound)[:2]
    end = len(sound) - 22
    yield patched(sound, second + 42, sound[first + 42 : first + 46])
    yield patched(sound, first + 16, bytes(4))
    yield patched(sound, end + 16, struct.pack("<L", 2**32 - 1))
    yield patched(sound, end + 10, b"\xff\xff")
    yield from (sound[: len(sound) // 2], sound[:-1], sound + b"\0", b"", b"PK\5\6" + bytes(18), b"x" + sound)
    yield base.zipped({STATE: sound}, "archive/")


def cut() -> Iterator[tuple[str, bytes]]:
    """What is cut short: one of each layout."""
    yield from zip(("pt2 of torch 2.7", "pt2 of torch 2.8"), old(), strict=True)
