"""Matching a dataset with a network's inputs: what fits goes in, what does not is refused with the way out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pruning_core.calibration import Dataset, RawDataset, bind
from pruning_core.errors import DatasetError


@dataclass(frozen=True)
class Signature:
    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]


IMAGE = Signature("image", torch.float32, (None, 3, 8, 8))
TOKENS = Signature("input_ids", torch.int64, (4, None))
MASK = Signature("attention_mask", torch.int64, (4, None))


def raw(**arrays: Tensor) -> RawDataset:
    return RawDataset("npz", arrays)


def refused(data: RawDataset, *signature: Signature) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        bind(data, signature)
    return caught.value


@pytest.mark.parametrize("name", ["x", "inputs", "image"])
@pytest.mark.parametrize("label", ["y", "labels"])
def test_single_input_by_any_of_its_names(name: str, label: str) -> None:
    x, y = torch.randn(5, 3, 8, 8), torch.arange(5, dtype=torch.uint8)
    data = bind(raw(**{name: x, label: y}), [IMAGE])
    assert data.inputs[0] is x
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert len(data) == 5


def test_several_inputs_in_the_networks_order() -> None:
    ids, mask = torch.ones(6, 7, dtype=torch.int32), torch.zeros(6, 7, dtype=torch.int64)
    data = bind(raw(attention_mask=mask, input_ids=ids), [TOKENS, MASK])
    assert data.inputs[0].dtype == torch.int64
    assert torch.equal(data.inputs[0], ids.long())
    assert data.inputs[1] is mask
    assert data.labels is None


def test_a_fixed_batch_size_does_not_bind_the_number_of_samples() -> None:
    assert len(bind(raw(x=torch.ones(1, 5, dtype=torch.int64)), [TOKENS])) == 1


def test_an_input_called_labels_is_an_input() -> None:
    entries = [TOKENS, Signature("labels", torch.int64, (None, None))]
    data = bind(raw(input_ids=torch.ones(2, 3).long(), labels=torch.ones(2, 3).long(), y=torch.tensor([0, 1])), entries)
    assert len(data.inputs) == 2
    assert data.labels is not None
    assert data.labels.tolist() == [0, 1]


def test_images_are_flattened_for_a_flat_input() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    data = bind(raw(x=x), [Signature("x", torch.float32, (None, 12))])
    assert torch.equal(data.inputs[0], x.flatten(1))


@pytest.mark.parametrize(
    ("have", "want"),
    [
        (torch.float64, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float64),
        (torch.int32, torch.int64),
        (torch.uint8, torch.int64),
        (torch.bool, torch.bool),
    ],
)
def test_casts_that_lose_nothing_or_little(have: torch.dtype, want: torch.dtype) -> None:
    data = bind(raw(x=torch.ones(2, 3).to(have)), [Signature("x", want, (None, 3))])
    assert data.inputs[0].dtype == want
    assert torch.equal(data.inputs[0], torch.ones(2, 3).to(want))


@pytest.mark.parametrize(
    ("have", "want", "advice"),
    [
        (torch.uint8, torch.float32, "255"),
        (torch.int64, torch.float32, "float32"),
        (torch.bool, torch.float32, "float32"),
        (torch.float32, torch.int64, "token ids"),
        (torch.int64, torch.int32, "int32"),
        (torch.uint16, torch.int64, "int64"),
        (torch.float32, torch.float16, "float16"),
        (torch.bool, torch.int64, "int64"),
    ],
)
def test_other_dtypes_are_refused_with_advice(have: torch.dtype, want: torch.dtype, advice: str) -> None:
    error = refused(raw(x=torch.ones(2, 3).to(have)), Signature("x", want, (None, 3)))
    assert error.expected == str(want).removeprefix("torch.")
    assert advice in str(error.advice)


def test_float64_beyond_float32_is_named() -> None:
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1, 2] = 1e300
    assert "(1, 2)" in refused(raw(x=x), Signature("x", torch.float32, (None, 3))).detail


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((5, 8, 8, 3), "transpose"),
        ((5, 8, 8), "channel"),
        ((3, 8, 8), "first dimension"),
        ((5, 3, 8, 9), "exactly"),
        ((5, 192), "exactly"),
    ],
)
def test_shapes_are_refused_with_what_was_expected(shape: tuple[int, ...], advice: str) -> None:
    error = refused(raw(x=torch.zeros(shape)), IMAGE)
    assert error.expected == ["samples", 3, 8, 8]
    assert error.received == list(shape)
    assert advice in str(error.advice)
    assert error.extensions["array"] == "x"


def test_dynamic_dimensions_say_any() -> None:
    error = refused(raw(x=torch.ones(2, 3, 4).long()), TOKENS)
    assert error.expected == ["samples", "any"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["image", "x"], "more than once"),
        (["data"], "no array"),
        (["x", "weights"], "does not take: 'weights'"),
        (["y"], "no array"),
        (["x", "y", "labels"], "two arrays of labels"),
    ],
)
def test_names_missing_extra_or_ambiguous(names: list[str], words: str) -> None:
    arrays = {name: torch.zeros(2, 3, 8, 8) if name != "y" else torch.arange(2) for name in names}
    error = refused(raw(**arrays), IMAGE)
    assert words in error.detail
    assert error.received == sorted(names)


def test_missing_one_of_several() -> None:
    error = refused(raw(input_ids=torch.ones(2, 3).long()), TOKENS, MASK)
    assert "'attention_mask'" in error.detail
    refused(raw(x=torch.ones(2, 3).long(), attention_mask=torch.ones(2, 3).long()), TOKENS, MASK)


def test_an_input_without_batch_dimension() -> None:
    assert "batch dimension" in refused(raw(x=torch.ones(2)), Signature("t", torch.float32, ())).detail


@pytest.mark.parametrize(
    ("labels", "words"),
    [(torch.tensor([0.0, 1.0]), "integers"), (torch.tensor([3, -1]), "index (1,)"), (torch.eye(2), "integers")],
)
def test_labels_are_class_indices(labels: Tensor, words: str) -> None:
    assert words in refused(raw(x=torch.zeros(2, 3, 8, 8), y=labels), IMAGE).detail


def test_positions_that_do_not_count() -> None:
    data = bind(raw(x=torch.zeros(2, 3, 8, 8), y=torch.tensor([-100, 4])), [IMAGE])
    assert data.labels is not None
    assert data.labels.tolist() == [-100, 4]


def test_dataset_subset_and_to() -> None:
    data = Dataset(inputs=(torch.arange(10.0),), labels=torch.arange(10))
    part = data.subset(torch.tensor([3, 1]))
    assert part.inputs[0].tolist() == [3, 1]
    assert part.labels is not None
    assert part.labels.tolist() == [3, 1]
    assert len(data.subset(slice(2, 6)).to("cpu")) == 4
    assert Dataset(inputs=data.inputs).subset(slice(0, 1)).labels is None


@pytest.mark.parametrize("inputs", [(), (torch.zeros(0, 2),), (torch.zeros(2), torch.zeros(3)), (torch.tensor(1.0),)])
def test_dataset_that_is_none(inputs: tuple[Tensor, ...]) -> None:
    with pytest.raises(DatasetError, match="same number of samples"):
        Dataset(inputs=inputs)
