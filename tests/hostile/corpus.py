"""The hostile corpus: for every way to lie in a model's archive and graph, the smallest file that does it."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.hostile import base
from tests.hostile.base import GRAPH, WEIGHTS, Contents, central_entries, given, ints, node, patched, tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """Files of one kind of attack, and what must come of each.

    Attributes:
        name: Of the attack.
        kind: What the files are sent as.
        files: Their bytes.
        outcome: "refused" with a problem; "read" as if the attack were not there; "either".
        says: A pattern that the problem's text matches.
    """

    name: str
    kind: Literal["model", "dataset", "mask"] = "model"
    files: tuple[bytes, ...]
    outcome: Literal["refused", "read", "either"] = "refused"
    says: str = ""


class Bomb:
    """Unpickling it makes a folder: proof that code ran."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


def code(marker: Path) -> Iterator[Case]:
    """The vectors of DESIGN section 4: what torch.export.load would run."""
    bomb, code = pickle.dumps(Bomb(marker)), f"__import__('os').mkdir({str(marker)!r})"

    def pickled(table: dict[str, Any]) -> None:
        table["config"]["0.weight"]["use_pickle"] = True

    def bombed(change: Callable[[dict[str, Any]], Any]) -> bytes:
        table = base.weights_table()
        change(table)
        return base.pt2(lambda m: m.update({WEIGHTS: json.dumps(table).encode(), "data/weights/weight_0": bomb}))

    def put(name: str, data: bytes = bomb) -> bytes:
        return base.pt2(lambda m: m.update({name: data}))

    def constant(members: Contents) -> None:
        found = {"c": {**base.weights_table()["config"]["0.bias"], "path_name": "tensor_0", "use_pickle": True}}
        members.update({base.CONSTANTS: json.dumps({"config": found}).encode(), "data/constants/tensor_0": bomb})

    def expressions(whole: dict[str, Any]) -> None:
        whole["guards_code"] = [code]
        whole["range_constraints"] = {code: {"min_val": 2, "max_val": None}}
        whole["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}
        whole["graph_module"]["module_call_graph"] = [{"fqn": code}]
        whole["graph_module"]["metadata"] = {"nn_module_stack": code, "source_fn_stack": code}

    def target(name: str, **arguments: Any) -> bytes:
        return base.with_nodes(lambda nodes: nodes.insert(2, {**node("aten.x", "y", **arguments), "target": name}))

    text = {"as_string": "/etc/passwd"}
    yield Case(name="pickle in the table of weights", files=(bombed(pickled),), says="pickle")
    yield Case(name="pickle in the table of constants", files=(base.pt2(constant),), says="pickle")
    yield Case(name="pickle as sample inputs", files=(put("data/sample_inputs/model.pt"),), outcome="read")
    yield Case(name="pickle as an extra file", files=(put("extra/data.pkl"),), outcome="read")
    old = ("data/weights/model.pt", "data/constants/model.pt", "weights/model.pt", "constants.pkl")
    yield Case(name="weights of an old archive", files=tuple(put(name) for name in old), says="old, pickled|not known")
    yield Case(name="custom objects", files=(put("data/constants/custom_obj_0"), put("data/constants/opaque_obj_0")))
    libraries = ("data/aotinductor/m/m.so", "data/aotinductor/m/m.cpp", "data/weights/x.so", "lib.dll", "x.pyd")
    elf = b"\x7fELF" + bytes(60)
    yield Case(name="shared library", files=tuple(put(name, elf) for name in libraries), says="compiled code|not known")
    yield Case(name="TorchScript", files=(put("code/__torch__.py", code.encode()), put("model.json", b"{}")))
    yield Case(name="expressions and guards", files=(base.with_graph(expressions),), outcome="read")
    yield Case(
        name="operations that touch files or code",
        files=(
            target("torch.ops.aten.from_file.default", filename=text, shared={"as_bool": True}, size={"as_int": 100}),
            target("torch.ops.load_library", path=text),
            target("torch.ops.aten.save.default", self=tensor("relu"), filename=text),
            *(
                target(name, a=text)
                for name in ("os.system", "builtins.eval", "_operator.methodcaller", "pickle.loads")
            ),
            target("torch.ops.higher_order.call_torchbind", obj={"as_custom_obj": {"name": "x", "class_fqn": "y"}}),
            target("torch.ops.aten.relu.__globals__", self=tensor("relu")),
            target("_operator.__builtins__", a=text),
        ),
        says="uses|as_custom_obj",
    )


def pickles(marker: Path) -> Iterator[Case]:
    """Files of torch.save: pickles that call, build, allocate or nest."""

    def put(table: bytes, **more: bytes) -> bytes:
        return base.zipped({"data.pkl": table, "version": b"3\n", "byteorder": b"little", "data/0": bytes(48), **more})

    def call(name: bytes, *arguments: bytes) -> bytes:
        return b"\x80\x02}X\x01\0\0\0xc" + name + b"\n(" + b"".join(arguments) + b"tRs."

    text, huge, size = str(marker).encode(), b"J\xff\xff\xff\x7f", b"K\x0c"
    made = b"X" + struct.pack("<L", len(text)) + text
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu%stQ"
    rebuild = b"torch._utils\n_rebuild_tensor_v2"
    rest = b"\x89ccollections\nOrderedDict\n)R"
    names = (
        b"os\nmkdir",
        b"posix\nmkdir",
        b"builtins\neval",
        b"builtins\nbytearray",
        b"_codecs\nencode",
        b"torch\nload",
    )
    yield Case(
        name="pickles that call",
        files=(
            put(pickle.dumps({"x": Bomb(marker)}, 2)),
            put(pickle.dumps({"x": Bomb(marker)}, 5)),
            *(put(call(name, made)) for name in names),
            put(call(b"builtins\nbytearray", huge)),
            put(call(b"torch\nTensor", huge)),
            put(call(b"torch._utils\n_rebuild_sparse_tensor", made)),
        ),
        says="more in it than tensors",
    )
    yield Case(
        name="pickles whose tensors claim too much",
        files=(
            put(call(rebuild, storage % huge, b"K\0", b"K\x0c\x85", b"K\1\x85", rest)),
            put(call(rebuild, storage % size, b"K\0", huge + b"\x85", b"K\1\x85", rest)),
            put(call(rebuild, storage % size, huge, b"K\x0c\x85", b"K\1\x85", rest)),
            put(call(rebuild, storage % size, b"K\0", huge + huge + b"\x86", b"K\0K\0\x86", rest)),
            put(call(rebuild, storage % b"J\xff\xff\xff\xff", b"K\0", b"K\x0c\x85", b"K\1\x85", rest)),
            put(call(rebuild, storage % (b"\x8a\x08" + b"\xff" * 7 + b"\x7f"), b"K\0", b"K\x0c\x85", b"K\1\x85", rest)),
        ),
    )
    yield Case(
        name="pickles that are none, or nest",
        files=tuple(
            put(table)
            for table in (
                *(b"", b".", b"\x80\x02.", b"\x80\x02}", b"\xff" * 100, b"\x80\x02(((((.", b"\x80\x02h\x07."),
                *(b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".", b"\x80\x02" + b"}q\0h\0h\0s" * 10**5 + b"."),
                *(
                    b"\x80\x02" + b")" + b"\x85" * 10**6 + b".",
                    b"\x80\x02X\xff\xff\xff\xffx.",
                    b"I" + b"9" * 10**5 + b"\n.",
                ),
            )
        ),
    )


def archives() -> Iterator[Case]:
    """Lies about members: names, sizes, places, checksums, numbers of them."""
    sound = base.pt2()
    entries = central_entries(sound)
    end = len(sound) - 22

    def put(name: str) -> bytes:
        return base.pt2(lambda m: m.update({name: b"x"}))

    yield Case(name="a sound archive", files=(sound,), outcome="read")
    tricks = (
        "../../x",
        "extra/../../x",
        "/etc/cron.d/x",
        "extra//x",
        "./x",
        "extra/.",
        "C:/x",
        "extra/C:x",
        "extra/a\nb",
    )
    yield Case(name="names that lead out", files=tuple(put(name) for name in tricks), says="name that is not allowed")
    odd = ("extra/a\u202egnp.so", "extra/\u200b", "extra/\ufeff", "extra/\u2028", "extra/" + "x" * 1100)
    yield Case(name="names that are not what they look like", files=tuple(map(put, odd)), says="not allowed")
    # zipfile cuts a name at NUL and turns backslashes round, so these are put in afterwards
    spot = put("extra/abcd")
    yield Case(
        name="NUL, backslash, CESU-8 and Latin-1 in names",
        files=tuple(
            spot.replace(b"extra/abcd", b"extra/" + new) for new in (b"a\0bc", b"..\\x", b"\xed\xa0\x80x", b"\xe9abc")
        ),
        says="name",
    )
    wide = ("extra/e\u0301", "extra/\u00e9", "extra/\u5b57", "extra/\U0001f600")
    yield Case(name="names beyond ASCII", files=tuple(map(put, wide)), outcome="read")

    case = base.pt2(lambda m: m.update({"data/weights/WEIGHT_0": b"x"}))
    copy = spot.replace(b"m/extra/abcd", b"m/.data/VERSIO"[:12])
    yield Case(name="the same name twice", files=(case, copy), says="two members|not known|name")
    link = bytearray(sound)
    for at in entries:
        link[at + 38 : at + 42] = struct.pack("<L", 0o120777 << 16)
    yield Case(name="members that say they are links", files=(bytes(link),), outcome="read")
    yield Case(
        name="compressed members",
        files=tuple(
            base.zipped({**base.contents(), "data/weights/weight_0": bytes(2**24)}, compression=method)
            for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
        ),
        says="compressed",
    )
    inner = base.zipped({"a": bytes(2**20)}, compression=zipfile.ZIP_DEFLATED)
    yield Case(
        name="a bomb within, never opened",
        files=(base.pt2(lambda m: m.update({"extra/b.zip": inner})),),
        outcome="read",
    )
    first, second = entries[0], entries[1]
    quoted = patched(sound, second + 42, sound[first + 42 : first + 46])
    yield Case(name="two entries for one member", files=(quoted,), says="disagrees|overlap")
    fields = (
        *((8, struct.pack("<H", flag)) for flag in (1, 1 << 5, 1 << 13)),
        *((10, struct.pack("<H", method)) for method in (8, 9, 12, 99)),
        *((20, struct.pack("<2L", size, size)) for size in (0, 1, 2**31, 2**32 - 2, 2**32 - 1)),
        *((28, struct.pack("<H", length)) for length in (0, 1, 0xFFFF)),
        *((30, struct.pack("<H", length)) for length in (4, 0xFFFF)),
        *((42, struct.pack("<L", place)) for place in (0, 1, end, 2**32 - 1)),
        *((at, b"\xff\xff") for at in (6, 32, 34)),
        (16, b"\0\0\0\0"),
        (46, b"/"),
    )
    yield Case(
        name="directory entries that lie",
        files=tuple(patched(sound, entries[1] + at, value) for at, value in fields),
        outcome="refused",
    )
    local = struct.unpack_from("<L", sound, entries[1] + 42)[0]
    places = (
        (0, b"PK\7\x08"),
        (6, b"\1\0"),
        (8, b"\x08\0"),
        (14, bytes(4)),
        (18, b"\1"),
        (22, b"\xff" * 4),
        (26, b"\1\0"),
        (30, b"n"),
    )
    yield Case(name="local headers that disagree", files=tuple(patched(sound, local + at, v) for at, v in places))
    ends = (
        *((at, b"\1\0") for at in (4, 6, 8, 20)),
        *((at, struct.pack("<H", 0xFFFF)) for at in (8, 10)),
        *((12, struct.pack("<L", size)) for size in (0, 2**31, 2**32 - 1)),
        *((16, struct.pack("<L", place)) for place in (0, end, 2**32 - 1)),
    )
    yield Case(name="directory ends that lie", files=tuple(patched(sound, end + at, value) for at, value in ends))
    start, size = struct.unpack_from("<2L", sound, end + 12)[::-1]
    yield Case(
        name="zip64 ends", files=tuple(_zip64(sound, end, *lie) for lie in _zip64_lies(len(entries), size, start))
    )
    yield Case(name="a sound zip64 end", files=(_zip64(sound, end, len(entries), size, start),), outcome="read")
    yield Case(
        name="a million members",
        files=(_zip64(sound, end, 10**6, size, start), _members(100_001)),
        says="too many members|disagree|does not end",
    )
    yield Case(
        name="polyglots",
        files=(b"\x7fELF" + sound, b"%PDF-1.7\n" + sound, b"#!/bin/sh\n" + sound, sound + b"<html>", sound + sound),
    )
    yield Case(name="bytes that no member owns", files=(_with_gap(sound, b"\x7fELF" + bytes(60)),), outcome="read")


def _zip64_lies(count: int, size: int, start: int) -> Iterator[tuple[int, ...]]:
    yield count + 1, size, start
    yield count, size + 1, start
    yield count, size, start + 1
    yield 2**64 - 1, size, start
    yield count, 2**64 - 1, start
    yield count, size, 2**64 - 1
    yield count, 0, start + size
    yield count, 2**63, 2**63 + start + size


def _zip64(data: bytes, end: int, count: int, size: int, start: int) -> bytes:
    """The archive with a zip64 end that says this."""
    full = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    return data[:end] + full + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, *(2**32 - 1,) * 2, 0)


