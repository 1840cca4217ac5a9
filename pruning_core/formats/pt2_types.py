"""Codes of torch's export schema: dtypes, layouts, and what a region of a graph switches on or off."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from pruning_core.errors import UnsupportedModel
from pruning_core.formats.document import boolean, integer, member, union

GRAD_REGION = "higher_order.wrap_with_set_grad_enabled"
AUTOCAST_REGION = "higher_order.wrap_with_autocast"
_AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)
#: torch._export.serde.schema.ScalarType
DTYPES: dict[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
}
_STRIDED = 7


def dtype(value: Any, where: str) -> torch.dtype:
    """Return the dtype of a ScalarType code.

    Raises:
        UnsupportedModel: It is not one of the common ones.
    """
    code = integer(value, where)
    if code not in DTYPES:
        raise UnsupportedModel(
            f"{where} has a dtype that is not supported.",
            expected=[str(d).removeprefix("torch.") for d in DTYPES.values()],
            received=f"ScalarType {code}",
        )
    return DTYPES[code]


def strided(value: Any, where: str) -> torch.layout:
    """Return ``torch.strided``, or raise UnsupportedModel for sparse and other layouts."""
    if integer(value, where) != _STRIDED:
        raise UnsupportedModel(f"{where} is not a strided (dense) tensor.", expected="layout strided", received=value)
    return torch.strided


@dataclass(frozen=True)
class Modes:
    """What is switched on or off around some nodes.

    Attributes:
        grad: Whether gradients flow.
        autocast: To which dtype operations are cast; None if they are not.
    """

    grad: bool = True
    autocast: torch.dtype | None = None


PLAIN = Modes()


def switched(op: str, flags: list[Any], around: Modes, where: str) -> Modes:
    """Return what a region switches: ``enabled``, or autocast's device type, dtype, enabled and cache."""
    if op == GRAD_REGION:
        return replace(around, grad=boolean(member(flags[0], "as_bool", where), f"{where}: enabled"))
    if not boolean(member(flags[2], "as_bool", where), f"{where}: enabled"):
        return replace(around, autocast=None)
    kind, code = union(flags[1], where)
    target = torch.bfloat16 if kind == "as_none" else dtype(code, f"{where}: dtype")
    if target not in _AUTOCAST_DTYPES:
        raise UnsupportedModel(
            f"{where} casts to a dtype that is not supported.",
            expected=[*map(str, _AUTOCAST_DTYPES)],
            received=str(target),
        )
    return replace(around, autocast=target)
