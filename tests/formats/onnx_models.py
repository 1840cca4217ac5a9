"""Networks as ONNX files: exported by both exporters of PyTorch, or put together node by node."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

Arrays = Mapping[str, np.ndarray[Any, Any]]


def export(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, exporter: str, opset: int | None = None) -> Path:
    """Export with a dynamic batch, by the exporter "legacy" or "dynamo"."""
    names = [f"in{i}" for i in range(len(inputs))]
    batch = torch.export.Dim("batch")
    shapes: Any = tuple({0: batch} for _ in inputs)
    options: dict[str, Any] = (
        {"dynamo": False, "dynamic_axes": {name: {0: "batch"} for name in names}}
        if exporter == "legacy"
        else {"dynamo": True, "external_data": False, "verbose": False} | {"dynamic_shapes": shapes}
    )
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            torch.onnx.export(module.eval(), inputs, path, input_names=names, opset_version=opset, **options)
    finally:
        logging.disable(logging.NOTSET)
    return path


def answers(path: Path, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What onnxruntime computes."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    named = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(np.asarray(y)) for y in session.run(None, named)]


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), list(outputs), **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, Sequence[int | str]]],
    arrays: Arrays,
    opset: int = 17,
    change: Callable[[onnx.ModelProto], object] = lambda _: None,
) -> bytes:
    """A model file: the last node's first output is the model's."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in inputs.items()],
        [helper.make_value_info(nodes[-1].output[0], helper.make_tensor_type_proto(TensorProto.FLOAT, None))],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    change(made)
    return made.SerializeToString()


def floats(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)