def _members(count: int) -> bytes:
    """An archive of so many empty members, each with a header of its own."""
    data, directory = bytearray(), bytearray()
    for i in range(count):
        name = b"m/extra/%07d" % i
        directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, *(0,) * 7, len(name), *(0,) * 5, len(data)) + name
        data += struct.pack("<4s5H3L2H", b"PK\3\4", 20, *(0,) * 7, len(name), 0) + name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, *(2**32 - 1,) * 2, 0)
    return _zip64(bytes(data + directory + end), len(data) + len(directory), count, len(directory), len(data))


def _with_gap(data: bytes, gap: bytes) -> bytes:
    """The archive with bytes between its last member and its directory."""
    end = len(data) - 22
    start = struct.unpack_from("<L", data, end + 16)[0]
    tail = patched(data[start:], end - start + 16, struct.pack("<L", start + len(gap)))
    return data[:start] + gap + tail


def tables() -> Iterator[Case]:
    """Tables of weights that claim more than there is."""

    def entry(**fields: Any) -> bytes:
        return base.with_table(lambda table: table["config"]["0.weight"].update(fields))

    def meta(**fields: Any) -> bytes:
        return base.with_table(lambda table: table["config"]["0.weight"]["tensor_meta"].update(fields))

    big = 2**63 - 1
    yield Case(
        name="strides and sizes that claim more than the record",
        files=(
            meta(sizes=ints(10**6, 10**6), strides=ints(0, 0)),
            meta(sizes=ints(big, big), strides=ints(0, 0)),
            meta(sizes=ints(*[2] * 60), strides=ints(*[0] * 60)),
            meta(sizes=ints(2**21), strides=ints(0)),
            meta(sizes=ints(5, 3)),
            meta(strides=ints(big, 1)),
            meta(storage_offset={"as_int": big}),
            meta(storage_offset={"as_int": 2**60}, sizes=ints(0, 3)),
        ),
        says="claims more than its record",
    )
    yield Case(name="overlap within bounds", files=(meta(sizes=ints(512, 3), strides=ints(0, 1)),), outcome="either")
    yield Case(
        name="sizes that are none",
        files=(
            *(
                meta(sizes=ints(value, 3))
                for value in (-1, 2**63, 10**40, True, None, 1.5, float("nan"), float("inf"), "4")
            ),
            *(
                meta(sizes=value)
                for value in ("4", {}, None, [4, 3], [[]], ints(*[1] * 65), [{"as_int": 4, "as_x": 3}])
            ),
            meta(sizes=ints(4)),
            meta(strides=ints(-3, 1)),
            *(meta(dtype=value) for value in (0, 9, 14, 29, 1000, -1, "7", None, 2**70)),
            *(meta(layout=value) for value in (1, 2, 99)),
        ),
    )
    paths = (
        "../../../etc/passwd",
        "/etc/passwd",
        "weight_99",
        "model_weights_config.json",
        "weight_",
        "weight_0/",
        "",
        "weight_-1",
    )
    yield Case(name="records elsewhere", files=tuple(entry(path_name=path) for path in paths), says="not there")
    renamed = base.with_table(lambda table: table["config"].update({"__metadata__": table["config"]["0.weight"]}))
    yield Case(name="a name that no masks file can hold", files=(renamed,), says="__metadata__")
    yield Case(
        name="tables that are none",
        files=tuple(
            base.pt2(lambda m, data=data: m.update({WEIGHTS: data}))  # type: ignore[misc]
            for data in (
                *(b"", b"{", b"[]", b"null", b"\xff\xfe{\0}\0", b"[" * 5000, b'{"config":' * 3000, b'{"config": NaN}'),
                *(
                    b'{"config": {"a": ' + b"9" * 5000 + b"}}",
                    b'{"config": {"\\ud800": {}}}',
                    b'{"config": {"' + b"a" * 600 + b'": {}}}',
                ),
            )
        ),
    )


