"""Rewrites in-place operations to their out-of-place forms where nothing else can see the write."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch

from pruning_core.network.graph import Node, Ref, Value, names, references
from pruning_core.network.ops import ALLOWED, overload, words

#: Not annotated as views in their schema, but they may return (a view of) their input.
_QUIET_VIEWS = words(
    "reshape type_as dropout feature_dropout alpha_dropout feature_alpha_dropout meshgrid einsum atleast_2d diff pad "
    "tensordot matmul contiguous to flatten conj chunk index_select"
)
#: Change only how a tensor is seen, never its dtype.
_METADATA = words("detach squeeze unsqueeze t transpose")
#: A model is refused for one in-place operation that stays; this many are looked for, to name them.
_MOST_REFUSED = 20


def functionalise(
    nodes: Sequence[Node], outputs: Sequence[str], protected: Collection[str]
) -> tuple[list[Node], list[str]]:
    """Replace ``y = x.op_(...)`` by ``y = x.op(...)`` and later reads of x by y, where that means the same.

    It does if, after the node, nothing reads another value that may share memory with x, and x does not share memory
    with a weight or an input. Nodes where it does not stay as they are, and the allowlist refuses them by name.

    Args:
        nodes: In execution order, every name defined once.
        outputs: The graph's outputs.
        protected: Names of weights and inputs.

    Returns:
        The nodes and the outputs after the rewriting.
    """
    if not any(_functional(node.op) for node in nodes):
        return list(nodes), list(outputs)
    last_read = {name: i for i, node in enumerate(nodes) for name in references(node.arguments)}
    last_read.update(dict.fromkeys(outputs, len(nodes)))
    family: dict[str, set[str]] = {name: {name} for name in protected}
    renamed: dict[str, str] = {}
    result: list[Node] = []
    refused = 0
    for i, original in enumerate(nodes):
        if refused == _MOST_REFUSED:
            result.append(original)
            continue
        node = replace(original, arguments={k: _rename(v, renamed) for k, v in original.arguments.items()})
        target, written = _functional(node.op), node.arguments.get("self", node.arguments.get("input"))
        if target and isinstance(written, Ref) and isinstance(node.outputs, str):
            x, y = written.name, node.outputs
            relatives = family.get(x, {x})
            if x in protected or any(other in protected or last_read.get(other, -1) > i for other in relatives - {x}):
                result.append(node)
                refused += 1
                continue
            result.extend(_rewritten(node, target, x, y))
            renamed[x] = y
            last_read[y] = max(last_read.get(y, -1), last_read.get(x, -1))
            family[y] = {y}
            continue
        result.append(node)
        _relate(node, family)
    return result, [_current(name, renamed) for name in outputs]


def _functional(op: str) -> str | None:
    """Return the out-of-place form of an in-place operation, if it is on the allowlist."""
    namespace, packet, *rest = (*op.split("."), "", "")
    if namespace != "aten" or not packet.endswith("_") or packet.endswith("__"):
        return None
    found = f"aten.{packet.removesuffix('_')}.{rest[0]}"
    return found if found in ALLOWED else None


def _rewritten(node: Node, target: str, x: str, y: str) -> list[Node]:
    if target.split(".")[1] in _METADATA:
        return [replace(node, op=target)]
    between = f"{y}/out"  # x.op_() keeps the dtype of x, x.op() may promote it
    cast: Mapping[str, Value] = {"self": Ref(between), "other": Ref(x)}
    return [
        replace(node, op=target, outputs=between),
        replace(node, name=f"{node.name}/cast", op="aten.type_as.default", arguments=cast),
    ]


def _relate(node: Node, family: dict[str, set[str]]) -> None:
    """Record that the node's results may share memory with its arguments.

    All members of a family have the one set; the smaller is poured into the larger, so that a long chain of views does
    not take time by the square of its length.
    """
    defined = [*names(node.outputs)]
    if _may_alias(node.op):
        related: set[str] = set()
        for other in (set(defined), *(family.setdefault(n, {n}) for n in references(node.arguments))):
            if other is related:
                continue
            small, related = sorted((related, other), key=len)
            related |= small
            family.update(dict.fromkeys(small, related))
        family.update(dict.fromkeys(defined, related))
    else:
        family.update((name, {name}) for name in defined)


def _may_alias(op: str) -> bool:
    if not op.startswith("aten."):
        return False
    if op.split(".")[1] in _QUIET_VIEWS or op not in ALLOWED:
        return True
    schema: torch.FunctionSchema = overload(op)._schema  # type: ignore[attr-defined]
    return any(value.alias_info is not None for value in schema.returns)


def _current(name: str, renamed: dict[str, str]) -> str:
    """Return what a name is called by now, and shorten the way there."""
    passed = []
    while name in renamed:
        passed.append(name)
        name = renamed[name]
    renamed.update(dict.fromkeys(passed, name))
    return name


def _rename(value: Value, renamed: dict[str, str]) -> Value:
    if isinstance(value, Ref):
        return Ref(_current(value.name, renamed))
    if isinstance(value, tuple):
        return tuple(_rename(item, renamed) for item in value)
    return value
