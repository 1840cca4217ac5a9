"""Graphs of arbitrary operations: each overload of the allowlist, with arguments of the right kinds and odd values."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pruning_core.network.kernels import SCALAR_OPS
from pruning_core.network.ops import ALLOWED_ATEN, overload
from tests.hostile import base

_INTEGERS = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    -1,
    -2,
    -3,
    16,
    64,
    1000,
    2**20,
    2**31 - 1,
    2**31,
    2**40,
    2**62,
    2**63 - 1,
    -(2**63),
)
_FLOATS = (0.0, 1.0, -1.0, 0.5, 2.5, 1e-320, 1e300, -1e300, "Infinity", "-Infinity", "NaN")
_TEXTS = (
    "",
    "none",
    "tanh",
    "reflect",
    "circular",
    "constant",
    "ij->ji",
    "...i,ij->...j",
    "valid",
    "same",
    "floor",
    "trunc",
)


@cache
def _operations() -> tuple[str, ...]:
    return (*sorted(ALLOWED_ATEN), *sorted(SCALAR_OPS))


class Bytes:
    """Choices taken from an input, so that a fuzzer can learn which matter; zeros at its end."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, n: int) -> int:
        """Return a number below ``n``."""
        width = 1 if n <= 256 else 2
        value = int.from_bytes(self._data[self._at : self._at + width], "little")
        self._at += width
        return value % n

    def of(self, items: Any) -> Any:
        """Return one of some items."""
        return items[self.below(len(items))]

    @property
    def more(self) -> bool:
        """Whether something is left."""
        return self._at < len(self._data)


def archive(data: bytes) -> bytes:
    """Return a model whose graph is what the bytes say: a few operations between its own."""
    choose = Bytes(data)
    known = ["x", "p_0_weight", "p_0_bias", "p_2_weight"]
    nodes: list[dict[str, Any]] = []
    while choose.more and len(nodes) < 8:
        op = choose.of(_operations())
        name = f"n{len(nodes)}"
        node = _aten(op, name, choose, known) if op.startswith("aten.") else _scalar(op, name, choose)
        nodes.append(node)
        if "as_tensor" in node["outputs"][0]:
            known.append(name)
        elif "as_tensors" in node["outputs"][0]:
            known += [part["name"] for part in node["outputs"][0]["as_tensors"]]

    def change(whole: dict[str, Any]) -> None:
        whole["graph_module"]["graph"]["nodes"][0:0] = nodes
        spec = whole["graph_module"]["graph"]["tensor_values"]["x"]
        spec["dtype"] = choose.of((7, 7, 7, 8, 5, 12, 13, 6, 1, 10))
        sizes = [choose.of((1, 2, 3, 4, 5)) for _ in range(choose.of((2, 2, 3, 4, 1, 5)))]
        spec.update(sizes=base.ints(*sizes))

    whole = base.document()
    change(whole)
    return base.pt2(lambda members: members.update({base.GRAPH: json.dumps(whole).encode()}))


def _scalar(op: str, name: str, choose: Bytes) -> dict[str, Any]:
    values = [
        choose.of(({"as_int": choose.of(_INTEGERS)}, {"as_float": choose.of(_FLOATS)}, {"as_bool": True}))
        for _ in range(1 + choose.below(3))
    ]
    inputs = [{"name": str(i), "arg": value, "kind": 1} for i, value in enumerate(values)]
    target = op.replace("operator.", "_operator.")
    return {"target": target, "inputs": inputs, "outputs": [{"as_sym_int": {"as_name": name}}], "name": name}


def _aten(op: str, name: str, choose: Bytes, known: list[str]) -> dict[str, Any]:
    schema: Any = overload(op)._schema  # type: ignore[attr-defined]
    inputs = []
    for argument in schema.arguments:
        if argument.has_default_value() and choose.below(3):
            continue
        # dtypes, layouts and the like are integers to PyTorch; one in eight times they are here
        value = _value(str(argument.type if choose.below(8) == 0 else argument.real_type), choose, known)
        inputs.append({"name": argument.name, "arg": value, "kind": 2 if argument.kwarg_only else 1})
    kinds = [str(value.type) for value in schema.returns]
    if kinds == ["Tensor"]:
        outputs = [{"as_tensor": {"name": name}}]
    elif kinds == ["List[Tensor]"]:
        outputs = [{"as_tensors": [{"name": f"{name}_{i}"} for i in range(1 + choose.below(3))]}]
    else:
        outputs = [{"as_tensor": {"name": f"{name}_{i}" if i else name}} for i in range(len(kinds))]
    return {"target": f"torch.ops.{op}", "inputs": inputs, "outputs": outputs, "name": name}


def _value(kind: str, choose: Bytes, known: list[str]) -> dict[str, Any]:
    if kind.startswith("Optional["):
        return {"as_none": True} if choose.below(2) else _value(kind[9:-1], choose, known)
    if kind == "Tensor":
        return {"as_tensor": {"name": choose.of(known)}}
    if kind == "List[Tensor]":
        return {"as_tensors": [{"name": choose.of(known)} for _ in range(choose.below(4))]}
    if kind == "List[Optional[Tensor]]":
        items = [
            {"as_none": True} if choose.below(2) else {"as_tensor": {"name": choose.of(known)}}
            for _ in range(choose.below(4))
        ]
        return {"as_optional_tensors": items}
    if kind in ("int", "SymInt"):
        return {"as_int": choose.of(_INTEGERS)}
    if kind in ("List[int]", "List[SymInt]"):
        return {"as_ints": [choose.of(_INTEGERS) for _ in range(choose.below(5))]}
    if kind == "List[float]":
        return {"as_floats": [choose.of(_FLOATS) for _ in range(choose.below(4))]}
    if kind == "bool":
        return {"as_bool": bool(choose.below(2))}
    if kind == "str":
        return {"as_string": choose.of(_TEXTS)}
    if kind == "float":
        return {"as_float": choose.of(_FLOATS)}
    if kind in ("number", "Scalar"):
        return choose.of(({"as_int": choose.of(_INTEGERS)}, {"as_float": choose.of(_FLOATS)}, {"as_bool": True}))
    if kind == "ScalarType":
        return {"as_scalar_type": choose.of((1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13))}
    if kind == "MemoryFormat":
        return {"as_memory_format": 1 + choose.below(4)}
    if kind == "Layout":
        return {"as_layout": 7}
    if kind == "Device":
        return {"as_device": {"type": choose.of(("cpu", "cuda", "meta")), "index": None}}
    return {"as_none": True}
