"""The operations of 426 exported networks (`ops.tsv`, counted when the format was explored): each allowed, or refused.

A refusal is expected by its reason, so that no operation is missing for none.
"""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pruning_core.errors import UnsupportedModel
from pruning_core.formats.pt2_types import AUTOCAST_REGION, GRAD_REGION
from pruning_core.network.graph import Graph, Node
from pruning_core.network.inplace import _functional
from pruning_core.network.ops import ALLOWED, ASSERTIONS, check

_DATA = "depends on the data"
REFUSED = {
    "aten.item.default": _DATA,
    "aten.nonzero.default": _DATA,
    "aten.unique_consecutive.default": _DATA,
    "aten.rand.default": "random",
    "aten.randn_like.default": "random",
    "higher_order.cond": "control flow",
    "transformers.grouped_mm_fallback.default": "not one of PyTorch's own",
}
INLINED = {GRAD_REGION, AUTOCAST_REGION}


def seen() -> dict[str, str]:
    """Return operation -> kind."""
    with Path(__file__).with_name("ops.tsv").open(newline="") as file:
        return {row["op"].removeprefix("_"): row["kind"] for row in csv.DictReader(file, delimiter="\t")}


def test_each_operation_that_was_seen_is_allowed_or_refused_for_a_reason() -> None:
    kinds = seen()
    assert len(kinds) == 230
    assert list(kinds.values()).count("aten") == 195
    known = ALLOWED | ASSERTIONS | INLINED | {op for op in kinds if _functional(op)}
    missing = kinds.keys() - known
    assert missing == REFUSED.keys(), missing ^ REFUSED.keys()


@pytest.mark.parametrize("op", REFUSED)
def test_the_reason_is_said(op: str) -> None:
    node = Node(name="n", op=op, arguments={}, outputs="y")
    with pytest.raises(UnsupportedModel, match=REFUSED[op]) as caught:
        check(Graph(weights={}, inputs=[], nodes=[node], outputs=["y"]))
    assert op in caught.value.detail
    assert caught.value.advice


def test_experts_of_transformers_are_told_how_to_export() -> None:
    node = Node(name="n", op="transformers.grouped_mm_fallback.default", arguments={}, outputs="y")
    with pytest.raises(UnsupportedModel) as caught:
        check(Graph(weights={}, inputs=[], nodes=[node], outputs=["y"]))
    assert "set_experts_implementation('batched_mm')" in (caught.value.advice or "")
