"""Sound files put together by hand, so that every part of them can be made to lie. No torch: a test makes hundreds."""

from __future__ import annotations

import copy
import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

Contents = dict[str, bytes]
GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


def ints(*values: Any) -> list[dict[str, Any]]:
    return [{"as_int": value} for value in values]


def tensor(name: str) -> dict[str, Any]:
    return {"as_tensor": {"name": name}}


def given(**arguments: Any) -> list[dict[str, Any]]:
    return [{"name": name, "arg": arg, "kind": 1} for name, arg in arguments.items()]


def node(op: str, output: str | None, /, **arguments: Any) -> dict[str, Any]:
    target = op if "." in op and not op.startswith("aten.") else f"torch.ops.{op}"
    outputs = [tensor(output)] if output else []
    return {"target": target, "inputs": given(**arguments), "outputs": outputs, "metadata": {}, "name": output or "n"}


def meta(sizes: list[int]) -> dict[str, Any]:
    strides = [int(np.prod(sizes[i + 1 :])) for i in range(len(sizes))]
    device = {"type": "cpu", "index": None}
    return {
        **{"dtype": 7, "sizes": ints(*sizes), "strides": ints(*strides), "storage_offset": {"as_int": 0}},
        **{"requires_grad": False, "device": device, "layout": 7},
    }


SHAPES = {"0.weight": [4, 3], "0.bias": [4], "2.weight": [2, 4], "2.bias": [2]}


def document() -> dict[str, Any]:
    """The graph of Linear(3, 4), ReLU, Linear(4, 2), as torch.export.save writes it."""
    names = {name: f"p_{name.replace('.', '_')}" for name in SHAPES}
    nodes = [
        node("aten.linear.default", "linear", input=tensor("x"), weight=tensor("p_0_weight"), bias=tensor("p_0_bias")),
        node("aten.relu.default", "relu", self=tensor("linear")),
        node("aten.linear.default", "out", input=tensor("relu"), weight=tensor("p_2_weight"), bias=tensor("p_2_bias")),
    ]
    values = {names[name]: meta(shape) for name, shape in SHAPES.items()}
    values |= {"x": meta([2, 3]), "linear": meta([2, 4]), "relu": meta([2, 4]), "out": meta([2, 2])}
    graph = {
        **{"inputs": [tensor(n) for n in (*names.values(), "x")], "outputs": [tensor("out")], "nodes": nodes},
        **{"tensor_values": values, "sym_int_values": {}, "sym_bool_values": {}, "sym_float_values": {}},
        **{"custom_obj_values": {}, "is_single_tensor_return": False},
    }
    specs = [{"parameter": {"arg": {"name": node}, "parameter_name": name}} for name, node in names.items()]
    signature = {
        "input_specs": [*specs, {"user_input": {"arg": tensor("x")}}],
        "output_specs": [{"user_output": {"arg": tensor("out")}}],
    }
    calls = {"fqn": "", "signature": None}
    return {
        "graph_module": {"graph": graph, "signature": signature, "module_call_graph": [calls], "metadata": {}},
        **{"opset_version": {"aten": 10}, "range_constraints": {}, "schema_version": {"major": 8, "minor": 20}},
        **{"verifiers": ["TRAINING"], "torch_version": "2.13.0+cpu", "guards_code": []},
    }


def weights_table() -> dict[str, Any]:
    entries = {}
    for i, (name, shape) in enumerate(SHAPES.items()):
        entries[name] = {
            **{"path_name": f"weight_{i}", "is_param": True, "use_pickle": False, "tensor_meta": meta(shape)},
        }
    return {"config": entries}


