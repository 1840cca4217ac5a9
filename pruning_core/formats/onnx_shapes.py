"""ONNX operators that move elements around, and the arithmetic on shapes that decides where."""

from __future__ import annotations

import torch

from pruning_core.formats.onnx_builder import MAX_SIZES, Builder, Operation, Size, Sizes
from pruning_core.formats.onnx_elementwise import Translate, table
from pruning_core.formats.onnx_norms import axes_of
from pruning_core.formats.onnx_wire import DTYPES
from pruning_core.network.graph import OwnDevice, Ref, Value


def _numbers(b: Builder, n: Operation, index: int) -> Sizes:
    """Return an input as numbers."""
    found = b.sizes(n.inputs[index])
    if found is None:
        raise n.refuse(f"its input {index} is computed from data, not from shapes.", expected="a shape or a constant")
    return found


def _identity(b: Builder, n: Operation) -> None:
    if any(n.outputs[1:]) or (n.kind == "Dropout" and n.input(2) and bool(b.constant(n.inputs[2]))):
        raise n.refuse("it is in train mode.", advice="Call model.eval() before the export.")
    b.alias(n.outputs[0], n.inputs[0])


def _constant(b: Builder, n: Operation) -> None:
    kinds = {"value_int": torch.int64, "value_ints": torch.int64, "value_float": torch.float32}
    kinds["value_floats"] = torch.float32
    if isinstance(value := n.attributes.get("value"), torch.Tensor):
        b.define(n.outputs[0], value)
        return
    name = next((name for name in kinds if name in n.attributes), None)
    if name is None:
        raise n.refuse("its value is not a tensor or a number.")
    b.define(n.outputs[0], torch.tensor(n.attributes[name], dtype=kinds[name]))


def _shape(b: Builder, n: Operation) -> None:
    name = b.require(n.inputs[0])
    known, sizes = b.constant(name), b.sizes(name)
    if sizes is not None:
        items: list[Size] = [] if sizes.scalar else [len(sizes.items)]
    elif known is not None:
        items = list(known.shape)
    else:
        x = b.tensor(name)
        items = [b.size_of(x, i) for i in range(b.shape(x).dim())]
    if n.kind == "Size":
        b.define(n.outputs[0], Sizes((b.product(items),), scalar=True))
        return
    b.define(n.outputs[0], Sizes(tuple(items[n.attributes.get("start", 0) : n.attributes.get("end")])))


def _reshape(b: Builder, n: Operation) -> None:
    shape, data = _numbers(b, n, 1), b.sizes(n.inputs[0])
    if data is not None and shape.known in ((), (-1,), (1,), (len(data.items),)):
        b.define(n.outputs[0], Sizes(data.items, scalar=not shape.items))
        return
    x = b.tensor(n.inputs[0])
    items: list[Size] = list(shape.items)
    if not n.attributes.get("allowzero", 0):
        rank = b.shape(x).dim()
        items = [b.size_of(x, i) if item == 0 and i < rank else item for i, item in enumerate(items)]
    b.define(n.outputs[0], b.emit("aten.reshape.default", self=x, shape=tuple(items)))


def _flatten(b: Builder, n: Operation) -> None:
    x = b.tensor(n.inputs[0])
    rank = b.shape(x).dim()
    axis = int(n.attributes.get("axis", 1))
    axis = axis + rank if axis < 0 else axis
    if not 0 <= axis <= rank:
        raise n.refuse("its axis does not fit its input.", received=axis)
    if axis == rank:
        x = b.emit("aten.unsqueeze.default", self=x, dim=rank)
    if axis == 0:
        x = b.emit("aten.unsqueeze.default", self=x, dim=0)
    y = b.emit("aten.flatten.using_ints", self=x, start_dim=max(1, axis), end_dim=-1)
    b.define(n.outputs[0], y if axis <= 1 else b.emit("aten.flatten.using_ints", self=y, start_dim=0, end_dim=axis - 1))


def _transpose(b: Builder, n: Operation) -> None:
    x = b.tensor(n.inputs[0])
    order = tuple(n.attributes.get("perm") or range(b.shape(x).dim() - 1, -1, -1))
    b.define(n.outputs[0], b.emit("aten.permute.default", self=x, dims=order))


def _squeeze(b: Builder, n: Operation) -> None:
    data = b.sizes(n.inputs[0])
    if data is not None and not data.scalar and len(data.items) == 1:
        b.define(n.outputs[0], Sizes(data.items, scalar=True))
        return
    x = b.tensor(n.inputs[0])
    axes = axes_of(b, n, b.shape(x).dim())
    if axes is None:
        raise n.refuse("it says no axes.", advice="Name the axes to squeeze.")
    b.define(n.outputs[0], b.emit("aten.squeeze.dims", self=x, dim=axes))


