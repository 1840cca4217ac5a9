"""The allowlist: every operation that an uploaded graph may use, and why the others may not.

An operation is here if it is pure (writes to nothing it was given), deterministic, reads no file and runs no code, and
if the size of its result follows from its arguments. Names from a file are only ever looked up in this list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from pruning_core.errors import UnsupportedModel
from pruning_core.network.graph import Graph, Node, OwnDevice, names, references
from pruning_core.network.kernels import KERNELS, SCALAR_OPS

_EVAL_ADVICE = "Call model.eval() before torch.export.export, and export again."
_EXPERTS_ADVICE = "Call model.set_experts_implementation('batched_mm') before torch.export.export, and export again."
_REPORT_ADVICE = "Rewrite this part of the model without it, or ask for support and name the operation."


def words(text: str) -> frozenset[str]:
    """Return the words of a text."""
    return frozenset(text.split())


# one word per overload; `name` alone means `name.default`
_ATEN = """
    abs acos acosh add.Scalar add.Tensor addcdiv addcmul alias angle arange arange.start arange.start_step argmax
    argmin argsort asin asinh atan atan2 atanh bitwise_and.Scalar bitwise_and.Tensor bitwise_not bitwise_or.Scalar
    bitwise_or.Tensor bitwise_xor.Scalar bitwise_xor.Tensor broadcast_to bucketize.Tensor ceil clamp clamp.Tensor
    clamp_max clamp_max.Tensor clamp_min clamp_min.Tensor clip clip.Tensor clone complex conj contiguous copysign.Tensor
    cos cosh cummax cummin cumprod cumsum deg2rad detach diff div.Scalar div.Tensor div.Scalar_mode div.Tensor_mode
    divide.Tensor eq.Scalar eq.Tensor erf erfc erfinv exp exp2 expand expand_as expm1 fill.Scalar fill.Tensor flip
    fliplr flipud floor floor_divide floor_divide.Scalar fmod.Scalar fmod.Tensor frac full full_like ge.Scalar
    ge.Tensor greater.Scalar greater.Tensor gt.Scalar gt.Tensor hypot imag isfinite isinf isnan le.Scalar le.Tensor
    lerp.Scalar lerp.Tensor less.Scalar less.Tensor lift_fresh_copy linspace log logspace log10 log1p log2 logaddexp
    logaddexp2 logical_and logical_not logical_or logical_xor logit lt.Scalar lt.Tensor maximum minimum mul.Scalar
    mul.Tensor multiply.Tensor nan_to_num ne.Scalar ne.Tensor neg new_full new_ones new_zeros ones ones_like
    polar positive pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor rad2deg real reciprocal remainder.Scalar
    remainder.Tensor round round.decimals rsqrt rsub.Scalar rsub.Tensor scalar_tensor sgn sigmoid sign signbit sin
    sinc sinh special_erf sqrt square sub.Scalar sub.Tensor subtract.Tensor tan tanh to.device to.dtype
    to.dtype_layout to.other true_divide.Tensor trunc type_as where.Scalar where.ScalarOther where.ScalarSelf
    where.self xlogy.Tensor zeros zeros_like __and__.Scalar __and__.Tensor __or__.Scalar __or__.Tensor __xor__.Tensor
    _to_copy view_as_complex view_as_real

    absolute arccos arccosh arcsin arcsinh arctan arctan2 arctanh divide.Scalar divide.Tensor_mode fix fmax fmin
    float_power.Tensor_Scalar greater_equal.Scalar greater_equal.Tensor isclose isneginf isposinf less_equal.Scalar
    less_equal.Tensor multiply.Scalar negative not_equal.Scalar not_equal.Tensor special_expit subtract.Scalar
    true_divide.Scalar

    addr dist dstack ger l1_loss linalg_matmul mse_loss nanmean nansum std trace var var_mean vstack

    all all.dim amax amin any any.dim logsumexp max max.dim max.other mean mean.dim median.dim min min.dim min.other
    norm.Scalar norm.ScalarOpt_dim prod prod.dim_int std.correction std.dim sum sum.dim_IntList topk sort sort.stable
    var.correction var.dim var_mean.correction var_mean.dim linalg_norm linalg_vector_norm count_nonzero.dim_IntList

    atleast_2d block_diag broadcast_tensors cat chunk column_stack concat concatenate constant_pad_nd diag_embed
    diagonal flatten.using_ints gather hsplit.int hstack index.Tensor index_add index_copy index_put index_select
    masked_fill.Scalar masked_fill.Tensor meshgrid meshgrid.indexing mH moveaxis.int movedim.int movedim.intlist mT
    narrow numpy_T one_hot pad permute pixel_shuffle pixel_unshuffle ravel reflection_pad1d reflection_pad2d repeat
    repeat_interleave.self_int replication_pad1d replication_pad2d reshape reshape_as roll rot90 scatter.src
    scatter.value scatter_add scatter_reduce.two select.int select_scatter slice.Tensor slice_scatter split.Tensor
    split_with_sizes squeeze squeeze.dim squeeze.dims stack swapaxes swapdims t take_along_dim tensor_split.sections
    tile transpose.int tril tril_indices triu triu_indices unbind.int unflatten.int unfold unsqueeze unsqueeze_copy view
    view_as vsplit.int eye eye.m channel_shuffle diagonal_scatter index_fill.int_Scalar index_fill.int_Tensor
    masked_scatter

    addbmm addmm addmv baddbmm bilinear bmm conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding
    conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution cosine_similarity cross dot einsum
    embedding inner kron linalg_cross linear matmul matrix_exp mm mv outer scaled_dot_product_attention tensordot vdot
    cdist pairwise_distance _weight_norm

    _log_softmax _softmax adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
    adaptive_max_pool2d _adaptive_avg_pool2d _adaptive_avg_pool3d avg_pool1d avg_pool2d avg_pool3d celu elu gelu glu
    group_norm hardshrink hardsigmoid hardswish hardtanh instance_norm layer_norm leaky_relu log_sigmoid log_softmax.int
    max_pool1d max_pool2d max_pool2d_with_indices max_pool3d mish native_group_norm native_layer_norm prelu relu relu6
    rms_norm selu silu softmax.int softplus softshrink threshold
    col2im im2col grid_sampler affine_grid_generator upsample_bicubic2d.vec upsample_bilinear2d upsample_bilinear2d.vec
    upsample_linear1d.vec upsample_nearest1d.vec upsample_nearest2d upsample_nearest2d.vec upsample_nearest3d.vec
    upsample_trilinear3d.vec _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec

    lstm.input gru.input rnn_tanh.input rnn_relu.input lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    fft_fft fft_fft2 fft_fftn fft_hfft fft_ifft fft_ifft2 fft_ifftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2
    fft_rfftn fft_fftshift.default fft_ifftshift.default histc
