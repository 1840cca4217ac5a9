"""Archives that torch 2.4 to 2.9 wrote (pt2_versions/): read, pruned, and written back in the layout they came in."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats import model_format, read_model, write_model
from tests.formats import surgery
from tests.formats.pt2_versions import make

FOLDER = Path(__file__).parent / "pt2_versions"
VERSIONS = sorted(path.stem for path in FOLDER.glob("*.zip"))
#: Where the weights are, in the layouts that have them in a file of torch.save.
SAVED = {"2.8.0": "data/weights/model.pt"}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each version."""
    folder = tmp_path_factory.mktemp("versions")
    for version in VERSIONS:
        with zipfile.ZipFile(FOLDER / f"{version}.zip") as packed:
            packed.extractall(folder / version)
    return folder


def members(path: Path) -> dict[str, bytes]:
    """The members of an archive, without its folder if it has one."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    folded = "serialized_exported_program.json" not in found
    return {name.split("/", 1)[1] if folded else name: data for name, data in found.items()}


def tensors(data: bytes) -> dict[str, Tensor]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
    found: dict[str, Tensor] = torch.load(io.BytesIO(data), weights_only=True)
    return found


def test_every_layout_has_its_file() -> None:
    assert {"2.4.1", "2.5.1", "2.7.1", "2.8.0", "2.9.1"} <= {*VERSIONS}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", make.nets())
def test_older_archives_are_read_pruned_and_written(version: str, name: str, archives: Path, tmp_path: Path) -> None:
    source, target = archives / version / f"{name}.pt2", tmp_path / "pruned.pt2"
    module, inputs, free = make.nets()[name]
    told = json.loads((archives / version / "outputs.json").read_text())[name]
    assert model_format(source) == "pt2"
    network = read_model(source)
    assert network.batch == (None if free else 2)
    assert len(network.layers) >= 2

    leaves = {n: t.clone().requires_grad_() for n, t in network.weights.items() if t.is_floating_point()}
    found = network.run(inputs, leaves)
    for got, wanted in zip(found, told, strict=True):
        assert torch.allclose(got.flatten(), torch.tensor(wanted), atol=1e-6)
    result = module(*inputs)
    eager = [*result.values()] if isinstance(result, dict) else [result]
    sum((t**2).sum() for t in eager).backward()  # type: ignore[union-attr]
    loss: Any = sum((t**2).sum() for t in found)
    own = dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()], materialize_grads=True), strict=True))
    for parameter, tensor in module.named_parameters():
        assert tensor.grad is not None
        key = parameter if parameter in own else "decoder.weight"  # tied: one leaf has both names
        assert torch.allclose(own[key], tensor.grad, rtol=1e-4, atol=1e-5), parameter

    pruned = {layer.weight: torch.where(network.weights[layer.weight] > 0.3, 0.0, 1.5) for layer in network.layers}
    write_model(network, source, tmp_path / "same")
    assert (tmp_path / "same").read_bytes() == source.read_bytes()
    write_model(network.with_weights(pruned), source, target)
    again = read_model(target)
    assert all(torch.equal(again.weights[n], pruned.get(n, w)) for n, w in network.weights.items())
    before, after = members(source), members(target)
    touched = [key for key in before if before[key] != after[key]]
    saved = SAVED.get(version, "serialized_state_dict.pt")
    if saved not in before:
        assert len(touched) == len(pruned)
        return
    assert touched == [saved]
    old, new = tensors(before[saved]), tensors(after[saved])
    if name == "tied":  # whichever name it was pruned under
        both = next(pruned[n] for n in ("words.weight", "decoder.weight") if n in pruned)
        pruned.update({"words.weight": both, "decoder.weight": both})
    assert all(torch.equal(new[n], pruned.get(n, old[n])) for n in old)


def put(name: str, data: bytes) -> Callable[[dict[str, bytes]], Any]:
    return lambda found: found.update({name: data})


def schema(major: int) -> Callable[[dict[str, bytes]], Any]:
    def change(found: dict[str, bytes]) -> None:
        name = "serialized_exported_program.json"
        surgery.edit_json(found, name, lambda document: document["schema_version"].update(major=major))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (schema(4), "version of the export schema that is not read"),
        (schema(6), "version of the export schema that is not read"),
        (schema(9), "version of the export schema that is not read"),
        (put("serialized_state_dict.json", b""), "not known"),
        (put("data/weights/weight_0", b""), "not known"),
        (put("extra_files/../../x", b""), "not allowed"),
        (put("code.so", b""), "compiled code"),
        (lambda found: found.pop("serialized_constants.pt"), "no member"),
        (lambda found: found.pop("serialized_state_dict.pt"), "no member"),
    ],
)
def test_older_archives_that_are_otherwise_are_refused(
    change: Callable[[dict[str, bytes]], Any], message: str, archives: Path, tmp_path: Path
) -> None:
    found = members(archives / "2.5.1" / "mlp.pt2")
    change(found)
    with pytest.raises((ModelError, UnsupportedModel), match=message):
        read_model(surgery.write(tmp_path / "x.pt2", found, root=""))