def _unsqueeze(b: Builder, n: Operation) -> None:
    data = b.sizes(n.inputs[0])
    axes = _numbers(b, n, 1).known
    if axes is None:
        raise n.refuse("its axes are computed.")
    if data is not None and data.scalar and axes in ((0,), (-1,)):
        b.define(n.outputs[0], Sizes(data.items))
        return
    x = b.tensor(n.inputs[0])
    rank = b.shape(x).dim() + len(axes)
    if not all(-rank <= axis < rank for axis in axes):
        raise n.refuse("its axes do not fit its input.", received=list(axes)[:20])
    for axis in sorted(axis % rank for axis in axes):
        x = b.emit("aten.unsqueeze.default", self=x, dim=axis)
    b.define(n.outputs[0], x)


def _concat(b: Builder, n: Operation) -> None:
    parts = [b.sizes(name) for name in n.inputs]
    found = [part for part in parts if part is not None]
    if len(found) == len(parts) and sum(len(part.items) for part in found) <= MAX_SIZES:
        b.define(n.outputs[0], Sizes(tuple(item for part in found for item in part.items)))
        return
    tensors = tuple(b.tensor(name) for name in n.inputs)
    b.define(n.outputs[0], b.emit("aten.cat.default", tensors=tensors, dim=int(n.attributes["axis"])))


def _split(b: Builder, n: Operation) -> None:
    x, axis, count = b.tensor(n.inputs[0]), int(n.attributes.get("axis", 0)), len(n.outputs)
    if n.input(1):
        sizes = _numbers(b, n, 1).items
        parts = b.emit("aten.split_with_sizes.default", count, self=x, split_sizes=sizes, dim=axis)
    else:
        parts = b.emit("aten.chunk.default", count, self=x, chunks=count, dim=axis)
    for name, part in zip(n.outputs, parts, strict=True):
        b.define(name, part)


def _slice(b: Builder, n: Operation) -> None:
    starts, ends = _numbers(b, n, 1).items, _numbers(b, n, 2).items
    given = [_numbers(b, n, i).known if n.input(i) else None for i in (3, 4)]
    axes, steps = given[0] or tuple(range(len(starts))), given[1] or (1,) * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps) or any(
        n.input(i + 3) and given[i] is None for i in (0, 1)
    ):
        raise n.refuse("its axes or steps are computed, or their numbers differ.")
    data = b.sizes(n.inputs[0])
    known = [bound for bound in (*starts, *ends) if not isinstance(bound, Ref)]
    if data is not None and not data.scalar and len(starts) == 1 and len(known) == 2:
        b.define(n.outputs[0], Sizes(data.items[_pythonic(known[0], known[1], steps[0])]))
        return
    x = b.tensor(n.inputs[0])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            x = b.emit("aten.slice.Tensor", self=x, dim=axis, start=start, end=end, step=step)
        elif step == -1 and start == -1 and isinstance(end, int) and end < -(2**31):
            x = b.emit("aten.flip.default", self=x, dims=(axis,))
        else:
            raise n.refuse("a negative step is supported for a whole axis only.", received=step)
    b.define(n.outputs[0], x)


def _pythonic(start: int, end: int, step: int) -> slice:
    if step == 0:
        return slice(0, 0)
    return slice(start, None if step < 0 and end < -(2**31) else end, step)


def _gather(b: Builder, n: Operation) -> None:
    axis = int(n.attributes.get("axis", 0))
    data, index = b.sizes(n.inputs[0]), b.sizes(n.inputs[1])
    picked = None if index is None else index.known
    if data is not None and not data.scalar and picked is not None and index is not None:
        if not all(-len(data.items) <= i < len(data.items) for i in picked):
            raise n.refuse("it takes an element that is not there.", received=list(picked)[:20])
        b.define(n.outputs[0], Sizes(tuple(data.items[i] for i in picked), scalar=index.scalar))
        return
    x = b.tensor(n.inputs[0])
    if index is not None and index.scalar:
        b.define(n.outputs[0], b.emit("aten.select.int", self=x, dim=axis, index=index.items[0]))
        return
    which = b.tensor(n.inputs[1])
    rank = b.shape(x).dim()
    if not -rank <= axis < rank:
        raise n.refuse("its axis does not fit its input.", received=axis)
    source = b.initialisers.get(b.require(n.inputs[0]))
    if axis % rank == 0 and rank == 2 and source is not None and source.is_floating_point():
        b.define(n.outputs[0], b.emit("aten.embedding.default", weight=x, indices=which))
        return
    indices = (*(None,) * (axis % rank), which)
    b.define(n.outputs[0], b.emit("aten.index.Tensor", self=x, indices=indices))


