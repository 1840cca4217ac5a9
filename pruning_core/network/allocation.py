"""How large a result will be, for operations whose scalars alone decide it: checked before the memory is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pruning_core.network.kernels import check_size

Arguments = Mapping[str, Any]
Sizes = Sequence[int]


def _size(a: Arguments) -> Sizes:
    return list(a["size"])


def _expand(a: Arguments) -> Sizes:
    own = a["self"].shape
    size = list(a["size"])
    lead = len(size) - len(own)
    return [own[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(size)]


def _repeat(key: str) -> Callable[[Arguments], Sizes]:
    return lambda a: [a["self"].numel(), *a[key]]


def _one_hot(a: Arguments) -> Sizes:
    count, classes = a["self"].numel(), a.get("num_classes", -1)
    if classes == -1:  # as many as the largest value says
        classes = int(a["self"].max()) + 1 if count else 1
    return [count, max(1, classes)]


def _arange(a: Arguments) -> Sizes:
    step = a.get("step", 1)
    length = (a["end"] - a.get("start", 0)) / step if step else 0  # aten refuses step 0 itself
    return [math.ceil(abs(length))]


def _pad(a: Arguments) -> Sizes:
    tensor, pad = a["self"], list(a["pad"] if "pad" in a else a["padding"])
    sizes = list(tensor.shape)
    for i in range(min(len(pad) // 2, len(sizes))):
        sizes[-1 - i] += max(0, pad[2 * i]) + max(0, pad[2 * i + 1])
    return sizes


def _square_pad(a: Arguments) -> Sizes:
    padding = a.get("padding", 0)
    sides = list(padding) if isinstance(padding, list | tuple) else [] if isinstance(padding, str) else [padding]
    lead, spatial = _spatial(a["input"].shape, a["weight"].dim() - 2)
    if len(sides) == 1:
        sides *= len(spatial)
    grown = [n + 2 * abs(p) for n, p in zip(spatial, sides, strict=False)]
    return [*lead, *grown] if grown else []


def _each(a: Arguments, name: str, default: int, count: int) -> list[int]:
    given = a.get(name, default)
    sizes = list(given) if isinstance(given, list | tuple) else [given]
    return sizes * count if len(sizes) == 1 else [*sizes, *[default] * (count - len(sizes))]


def _spatial(shape: Sizes, n: int) -> tuple[list[int], list[int]]:
    """Return the leading and the last n dimensions: a convolution's input may come without a batch."""
    return list(shape[: len(shape) - n]), list(shape[len(shape) - n :])


def _transposed(a: Arguments) -> Sizes:
    kernel = a["weight"].shape[2:]
    n = len(kernel)
    lead, spatial = _spatial(a["input"].shape, n)
    stride, dilation = _each(a, "stride", 1, n), _each(a, "dilation", 1, n)
    extra = _each(a, "output_padding", 0, n)
    grown = [
        (size - 1) * abs(s) + abs(d) * (k - 1) + abs(e) + 1
        for size, k, s, d, e in zip(spatial, kernel, stride, dilation, extra, strict=False)
    ]
    return [*lead[:-1], a["weight"].shape[1] * abs(a.get("groups", 1)), *grown]


def _convolution(a: Arguments) -> Sizes:
    return _transposed(a) if a.get("transposed") else _square_pad(a)


def _unfold(a: Arguments) -> Sizes:
    kernel, dilation, padding, stride = (list(a[name]) for name in ("kernel_size", "dilation", "padding", "stride"))
    places = [
        max(0, n + 2 * p - d * (k - 1) - 1) // max(1, s) + 1
        for n, k, d, p, s in zip(a["self"].shape[-2:], kernel, dilation, padding, stride, strict=False)
    ]
    return [*a["self"].shape[:-2], *kernel, *places]


def _upsample(a: Arguments) -> Sizes:
    tensor = a["input"] if "input" in a else a["self"]
    lead, spatial = list(tensor.shape[:2]), list(tensor.shape[2:])
    if (size := a.get("output_size")) is not None:
        return [*lead, *size]
    factors = a.get("scale_factors") or [1.0]
    return [*lead, *(math.ceil(n * abs(f)) for n, f in zip(spatial, factors, strict=False))]


def _pool(a: Arguments) -> Sizes:
    size = list(a["output_size"])
    return [*a["self"].shape[: a["self"].dim() - len(size)], *size]


def _fold(a: Arguments) -> Sizes:
    return [a["self"].shape[0], a["self"].shape[-2], *a["output_size"]]


def _transform(a: Arguments) -> Sizes:
    n = a.get("n")
    s = a.get("s") or ([] if n is None else [n])
    return [a["self"].numel(), *s] if s else []


_RULES: dict[str, Callable[[Arguments], Sizes]] = {
    **dict.fromkeys(("full", "zeros", "ones", "new_full", "new_zeros", "new_ones", "affine_grid_generator"), _size),
    **dict.fromkeys(("expand", "broadcast_to"), _expand),
    "repeat": _repeat("repeats"),
    "tile": _repeat("dims"),
    "repeat_interleave": lambda a: [a["self"].numel(), a["repeats"]],
    "one_hot": _one_hot,
    "arange": _arange,
    **dict.fromkeys(("linspace", "logspace"), lambda a: [a["steps"]]),
    "histc": lambda a: [a.get("bins", 100)],
    "eye": lambda a: [a["n"], a.get("m", a["n"])],
    **dict.fromkeys(("tril_indices", "triu_indices"), lambda a: [a["row"], a["col"]]),
    "diag_embed": lambda a: [a["self"].numel(), max(a["self"].shape[-1:], default=1) + abs(a.get("offset", 0))],
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys((f"conv{d}d" for d in (1, 2, 3)), _square_pad),
    "convolution": _convolution,
    **dict.fromkeys((f"conv_transpose{d}d" for d in (1, 2, 3)), _transposed),
    "im2col": _unfold,
    **dict.fromkeys(
        (
            *(f"upsample_{kind}" for kind in ("bicubic2d", "bilinear2d", "linear1d", "trilinear3d")),
            *(f"upsample_nearest{d}d" for d in (1, 2, 3)),
            *(f"_upsample_{kind}2d_aa" for kind in ("bicubic", "bilinear")),
        ),
        _upsample,
    ),
    **dict.fromkeys((f"adaptive_{kind}_pool{d}d" for kind in ("avg", "max") for d in (1, 2, 3)), _pool),
    **dict.fromkeys((f"_adaptive_avg_pool{d}d" for d in (2, 3)), _pool),
    "col2im": _fold,
    **dict.fromkeys(
        (f"fft_{i}{kind}fft{n}" for i in ("", "i") for kind in ("", "r", "h") for n in ("", "2", "n")), _transform
    ),
}


def check_allocation(op: str, arguments: Arguments) -> None:
    """Refuse an operation whose scalar arguments ask for a huge result.

    Args:
        op: Its name on the allowlist.
        arguments: Argument name -> value.

    Raises:
        UnsupportedModel: The result would have more than `kernels.MAX_ELEMENTS` elements.
    """
    rule = _RULES.get(op.split(".")[1]) if op.startswith("aten.") else None
    if rule is not None:
        check_size(rule(arguments), op)
