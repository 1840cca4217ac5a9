"""Graphs that read well and misbehave when they run: refused by a problem that names the operation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats import read_model
from pruning_core.network.allocation import check_allocation
from tests.hostile import base
from tests.hostile.base import given, node, tensor

X = (torch.ones(2, 3),)
_NAME = {"as_sym_int": {"as_name": "n"}}


def scalar(op: str, *values: Any) -> dict[str, Any]:
    return {"target": op, "inputs": given(**{str(i): v for i, v in enumerate(values)}), "outputs": [_NAME], "name": "n"}


@pytest.mark.parametrize(
    "op",
    [
        scalar("_operator.mul", {"as_string": "x"}, {"as_int": 2**40}),
        scalar("_operator.mul", {"as_ints": [0] * 9000}, {"as_int": 2**40}),
        scalar("_operator.mod", {"as_string": "%99999999999d"}, {"as_int": 1}),
        scalar("_operator.add", {"as_strings": ["x"]}, {"as_strings": ["y"]}),
        scalar("_operator.pow", {"as_int": 10}, {"as_int": 10**9}),
        scalar("_operator.pow", {"as_float": 1e300}, {"as_int": 64}),
        scalar("_operator.lshift", {"as_int": 1}, {"as_int": 2**40}),
        scalar("_operator.floordiv", {"as_int": 1}, {"as_int": 0}),
        scalar("_operator.mul", {"as_int": 2**62}, {"as_int": 2**62}),
        scalar("torch.sym_int", {"as_float": "Infinity"}),
        scalar("torch.sym_sqrt", {"as_int": -1}),
        scalar("torch.sym_max", {"as_int": 1}),
        node("aten.bitwise_not.default", "n", self=tensor("linear")),
        node("aten.erfinv.default", "n", self=tensor("x"), more=tensor("x")),
        node("aten.linear.default", "n", input=tensor("x"), weight=tensor("x"), bias={"as_float": 1.0}),
        *(
            node("aten.to.dtype", "n", self=tensor("x"), dtype=code)  # read out of bounds by PyTorch: minutes and GiB
            for code in ({"as_int": -3}, {"as_int": 10**9}, {"as_float": 1.0}, {"as_string": "x"}, tensor("x"))
        ),
        node("aten.clone.default", "n", self=tensor("x"), memory_format={"as_int": 99}),
        node("aten.zeros.default", "n", size={"as_ints": [1]}, layout={"as_int": 77}),
        node("aten.zeros.default", "n", size={"as_ints": [1]}, device={"as_string": "cuda:99"}),
        node("aten.view.default", "n", self=tensor("x"), size={"as_ints": [2**40]}),
        node("aten.select.int", "n", self=tensor("x"), dim={"as_int": 2**62}, index={"as_int": 0}),
        node("aten.conv2d.default", "n", input=tensor("x"), weight=tensor("x"), stride={"as_ints": [0, 0]}),
        node(
            *("aten.im2col.default", "n"),
            **{"self": tensor("p_0_weight"), "kernel_size": {"as_ints": [1, 1]}, "dilation": {"as_ints": [1, 1]}},
            **{"padding": {"as_ints": [2**20, 2**20]}, "stride": {"as_ints": [1, 1]}},
        ),
        node("aten.einsum.default", "n", equation={"as_string": "ij" * 5000}, tensors={"as_tensors": [{"name": "x"}]}),
    ],
    ids=lambda op: f"{op['target']} {op['inputs'][0]['arg']}"[:60],
)
def test_operations_that_fail_are_the_models_fault(op: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model"
    used = [op]
    if op["outputs"] == [_NAME]:  # a number that nothing computes with is not computed
        used.append(node("aten.mul.Tensor", "product", self=tensor("x"), other=_NAME))
    path.write_bytes(base.with_nodes(lambda nodes: nodes.__setitem__(slice(2, 2), used)))
    with pytest.raises(ModelError) as refused:
        read_model(path).run(X)
    assert refused.value.status == 422
    assert not isinstance(refused.value, MemoryError)


def ones(*sizes: int) -> dict[str, torch.Tensor]:
    return {"input": torch.ones(sizes), "self": torch.ones(sizes)}


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        ("aten.conv2d.default", {**ones(1, 4, 4), "weight": torch.ones(1, 1, 1, 1), "padding": [2**15, 2**15]}),
        ("aten.conv2d.default", {**ones(1, 1, 4, 4), "weight": torch.ones(1, 1, 1, 1), "padding": 2**15}),
        ("aten.conv_transpose1d.default", {**ones(1, 1, 4), "weight": torch.ones(1, 1, 1), "stride": [2**40]}),
        (
            "aten.conv_transpose2d.input",
            {**ones(1, 4, 4), "weight": torch.ones(1, 1, 2, 2), "dilation": [2**20, 2**20]},
        ),
        (
            "aten.conv_transpose3d.input",
            {**ones(1, 1, 2, 2, 2), "weight": torch.ones(1, 1, 1, 1, 1), "stride": [2**11]},
        ),
        (
            "aten.convolution.default",
            {
                **ones(1, 1, 4),
                "weight": torch.ones(1, 1, 1),
                "stride": [2**40],
                "transposed": True,
                "output_padding": [0],
            },
        ),
        ("aten.one_hot.default", {"self": torch.full((2, 2), 2**40)}),
        ("aten.one_hot.default", {"self": torch.zeros(2**20, dtype=torch.int64), "num_classes": 2**10}),
        (
            "aten.im2col.default",
            {**ones(1, 2, 2), "kernel_size": [1, 1], "dilation": [1, 1], "padding": [2**15, 2**15], "stride": [1, 1]},
        ),
    ],
)
def test_scalars_do_not_decide_over_memory(op: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel, match="would make a tensor"):
        check_allocation(op, arguments)


def test_ordinary_convolutions_are_no_huge_allocation() -> None:
    weight = torch.ones(8, 4, 3, 3)
    for op, arguments in (
        ("aten.conv2d.default", {"input": torch.ones(2, 4, 32, 32), "weight": weight, "padding": [1, 1]}),
        ("aten.conv2d.padding", {"input": torch.ones(2, 4, 32, 32), "weight": weight, "padding": "same"}),
        ("aten.conv_transpose2d.input", {"input": torch.ones(2, 8, 32, 32), "weight": weight, "stride": [2, 2]}),
    ):
        check_allocation(op, arguments)
