"""From named arrays to the inputs of one network: names, shapes and dtypes, checked with messages that help."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pruning_core.calibration.dataset import Dataset
from pruning_core.calibration.finite import first_not_finite
from pruning_core.calibration.pictures import Pictures, prepare
from pruning_core.calibration.read import LABELS, RawDataset
from pruning_core.errors import DatasetError
from pruning_core.preprocess import Preprocess

#: Names for the one array of a single-input network, beside the network's own name for it.
SINGLE = ("x", "inputs")

#: The label of a position that does not count, as in PyTorch's losses.
IGNORED = -100


class InputSignature(Protocol):
    """One network input, as far as data must fit it; ``pruning_core.network.Input`` is one."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int | None, ...]: ...  # noqa: D102


def bind(
    raw: RawDataset | Pictures, network_inputs: Sequence[InputSignature], preprocess: Preprocess | None = None
) -> Dataset:
    """Match a dataset's arrays with a network's inputs; decode pictures as ``preprocess`` says (`prepare`).

    The first dimension of every input counts samples: its size in the signature is not compared, the caller batches.
    Dtypes are widened where nothing is lost, and float64 is rounded to float32. For an input of shape (batch, F) a
    sample of more dimensions with F elements, such as an image, is flattened in row-major order.

    Args:
        raw: Arrays by name, as `read_dataset` returns them.
        network_inputs: What the network takes, in order.
        preprocess: For pictures: the recipe's block; without it they are resized, cut and scaled to 0..1.

    Returns:
        The inputs in the network's order, and the labels as int64. Tensors that fit already are shared, not copied.

    Raises:
        DatasetError: A name is missing, unknown or ambiguous, or a shape, dtype or value does not fit.
        RecipeError: The network does not take such pictures.
    """
    if isinstance(raw, Pictures):
        return prepare(raw, network_inputs, preprocess)[0]
    named = _choose(raw, network_inputs)
    inputs = tuple(_fit(name, raw[name], entry) for name, entry in zip(named, network_inputs, strict=True))
    label = _label_name(raw, named)
    return Dataset(inputs=inputs, labels=None if label is None else _labels(label, raw[label]))


def _choose(raw: RawDataset, network_inputs: Sequence[InputSignature]) -> list[str]:
    """Return the array's name for each network input, after checking that no array is missing or left over."""
    own = [entry.name for entry in network_inputs]
    choices = [tuple(dict.fromkeys((*SINGLE, own[0])))] if len(own) == 1 else [(name,) for name in own]
    allowed = {name for names in choices for name in names} | set(LABELS)
    expected = [" or ".join(map(repr, names)) for names in choices]
    found = [[name for name in names if name in raw] for names in choices]
    missing = [text for text, names in zip(expected, found, strict=True) if not names]
    extra = [name for name in raw if name not in allowed]
    twice = next((names for names in found if len(names) > 1), None)
    if missing or extra or twice:
        wrong = (
            f"has no array {', '.join(missing)}"
            if missing
            else f"has arrays that the network does not take: {', '.join(map(repr, extra))}"
            if extra
            else f"names the same input more than once: {', '.join(map(repr, twice or []))}"
        )
        raise DatasetError(
            f"The dataset {wrong}. The network takes {', '.join(expected)}, and labels may be called 'y' or 'labels'.",
            expected=[*expected, "optional: 'y' or 'labels'"],
            received=sorted(raw),
            advice="Rename or remove arrays so that the file holds one array per network input, and the labels.",
        )
    return [names[0] for names in found]


def _label_name(raw: RawDataset, taken: list[str]) -> str | None:
    names = [name for name in LABELS if name in raw and name not in taken]
    if len(names) > 1:
        raise DatasetError(
            "The dataset has two arrays of labels.", expected="'y' or 'labels', not both", received=sorted(raw)
        )
    return names[0] if names else None


