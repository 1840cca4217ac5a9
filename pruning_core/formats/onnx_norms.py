"""ONNX operators that work along dimensions: reductions, norms, softmax."""

from __future__ import annotations

from pruning_core.formats.onnx_builder import Builder, Operation, Sizes
from pruning_core.formats.onnx_elementwise import Translate, table
from pruning_core.network.graph import Value

_REDUCTIONS = {"ReduceMean": "mean.dim", "ReduceSum": "sum.dim_IntList", "ReduceMax": "amax.default"}
_REDUCTIONS |= {"ReduceMin": "amin.default", "ReduceL2": "linalg_vector_norm.default"}


def axes_of(b: Builder, n: Operation, rank: int, index: int = 1) -> tuple[int, ...] | None:
    """Return the axes of an attribute or input, from 0; None where none are given."""
    axes = n.attributes.get("axes")
    if axes is None and n.input(index):
        found = b.sizes(n.inputs[index])
        if found is None or found.known is None:
            raise n.refuse("its axes are computed.", expected="axes that are constants")
        axes = found.known
    if axes is None:
        return None
    if not all(-rank <= axis < rank for axis in axes) or len({axis % rank for axis in axes}) != len(axes):
        raise n.refuse("its axes do not fit its input.", expected=f"different axes below {rank}", received=list(axes))
    return tuple(axis % rank for axis in axes)


def _reduce(b: Builder, n: Operation) -> None:
    sizes = b.sizes(n.inputs[0])
    keep = bool(n.attributes.get("keepdims", 1))
    if n.kind == "ReduceProd":
        if sizes is None:
            raise n.refuse("it is supported on sizes only.")
        b.define(n.outputs[0], Sizes((b.product(sizes.items),), scalar=not keep or sizes.scalar))
        return
    x = b.tensor(n.inputs[0])
    rank = b.shape(x).dim()
    axes = axes_of(b, n, rank)
    if not axes:
        if n.attributes.get("noop_with_empty_axes", 0):
            b.define(n.outputs[0], x)
            return
        axes = tuple(range(rank))
    more: dict[str, Value] = {"ord": 2} if n.kind == "ReduceL2" else {}
    b.define(n.outputs[0], b.emit(f"aten.{_REDUCTIONS[n.kind]}", self=x, dim=axes, keepdim=keep, **more))


def _global_pool(b: Builder, n: Operation) -> None:
    x = b.tensor(n.inputs[0])
    op = "aten.mean.dim" if n.kind == "GlobalAveragePool" else "aten.amax.default"
    b.define(n.outputs[0], b.emit(op, self=x, dim=tuple(range(2, b.shape(x).dim())), keepdim=True))


def _argmax(b: Builder, n: Operation) -> None:
    if n.attributes.get("select_last_index", 0):
        raise n.refuse("select_last_index is not supported.")
    axis, keep = int(n.attributes.get("axis", 0)), bool(n.attributes.get("keepdims", 1))
    op = "aten.argmax.default" if n.kind == "ArgMax" else "aten.argmin.default"
    b.define(n.outputs[0], b.emit(op, self=b.tensor(n.inputs[0]), dim=axis, keepdim=keep))


def _batch_norm(b: Builder, n: Operation) -> None:
    if n.attributes.get("training_mode", 0) or any(n.outputs[1:]):
        raise n.refuse(
            "it is in train mode.", advice="Call model.eval() before the export: torch.onnx.export(model.eval(), …)."
        )
    x, weight, bias, mean, variance = (b.tensor(name) for name in n.inputs)
    epsilon = float(n.attributes.get("epsilon", 1e-5))
    statistics = {"running_mean": mean, "running_var": variance}
    options: dict[str, Value] = {"training": False, "momentum": 0.1, "eps": epsilon, "cudnn_enabled": False}
    b.define(
        n.outputs[0],
        b.emit("aten.batch_norm.default", input=x, weight=weight, bias=bias, **statistics, **options),
    )


