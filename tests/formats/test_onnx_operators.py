"""Every ONNX operator that is translated, against onnxruntime; and what is refused, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats import read_model
from pruning_core.formats.onnx_read import TABLE
from tests.formats.onnx_models import answers, floats, ints, model, node

X = floats(2, 4, 6)
PICTURE = floats(2, 4, 7, 6)
POSITIVE = np.abs(X) + 0.1
#: Name -> operator, its input x, constants, attributes, and the opset where it is not 17.
Entry = tuple[str, np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]], dict[str, Any], int]


def entry(kind: str, x: Any = X, opset: int = 17, *, arrays: dict[str, Any] | None = None, **attributes: Any) -> Entry:
    return kind, x, arrays or {}, attributes, opset


CHANNELS = {"s": floats(4), "b": floats(4, seed=1)}
WIDTH = {"s": floats(6), "b": floats(6, seed=1)}
KERNEL = {"w": floats(6, 2, 3, 2), "b": floats(6)}
FULL = {"w": floats(5, 4, 3, 3)}

CASES = [
    *(entry(kind) for kind in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs", "Reciprocal", "Floor", "Ceil")),
    *(entry(kind) for kind in ("Round", "Sign", "Sin", "Cos", "HardSwish", "Softplus", "Identity", "Dropout", "Elu")),
    *(entry(kind, POSITIVE) for kind in ("Sqrt", "Log")),
    entry("Mish", opset=18),
    entry("Gelu", opset=20),
    entry("Gelu", opset=20, approximate="tanh"),
    entry("LeakyRelu", alpha=0.3),
    entry("HardSigmoid"),
    entry("HardSigmoid", alpha=1 / 6),
    entry("PRelu", arrays={"s": floats(4, 1)}),
    entry("Clip", arrays={"low": np.float32(-0.5), "high": np.float32(0.25)}),
    entry("Clip", arrays={"low": np.float32(-0.5)}),
    *(entry(kind, arrays={"o": floats(4, 6, seed=2)}) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum")),
    entry("Mod", arrays={"o": floats(6, seed=2)}, fmod=1),
    entry("Pow", POSITIVE, arrays={"o": np.float32(1.5)}),
    entry("Pow", POSITIVE, arrays={"o": floats(6)}),
    *(entry(kind, axis=1) for kind in ("Softmax", "LogSoftmax", "Flatten")),
    *(entry("Flatten", axis=axis) for axis in (0, 2, 3)),
    *(entry(kind, axes=[1, -1]) for kind in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2")),
    entry("ReduceMean", opset=18, keepdims=0, arrays={"axes": ints(-1)}),
    entry("ReduceSum", arrays={"axes": ints(1, 2)}),
    entry("ReduceSum", keepdims=0),
    entry("BatchNormalization", arrays={**CHANNELS, "m": floats(4, seed=3), "v": np.abs(floats(4)) + 0.2}),
    entry("LayerNormalization", arrays=WIDTH, axis=-1),
    entry("RMSNormalization", opset=23, arrays={"s": floats(6)}),
    entry("InstanceNormalization", arrays=CHANNELS),
    entry("GroupNormalization", opset=21, arrays=CHANNELS, num_groups=2),
    entry("MatMul", arrays={"w": floats(6, 3)}),
    entry("MatMul", arrays={"w": floats(2, 6, 3)}),
    entry("Gemm", X[0], arrays={"w": floats(6, 3), "b": floats(3)}),
    entry("Gemm", X[0], arrays={"w": floats(3, 6), "b": floats(4, 1)}, transB=1),
    entry("Gemm", X[0], arrays={"w": floats(3, 4), "b": floats(3)}, transB=1, transA=1, alpha=0.5, beta=2.0),
    entry("Conv", arrays={"w": floats(6, 4, 3)}, pads=[1, 1]),
    entry("Conv", PICTURE, arrays=KERNEL, group=2, strides=[2, 1], pads=[1, 0, 1, 0], dilations=[2, 1]),
    entry("Conv", PICTURE, arrays=FULL, pads=[1, 0, 2, 1]),
    *(entry("Conv", PICTURE, arrays=FULL, auto_pad=how) for how in ("SAME_UPPER", "SAME_LOWER", "VALID")),
    *(entry("Conv", PICTURE, arrays=FULL, auto_pad=how, strides=[2, 3]) for how in ("SAME_UPPER", "SAME_LOWER")),
    entry("Conv", floats(1, 2, 4, 5, 6), arrays={"w": floats(3, 2, 2, 2, 2)}),
    entry(
        *("ConvTranspose", PICTURE),
        arrays={"w": floats(4, 3, 3, 3), "b": floats(6)},
        **{"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    ),
    *(entry(kind, PICTURE) for kind in ("GlobalAveragePool", "GlobalMaxPool")),
    entry("MaxPool", PICTURE, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    entry("MaxPool", PICTURE, kernel_shape=[2, 2], dilations=[2, 2], ceil_mode=1),
    entry("AveragePool", PICTURE, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
    entry("AveragePool", PICTURE, kernel_shape=[3, 3], pads=[0, 1, 1, 0], count_include_pad=1),
    entry(
        "Resize",
        PICTURE,
        arrays={"": ints(), "scales": np.array([1, 1, 2, 3], np.float32)},
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    entry("Resize", PICTURE, arrays={"": ints(), "scales": np.array([1, 1, 2, 2], np.float32)}, mode="linear"),
    entry("Pad", arrays={"p": ints(0, 1, 2, 0, 0, 1), "v": np.float32(0.5)}),
    entry("Pad", PICTURE, arrays={"p": ints(0, 0, 1, 2, 0, 0, 2, 1)}, mode="reflect"),
    entry("Pad", PICTURE, 18, arrays={"p": ints(1, 2), "v": np.float32(0), "axes": ints(-1)}),
    entry("DepthToSpace", PICTURE, blocksize=2, mode="CRD"),
    *(entry("Reshape", arrays={"shape": shape}) for shape in (ints(0, -1), ints(2, 2, 12), ints(-1))),
    entry("Transpose"),
    entry("Transpose", perm=[1, 2, 0]),
    entry("Squeeze", X[:, :1], arrays={"axes": ints(1)}),
    entry("Unsqueeze", arrays={"axes": ints(0, -1)}),
    entry("Concat", arrays={"o": floats(2, 3, 6)}, axis=1),
    entry("Slice", arrays={"start": ints(1, -3), "end": ints(3, 2**63 - 1), "axes": ints(1, 2)}),
    entry("Slice", arrays={"start": ints(0), "end": ints(6), "axes": ints(-1), "step": ints(2)}),
    entry("Slice", arrays={"start": ints(-1), "end": ints(-(2**63)), "axes": ints(1), "step": ints(-1)}),
    entry("Split", arrays={"parts": ints(1, 3)}, axis=1),
    entry("Gather", arrays={"i": np.array([[0, -1], [2, 1]])}, axis=1),
    entry("Gather", arrays={"i": np.array(2)}, axis=-1),
    entry("GatherElements", arrays={"i": np.array([[[0, 1], [2, 3]], [[3, 2], [1, 0]]])}, axis=1),
    entry("GatherND", arrays={"i": np.array([[0, 1], [1, 3]])}),
    entry("Expand", X[:, :1], arrays={"shape": ints(3, 1, 4, 1)}),
    entry("Tile", arrays={"n": ints(1, 2, 3)}),
    entry("CumSum", arrays={"axis": np.array(1)}),
    entry("Trilu", upper=0),
    entry("Trilu", arrays={"k": np.array(1)}),
    entry("Einsum", arrays={"o": floats(2, 6, 3)}, equation="bij,bjk->bik"),
]
#: Operators whose result is no tensor of floats, or that others bring in: each stands in one of the graphs below.
ELSEWHERE = {
    *("Constant", "Shape", "Size", "ConstantOfShape", "Range", "Cast", "CastLike", "Where", "Equal", "Greater", "Less"),
    *("GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "ArgMax", "ArgMin", "ReduceProd"),
}


def check(path: Path, data: bytes, *inputs: np.ndarray[Any, Any]) -> None:
    path.write_bytes(data)
    given = [torch.from_numpy(x) for x in inputs]
    ours, theirs = read_model(path).run(given)[0], answers(path, given)[0]
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_an_operator_does_what_onnxruntime_does(tmp_path: Path, case: Entry) -> None:
    kind, x, arrays, attributes, opset = case
    outputs = ["y", "z"] if kind == "Split" else ["y"]
    made = node(kind, ["x", *arrays], outputs, **attributes)
    shape = ["n", *x.shape[1:]] if kind not in ("Gemm",) else x.shape
    stored = {name: np.asarray(array) for name, array in arrays.items() if name}
    check(tmp_path / "m", model([made], {"x": (1, shape)}, stored, opset), x)


def test_every_operator_is_in_a_test() -> None:
    assert {case[0] for case in CASES} | ELSEWHERE == set(TABLE)


def test_arithmetic_on_shapes(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"]),
        node("Size", ["x"], ["size"]),
        node("Div", ["size", "n"], ["each"]),
        node("Slice", ["shape", "one", "end"], ["rest"]),
        node("ReduceProd", ["rest"], ["product"], keepdims=0),
        node("Equal", ["rest", "minus"], ["no"]),
        node("Where", ["no", "minus", "rest"], ["same"]),
        node("Unsqueeze", ["n", "axis"], ["n1"]),
        node("Unsqueeze", ["product", "axis"], ["p1"]),
        node("Concat", ["n1", "p1"], ["flat"], axis=0),
        node("Reshape", ["x", "flat"], ["y"]),
        node("Cast", ["each"], ["many"], to=1),
        node("Sqrt", ["many"], ["root"]),
        node("Div", ["y", "root"], ["scaled"]),
        node("Concat", ["n1", "same"], ["again"], axis=0),
        node("Reshape", ["scaled", "again"], ["out"]),
    ]
    arrays = {"zero": np.array(0), "one": ints(1), "end": ints(9), "minus": ints(-1), "axis": ints(0)}
    for count in (2, 3):
        check(tmp_path / "m", model(nodes, {"x": (1, ["n", 4, 6])}, arrays), floats(count, 4, 6))


def test_masks_of_flags_and_ranges(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], ["value"], value_float=0.25),
        node("Constant", [], ["words"], value_ints=[0, 1, 2, 3]),
        node("Greater", ["x", "value"], ["a"]),
        node("LessOrEqual", ["x", "half"], ["b"]),
        node("And", ["a", "b"], ["c"]),
        node("Less", ["x", "half"], ["d"]),
        node("Or", ["c", "d"], ["e"]),
        node("Xor", ["e", "a"], ["f"]),
        node("GreaterOrEqual", ["x", "value"], ["g"]),
        node("Not", ["g"], ["h"]),
        node("Or", ["f", "h"], ["i"]),
        node("IsNaN", ["x"], ["j"]),
        node("Or", ["i", "j"], ["k"]),
        node("ArgMax", ["x"], ["l"], axis=1),
        node("ArgMin", ["x"], ["m"], axis=1),
        node("Equal", ["l", "m"], ["o"]),
        node("Or", ["k", "o"], ["p"]),
        node("Shape", ["x"], ["shape"], start=1),
        node("ConstantOfShape", ["shape"], ["zeros"]),
        node("Squeeze", ["shape", "axis"], ["width"]),
        node("Range", ["first", "width", "step"], ["line"]),
        node("CastLike", ["line", "x"], ["cast"]),
        node("Add", ["zeros", "cast"], ["q"]),
        node("Where", ["p", "x", "q"], ["r"]),
        node("Add", ["r", "words_f"], ["s"]),
        node("Cast", ["words"], ["t"], to=1),
        node("Mul", ["s", "t"], ["y"]),
    ]
    arrays = {"half": np.float32(0.5), "first": np.array(0), "step": np.array(1), "axis": ints(0), "words_f": floats(4)}
    check(tmp_path / "m", model(nodes, {"x": (1, ["n", 4])}, arrays), floats(5, 4))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (node("Loop", ["x", "c"], ["y"], body=onnx.GraphProto(name="b")), "operator Loop"),
        (node("If", ["x"], ["y"], then_branch=onnx.GraphProto(name="b")), "operator If"),
        (node("LSTM", ["x", "w", "w"], ["y"], hidden_size=2), "operator LSTM"),
        (node("NonZero", ["x"], ["y"]), "operator NonZero"),
        (node("RandomNormalLike", ["x"], ["y"]), "operator RandomNormalLike"),
        (node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft"), r"com\.microsoft\.FusedMatMul"),
        (node("BatchNormalization", ["x", *"wwww"], ["y"], training_mode=1), "train mode"),
        (node("Relu", ["x"], ["y"], sub=onnx.GraphProto(name="b")), "attribute 'sub'"),
        (node("Relu", [], ["y"]), "no input"),
        (node("Reshape", ["x", "x"], ["y"]), "computed from data"),
        (node("Clip", ["x", "x"], ["y"]), "bounds are computed"),
        (node("Concat", ["x", "x"], ["y"]), "not those of this operator"),
        (node("Transpose", ["x"], ["y"], perm="ab"), "failed|not those"),
        (node("Conv", ["x", "w"], ["y"], strides=[1, 1, 1]), "strides|number of dimensions"),
        (node("Split", ["x"], ["y"] * 2), "twice"),
        (node("Relu", ["y"], ["y"]), "before it is defined"),
        (node("Relu", ["nothing"], ["y"]), "before it is defined"),
        (node("Relu", ["x"], ["x"]), "twice"),
        (node("Relu", ["x"], ["w"]), "twice"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path: Path, made: onnx.NodeProto, says: str) -> None:
    (tmp_path / "m").write_bytes(model([made], {"x": (1, ["n", 4])}, {"w": floats(4, 4)}))
    with pytest.raises(ModelError, match=says) as caught:
        read_model(tmp_path / "m")
    assert caught.value.problem()["status"] == 422
    if isinstance(caught.value, UnsupportedModel) and "operator" in says:
        assert caught.value.advice is not None