"""
_RANDOM = words(
    "bernoulli multinomial normal poisson rand rand_like randint randint_like randn randn_like randperm rrelu "
    "uniform exponential cauchy geometric log_normal random native_dropout"
)
_DATA_DEPENDENT = words(
    "item nonzero nonzero_static masked_select unique_consecutive _unique2 unique_dim _local_scalar_dense "
    "bincount argwhere"
)
_SIZES = words("sym_size sym_numel sym_stride sym_storage_offset")
_BATCH_NORMS = words("native_batch_norm cudnn_batch_norm _native_batch_norm_legit _batch_norm_with_update")

ALLOWED_ATEN: frozenset[str] = frozenset(f"aten.{w}" if "." in w else f"aten.{w}.default" for w in words(_ATEN))
ALLOWED: frozenset[str] = ALLOWED_ATEN | KERNELS.keys() | SCALAR_OPS.keys()

#: Operations that only check something; the exporter adds them, and they have no result that is used.
ASSERTIONS: frozenset[str] = frozenset(
    f"aten.{name}.default"
    for name in (
        "_assert_tensor_metadata",
        "_assert_scalar",
        "_assert_async",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    )
) | {"aten._assert_async.msg"}

#: The argument that makes an operation random or stateful -> the values it may have.
_EVAL_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "batch_norm": ("training",),
    "dropout": ("train",),
    "feature_dropout": ("train",),
    "alpha_dropout": ("train",),
    "feature_alpha_dropout": ("train",),
    "lstm": ("train",),
    "gru": ("train",),
    "rnn_tanh": ("train",),
    "rnn_relu": ("train",),
    "scaled_dot_product_attention": ("dropout_p",),
}


#: Types that PyTorch also takes as integers, and then reads out of bounds for those that it does not know.
_CODED: dict[str, type] = {
    "ScalarType": torch.dtype,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
    "Device": OwnDevice,
}


@cache
def overload(op: str) -> Callable[..., Any]:
    """Return the aten overload of this name, which must be on the allowlist.

    Raises:
        KeyError: The name is not on the list.
    """
    if op not in ALLOWED_ATEN and op not in KERNELS:
        raise KeyError(op)
    _, packet, name = op.split(".")
    found: Callable[..., Any] = getattr(getattr(torch.ops.aten, packet), name)
    return found


@cache
def argument_names(op: str) -> tuple[tuple[str, bool], ...]:
    """Return (name, keyword only) of each argument of an aten operation on the allowlist, in order."""
    schema: Any = overload(op)
    return tuple((argument.name, argument.kwarg_only) for argument in schema._schema.arguments)


@cache
def _codes(op: str) -> dict[str, type]:
    """Return the arguments of an aten operation that PyTorch takes as codes, and what they must be here."""
    schema: Any = overload(op)
    kinds = {argument.name: str(argument.real_type) for argument in schema._schema.arguments}
    return {name: _CODED[kind] for name, text in kinds.items() if (kind := _bare(text)) in _CODED}


def _bare(kind: str) -> str:
    return kind.removeprefix("Optional[").removesuffix("]")


def without_checks(nodes: Sequence[Node], outputs: Sequence[str]) -> list[Node]:
    """Return the nodes without what only an assertion reads: sizes, flags, and numbers taken out of tensors.

    Assertions are not run, so what leads to them is not either; ``assert lengths.max() <= n`` refuses no model.
    """
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        defined = {*names(node.outputs)}
        if defined and not defined & needed and _only_tells(node.op):
            continue
        needed.update(references(node.arguments))
        kept.append(node)
    return kept[::-1]


def _only_tells(op: str) -> bool:
    return op in SCALAR_OPS or (op.startswith("aten.") and op.split(".")[1] in _DATA_DEPENDENT | _SIZES)


def check(graph: Graph) -> None:
    """Refuse a graph that uses anything outside the allowlist, or anything in train mode.

    Raises:
        UnsupportedModel: Names the operations and says what to do.
    """
    varying = set(graph.inputs)
    for node in graph.nodes:  # first: train mode also shows as writes to state, and this says what to do about it
        varies = not varying.isdisjoint(references(node.arguments))
        if varies:
            varying.update(names(node.outputs))
        if varies or not _standardises(node):
            _check_eval_mode(node)
    unknown = sorted({node.op for node in graph.nodes if node.op not in ALLOWED})
    if unknown:
        raise _refusal(unknown)
    for node in graph.nodes:
        _check_arguments(node)


def _standardises(node: Node) -> bool:
    """Return whether a batch norm keeps no statistics: of a weight it is a function like any other."""
    return node.op == "aten.batch_norm.default" and node.arguments.get("running_mean") is None


def _check_arguments(node: Node) -> None:
    if not node.op.startswith("aten."):
        return
    known = {name for name, _ in argument_names(node.op)}
    if extra := sorted(node.arguments.keys() - known):
        raise UnsupportedModel(
            f"The node {node.name!r} gives {node.op} the argument {extra[0]!r}, which it does not have.",
            expected=sorted(known),
            received=extra,
        )
    for name, kind in _codes(node.op).items():
        value = node.arguments.get(name)
        if value is not None and not isinstance(value, kind):
            raise UnsupportedModel(
                f"The node {node.name!r} gives {node.op} a {name!r} that is none.",
                expected=kind.__name__,
                received=str(value),
            )


def _check_eval_mode(node: Node) -> None:
    _, packet, *_ = (*node.op.split("."), "")
    for argument in _EVAL_ARGUMENTS.get(packet, ()):
        value = node.arguments.get(argument, False)
        random = argument == "train" and not node.arguments.get("p", node.arguments.get("dropout", 1.0))
        if isinstance(value, bool | int | float) and (value == 0 or random):
            continue
        raise UnsupportedModel(
            f"The model was exported in train mode: {node.op} in node {node.name!r} has {argument}={value!r}.",
            expected=f"{argument}=False" if argument != "dropout_p" else "dropout_p=0.0",
            received=f"{argument}={value!r}",
            advice=_EVAL_ADVICE,
        )
    if packet == "instance_norm" and node.arguments.get("use_input_stats") is not True:
        raise UnsupportedModel(
            f"Instance norm with running statistics (node {node.name!r}) is not supported by this version.",
            advice=_REPORT_ADVICE,
        )


def _refusal(unknown: list[str]) -> UnsupportedModel:
    reasons = {op: _reason(op) for op in unknown}
    first, (why, advice) = next(iter(reasons.items()))
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    return UnsupportedModel(
        f"The model uses {first}{more}: {why}.",
        expected="operations on the allowlist of pure, deterministic aten operations",
        received=unknown[:20],
        advice=advice,
        operations={op: reason for op, (reason, _) in list(reasons.items())[:20]},
    )


def _reason(op: str) -> tuple[str, str]:
    namespace, packet, *_ = (*op.split("."), "", "")
    bare = packet.removesuffix("_")
    if op.startswith("transformers.grouped_mm"):
        return "it is not one of PyTorch's own (aten) operations", _EXPERTS_ADVICE
    if namespace not in ("aten", "operator", "math", "higher_order"):
        return "it is not one of PyTorch's own (aten) operations", _REPORT_ADVICE
    if namespace == "higher_order":
        return "control flow inside the graph is not supported by this version", _REPORT_ADVICE
    if bare in _BATCH_NORMS:
        return "batch norm in train mode changes its running statistics", _EVAL_ADVICE
    if bare in _RANDOM:
        return "its result is random, so the model has no fixed output", _EVAL_ADVICE
    if bare in _DATA_DEPENDENT:
        return "the size of its result depends on the data", _REPORT_ADVICE
    if packet.endswith("_") and not packet.startswith("__"):
        advice = "Use the out-of-place form (x = x + y, nn.ReLU(inplace=False)) or export after run_decompositions()."
        return "it writes in place to a value that is still used elsewhere, or has no out-of-place form here", advice
    return "it is not on the list of supported operations", _REPORT_ADVICE