def _deep(levels: int, key: str) -> bytes:
    """An archive with an argument that nests in itself; its text is put together here, json.dumps could not."""
    opening, closing = ('{"%s":', "}") if key.startswith("as_sym") else ('{"%s":[', "]}")
    text = (opening % key) * levels + '{"as_none":true}' + closing * levels
    whole = base.document()
    whole["graph_module"]["graph"]["nodes"][1]["inputs"][0]["arg"] = "HERE"
    return base.pt2(lambda members: members.update({GRAPH: json.dumps(whole).replace('"HERE"', text).encode()}))


def graphs() -> Iterator[Case]:
    """Graphs that are no straight-line program, or ask for too much."""

    def where(place: str) -> Callable[[list[Any]], Any]:
        return lambda nodes: nodes[1]["inputs"][0].update(arg=tensor(place))

    def outputs(value: Any) -> bytes:
        return base.with_graph(lambda d: d["graph_module"]["graph"].update(outputs=value))

    def cycle(nodes: list[Any]) -> None:
        nodes[0]["inputs"][0]["arg"] = tensor("out")

    yield Case(
        name="cycles and names that are not defined",
        files=(
            *(base.with_nodes(where(place)) for place in ("relu", "out", "nowhere", "", "p_0_weight\0", "\u202e")),
            base.with_nodes(cycle),
            base.with_nodes(lambda nodes: nodes.reverse()),
            base.with_nodes(lambda nodes: nodes.append(nodes[0])),
            outputs([tensor("nowhere")]),
        ),
        says="defined|twice",
    )
    yield Case(name="no outputs", files=(outputs([]), outputs([{"as_none": True}]), outputs(None)))
    yield Case(
        name="argument lists that nest",
        files=tuple(
            _deep(levels, key)
            for levels in (3, 100, 200, 240, 300, 320, 400, 450, 480, 490, 900, 960, 990)
            for key in ("as_optional_tensors", "as_nested_tensors", "as_sym_int")
        ),
        outcome="either",
    )
    region = {"inputs": [], "outputs": [], "nodes": []}
    for _ in range(30):
        call = {"name": "", "arg": {"as_graph": {"name": "g", "graph": region}}}
        inner = {"target": "torch.ops.higher_order.wrap_with_set_grad_enabled", "outputs": [], "name": "r"}
        region = {
            "inputs": [],
            "outputs": [],
            "nodes": [{**inner, "inputs": [{"name": "", "arg": {"as_bool": False}}, call]}],
        }
    yield Case(name="regions that nest", files=(base.with_nodes(lambda n: n.extend(region["nodes"])),), says="deeply")
    yield Case(
        name="too many nodes", files=(base.with_nodes(lambda n: n.extend([{"target": ""}] * 60_000)),), says="large"
    )
    yield Case(
        name="too many values", files=(_values(b"[],", 4_100_000), _values(b"0,", 8_100_000)), says="too many values"
    )
    yield Case(name="a long chain of views and one write", files=(_views(40_000),), outcome="either")
    yield Case(name="writes that must stay", files=(writes_that_stay(20_000),), says="in place|writes")
    yield Case(
        name="writes through many views",
        files=(
            _written_views("aten.alias.default", 20_000),
            _written_views("aten.t.default", 20_000),
            _deep_writes(3000),
        ),
        outcome="either",
    )
    yield Case(name="many layers behind one long computation", files=(_computed(20_000),), outcome="either")

    def x(**arguments: Any) -> Callable[[list[Any]], Any]:
        return lambda nodes: nodes[1].update(inputs=given(**arguments))

    yield Case(
        name="arguments of the wrong kind",
        files=(
            *(
                base.with_nodes(x(self=arg))
                for arg in ({"as_graph": {}}, {"as_operator": "x"}, {"as_custom_obj": {}}, {}, [], "x")
            ),
            base.with_nodes(x(self=tensor("linear"), out=tensor("linear"))),
            base.with_nodes(x(self={"as_tensor": None})),
            base.with_nodes(x(self={"as_float": "1e999"})),
            base.with_nodes(x(self={"as_int": 2**64})),
            base.with_nodes(x(self={"as_ints": [0] * 10_001})),
            base.with_nodes(lambda nodes: nodes[1].update(outputs=[{"as_tensors": "x"}])),
            base.with_nodes(lambda nodes: nodes[1].pop("target")),
            base.with_graph(lambda d: d["schema_version"].update(major=9)),
            base.with_graph(lambda d: d["schema_version"].update(major=float("nan"))),
            base.with_graph(lambda d: d["graph_module"].update(signature=None)),
        ),
    )


