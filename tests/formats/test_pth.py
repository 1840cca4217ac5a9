"""State dicts of torch.save: read without running anything, recognised by their weights, returned as they came."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats import model_format, read_model, write_model
from tests.formats.surgery import members, write


def state(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"fc1": (40, 784), "fc2": (20, 40), "fc3": (10, 20)}
    return {f"{name}.weight": torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(784, 40), nn.Linear(40, 20), nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.fc2(self.fc1(x).relu()).relu())


SAVED: dict[str, Callable[[nn.Module], Any]] = {
    "state dict": lambda m: m.state_dict(),
    "data parallel": lambda m: nn.DataParallel(m).state_dict(),
    "checkpoint": lambda m: {"state_dict": m.state_dict(), "epoch": 3, "best": 0.5, "optimizer": {"lr": [0.1]}},
    "parameters": lambda m: dict(m.named_parameters()),
    "transposed": lambda m: {k: v.t().contiguous().t() if v.dim() == 2 else v for k, v in m.state_dict().items()},
}


@pytest.mark.parametrize("kind", SAVED)
def test_read_pruned_written_and_loaded_by_torch(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Perceptron()
    source, target = tmp_path / "net.pth", tmp_path / "pruned.pth"
    torch.save(SAVED[kind](module), source)
    assert model_format(source) == "pth"
    network, x = read_model(source), torch.randn(3, 784)
    assert torch.allclose(network.run([x])[0], module(x), atol=1e-6)
    pruned = {n: torch.where(w > 0, w, 0.0) for n, w in network.weights.items() if n.endswith("weight")}
    write_model(network.with_weights(pruned), source, target)
    assert model_format(target) == "pth"
    found = torch.load(target, weights_only=True)
    found = found.get("state_dict", found)
    assert all(torch.equal(found[n] if n in found else found[f"module.{n}"], w) for n, w in pruned.items())
    before, after = members(source), members(target)
    touched = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    assert len(touched) == 3
    assert all(name.startswith("data/") for name in touched)
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
    write_model(network, source, tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == source.read_bytes()


def saved(value: Any) -> bytes:
    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda _: {**state(), "fc4.weight": torch.zeros(2, 2)}, "which architecture"),
        (lambda _: {**state(), "fc1.weight": torch.zeros(40, 783)}, "which architecture"),
        (lambda _: [1, 2], "no dictionary"),
        (lambda _: {}, "which architecture"),
        (lambda _: {**state(), "lr": 0.1}, "something else than tensors"),
        (lambda _: {1: torch.zeros(2)}, "no dictionary"),
        (lambda marker: {**state(), "x": Runs(marker)}, "more in it than tensors"),
        (lambda _: Perceptron(), "more in it than tensors"),
        (lambda _: {**state(), "x": bytearray(9)}, "more in it than tensors"),
        (lambda _: {**state(), "x": torch.zeros(2, 2).to_sparse()}, "more in it than tensors"),
        (lambda _: OrderedDict(a=(w := torch.zeros(3, 3)), b=w[1:]), "share memory"),
    ],
)
def test_what_is_no_plain_state_dict_is_refused(value: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(saved(value(tmp_path / "marker")))
    with pytest.raises(UnsupportedModel, match=message):
        read_model(tmp_path / "m")
    assert not (tmp_path / "marker").exists()


def test_the_form_before_pytorch_1_6_is_refused_by_name(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "old", _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match=r"pickle|PyTorch 1\.6") as error:
        read_model(tmp_path / "old")
    assert "torch.save" in str(error.value.advice)


def claims(old: int, new: int) -> Callable[[dict[str, bytes]], None]:
    """The pickle with another number (of two bytes) where a size stands."""

    def change(contents: dict[str, bytes]) -> None:
        table = contents["data.pkl"]
        assert pickle.BININT2 + old.to_bytes(2, "little") in table
        contents["data.pkl"] = table.replace(
            pickle.BININT2 + old.to_bytes(2, "little"), pickle.BININT + new.to_bytes(4, "little")
        )

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (claims(31360, 2**31 - 1), "another size|cannot be read"),
        (claims(31360, 31361), "another size|cannot be read"),
        (claims(784, 2**30), "claims more|cannot be read|another size"),
        (lambda m: m.update({"data/0": m["data/0"][:-4]}), "another size|no record"),
        (lambda m: m.pop("data/0"), "cannot be read"),
        (lambda m: m.update({"data.pkl": m["data.pkl"][:-9]}), "damaged|cannot be read"),
        (lambda m: m.update({"data.pkl": b"\x80\x02" + b"]" * 2000 + b"."}), "no dictionary|cannot be read"),
        (lambda m: m.update({"data.pkl": bytes(2**25)}), "too large"),
        (lambda m: m.update({"code/x.py": b""}), "TorchScript"),
        (lambda m: m.update({"x.so": b""}), "not known"),
        (lambda m: m.update({"byteorder": b"big"}), "byte order"),
    ],
)
def test_files_that_lie_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "m.pth")
    contents = members(tmp_path / "m.pth")
    change(contents)
    with pytest.raises(ModelError, match=message):
        read_model(write(tmp_path / "lie.pth", contents))
