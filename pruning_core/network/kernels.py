"""Operations that are not handed to aten as they are: size arithmetic, and kernels where aten's will not do."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from pruning_core.errors import UnsupportedModel

#: Most elements that one operation may make out of scalars alone (2^28: 1 GiB of float32).
MAX_ELEMENTS = 2**28
#: Largest power and shift in size arithmetic.
MAX_EXPONENT = 64


def check_size(sizes: Sequence[int], what: str) -> None:
    """Refuse a result that would be huge only because the graph says so.

    Raises:
        UnsupportedModel: The product of ``sizes`` is above `MAX_ELEMENTS`.
    """
    if math.prod(sizes) > MAX_ELEMENTS:
        raise UnsupportedModel(
            f"{what} would make a tensor of shape {list(sizes)}.",
            expected=f"at most {MAX_ELEMENTS} elements",
            received=math.prod(sizes),
        )


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > MAX_EXPONENT:
        raise UnsupportedModel(
            "A size is raised to a huge power.", expected=f"at most {MAX_EXPONENT}", received=exponent
        )
    return base**exponent


def _shift(value: int, by: int) -> int:
    if not 0 <= by <= MAX_EXPONENT:
        raise UnsupportedModel("A size is shifted by too much.", expected=f"0 to {MAX_EXPONENT}", received=by)
    return value << by


def _choose(condition: Any, then: Any, other: Any) -> Any:
    return then if condition else other


#: Plain arithmetic on sizes and flags; arguments are positional, in the order of the file.
SCALAR_OPS: dict[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in ("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos")},
    **{f"operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod")},
    "operator.and_": operator.and_,
    "operator.or_": operator.or_,
    "operator.rshift": operator.rshift,
    "operator.lshift": _shift,
    "operator.pow": _power,
    "math.trunc": math.trunc,
    "torch.sym_not": operator.not_,
    "torch.sym_int": int,
    "torch.sym_float": float,
    "torch.sym_ite": _choose,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_sqrt": math.sqrt,
}


def batch_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Tensor:
    """Return eval-mode batch norm as an affine map per channel: y = x·s + (b - μ·s), s = w / √(σ² + ε).

    Without running statistics and with ``training`` it standardises a weight (BiT): μ and σ² are the input's own. That
    is let through for what does not depend on the data only (`ops.check`).

    Not ``aten.batch_norm``: its eval-mode backward is wrong by over 100 % at batch size 1 when the gradient comes
    through flatten -> transpose (PyTorch 2.13).

    Args:
        input: (N, C, ...) values.
        weight: (C,) scale w, or None for 1.
        bias: (C,) shift b, or None for 0.
        running_mean: (C,) mean μ.
        running_var: (C,) variance σ².
        training: Whether to take the input's own statistics.
        momentum: Not used in eval mode.
        eps: ε.
        cudnn_enabled: Not used.
    """
    del momentum, cudnn_enabled
    if training and running_mean is None and running_var is None:
        over = [0, *range(2, input.dim())]
        running_var, running_mean = torch.var_mean(input, over, correction=0)
    if running_mean is None or running_var is None:
        raise UnsupportedModel(
            "The model has a batch norm without running statistics (track_running_stats=False).",
            advice="Its result depends on the other samples of the batch; train it with running statistics.",
        )
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    if bias is not None:
        shift = shift + bias
    shape = (1, -1) + (1,) * (input.dim() - 2)
    return (input * scale.view(shape) + shift.view(shape)).to(input.dtype)


def _batch_norm_no_training(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    del momentum
    empty = input.new_zeros((0,))
    return batch_norm(input, weight, bias, running_mean, running_var, eps=eps), empty, empty


def _identity(input: Tensor, p: float = 0.0, train: bool = False) -> Tensor:
    del p, train  # eval mode; train mode is refused when the model is read
    return input


def _embedding(
    weight: Tensor,
    indices: Tensor,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    del scale_grad_by_freq, sparse  # they change no output; gradients are dense and unscaled here
    return torch.ops.aten.embedding.default(weight, indices, padding_idx)  # type: ignore[no-any-return]


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sums (mode 0) or means (1) of rows; out of embedding and index_add, which check every index.

    Args:
        weight: (rows, width) table.
        indices: (n,) rows, bag after bag.
        offsets: (bags,) where each bag begins.
        scale_grad_by_freq: Not used; it changes no output.
        mode: 0 for sums, 1 for means.
        sparse: Not used.
        per_sample_weights: (n,) factors, or None for 1.
        include_last_offset: Whether ``offsets`` ends with n.
        padding_idx: A row that does not count, or None.
    """
    del scale_grad_by_freq, sparse
    if mode not in (0, 1) or indices.dim() != 1 or offsets.dim() != 1:
        raise UnsupportedModel("An embedding bag by maximum is not supported.", expected="mode sum or mean")
    starts = offsets[:-1] if include_last_offset else offsets
    rows = torch.ops.aten.embedding.default(weight, indices)
    places = torch.arange(indices.shape[0], device=indices.device)
    bag = torch.bucketize(places, starts.to(places.dtype), right=True) - 1
    counts = torch.ones_like(indices, dtype=rows.dtype)
    if padding_idx is not None and padding_idx >= 0:
        counts = (indices != padding_idx).to(rows.dtype)
    factors = counts if per_sample_weights is None else counts * per_sample_weights
    total = rows.new_zeros((starts.shape[0], weight.shape[1])).index_add(0, bag, rows * factors.unsqueeze(1))
    sizes = counts.new_zeros((starts.shape[0],)).index_add(0, bag, counts)
    if mode == 1:
        total = total / sizes.clamp(min=1).unsqueeze(1)
    return total, bag, sizes.to(indices.dtype), sizes.to(indices.dtype)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    del dropout_p

    def attend() -> Tensor:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    if forward_ad._current_level < 0:
        return attend()
    with sdpa_kernel([SDPBackend.MATH]):  # the fused kernels have no forward-mode derivative
        return attend()


def _empty(
    size: Sequence[int], dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any
) -> Tensor:
    check_size(size, "aten.empty")
    return torch.zeros(tuple(size), dtype=dtype, device=device)  # never uninitialised memory


def _empty_like(self: Tensor, dtype: torch.dtype | None = None, device: torch.device | None = None, **_: Any) -> Tensor:
    return torch.zeros_like(self, dtype=dtype, device=device)


def _new_empty(
    self: Tensor,
    size: Sequence[int],
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **_: Any,
) -> Tensor:
    check_size(size, "aten.new_empty")
    return self.new_zeros(tuple(size), dtype=dtype, device=device)


def _sym_size(self: Tensor, dim: int) -> int:
    return self.shape[dim]


def _sym_numel(self: Tensor) -> int:
    return self.numel()


#: Called in place of the aten overload of the same name, with the same argument names.
KERNELS: dict[str, Callable[..., Any]] = {
    "aten.batch_norm.default": batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm_no_training,
    "aten.dropout.default": _identity,
    "aten.feature_dropout.default": _identity,
    "aten.alpha_dropout.default": _identity,
    "aten.feature_alpha_dropout.default": _identity,
    "aten.embedding.default": _embedding,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.empty.memory_format": _empty,
    "aten.empty_like.default": _empty_like,
    "aten.new_empty.default": _new_empty,
    "aten.embedding_bag.default": _embedding_bag,
    "aten.embedding_bag.padding_idx": _embedding_bag,
    "aten.sym_size.int": _sym_size,
    "aten.sym_numel.default": _sym_numel,
}
