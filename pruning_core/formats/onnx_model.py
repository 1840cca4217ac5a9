"""The parsed ModelProto of an ONNX file: checked, and as plain values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats.onnx_builder import Operation
from pruning_core.formats.onnx_wire import DTYPES, MAX_DIMENSIONS, MAX_NAME_LENGTH
from pruning_core.network.network import Input

MIN_OPSET, MAX_OPSET = 13, 26
MAX_OPERATIONS = 100_000
MAX_VALUES = 1 << 22
_EXPORT_ADVICE = "Export again with torch.onnx.export(model.eval(), …), or send a .pt2 of torch.export."


def parsed(structure: bytes) -> Any:
    """Return a file's structure as an ``onnx.ModelProto``.

    Raises:
        ModelError: It is none.
        UnsupportedModel: The package is not installed.
    """
    try:
        from google.protobuf.message import DecodeError
        from onnx import ModelProto
    except ImportError as error:
        raise UnsupportedModel(
            "ONNX cannot be read here: the package 'onnx' is not installed.",
            advice="Install it: pip install 'pruning-service[onnx]'.",
        ) from error
    model = ModelProto()
    try:
        model.ParseFromString(structure)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise ModelError(
            "The file is no ONNX model.", expected="a complete ModelProto", received=str(error)[:200]
        ) from error
    return model


def opset_of(model: Any) -> int:
    """Return the version of ONNX's own operators that a model uses.

    Raises:
        UnsupportedModel: It is out of range.
    """
    versions = {item.domain or "ai.onnx": item.version for item in model.opset_import}
    version = int(versions.get("ai.onnx", 0))
    if not MIN_OPSET <= version <= MAX_OPSET:
        raise UnsupportedModel(
            f"The model uses version {version} of ONNX's operators.",
            expected=f"opset {MIN_OPSET} to {MAX_OPSET}",
            received=version,
            advice="Convert it with onnx.version_converter, or export again: torch.onnx.export(…, opset_version=17).",
        )
    return version


def check(model: Any, known: Collection[str]) -> None:
    """Refuse what is too much, and every operator that is not known, by name."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.initializer)
    if not all(isinstance(text, str) for text in (*(value.name for value in values), *_texts(graph.node))):
        raise ModelError("A name in the graph is no UTF-8.", expected="names in UTF-8")  # protobuf hands out bytes then
    if len(graph.node) > MAX_OPERATIONS or sum(len(n.input) + len(n.output) for n in graph.node) > MAX_VALUES:
        raise ModelError(
            "The graph has too many nodes.", expected=f"at most {MAX_OPERATIONS}", received=len(graph.node)
        )
    if len(model.functions) or len(graph.sparse_initializer):
        raise UnsupportedModel(
            "The model has functions of its own, or sparse initialisers.",
            expected="operators of ONNX itself",
            received=[function.name[:80] for function in model.functions][:10],
            advice="Inline them: onnx.inliner.inline_local_functions(model).",
        )
    unknown = Counter(
        f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        for node in graph.node
        if node.domain not in ("", "ai.onnx") or node.op_type not in known
    )
    if unknown:
        first = sorted(unknown)[0][:100]
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UnsupportedModel(
            f"The model uses the ONNX operator {first}{more}, which is not supported.",
            expected="operators of CNNs and encoders, of ONNX's own domain, without control flow",
            received=sorted(name[:100] for name in unknown)[:20],
            advice=_EXPORT_ADVICE,
        )


def _texts(nodes: Iterable[Any]) -> Iterator[object]:
    for node in nodes:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        yield from (item.name for item in node.attribute)


def operation_of(node: Any, opset: int) -> Operation:
    """Return a NodeProto as plain values.

    Raises:
        ModelError: It is malformed.
        UnsupportedModel: An attribute is a graph, or a tensor that is not read.
    """
    attributes: dict[str, Any] = {}
    for item in node.attribute:
        if item.name in attributes:
            raise ModelError(f"A node has the attribute {item.name[:80]!r} twice.")
        attributes[item.name] = _attribute(node, item)
    names = [*node.input, *node.output, node.name]
    if not node.output or any(len(name) > 4 * MAX_NAME_LENGTH for name in names):
        raise ModelError("A node has no output, or the name of a value is too long.", received=node.op_type[:80])
    name = node.name[:100] or node.output[0][:100]
    operation = Operation(
        kind=node.op_type,
        name=name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes=attributes,
        opset=opset,
    )
    if not node.input and node.op_type != "Constant":
        raise operation.refuse("it has no input.")
    return operation


def _attribute(node: Any, item: Any) -> Any:
    kinds = {1: "f", 2: "i", 6: "floats", 7: "ints"}
    if item.type in kinds:
        found = getattr(item, kinds[item.type])
        return found if item.type < 6 else tuple(found)
    if item.type == 3:
        return item.s.decode("utf-8", "replace")
    if item.type == 4:
        return tensor_of(item.t)
    raise UnsupportedModel(
        f"The ONNX operator {node.op_type} has the attribute {item.name[:80]!r} of a kind that is not supported.",
        expected="numbers, texts and tensors; no graphs (If, Loop, Scan)",
        received=item.type,
        advice=_EXPORT_ADVICE,
    )


def tensor_of(item: Any) -> Tensor:
    """Return a TensorProto that lies within the structure as a tensor.

    Raises:
        ModelError: Its numbers do not fit its shape.
        UnsupportedModel: It is of a type, or claims a size, that is not read.
    """
    from onnx import numpy_helper

    shape, dtype = list(item.dims), DTYPES.get(item.data_type)
    count = 1
    for size in shape:
        count *= size
    # Each number takes at least a byte of the message.
    if (
        dtype is None
        or item.data_location
        or len(item.external_data)
        or not 0 <= count <= item.ByteSize()
        or len(shape) > MAX_DIMENSIONS
    ):
        raise UnsupportedModel(
            f"The tensor {item.name[:80]!r} is of a type, or of a size, that is not read.",
            expected="plain numbers within the file",
            received={"type": item.data_type, "shape": shape[:20]},
        )
    try:
        array = numpy_helper.to_array(item)
        return torch.tensor(array.astype("float32") if dtype == torch.bfloat16 else array, dtype=dtype)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"The tensor {item.name[:80]!r} is broken.", received=str(error)[:200]) from error


def input_of(value: Any) -> Input:
    """Return a ValueInfoProto as an input of a network.

    Raises:
        ModelError: Name or shape are impossible.
        UnsupportedModel: It is no tensor of a known type and number of dimensions.
    """
    kind = value.type.tensor_type
    dtype = DTYPES.get(kind.elem_type)
    if not value.type.HasField("tensor_type") or dtype is None or not kind.HasField("shape"):
        raise UnsupportedModel(
            f"The input {value.name[:80]!r} is no tensor of a known type and number of dimensions.",
            expected="a tensor with a shape",
            advice=_EXPORT_ADVICE,
        )
    sizes = [size.dim_value if size.HasField("dim_value") and size.dim_value > 0 else None for size in kind.shape.dim]
    if len(sizes) > MAX_DIMENSIONS or any(size is not None and size > 2**31 for size in sizes):
        raise ModelError(f"The input {value.name[:80]!r} has an impossible shape.", received=sizes[:20])
    if not 0 < len(value.name) <= MAX_NAME_LENGTH:
        raise ModelError("The name of an input cannot be used.", expected=f"1 to {MAX_NAME_LENGTH} characters")
    return Input(name=value.name, dtype=dtype, shape=tuple(sizes))