def _gather_elements(b: Builder, n: Operation) -> None:
    x, which = b.tensor(n.inputs[0]), b.tensor(n.inputs[1])
    b.define(n.outputs[0], b.emit("aten.gather.default", self=x, dim=int(n.attributes.get("axis", 0)), index=which))


def _gather_nd(b: Builder, n: Operation) -> None:
    if n.attributes.get("batch_dims", 0):
        raise n.refuse("batch_dims is not supported.")
    x, which = b.tensor(n.inputs[0]), b.tensor(n.inputs[1])
    count = b.shape(which).shape[-1]
    if count > b.shape(x).dim():
        raise n.refuse("its indices have more numbers than its input has dimensions.", received=count)
    parts = tuple(b.emit("aten.select.int", self=which, dim=-1, index=i) for i in range(count))
    b.define(n.outputs[0], b.emit("aten.index.Tensor", self=x, indices=parts))


def _expand(b: Builder, n: Operation) -> None:
    x = b.tensor(n.inputs[0])
    shape: list[Size] = list(_numbers(b, n, 1).items)
    own = b.shape(x).shape
    shape = [*(1,) * (len(own) - len(shape)), *shape]
    lead = len(shape) - len(own)
    # Where the shape says 1, what is there stays.
    size = tuple(-1 if item == 1 and i >= lead else item for i, item in enumerate(shape))
    b.define(n.outputs[0], b.emit("aten.expand.default", self=x, size=size))


def _constant_of_shape(b: Builder, n: Operation) -> None:
    shape, value = _numbers(b, n, 0), n.attributes.get("value", torch.zeros(1))
    if not isinstance(value, torch.Tensor) or value.numel() != 1:
        raise n.refuse("its value is not one number.")
    known = shape.known
    if value.dtype == torch.int64 and known is not None and len(known) == 1 and 0 <= known[0] <= MAX_SIZES:
        b.define(n.outputs[0], Sizes((int(value),) * known[0]))
        return
    made: dict[str, Value] = {"dtype": value.dtype, "device": OwnDevice()}
    b.define(n.outputs[0], b.emit("aten.full.default", size=shape.items, fill_value=value.item(), **made))


def _range(b: Builder, n: Operation) -> None:
    start, end, step = (_numbers(b, n, i).items[0] for i in range(3))
    made: dict[str, Value] = {"dtype": torch.int64, "device": OwnDevice()}
    b.define(n.outputs[0], b.emit("aten.arange.start_step", start=start, end=end, step=step, **made))


def _cast(b: Builder, n: Operation) -> None:
    sizes = b.sizes(n.inputs[0])
    dtype = DTYPES.get(int(n.attributes["to"])) if n.kind == "Cast" else b.like(n.inputs[1]).dtype
    if dtype is None:
        raise n.refuse("it casts to a type that is not supported.", received=int(n.attributes["to"]))
    if sizes is not None and dtype in (torch.int64, torch.int32):
        items = tuple(int(item) if isinstance(item, bool) else item for item in sizes.items)
        b.define(n.outputs[0], Sizes(items, scalar=sizes.scalar))
        return
    b.define(n.outputs[0], b.emit("aten.to.dtype", self=b.tensor(n.inputs[0]), dtype=dtype))


def _tile(b: Builder, n: Operation) -> None:
    b.define(n.outputs[0], b.emit("aten.repeat.default", self=b.tensor(n.inputs[0]), repeats=_numbers(b, n, 1).items))


SHAPES: dict[str, Translate] = table(
    [
        (("Identity", "Dropout"), _identity),
        (("Constant",), _constant),
        (("Shape", "Size"), _shape),
        (("Reshape",), _reshape),
        (("Flatten",), _flatten),
        (("Transpose",), _transpose),
        (("Squeeze",), _squeeze),
        (("Unsqueeze",), _unsqueeze),
        (("Concat",), _concat),
        (("Split",), _split),
        (("Slice",), _slice),
        (("Gather",), _gather),
        (("GatherElements",), _gather_elements),
        (("GatherND",), _gather_nd),
        (("Expand",), _expand),
        (("ConstantOfShape",), _constant_of_shape),
        (("Range",), _range),
        (("Cast", "CastLike"), _cast),
        (("Tile",), _tile),
    ]
)