def _fit(name: str, array: Tensor, entry: InputSignature) -> Tensor:
    if not entry.shape:
        raise DatasetError(
            f"The network's input {entry.name!r} has no batch dimension, so samples cannot be stacked along it.",
            expected="network inputs of shape (batch, …)",
            received=[],
            advice="Export the model with a batched input.",
        )
    wanted, got = entry.shape[1:], tuple(array.shape[1:])
    if len(wanted) == len(got) and all(w is None or w == g for w, g in zip(wanted, got, strict=True)):
        return _cast(name, array, entry)
    if len(wanted) == 1 and len(got) > 1 and wanted[0] == math.prod(got):
        return _cast(name, array, entry).reshape(len(array), -1)
    shape = "(" + ", ".join(("samples", *("any" if w is None else str(w) for w in wanted))) + ")"
    raise DatasetError(
        f"Array {name!r} has shape {tuple(array.shape)}; the network's input {entry.name!r} expects {shape}.",
        expected=["samples", *("any" if w is None else w for w in wanted)],
        received=list(array.shape),
        advice=_shape_advice(wanted, got),
        array=name,
    )


def _shape_advice(wanted: tuple[int | None, ...], got: tuple[int, ...]) -> str:
    if len(got) == len(wanted) - 1:
        return "One dimension is missing: a channel dimension, or the first dimension, which counts samples?"
    if len(got) == len(wanted) == 3 and wanted == (got[2], *got[:2]):
        return "The channels come last here and first in the network: transpose with x.transpose(0, 3, 1, 2)."
    return "Shape the samples exactly as the model takes them, with the first dimension counting samples."


def _cast(name: str, array: Tensor, entry: InputSignature) -> Tensor:
    have, want = array.dtype, entry.dtype
    if have == want:
        return array
    widens = torch.promote_types(have, want) == want and _kind(have) == _kind(want) if _plain(have) else False
    if widens:
        return array.to(want)
    if (have, want) == (torch.float64, torch.float32):
        cast = array.to(want)
        index = first_not_finite(cast)
        if index is None:
            return cast
        raise DatasetError(
            f"Array {name!r} holds a value at index {index} that is too large for float32.",
            expected="values within the range of float32",
            received=float(array[index]),
            array=name,
        )
    raise DatasetError(
        f"Array {name!r} is {_dtype(have)}; the network's input {entry.name!r} expects {_dtype(want)}.",
        expected=_dtype(want),
        received=_dtype(have),
        advice=_dtype_advice(have, want),
        array=name,
    )


def _dtype_advice(have: torch.dtype, want: torch.dtype) -> str:
    if _kind(want) == "float" and _kind(have) != "float":
        return (
            f"Convert to {_dtype(want)} as the model was trained, with the same normalisation: "
            "for images usually (x / 255 - mean) / std."
        )
    if _kind(want) == "int" and _kind(have) == "float":
        return "This input takes integers, such as token ids: save the array with an integer dtype."
    return f"Save the array as {_dtype(want)}."


def _kind(dtype: torch.dtype) -> str:
    return "bool" if dtype == torch.bool else "float" if dtype.is_floating_point else "int"


def _plain(dtype: torch.dtype) -> bool:
    """Return whether torch can promote this dtype; its wider unsigned integers it cannot."""
    return dtype not in (torch.uint16, torch.uint32, torch.uint64)


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _labels(name: str, array: Tensor) -> Tensor:
    if _kind(array.dtype) == "float":
        raise DatasetError(
            f"The labels {name!r} are {_dtype(array.dtype)}; class indices are integers from 0.",
            expected="an integer dtype",
            received=_dtype(array.dtype),
            advice="Save class indices as int64. One-hot rows become indices with argmax(axis=1).",
            array=name,
        )
    labels = array.to(torch.int64)
    wrong = (labels < 0) & (labels != IGNORED)
    if wrong.any():
        index = tuple(int(i) for i in wrong.nonzero()[0])
        raise DatasetError(
            f"The labels {name!r} hold {int(labels[index])} at index {index}; class indices start at 0.",
            expected=f"integers >= 0, or {IGNORED} where a position does not count",
            received=int(labels[index]),
            advice="Remove the samples that have no label, or number the classes from 0.",
            array=name,
        )
    return labels
