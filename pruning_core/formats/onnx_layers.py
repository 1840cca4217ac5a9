"""ONNX operators with weights and windows: products, convolutions, pooling, resizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pruning_core.formats.onnx_builder import Builder, Operation, Size
from pruning_core.formats.onnx_elementwise import Translate, table
from pruning_core.formats.onnx_norms import axes_of
from pruning_core.network.graph import Ref, Value


def linear(b: Builder, n: Operation, weight: str, swapped: bool, bias: str | None) -> Ref:
    """Return x Wᵀ + b, for a matrix that is an initialiser: the layer that can be pruned."""
    held = b.weight(weight) if swapped == (b.require(weight) in b.swapped) else None
    if held is None:  # one matrix, used both ways round
        stored = b.tensor(weight)
        held = b.emit("aten.permute.default", self=stored, dims=(1, 0)) if swapped else stored
    added = None if bias is None else b.tensor(bias)
    # A linear layer adds a vector of one number for each output by itself.
    fused = added is None or tuple(b.shape(added).shape) == tuple(b.shape(held).shape[:1])
    y: Ref = b.emit("aten.linear.default", input=b.tensor(n.inputs[0]), weight=held, bias=added if fused else None)
    if not fused:
        assert added is not None
        y = b.emit("aten.add.Tensor", self=y, other=added)
    return y


def is_matrix(b: Builder, name: str) -> bool:
    """Return whether a value is a matrix of weights that the file holds."""
    found = b.initialisers.get(b.require(name))
    return found is not None and found.dim() == 2 and found.is_floating_point()


def _gemm(b: Builder, n: Operation) -> None:
    alpha, beta = float(n.attributes.get("alpha", 1.0)), float(n.attributes.get("beta", 1.0))
    bias = n.input(2) or None
    swapped = not n.attributes.get("transB", 0)
    if is_matrix(b, n.inputs[1]) and not n.attributes.get("transA", 0) and alpha == 1 and (beta == 1 or bias is None):
        b.define(n.outputs[0], linear(b, n, n.inputs[1], swapped, bias))
        return
    x, w = b.tensor(n.inputs[0]), b.tensor(n.inputs[1])
    x = b.emit("aten.t.default", self=x) if n.attributes.get("transA", 0) else x
    w = w if swapped else b.emit("aten.t.default", self=w)
    y = b.emit("aten.matmul.default", self=x, other=w)
    y = y if alpha == 1 else b.emit("aten.mul.Scalar", self=y, other=alpha)
    if bias is not None:
        c = b.tensor(bias)
        c = c if beta == 1 else b.emit("aten.mul.Scalar", self=c, other=beta)
        y = b.emit("aten.add.Tensor", self=y, other=c)
    b.define(n.outputs[0], y)


def _matmul(b: Builder, n: Operation) -> None:
    if is_matrix(b, n.inputs[1]):
        b.define(n.outputs[0], linear(b, n, n.inputs[1], True, n.attributes.get("fused bias")))
        return
    b.define(n.outputs[0], b.emit("aten.matmul.default", self=b.tensor(n.inputs[0]), other=b.tensor(n.inputs[1])))


def _numbers(n: Operation, name: str, count: int, default: int) -> tuple[int, ...]:
    found = n.attributes.get(name)
    numbers = tuple(int(i) for i in found) if found else (default,) * count
    if len(numbers) != count or not all(0 <= i < 2**20 for i in numbers):
        raise n.refuse(f"{name} does not fit.", expected=f"{count} small numbers", received=list(numbers)[:20])
    return numbers


def _window(
    b: Builder, n: Operation, x: Ref, kernel: Sequence[int], fill: float
) -> tuple[Ref, dict[str, tuple[int, ...]]]:
    """Return the input, padded where its padding is not the same on both sides, and stride, padding and dilation."""
    count = len(kernel)
    if b.shape(x).dim() != count + 2 or not 1 <= count <= 3:
        raise n.refuse("it has another number of dimensions.", expected="1 to 3 spatial dimensions")
    stride, dilation = _numbers(n, "strides", count, 1), _numbers(n, "dilations", count, 1)
    how = n.attributes.get("auto_pad", "NOTSET")
    if how in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same(b, x, kernel, stride, dilation, upper=how == "SAME_UPPER")
    elif how in ("NOTSET", "VALID", ""):
        both = _numbers(n, "pads", 2 * count, 0) if how != "VALID" else (0,) * (2 * count)
        pads = list(zip(both[:count], both[count:], strict=True))
    else:
        raise n.refuse("its auto_pad is not known.", received=str(how)[:40])
    if all(not isinstance(before, Ref) and before == after for before, after in pads):
        padding = tuple(before for before, _ in pads if not isinstance(before, Ref))
    else:
        flat: tuple[Size, ...] = tuple(side for pair in reversed(pads) for side in pair)
        x = b.emit("aten.constant_pad_nd.default", self=x, pad=flat, value=fill)
        padding = (0,) * count
    return x, {"stride": stride, "padding": padding, "dilation": dilation}


def _same(
    b: Builder, x: Ref, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], *, upper: bool
) -> list[tuple[Size, Size]]:
    """Return padding before and after, so that each dimension becomes its size / stride, rounded up."""
    pads: list[tuple[Size, Size]] = []
    for i, (k, s, d) in enumerate(zip(kernel, stride, dilation, strict=True)):
        reach = (k - 1) * d + 1
        total: Size = max(reach - 1, 0)
        if s > 1:
            size = b.size_of(x, i + 2)
            steps = b.arithmetic("floordiv", b.arithmetic("sub", size, 1), s)
            last = b.arithmetic("mul", steps, s)
            total = b.arithmetic("max", b.arithmetic("add", b.arithmetic("sub", last, size), reach), 0)
        less = b.arithmetic("floordiv", total, 2)
        more = b.arithmetic("sub", total, less)
        pads.append((less, more) if upper else (more, less))
    return pads


def _conv(b: Builder, n: Operation) -> None:
    weight = b.tensor(n.inputs[1])
    kernel = tuple(b.shape(weight).shape[2:])
    x, sides = _window(b, n, b.tensor(n.inputs[0]), kernel, 0.0)
    bias = b.tensor(n.inputs[2]) if n.input(2) else None
    groups = int(n.attributes.get("group", 1))
    options: Mapping[str, Value] = {**sides, "groups": groups}
    b.define(n.outputs[0], b.emit(f"aten.conv{len(kernel)}d.default", input=x, weight=weight, bias=bias, **options))


_TRANSPOSED = {1: "conv_transpose1d.default", 2: "conv_transpose2d.input", 3: "conv_transpose3d.input"}


def _conv_transpose(b: Builder, n: Operation) -> None:
    weight = b.tensor(n.inputs[1])
    kernel = tuple(b.shape(weight).shape[2:])
    count = len(kernel)
    pads = _numbers(n, "pads", 2 * count, 0)
    if n.attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in n.attributes or count not in _TRANSPOSED:
        raise n.refuse("auto_pad and output_shape are not supported.")
    if pads[:count] != pads[count:]:
        raise n.refuse("its padding is not the same on both sides.", received=list(pads))
    options: dict[str, Value] = {"stride": _numbers(n, "strides", count, 1), "padding": pads[:count]}
    options |= {"output_padding": _numbers(n, "output_padding", count, 0), "groups": int(n.attributes.get("group", 1))}
    options["dilation"] = _numbers(n, "dilations", count, 1)
    bias = b.tensor(n.inputs[2]) if n.input(2) else None
    x = b.tensor(n.inputs[0])
    b.define(n.outputs[0], b.emit(f"aten.{_TRANSPOSED[count]}", input=x, weight=weight, bias=bias, **options))


def _pool(b: Builder, n: Operation) -> None:
    if any(n.outputs[1:]) or n.attributes.get("storage_order", 0):
        raise n.refuse("its indices are used.")
    x = b.tensor(n.inputs[0])
    kernel = _numbers(n, "kernel_shape", b.shape(x).dim() - 2, 1)
    largest = n.kind == "MaxPool"
    counted = bool(n.attributes.get("count_include_pad", 0))
    padded, sides = _window(b, n, x, kernel, float("-inf") if largest else 0.0)
    if not largest and padded != x and not counted:
        raise n.refuse("its padding differs between the sides, and is not counted.")
    options: dict[str, Value] = {"stride": sides["stride"], "padding": sides["padding"]}
    options["ceil_mode"] = bool(n.attributes.get("ceil_mode", 0))
    if largest:
        options["dilation"] = sides["dilation"]
    elif set(sides["dilation"]) != {1}:
        raise n.refuse("dilated average pooling is not supported.")
    else:
        options["count_include_pad"] = counted
    op = f"aten.{'max' if largest else 'avg'}_pool{len(kernel)}d.default"
    b.define(n.outputs[0], b.emit(op, self=padded, kernel_size=kernel, **options))


def _resize(b: Builder, n: Operation) -> None:
    x = b.tensor(n.inputs[0])
    mode = n.attributes.get("mode", "nearest")
    where = n.attributes.get("coordinate_transformation_mode", "half_pixel")
    rounding = n.attributes.get("nearest_mode", "round_prefer_floor")
    known = (mode == "nearest" and where == "asymmetric" and rounding == "floor") or (
        mode == "linear" and where in ("half_pixel", "pytorch_half_pixel", "align_corners")
    )
    if b.shape(x).dim() != 4 or not known or n.attributes.get("antialias", 0) or "axes" in n.attributes:
        raise n.refuse(
            "this way of resizing is not supported.",
            expected="4 dimensions; nearest (asymmetric, floor) or linear (half_pixel, align_corners)",
            received={"mode": mode, "coordinates": where, "rounding": rounding},
        )
    scales = b.constant(n.inputs[2]) if n.input(2) else None
    sizes = b.sizes(n.inputs[3]) if n.input(3) else None
    options: dict[str, Value] = {"output_size": None, "scale_factors": None}
    if sizes is not None and len(sizes.items) == 4:
        options["output_size"] = sizes.items[2:]
    elif scales is not None and scales.numel() == 4 and scales[:2].tolist() == [1, 1]:
        factors = tuple(float(s) for s in scales[2:])
        if not all(0 < factor <= 64 for factor in factors):
            raise n.refuse("its scales are out of range.", expected="up to 64", received=list(factors))
        options["scale_factors"] = factors
    else:
        raise n.refuse("its scales are computed, or change batch or channels.")
    if mode == "linear":
        options["align_corners"] = where == "align_corners"
    op = "upsample_nearest2d" if mode == "nearest" else "upsample_bilinear2d"
    b.define(n.outputs[0], b.emit(f"aten.{op}.vec", input=x, **options))


def _pad(b: Builder, n: Operation) -> None:
    x, found = b.tensor(n.inputs[0]), b.sizes(n.inputs[1])
    if found is None:
        raise n.refuse("its pads are computed from data.", expected="pads that are constants or sizes")
    sides = found.items
    rank = b.shape(x).dim()
    axes = axes_of(b, n, rank, 3) or tuple(range(rank))
    if len(sides) != 2 * len(axes):
        raise n.refuse("its pads do not fit its axes.", received=len(sides))
    pairs: dict[int, Any] = {axis: (sides[i], sides[i + len(axes)]) for i, axis in enumerate(axes)}
    mode = n.attributes.get("mode", "constant")
    flat: Sequence[Size] = [side for axis in range(rank - 1, -1, -1) for side in pairs.get(axis, (0, 0))]
    value = b.constant(n.inputs[2]) if n.input(2) else torch.zeros(())
    if value is None or value.numel() != 1:
        raise n.refuse("its value is computed.")
    if mode == "constant":
        y = b.emit("aten.constant_pad_nd.default", self=x, pad=tuple(flat), value=value.item())
    elif mode in ("reflect", "edge") and rank > 2 and tuple(flat[-4:]) == (0, 0, 0, 0):
        y = b.emit("aten.pad.default", self=x, pad=tuple(flat[:-4]), mode={"edge": "replicate"}.get(mode, mode))
    else:
        raise n.refuse("this way of padding is not supported.", received=str(mode)[:40])
    b.define(n.outputs[0], y)


def _pixel_shuffle(b: Builder, n: Operation) -> None:
    if n.attributes.get("mode", "DCR") != "CRD":
        raise n.refuse("only mode CRD is supported.")
    factor = int(n.attributes["blocksize"])
    b.define(n.outputs[0], b.emit("aten.pixel_shuffle.default", self=b.tensor(n.inputs[0]), upscale_factor=factor))


LAYERS: dict[str, Translate] = table(
    [
        (("Gemm",), _gemm),
        (("MatMul",), _matmul),
        (("Conv",), _conv),
        (("ConvTranspose",), _conv_transpose),
        (("MaxPool", "AveragePool"), _pool),
        (("Resize",), _resize),
        (("Pad",), _pad),
        (("DepthToSpace",), _pixel_shuffle),
    ]
)
