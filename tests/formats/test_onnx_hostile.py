"""ONNX files that lie: sizes, names, types, cycles, bombs; cut short and damaged anywhere."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from pruning_core.errors import InputError, ModelError
from pruning_core.formats import read_model, write_model
from tests.formats.onnx_models import floats, ints, model, node

INPUT = {"x": (1, ["n", 4])}
NODES = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["h"]), node("Relu", ["h"], ["y"])]
ARRAYS = {"w": floats(4, 3), "b": floats(3)}


def sound(change: Callable[[onnx.ModelProto], object] = lambda _: None) -> bytes:
    return model(NODES, INPUT, ARRAYS, change=change)


def refused(path: Path, data: bytes, says: str | None = None) -> None:
    path.write_bytes(data)
    with pytest.raises(ModelError, match=says) as caught:
        read_model(path)
    assert caught.value.problem()["status"] == 422


def weight(m: onnx.ModelProto) -> TensorProto:
    return m.graph.initializer[0]


def external(m: onnx.ModelProto) -> None:
    weight(m).data_location = TensorProto.EXTERNAL
    entry = weight(m).external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    weight(m).ClearField("raw_data")


def many_dimensions(m: onnx.ModelProto) -> None:
    del weight(m).dims[:]
    weight(m).dims.extend([1] * 40 + [12])


def claims(*dims: int) -> Callable[[onnx.ModelProto], None]:
    def change(m: onnx.ModelProto) -> None:
        del weight(m).dims[:]
        weight(m).dims.extend(dims)

    return change


def function(m: onnx.ModelProto) -> None:
    m.functions.append(helper.make_function("own", "f", ["x"], ["y"], [node("f", ["x"], ["y"], domain="own")], []))


LIES: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "external": (external, "another file"),
    "claims more": (claims(4000, 3000), "needs"),
    "claims less": (claims(2, 3), "needs"),
    "huge": (claims(2**62, 2**62), "impossible|needs"),
    "negative": (claims(-4, -3), "impossible|needs"),
    "many dimensions": (many_dimensions, "too many dimensions"),
    "strings": (lambda m: setattr(weight(m), "data_type", TensorProto.STRING), "type that is not read"),
    "int4": (lambda m: setattr(weight(m), "data_type", TensorProto.INT4), "type that is not read"),
    "complex": (lambda m: setattr(weight(m), "data_type", TensorProto.COMPLEX64), "type that is not read"),
    "no type": (lambda m: weight(m).ClearField("data_type"), "type that is not read"),
    "no element, other sizes huge": (
        lambda m: weight(m).dims.__setitem__(slice(None), [0, *[2**39] * 3]),
        "impossible",
    ),
    "segment": (lambda m: weight(m).segment.SetInParent(), "segmented"),
    "no name": (lambda m: setattr(weight(m), "name", ""), "name of an initialiser"),
    "long name": (lambda m: setattr(weight(m), "name", "w" * 5000), "name of an initialiser"),
    "reserved name": (lambda m: setattr(weight(m), "name", "__metadata__"), "name of an initialiser"),
    "two of one name": (lambda m: setattr(weight(m), "name", "b"), "two initialisers"),
    "sparse": (lambda m: m.graph.sparse_initializer.add(), "sparse"),
    "recursive function": (function, "functions"),
    "old opset": (lambda m: setattr(m.opset_import[0], "version", 9), "version 9"),
    "no opset": (lambda m: m.ClearField("opset_import"), "version 0"),
    "no output": (lambda m: m.graph.ClearField("output"), "returns no tensor"),
    "other output": (lambda m: setattr(m.graph.output[0], "name", "?"), "before it is defined"),
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "before it is defined"),
    "no input": (lambda m: m.graph.ClearField("input"), "before it is defined|no tensor as input"),
    "input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "twice"),
    "input without shape": (lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"), "no tensor of a known"),
    "huge input": (lambda m: m.graph.input[0].type.tensor_type.shape.dim.add(dim_value=2**62), "impossible"),
    "attribute twice": (lambda m: m.graph.node[2].attribute.extend([helper.make_attribute("a", 1)] * 2), "twice"),
    "many nodes": (lambda m: m.graph.node.extend([m.graph.node[2]] * 100_001), "too many nodes"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(tmp_path: Path, lie: str) -> None:
    change, says = LIES[lie]
    refused(tmp_path / "m", sound(change), says)


def test_what_the_schema_forbids(tmp_path: Path) -> None:
    data = sound()
    for more, says in (
        (data, "one graph"),
        (b"\x3a\x7f", "truncated"),
        (b"\x3b", "Protocol Buffers"),
        (b"\x38\x01", "one graph"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "too long"),
        (b"\x00\x00", "truncated|a size in it lies"),
    ):
        refused(tmp_path / "m", data + more, says)
    refused(tmp_path / "m", b"\x08\x08\x12\x00", "one graph")
    doubled = bytearray(sound(lambda m: weight(m).ClearField("raw_data")))
    refused(tmp_path / "m", bytes(doubled), "size, that is not read|before it is defined|type")


@pytest.mark.parametrize(
    "made",
    [
        node("ConstantOfShape", ["huge"], ["y"]),
        node("Expand", ["x", "huge"], ["y"]),
        node("Tile", ["x", "two"], ["y"]),
        node("Range", ["zero", "far", "one"], ["y"]),
        node("Pad", ["x", "pads"], ["y"]),
        node("Gather", ["two", "far1"], ["y"]),
        node("Pow", ["two", "two"], ["y"]),
    ],
)
def test_little_files_that_ask_for_much_take_little(tmp_path: Path, made: onnx.NodeProto) -> None:
    arrays = {"huge": ints(2**40, 2**20), "two": ints(2**30, 2**30), "zero": np.array(0), "one": np.array(1)}
    arrays |= {"far": np.array(2**60), "far1": ints(2**60), "pads": ints(0, 0, 2**40, 2**40)}
    (tmp_path / "m").write_bytes(model([made, node("Cast", ["y"], ["z"], to=1)], INPUT, arrays))
    tracemalloc.start()
    try:
        network = read_model(tmp_path / "m")
        network.run([torch.ones(2, 4)])
        done = made.op_type == "Pow"
    except InputError:
        done = True
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done
    assert peak < 64 * 2**20


def test_cut_short_anywhere(tmp_path: Path) -> None:
    data = sound()
    for end in range(len(data)):
        path = tmp_path / "m"
        path.write_bytes(data[:end])
        with pytest.raises(InputError):
            read_model(path)


def test_damaged_bytes_are_refused_or_read_never_worse(tmp_path: Path) -> None:
    whole, chance, counts = sound(), np.random.default_rng(0), {"read": 0, "refused": 0}
    path = tmp_path / "m"
    for _ in range(600):
        data = bytearray(whole)
        for place in chance.integers(0, len(data), int(chance.integers(1, 4))):
            data[place] = int(chance.integers(0, 256))
        path.write_bytes(data)
        counts[outcome(path)] += 1
    assert min(counts.values()) > 20


def outcome(path: Path) -> str:
    """Read, run, write and read again: nothing but an `InputError` may come of it."""
    try:
        network = read_model(path)
        shape = [2 if size is None else size for size in network.inputs[0].shape]
        if len(network.inputs) == 1 and np.prod(shape, dtype=float) < 1e6:
            network.run([torch.ones(shape, dtype=network.inputs[0].dtype)])
        copy: dict[str, Any] = {
            layer.weight: torch.zeros_like(network.weights[layer.weight]) for layer in network.layers
        }
        write_model(network.with_weights(copy), path, path.with_suffix(".copy"))
        again = read_model(path.with_suffix(".copy"))
        assert not any(again.weights[name].any() for name in copy)
    except InputError:
        return "refused"
    return "read"


@pytest.mark.parametrize("name", [b"MatMul", b"Relu", b"x", b"a", b"h", b"w"])
def test_names_that_are_no_text(tmp_path: Path, name: bytes) -> None:
    for prefix in (b"\x22", b"\x0a", b"\x12", b"\x42"):  # op_type, input, output; of an initialiser the name
        field = prefix + bytes([len(name)])
        refused_or_same = sound().replace(field + name, field + b"\xff" * len(name))
        if refused_or_same != sound():
            refused(tmp_path / "m", refused_or_same, "UTF-8")


def test_flags_that_are_no_flags(tmp_path: Path) -> None:
    nodes = [node("Where", ["flags", "x", "b"], ["y"])]
    data = model(nodes, INPUT, {"flags": np.array([True, False, True, True]), "b": np.float32(0)})
    (tmp_path / "m").write_bytes(data)
    assert read_model(tmp_path / "m").run([torch.ones(1, 4)])[0].tolist() == [[1, 0, 1, 1]]
    refused(tmp_path / "m", data.replace(b"\1\0\1\1", b"\1\0\2\1"), "other than 0 and 1")