def _values(one: bytes, count: int) -> bytes:
    """A graph of so many small values."""
    return base.pt2(lambda members: members.update({GRAPH: b'{"x": [' + one * count + b"0]}"}))


def _views(count: int) -> bytes:
    """A chain of views, at whose end is written in place."""

    def change(nodes: list[Any]) -> None:
        chain = [node("aten.relu.default", "v0", self=tensor("linear"))]
        chain += [node("aten.alias.default", f"v{i + 1}", self=tensor(f"v{i}")) for i in range(count)]
        chain.append(node("aten.relu_.default", "last", self=tensor(f"v{count}")))
        nodes[1:2] = [*chain, node("aten.relu.default", "relu", self=tensor("last"))]

    return base.with_nodes(change)


def writes_that_stay(count: int) -> bytes:
    """Values that may be the same memory, each written in place while another is still read."""
    return _written_views("aten.contiguous.default", count)


def _written_views(op: str, count: int) -> bytes:
    def change(nodes: list[Any]) -> None:
        views = [node(op, f"v{i}", self=tensor("linear")) for i in range(count)]
        writes = [node("aten.relu_.default", f"w{i}", self=tensor(f"v{i}")) for i in range(count)]
        nodes[1:2] = [*views, *writes, node("aten.relu.default", "relu", self=tensor("linear"))]

    return base.with_nodes(change)


def _deep_writes(count: int) -> bytes:
    """A long chain of views, the last of them written again and again, the first read after each."""

    def change(nodes: list[Any]) -> None:
        made = [node("aten.t.default", "v0", self=tensor("linear"))]
        made += [node("aten.t.default", f"v{i + 1}", self=tensor(f"v{i}")) for i in range(count)]
        for i in range(count):
            made.append(node("aten.relu_.default", f"w{i}", self=tensor(f"v{count}")))
            made.append(node("aten.neg.default", f"r{i}", self=tensor(f"v{count // 2}")))
        nodes[1:2] = [*made, node("aten.relu.default", "relu", self=tensor("linear"))]

    return base.with_nodes(change)


def _computed(count: int) -> bytes:
    """Layers whose weights are all computed through one chain."""

    def change(nodes: list[Any]) -> None:
        chain = [node("aten.relu.default", "c0", self=tensor("p_0_weight"))]
        chain += [node("aten.relu.default", f"c{i + 1}", self=tensor(f"c{i}")) for i in range(count)]
        last = f"c{count}"
        layers = [node("aten.linear.default", f"l{i}", input=tensor("x"), weight=tensor(last)) for i in range(count)]
        nodes[0:0] = [*chain, *layers]

    return base.with_nodes(change)
