"""Rewrites in-place operations to their out-of-place forms, with every view of the same memory kept in step.

What `torch.func.functionalize` does, on a graph that is held as data: a write to a view becomes a write to the tensor
that it shows (``select_scatter`` and its like), and other views of it are made anew when they are next read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from pruning_core.errors import ModelError
from pruning_core.network.graph import Node, Outputs, Ref, Value, names, references
from pruning_core.network.ops import ALLOWED, argument_names, overload, words
from pruning_core.network.views import Edge, Shown, Storage, edges, is_view, source_argument

#: Not annotated as views in their schema, but they may return (a view of) their input.
_QUIET_VIEWS = words(
    "reshape type_as dropout feature_dropout alpha_dropout feature_alpha_dropout meshgrid einsum atleast_2d diff pad "
    "contiguous to flatten conj chunk index_select broadcast_tensors"
)
#: Change only how a tensor is seen, never its dtype.
_METADATA = words("detach squeeze unsqueeze t transpose")
#: A model is refused for one in-place operation that stays; this many are looked for, to name them.
_MOST_REFUSED = 20
#: Most nodes that are added, and most relatives that are looked at.
_MOST_ADDED = 100_000
_MOST_LOOKS = 2_000_000


def functionalise(
    nodes: Sequence[Node], outputs: Sequence[str], protected: Collection[str]
) -> tuple[list[Node], list[str]]:
    """Replace ``y = x.op_(...)`` by ``y = x.op(...)``, and what is read of that memory later by what it then holds.

    That is done where it means the same: what is written is certainly no weight and no input, and no tensor that only
    may share its memory is read later. Nodes where it does not stay as they are; the allowlist refuses them by name.

    Args:
        nodes: In execution order, every name defined once.
        outputs: The graph's outputs.
        protected: Names of weights and inputs.

    Returns:
        The nodes and the outputs after the rewriting.
    """
    if not any(_functional(node.op) for node in nodes):
        return list(nodes), list(outputs)
    return _Rewriting(nodes, outputs, protected).run()


def _functional(op: str) -> str | None:
    """Return the out-of-place form of an in-place operation, if there is one here."""
    namespace, packet, *rest = (*op.split("."), "", "")
    if namespace != "aten" or not packet.endswith("_") or packet.endswith("__"):
        return None
    if op in _OWN:
        return _OWN[op]
    found = f"aten.{packet.removesuffix('_')}.{rest[0]}"
    return found if found in ALLOWED else None


#: In-place operations whose form is called otherwise.
_OWN = {"aten.copy_.default": "aten.expand_as.default", "aten.zero_.default": "aten.zeros_like.default"}


class _Rewriting:
    """One pass over a graph."""

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[str], protected: Collection[str]) -> None:
        self._given, self._outputs = nodes, outputs
        self._nodes: list[Node] = []
        self._added: set[str] = set()
        self._looks = 0
        self._last = {name: i for i, node in enumerate(nodes) for name in references(node.arguments)}
        self._last.update(dict.fromkeys(outputs, len(nodes)))
        self._shown: dict[str, Shown] = {}
        for name in protected:
            self._define(name, Shown(name, Storage(protected=True)))

    def run(self) -> tuple[list[Node], list[str]]:
        """Return the nodes and the outputs."""
        refused = 0
        for i, node in enumerate(self._given):
            if refused == _MOST_REFUSED:
                self._nodes.append(node)
                continue
            target = _functional(node.op)
            if target is None:
                self._read(node)
            elif not self._write(i, node, target):
                self._read(node)
                refused += 1
        if refused:
            return self._nodes, list(self._outputs)
        outputs = [self._current(name) for name in self._outputs]
        return self._used(outputs), outputs

    def _define(self, name: str, shown: Shown) -> None:
        self._shown[name] = shown
        storage = shown.storage
        storage.clan = storage.clan or [storage]
        storage.last = max(storage.last, self._last.get(name, -1))

    def _add(self, node: Node) -> None:
        if len(self._added) > _MOST_ADDED:
            raise ModelError(
                "The graph writes in place to too many views of the same memory.",
                expected=f"writes that take at most {_MOST_ADDED} operations out of place",
                advice="Write to whole tensors, or build the result with torch.cat or torch.where.",
            )
        self._nodes.append(node)
        self._added.update(names(node.outputs))

    def _read(self, node: Node) -> None:
        """Append a node that writes nothing, and note what its results show."""
        self._nodes.append(self._resolved(node))
        defined = [*names(node.outputs)]
        source = node.arguments.get(source_argument(node))
        if is_view(node) and isinstance(source, Ref) and source.name in self._shown:
            parent = self._shown[source.name]
            for name, index in _places(node.outputs):
                edge = Edge(self._nodes[-1], index)
                self._define(name, Shown(name, parent.storage, parent, edge, parent.storage.version))
            return
        for name in defined:
            self._define(name, Shown(name, Storage(grad=node.grad)))
        if _may_alias(node):
            related = [n for n in (*references(node.arguments), *defined) if n in self._shown]
            self._relate([self._shown[name].storage for name in related])

    def _relate(self, storages: list[Storage]) -> None:
        """Note that these may be the same memory; the smaller lists are poured into the largest."""
        clans = sorted({id(s.clan): s.clan for s in storages}.values(), key=len)
        for clan in clans[:-1]:
            clans[-1].extend(clan)
            for storage in clan:
                storage.clan = clans[-1]

    def _write(self, i: int, node: Node, target: str) -> bool:
        """Append the out-of-place form of an in-place node; return False where it would not mean the same."""
        written = node.arguments.get(source_argument(node))
        if not isinstance(written, Ref) or written.name not in self._shown:
            return False
        shown = self._shown[written.name]
        name = node.outputs if isinstance(node.outputs, str) else f"{node.name}/unused"
        if isinstance(node.outputs, tuple) or (node.op == "aten.copy_.default" and "src" not in node.arguments):
            return False
        if target.split(".")[1] in _METADATA:
            return self._look_otherwise(node, target, written.name, name)
        if not self._may_write(i, node, shown):
            return False
        resolved = self._resolved(node)
        x = self._value(shown)
        self._add_written(resolved, target, x, name)
        self._climb(resolved, shown, name)
        self._define(name, shown)
        return True

    def _look_otherwise(self, node: Node, target: str, x: str, name: str) -> bool:
        """``x.unsqueeze_(0)`` and the like: nothing is written, but x itself is seen otherwise from here on."""
        shown = self._shown[x]
        if target == "aten.detach.default" and shown.parent is not None:
            return False
        self._add(replace(self._resolved(node), op=target, outputs=name))
        edge = Edge(self._nodes[-1], None)
        if target == "aten.detach.default":
            shown.name = name
        else:
            shown = Shown(name, shown.storage, shown, edge, shown.storage.version)
        self._define(x, shown)
        self._define(name, shown)
        return True

    def _may_write(self, i: int, node: Node, shown: Shown) -> bool:
        storage = shown.storage
        steps = [*edges(shown)]
        self._looks += len(storage.clan) + len(steps)
        if storage.protected or self._looks > _MOST_LOOKS:
            return False
        if not all(edge.same or edge.scatter("", "") for edge in steps):
            return False
        if any(other.protected or other.last > i for other in storage.clan if other is not storage):
            return False
        # Without gradients a write changes the values, and the gradient goes on as if it had not: no node means that.
        return node.grad or not storage.grad

    def _add_written(self, node: Node, target: str, x: str, name: str) -> None:
        between = f"{name}/out"  # x.op_() keeps the dtype of x, x.op() may promote it
        own, _ = argument_names(target)[0]  # dropout_ calls it self, dropout input
        arguments = {own if key == source_argument(node) else key: value for key, value in node.arguments.items()}
        if node.op == "aten.copy_.default":
            arguments = {"self": arguments["src"], "other": Ref(x)}
        self._add(replace(node, op=target, arguments=arguments, outputs=between))
        cast: dict[str, Value] = {"self": Ref(between), "other": Ref(x)}
        self._add(replace(node, name=f"{node.name}/cast", op="aten.type_as.default", arguments=cast, outputs=name))

    def _climb(self, node: Node, shown: Shown, name: str) -> None:
        """Carry a new value of a view up to the tensor that shows all of the storage."""
        value, at, steps = name, shown, 0
        chain = [(shown, name)]
        while at.parent is not None and at.edge is not None:
            base = self._value(at.parent)
            if not at.edge.same:
                op, arguments = at.edge.scatter(base, value) or ("", {})  # there is one: it was looked at before
                value, steps = f"{name}/{steps}", steps + 1
                self._add(replace(node, name=value, op=op, arguments=arguments, outputs=value))
            at = at.parent
            chain.append((at, value))
        shown.storage.version += 1
        for seen, new in chain:
            seen.name, seen.version = new, shown.storage.version

    def _current(self, name: str) -> str:
        return self._value(self._shown[name]) if name in self._shown else name

    def _value(self, shown: Shown) -> str:
        """Return the name of what a tensor holds by now; a view of what was written since is made anew."""
        stale = []
        at: Shown | None = shown
        while at is not None and at.version < at.storage.version:
            stale.append(at)
            at = at.parent
        for view in reversed(stale):
            assert view.parent is not None  # what shows all of it is never stale
            assert view.edge is not None
            node, index = view.edge.node, view.edge.index
            name = f"{node.name}/{len(self._nodes)}"
            outputs: Outputs = name
            if index is not None and node.outputs is not None:
                outputs = tuple(name if k == index else None for k in range(len(node.outputs)))
            arguments = {**node.arguments, view.edge.source: Ref(view.parent.name)}
            self._add(replace(node, name=name, arguments=arguments, outputs=outputs))
            view.name, view.version = name, view.storage.version
        return shown.name

    def _resolved(self, node: Node) -> Node:
        return replace(node, arguments={key: self._renamed(value) for key, value in node.arguments.items()})

    def _renamed(self, value: Value) -> Value:
        if isinstance(value, Ref):
            return Ref(self._current(value.name))
        return tuple(self._renamed(item) for item in value) if isinstance(value, tuple) else value

    def _used(self, outputs: Sequence[str]) -> list[Node]:
        """Return the nodes without those added ones that nothing reads."""
        needed = set(outputs)
        kept = []
        for node in reversed(self._nodes):
            defined = {*names(node.outputs)}
            if defined and defined <= self._added and not defined & needed:
                continue
            needed.update(references(node.arguments))
            kept.append(node)
        return kept[::-1]


def _places(outputs: Outputs) -> list[tuple[str, int | None]]:
    """Return each result's name, and its place where there are several."""
    if isinstance(outputs, str):
        return [(outputs, None)]
    return [(name, k) for k, name in enumerate(outputs or ()) if isinstance(name, str)]


def _may_alias(node: Node) -> bool:
    op = node.op
    if not op.startswith("aten."):
        return False
    factors = node.arguments.get("tensors")
    if op == "aten.einsum.default" and isinstance(factors, tuple) and len(factors) > 1:
        return False  # of one tensor it may be a view; a product is always new
    if op.split(".")[1] in _QUIET_VIEWS or op not in ALLOWED:
        return True
    schema: torch.FunctionSchema = overload(op)._schema  # type: ignore[attr-defined]
    return any(value.alias_info is not None for value in schema.returns)
