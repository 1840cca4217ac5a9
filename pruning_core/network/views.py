"""Which operations certainly return a view, and how a write to the view becomes a write to what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from pruning_core.network.graph import Node, Ref, Value
from pruning_core.network.ops import words

Arguments = Mapping[str, Value]
#: (operation, arguments) that put a new value of a view back; None where a write through it is not supported.
Scatter = tuple[str, Arguments] | None

#: Return what they get, in eval mode.
_SAME = words("alias dropout feature_dropout alpha_dropout feature_alpha_dropout")
#: Keep the elements in their order, with other sizes.
_RESHAPED = words("view view_as unsqueeze squeeze unflatten")
#: Swap two dimensions: their own inverse.
_SWAPS = words("transpose t mT numpy_T swapaxes swapdims")
#: Certainly views; read through, never written through.
_READ_ONLY = words("permute expand expand_as broadcast_to unfold view_as_real view_as_complex real imag")
_SPLITS = words("split split_with_sizes unbind chunk")


@dataclass(frozen=True)
class Edge:
    """One step from a tensor to a view of it.

    Attributes:
        node: Makes the view; its ``self`` (or ``input``) is the tensor.
        index: Which of its results it is; None where it has one.
    """

    node: Node
    index: int | None

    @property
    def source(self) -> str:
        """The argument that is looked at."""
        return source_argument(self.node)

    @property
    def same(self) -> bool:
        """Whether the view is the whole tensor as it is."""
        return _packet(self.node) in _SAME

    def scatter(self, base: str, value: str) -> Scatter:
        """Return what gives the tensor with this view of it replaced.

        Args:
            base: Name of the tensor.
            value: Name of the view's new value.
        """
        packet, given = _packet(self.node), self.node.arguments
        if packet in _RESHAPED:
            return "aten.reshape_as.default", {"self": Ref(value), "other": Ref(base)}
        if packet in _SWAPS:
            return self.node.op, {**given, "self": Ref(value)}
        make = _SCATTERS.get(packet)
        where = make(given, self.index) if make else None
        if where is None:
            return None
        op, arguments = where
        return op, {"self": Ref(base), "src": Ref(value), **arguments}


@dataclass(eq=False)
class Storage:
    """Memory that some tensors show.

    Attributes:
        protected: A weight or an input.
        grad: Whether gradients flowed where it was made.
        version: How often it was written.
        last: Index of the last node that reads any tensor that shows it.
        clan: Storages that may be the same memory; all members have the one list.
    """

    protected: bool = False
    grad: bool = True
    version: int = 0
    last: int = -1
    clan: list[Storage] = field(default_factory=list)


@dataclass(eq=False)
class Shown:
    """A tensor: its storage, and how it is seen.

    Attributes:
        name: What its value is called, as of ``version``.
        parent: The tensor that it is a view of; None where it shows its storage as a whole.
        edge: How.
    """

    name: str
    storage: Storage
    parent: Shown | None = None
    edge: Edge | None = None
    version: int = 0


def edges(shown: Shown) -> Iterator[Edge]:
    """Yield the steps from a tensor up to its storage."""
    at = shown
    while at.parent is not None and at.edge is not None:
        yield at.edge
        at = at.parent


def source_argument(node: Node) -> str:
    """Return the name of the argument that an operation returns a view of."""
    return "input" if "input" in node.arguments else "self"


def is_view(node: Node) -> bool:
    """Return whether the results certainly share memory with the tensor that the operation looks at."""
    if not node.op.startswith("aten."):
        return False
    packet = _packet(node)
    if node.op == "aten.view.dtype":
        return False
    return packet in _SAME | _RESHAPED | _SWAPS | _READ_ONLY | _SPLITS or packet in _SCATTERS


def _packet(node: Node) -> str:
    return node.op.split(".")[1]


def _selected(given: Arguments, _index: int | None) -> Scatter:
    if "dim" not in given or "index" not in given:
        return None
    return "aten.select_scatter.default", {"dim": given["dim"], "index": given["index"]}


def _sliced(given: Arguments, _index: int | None) -> Scatter:
    return "aten.slice_scatter.default", {k: given[k] for k in ("dim", "start", "end", "step") if k in given}


def _narrowed(given: Arguments, _index: int | None) -> Scatter:
    dim, start, length = (given.get(key) for key in ("dim", "start", "length"))
    if not isinstance(start, int) or not isinstance(length, int) or start < 0:
        return None
    return "aten.slice_scatter.default", {"dim": dim, "start": start, "end": start + length}


def _diagonal(given: Arguments, _index: int | None) -> Scatter:
    return "aten.diagonal_scatter.default", {k: given[k] for k in ("offset", "dim1", "dim2") if k in given}


def _unbound(given: Arguments, index: int | None) -> Scatter:
    return "aten.select_scatter.default", {"dim": given.get("dim", 0), "index": index}


def _split(given: Arguments, index: int | None) -> Scatter:
    size = given.get("split_size")
    if not isinstance(size, int) or index is None:
        return None
    return "aten.slice_scatter.default", {"dim": given.get("dim", 0), "start": index * size, "end": (index + 1) * size}


def _split_with_sizes(given: Arguments, index: int | None) -> Scatter:
    sizes = given.get("split_sizes")
    if index is None or not isinstance(sizes, tuple):
        return None
    before = [size for size in sizes[: index + 1] if isinstance(size, int)]
    if len(before) != index + 1:
        return None
    return "aten.slice_scatter.default", {"dim": given.get("dim", 0), "start": sum(before[:-1]), "end": sum(before)}


_SCATTERS: dict[str, Callable[[Arguments, int | None], Scatter]] = {
    "select": _selected,
    "slice": _sliced,
    "narrow": _narrowed,
    "diagonal": _diagonal,
    "unbind": _unbound,
    "split": _split,
    "split_with_sizes": _split_with_sizes,
}
