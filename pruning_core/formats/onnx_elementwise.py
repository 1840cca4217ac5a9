"""ONNX operators that work element by element, each as the aten calls of the same meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pruning_core.formats.onnx_builder import Builder, Operation, Size, Sizes
from pruning_core.network.graph import Ref, Value

Translate = Callable[[Builder, Operation], None]

_UNARY = {
    **{"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Erf": "erf", "Sqrt": "sqrt", "Exp": "exp", "Log": "log"},
    **{"Neg": "neg", "Abs": "abs", "Reciprocal": "reciprocal", "Floor": "floor", "Ceil": "ceil", "Round": "round"},
    **{"Sign": "sign", "Sin": "sin", "Cos": "cos", "Not": "logical_not", "IsNaN": "isnan", "HardSwish": "hardswish"},
    **{"Mish": "mish", "Softplus": "softplus"},
}
_BINARY = {
    **{"Add": "add.Tensor", "Sub": "sub.Tensor", "Mul": "mul.Tensor", "Div": "div.Tensor"},
    **{"Equal": "eq.Tensor", "Greater": "gt.Tensor", "Less": "lt.Tensor", "GreaterOrEqual": "ge.Tensor"},
    **{"LessOrEqual": "le.Tensor", "And": "logical_and.default", "Or": "logical_or.default"},
    "Xor": "logical_xor.default",
}
_VARIADIC = {"Max": "maximum.default", "Min": "minimum.default", "Sum": "add.Tensor"}
_ON_SIZES = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "floordiv", "Max": "max", "Min": "min"}


def _unary(b: Builder, n: Operation) -> None:
    b.define(n.outputs[0], b.emit(f"aten.{_UNARY[n.kind]}.default", self=b.tensor(n.inputs[0])))


def _binary(b: Builder, n: Operation) -> None:
    left, right = b.sizes(n.inputs[0]), b.sizes(n.inputs[1])
    if left is not None and right is not None and _on_sizes(b, n, left, right):
        return
    first, second = (b.tensor(name) for name in n.inputs)
    arguments: dict[str, Value] = {"self": first, "other": second}
    op = _BINARY[n.kind]
    if n.kind == "Div" and not b.shape(first).is_floating_point():
        op, arguments["rounding_mode"] = "div.Tensor_mode", "trunc"
    b.define(n.outputs[0], b.emit(f"aten.{op}", **arguments))


def _on_sizes(b: Builder, n: Operation, left: Sizes, right: Sizes) -> bool:
    """Define the result as numbers, if it can be one; sizes are never negative, so that division is whole."""
    if not {len(left.items), len(right.items)} <= {1, max(len(left.items), len(right.items))}:
        return False
    count = max(len(left.items), len(right.items))
    pairs = list(zip(_stretched(left, count), _stretched(right, count), strict=True))
    scalar = left.scalar and right.scalar
    if n.kind == "Equal":
        known = [_equal(x, y) for x, y in pairs]
        if None in known:
            return False
        b.define(n.outputs[0], Sizes(tuple(bool(k) for k in known), scalar=scalar))
        return True
    if n.kind not in _ON_SIZES or any(isinstance(x, bool) for pair in pairs for x in pair):
        return False
    if n.kind == "Div" and any(not isinstance(x, Ref) and x < 0 for pair in pairs for x in pair):
        return False
    items = tuple(b.arithmetic(_ON_SIZES[n.kind], x, y) for x, y in pairs)
    b.define(n.outputs[0], Sizes(items, scalar=scalar))
    return True


def _stretched(sizes: Sizes, count: int) -> tuple[Size, ...]:
    return sizes.items if len(sizes.items) == count else sizes.items * count


def _equal(x: Size, y: Size) -> bool | None:
    if isinstance(x, Ref) or isinstance(y, Ref):
        number = y if isinstance(x, Ref) else x
        # What is worked out when the network runs is a size, and that is never negative.
        return False if not isinstance(number, Ref) and number < 0 else True if x == y else None
    return x == y


def _variadic(b: Builder, n: Operation) -> None:
    sizes = [b.sizes(name) for name in n.inputs]
    if len(sizes) == 2 and sizes[0] and sizes[1] and n.kind in _ON_SIZES and _on_sizes(b, n, sizes[0], sizes[1]):
        return
    first, *others = (b.tensor(name) for name in n.inputs)
    for other in others:
        first = b.emit(f"aten.{_VARIADIC[n.kind]}", self=first, other=other)
    b.define(n.outputs[0], first)


def _where(b: Builder, n: Operation) -> None:
    parts = [b.sizes(name) for name in n.inputs]
    flags, *choices = parts
    if flags is not None and flags.known is not None and None not in choices:
        found = [c for c in choices if c is not None]
        count = max(len(part.items) for part in (flags, *found))
        yes, no = (_stretched(c, count) for c in found)
        picked = tuple(y if flag else m for flag, y, m in zip(_stretched(flags, count), yes, no, strict=True))
        b.define(n.outputs[0], Sizes(picked, scalar=all(part.scalar for part in (flags, *found))))
        return
    condition, first, second = (b.tensor(name) for name in n.inputs)
    b.define(n.outputs[0], b.emit("aten.where.self", condition=condition, self=first, other=second))


def _pow(b: Builder, n: Operation) -> None:
    exponent = b.constant(n.inputs[1])
    base = b.tensor(n.inputs[0])
    if exponent is not None and exponent.numel() == 1 and exponent.dim() == 0 and b.shape(base).is_floating_point():
        b.define(n.outputs[0], b.emit("aten.pow.Tensor_Scalar", self=base, exponent=float(exponent)))
        return
    b.define(n.outputs[0], b.emit("aten.pow.Tensor_Tensor", self=base, exponent=b.tensor(n.inputs[1])))


def _mod(b: Builder, n: Operation) -> None:
    left, right = b.sizes(n.inputs[0]), b.sizes(n.inputs[1])
    if left is not None and right is not None and left.known and right.known and len(left.items) == len(right.items):
        if 0 in right.known:
            raise n.refuse("it divides by zero.")
        items = tuple(x % y for x, y in zip(left.known, right.known, strict=True))
        b.define(n.outputs[0], Sizes(items, scalar=left.scalar and right.scalar))
        return
    op = "fmod" if n.attributes.get("fmod", 0) else "remainder"
    b.define(n.outputs[0], b.emit(f"aten.{op}.Tensor", self=b.tensor(n.inputs[0]), other=b.tensor(n.inputs[1])))


def _clip(b: Builder, n: Operation) -> None:
    bounds = []
    for index in (1, 2):
        name = n.input(index)
        bound = b.constant(name) if name else None
        if name and (bound is None or bound.numel() != 1):
            raise n.refuse("its bounds are computed.", expected="bounds that are constants")
        bounds.append(None if bound is None else bound.item())
    low, high = bounds
    x = b.tensor(n.inputs[0])
    if low is not None and high is not None and low <= high and b.shape(x).is_floating_point():
        b.define(n.outputs[0], b.emit("aten.hardtanh.default", self=x, min_val=low, max_val=high))
    elif low is None and high is None:
        b.define(n.outputs[0], x)
    else:
        b.define(n.outputs[0], b.emit("aten.clamp.default", self=x, min=low, max=high))


def _leaky(b: Builder, n: Operation) -> None:
    slope = float(n.attributes.get("alpha", 0.01))
    b.define(n.outputs[0], b.emit("aten.leaky_relu.default", self=b.tensor(n.inputs[0]), negative_slope=slope))


def _elu(b: Builder, n: Operation) -> None:
    alpha = float(n.attributes.get("alpha", 1.0))
    b.define(n.outputs[0], b.emit("aten.elu.default", self=b.tensor(n.inputs[0]), alpha=alpha))


def _prelu(b: Builder, n: Operation) -> None:
    x, slope = b.tensor(n.inputs[0]), b.tensor(n.inputs[1])
    below = b.emit("aten.clamp_max.default", self=x, max=0.0)
    scaled = b.emit("aten.mul.Tensor", self=below, other=slope)
    b.define(n.outputs[0], b.emit("aten.add.Tensor", self=b.emit("aten.relu.default", self=x), other=scaled))


def _hard_sigmoid(b: Builder, n: Operation) -> None:
    alpha, beta = float(n.attributes.get("alpha", 0.2)), float(n.attributes.get("beta", 0.5))
    x = b.tensor(n.inputs[0])
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        b.define(n.outputs[0], b.emit("aten.hardsigmoid.default", self=x))
        return
    line = b.emit("aten.add.Scalar", self=b.emit("aten.mul.Scalar", self=x, other=alpha), other=beta)
    b.define(n.outputs[0], b.emit("aten.hardtanh.default", self=line, min_val=0.0, max_val=1.0))


def _gelu(b: Builder, n: Operation) -> None:
    how = n.attributes.get("approximate", "none")
    if how not in ("none", "tanh"):
        raise n.refuse("its approximation is not known.", expected="none or tanh", received=str(how)[:40])
    b.define(n.outputs[0], b.emit("aten.gelu.default", self=b.tensor(n.inputs[0]), approximate=how))


def table(entries: Sequence[tuple[Sequence[str], Translate]]) -> dict[str, Translate]:
    """Return op_type -> translation."""
    return {kind: translate for kinds, translate in entries for kind in kinds}


ELEMENTWISE: dict[str, Translate] = table(
    [
        (tuple(_UNARY), _unary),
        (tuple(_BINARY), _binary),
        (tuple(_VARIADIC), _variadic),
        (("Where",), _where),
        (("Pow",), _pow),
        (("Mod",), _mod),
        (("Clip",), _clip),
        (("LeakyRelu",), _leaky),
        (("Elu",), _elu),
        (("PRelu",), _prelu),
        (("HardSigmoid",), _hard_sigmoid),
        (("Gelu",), _gelu),
    ]
)
