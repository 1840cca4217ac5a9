"""The hostile corpus, continued: tables of weights and graphs that lie, or ask for too much."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from tests.hostile import base
from tests.hostile.base import GRAPH, WEIGHTS, given, ints, node, tensor
from tests.hostile.case import Case


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
            meta(sizes=ints(1, 3), strides=ints(big, 1)),
            meta(sizes=ints(0, 2**62, 2**62), strides=ints(1, 1, 1)),
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
    yield Case(name="a long chain of views and one write", files=(views(10_000),), outcome="either")
    yield Case(name="writes that must stay", files=(writes_that_stay(5_000),), says="in place|writes")
    yield Case(
        name="writes through many views",
        files=(
            written_views("aten.alias.default", 3_000),
            written_views("aten.t.default", 3_000),
            deep_writes(600),
        ),
        outcome="either",
    )
    yield Case(name="many layers behind one long computation", files=(computed(5_000),), outcome="either")

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


def views(count: int) -> bytes:
    """A chain of views, at whose end is written in place."""

    def change(nodes: list[Any]) -> None:
        chain = [node("aten.relu.default", "v0", self=tensor("linear"))]
        chain += [node("aten.alias.default", f"v{i + 1}", self=tensor(f"v{i}")) for i in range(count)]
        chain.append(node("aten.relu_.default", "last", self=tensor(f"v{count}")))
        nodes[1:2] = [*chain, node("aten.relu.default", "relu", self=tensor("last"))]

    return base.with_nodes(change)


def writes_that_stay(count: int) -> bytes:
    """Values that may be the same memory, each written in place while another is still read."""
    return written_views("aten.contiguous.default", count)


def written_views(op: str, count: int) -> bytes:
    def change(nodes: list[Any]) -> None:
        views = [node(op, f"v{i}", self=tensor("linear")) for i in range(count)]
        writes = [node("aten.relu_.default", f"w{i}", self=tensor(f"v{i}")) for i in range(count)]
        nodes[1:2] = [*views, *writes, node("aten.relu.default", "relu", self=tensor("linear"))]

    return base.with_nodes(change)


def deep_writes(count: int) -> bytes:
    """A long chain of views, the last of them written again and again, the first read after each."""

    def change(nodes: list[Any]) -> None:
        made = [node("aten.t.default", "v0", self=tensor("linear"))]
        made += [node("aten.t.default", f"v{i + 1}", self=tensor(f"v{i}")) for i in range(count)]
        for i in range(count):
            made.append(node("aten.relu_.default", f"w{i}", self=tensor(f"v{count}")))
            made.append(node("aten.neg.default", f"r{i}", self=tensor(f"v{count // 2}")))
        nodes[1:2] = [*made, node("aten.relu.default", "relu", self=tensor("linear"))]

    return base.with_nodes(change)


def computed(count: int) -> bytes:
    """Layers whose weights are all computed through one chain."""

    def change(nodes: list[Any]) -> None:
        chain = [node("aten.relu.default", "c0", self=tensor("p_0_weight"))]
        chain += [node("aten.relu.default", f"c{i + 1}", self=tensor(f"c{i}")) for i in range(count)]
        last = f"c{count}"
        layers = [node("aten.linear.default", f"l{i}", input=tensor("x"), weight=tensor(last)) for i in range(count)]
        nodes[0:0] = [*chain, *layers]

    return base.with_nodes(change)
