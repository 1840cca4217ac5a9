"""ONNX files -> `Network`: read as data, translated node by node; nothing is executed.

A matrix that ``MatMul`` or ``Gemm`` multiplies by lies in the file as (in, out); the network holds it as (out, in), as
PyTorch's linear layers do, so that patterns along inputs mean the same everywhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats.onnx_builder import Builder, Operation
from pruning_core.formats.onnx_elementwise import ELEMENTWISE, Translate
from pruning_core.formats.onnx_layers import LAYERS
from pruning_core.formats.onnx_model import check, input_of, operation_of, opset_of, parsed, tensor_of
from pruning_core.formats.onnx_norms import NORMS
from pruning_core.formats.onnx_shapes import SHAPES
from pruning_core.formats.onnx_wire import Wire, walk
from pruning_core.network.graph import Graph, Ref
from pruning_core.network.interpreter import NodeFailed
from pruning_core.network.network import Input, Network

TABLE: dict[str, Translate] = {**ELEMENTWISE, **NORMS, **LAYERS, **SHAPES}
#: What dynamic dimensions behind the first are tried with: words, then pictures.
_TRIED = (8, 64, 224)
_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Read:
    """An ONNX file as it was read.

    Attributes:
        network: What it computes.
        wire: Where the numbers lie in the file.
        swapped: Names of weights that the network holds as (out, in) though the file has (in, out).
    """

    network: Network
    wire: Wire
    swapped: frozenset[str]


def read_onnx(path: Path) -> Network:
    """Return the network of an ONNX file.

    Raises:
        ModelError: The file is broken or hostile.
        UnsupportedModel: It uses something that is not supported; says what and what to do.
    """
    return read(path).network


def read(path: Path) -> Read:
    """Return the network of an ONNX file, and where its weights lie.

    Raises:
        ModelError: The file is broken or hostile.
        UnsupportedModel: It uses something that is not supported; says what and what to do.
    """
    wire = walk(path)
    model = parsed(wire.structure)
    opset = opset_of(model)
    graph = model.graph
    check(model, TABLE)
    initialisers = {name: wire.tensor(name) for name in wire.stored}
    for item in graph.initializer:  # those whose numbers do not lie in the file as they are
        if item.name in initialisers:
            raise ModelError(f"The graph has two initialisers {item.name!r}.", expected="every name once")
        initialisers[item.name] = tensor_of(item)
    operations = [operation_of(node, opset) for node in graph.node]
    swapped = _swapped(operations, initialisers)
    operations = _with_biases(operations, initialisers, {value.name for value in graph.output})
    inputs = [input_of(value) for value in graph.input if value.name not in initialisers]
    outputs = [value.name for value in graph.output]
    for tried in _TRIED:
        try:
            builder, found = _built(operations, inputs, outputs, initialisers, swapped, tried)
            break
        except NodeFailed:
            if tried == _TRIED[-1] or not any(None in value.shape[1:] for value in inputs):
                raise
    held = {**initialisers, **builder.constants}
    weights = {name: held[name].t() if name in swapped else held[name] for name in builder.used}
    return Read(
        network=Network(
            graph=Graph(
                weights={where: name for name, where in builder.used.items()},
                inputs=[value.name for value in inputs],
                nodes=builder.nodes,
                outputs=[ref.name for ref in found],
            ),
            weights=weights,
            parameters={name for name in weights if name in initialisers and weights[name].is_floating_point()},
            inputs=inputs,
            fixed={
                name: "does not lie in the file as plain numbers, so that it cannot be replaced in place"
                for name in weights
                if name not in wire.stored
            },
        ),
        wire=wire,
        swapped=swapped,
    )


def _sources(operations: Sequence[Operation]) -> dict[str, str]:
    """Return name -> where it comes from through identities alone."""
    found: dict[str, str] = {}
    for operation in operations:
        if operation.kind == "Identity" and operation.inputs:
            found[operation.outputs[0]] = found.get(operation.inputs[0], operation.inputs[0])
    return found


def _swapped(operations: Sequence[Operation], initialisers: dict[str, Tensor]) -> frozenset[str]:
    """Return the matrices that a product takes as (in, out), without those that another takes as (out, in)."""
    sources = _sources(operations)

    def matrices(*, transposed: bool) -> Iterator[str]:
        for operation in operations:
            if operation.kind in ("MatMul", "Gemm") and bool(operation.attributes.get("transB", 0)) == transposed:
                name = sources.get(operation.input(1), operation.input(1))
                found = initialisers.get(name)
                if found is not None and found.dim() == 2 and found.is_floating_point():
                    yield name

    return frozenset(matrices(transposed=False)) - frozenset(matrices(transposed=True))


def _with_biases(operations: Sequence[Operation], initialisers: dict[str, Tensor], kept: set[str]) -> list[Operation]:
    """Return the operations with ``MatMul`` and the ``Add`` of a vector after it made one, as a linear layer is."""
    sources = _sources(operations)
    uses = Counter(name for operation in operations for name in operation.inputs)
    products = {o.outputs[0]: o for o in operations if o.kind == "MatMul" and len(o.inputs) == 2}
    fused: dict[int, Operation] = {}
    gone: set[int] = set()
    for operation in operations:
        for product, bias in (
            (operation.inputs, operation.inputs[::-1]) if operation.kind == "Add" and len(operation.inputs) == 2 else ()
        ):
            matmul = products.get(product)
            vector = initialisers.get(sources.get(bias, bias))
            if matmul is None or vector is None or uses[product] != 1 or product in kept or id(operation) in fused:
                continue
            matrix = initialisers.get(sources.get(matmul.inputs[1], matmul.inputs[1]))
            if matrix is not None and matrix.dim() == 2 and tuple(vector.shape) == tuple(matrix.shape[1:]):
                gone.add(id(matmul))
                fused[id(operation)] = Operation(
                    kind="MatMul",
                    name=matmul.name,
                    inputs=matmul.inputs,
                    outputs=operation.outputs,
                    attributes={"fused bias": bias},
                    opset=operation.opset,
                )
    return [fused.get(id(o), o) for o in operations if id(o) not in gone]


def _built(
    operations: Sequence[Operation],
    inputs: Sequence[Input],
    outputs: Sequence[str],
    initialisers: dict[str, Tensor],
    swapped: frozenset[str],
    tried: int,
) -> tuple[Builder, list[Ref]]:
    builder = Builder(initialisers=initialisers, swapped=swapped)
    for value in inputs:
        first = value.shape[:1]
        shape = [_BATCH if size is None else size for size in first]
        builder.add_input(value.name, [*shape, *(tried if s is None else s for s in value.shape[1:])], value.dtype)
    for operation in operations:
        try:
            TABLE[operation.kind](builder, operation)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            shown = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")[:200]
            raise operation.refuse(f"its inputs or attributes are not those of this operator ({shown}).") from error
    if not outputs:
        raise UnsupportedModel("The model returns no tensor.", expected="at least one tensor as output")
    return builder, [builder.tensor(name) for name in outputs]