def _layer_norm(b: Builder, n: Operation) -> None:
    if any(n.outputs[1:]):
        raise n.refuse("its mean and deviation are used.")
    x, weight = b.tensor(n.inputs[0]), b.tensor(n.inputs[1])
    rank, axis = b.shape(x).dim(), int(n.attributes.get("axis", -1))
    shape = tuple(b.shape(weight).shape)
    if len(shape) != rank - axis % rank:
        raise n.refuse("its scale has another shape than what it normalises.", received=list(shape))
    options: dict[str, Value] = {"eps": float(n.attributes.get("epsilon", 1e-5))}
    op = "aten.rms_norm.default"
    if n.kind == "LayerNormalization":
        op, options["bias"] = "aten.layer_norm.default", b.tensor(n.inputs[2]) if n.input(2) else None
    b.define(n.outputs[0], b.emit(op, input=x, normalized_shape=shape, weight=weight, **options))


def _instance_norm(b: Builder, n: Operation) -> None:
    x, weight, bias = (b.tensor(name) for name in n.inputs)
    options: dict[str, Value] = {"running_mean": None, "running_var": None, "use_input_stats": True, "momentum": 0.0}
    options |= {"eps": float(n.attributes.get("epsilon", 1e-5)), "cudnn_enabled": False}
    b.define(n.outputs[0], b.emit("aten.instance_norm.default", input=x, weight=weight, bias=bias, **options))


def _group_norm(b: Builder, n: Operation) -> None:
    if n.opset < 21:
        raise n.refuse("before opset 21 its scale is for groups.", advice="Export with opset 21 or later.")
    x, weight, bias = (b.tensor(name) for name in n.inputs)
    options: dict[str, Value] = {"num_groups": int(n.attributes["num_groups"]), "cudnn_enabled": False}
    options["eps"] = float(n.attributes.get("epsilon", 1e-5))
    b.define(n.outputs[0], b.emit("aten.group_norm.default", input=x, weight=weight, bias=bias, **options))


def _softmax(b: Builder, n: Operation) -> None:
    op = "aten.softmax.int" if n.kind == "Softmax" else "aten.log_softmax.int"
    b.define(n.outputs[0], b.emit(op, self=b.tensor(n.inputs[0]), dim=int(n.attributes.get("axis", -1))))


def _einsum(b: Builder, n: Operation) -> None:
    tensors = tuple(b.tensor(name) for name in n.inputs)
    b.define(n.outputs[0], b.emit("aten.einsum.default", equation=str(n.attributes["equation"]), tensors=tensors))


def _cumsum(b: Builder, n: Operation) -> None:
    axis = b.sizes(n.inputs[1])
    if axis is None or axis.known is None or n.attributes.get("exclusive", 0) or n.attributes.get("reverse", 0):
        raise n.refuse("its axis is computed, or it is exclusive or reversed.")
    b.define(n.outputs[0], b.emit("aten.cumsum.default", self=b.tensor(n.inputs[0]), dim=axis.known[0]))


def _trilu(b: Builder, n: Operation) -> None:
    found = b.sizes(n.inputs[1]) if n.input(1) else Sizes((0,))
    if found is None or found.known is None:
        raise n.refuse("its diagonal is computed.")
    op = "aten.triu.default" if n.attributes.get("upper", 1) else "aten.tril.default"
    b.define(n.outputs[0], b.emit(op, self=b.tensor(n.inputs[0]), diagonal=found.known[0]))


NORMS: dict[str, Translate] = table(
    [
        ((*_REDUCTIONS, "ReduceProd"), _reduce),
        (("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
        (("ArgMax", "ArgMin"), _argmax),
        (("BatchNormalization",), _batch_norm),
        (("LayerNormalization", "RMSNormalization"), _layer_norm),
        (("InstanceNormalization",), _instance_norm),
        (("GroupNormalization",), _group_norm),
        (("Softmax", "LogSoftmax"), _softmax),
        (("Einsum",), _einsum),
        (("CumSum",), _cumsum),
        (("Trilu",), _trilu),
    ]
)