def contents() -> Contents:
    """The members of a sound ``.pt2`` archive."""
    random = np.random.default_rng(0)
    records = {
        f"data/weights/weight_{i}": random.standard_normal(int(np.prod(shape)), np.float32).tobytes()
        for i, shape in enumerate(SHAPES.values())
    }
    return {
        **records,
        WEIGHTS: json.dumps(weights_table()).encode(),
        CONSTANTS: b'{"config": {}}',
        GRAPH: json.dumps(document()).encode(),
        **{"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little", ".data/version": b"3\n"},
    }


def zipped(members: Contents, root: str = "m/", compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(root + name), data, compression)
    return out.getvalue()


def torch_file(tensors: dict[str, dict[str, Any]], compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """What torch.save makes of a dictionary of parameters, each with ``sizes``, and with other claims where given.

    The claims: ``strides``, ``offset``, and ``count`` of the storage. ``more`` are further members, or others.
    """
    table, records = b"\x80\x02}(", {}
    for i, (name, claim) in enumerate(tensors.items()):
        sizes = claim["sizes"]
        count = max(1, int(np.prod([abs(n) for n in sizes[:3]]))) if "strides" not in claim else 12
        records[f"data/{i}"] = np.linspace(-1, 1, min(count, 4096), dtype=np.float32).tobytes()
        table += _word(name) + b"ctorch._utils\n_rebuild_parameter\n(ctorch._utils\n_rebuild_tensor_v2\n("
        table += b"(" + _word("storage") + b"ctorch\nFloatStorage\n" + _word(str(i)) + _word("cpu")
        table += _number(claim.get("count", min(count, 4096))) + b"tQ" + _number(claim.get("offset", 0))
        strides = claim.get("strides", [int(np.prod(sizes[k + 1 :])) for k in range(len(sizes))])
        table += _numbers(sizes) + _numbers(strides)
        table += b"\x89ccollections\nOrderedDict\n)RtR\x88ccollections\nOrderedDict\n)RtR"
    whole = {"data.pkl": table + b"u.", "byteorder": b"little", **records, "version": b"3\n"}
    return zipped({**whole, **more}, "archive/", compression)


def _word(text: str) -> bytes:
    return b"X" + struct.pack("<L", len(text.encode())) + text.encode()


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<l", value) if abs(value) < 2**31 else b"\x8a\x08" + struct.pack("<q", value)


def _numbers(values: list[int]) -> bytes:
    return b"(" + b"".join(map(_number, values)) + b"t"


def pt2(change: Callable[[Contents], Any] = lambda _: None) -> bytes:
    """A sound archive, or one that ``change`` made unsound."""
    members = contents()
    change(members)
    return zipped(members)


def with_graph(change: Callable[[dict[str, Any]], Any]) -> bytes:
    whole = document()
    change(whole)
    return pt2(lambda members: members.update({GRAPH: json.dumps(whole).encode()}))


def with_nodes(change: Callable[[list[Any]], Any]) -> bytes:
    return with_graph(lambda whole: change(whole["graph_module"]["graph"]["nodes"]))


def with_table(change: Callable[[dict[str, Any]], Any]) -> bytes:
    table = copy.deepcopy(weights_table())
    change(table)
    return pt2(lambda members: members.update({WEIGHTS: json.dumps(table).encode()}))


def safetensors(header: Any, body: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header, which may be text, and what it says of its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(dtype: Any, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def npy(descr: str = "'<f4'", shape: str = "(3, 4)", order: str = "False", body: bytes | None = None) -> bytes:
    """One npy array, its header written as given."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode("latin-1")
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + (bytes(48) if body is None else body)


def npz(compression: int = zipfile.ZIP_STORED, **arrays: bytes) -> bytes:
    return zipped({f"{name}.npy": data for name, data in arrays.items()}, "", compression)


def central_entries(data: bytes) -> list[int]:
    """Where each entry of the central directory begins."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        at = archive.start_dir
    found = []
    while data[at : at + 4] == b"PK\x01\x02":
        found.append(at)
        lengths = struct.unpack_from("<3H", data, at + 28)
        at += 46 + sum(lengths)
    return found


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]
