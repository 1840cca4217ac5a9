"""ONNX files of both exporters: read as they compute, pruned, and written back so that onnxruntime agrees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from pruning_core.errors import ModelError
from pruning_core.formats import model_format, read_model, write_model
from pruning_core.network import Network
from pruning_core.pipeline import finish, prune
from pruning_core.recipe import Recipe
from tests.core.exported import calibration
from tests.formats import onnx_models as make
from tests.formats import zoo

CASES = [
    *(("legacy", name) for name in ("cnn", "depthwise", "vit", "bert", "transformers_bert")),
    *(("dynamo", name) for name in ("cnn", "transformers_bert")),
]
Exported = tuple[nn.Module, tuple[Tensor, ...], Path]


def single(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of the zoo in single precision."""
    found = zoo.make(name)
    return found.module.float(), tuple(x.float() if x.is_floating_point() else x for x in found.inputs)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Exported]:
    folder, known = tmp_path_factory.mktemp("onnx"), {}

    def get(name: str, exporter: str) -> Exported:
        if (name, exporter) not in known:
            module, inputs = single(name)
            known[name, exporter] = module, inputs, make.export(module, inputs, folder / f"{name}-{exporter}", exporter)
        return known[name, exporter]

    return get


def close(ours: Tensor, theirs: Tensor) -> bool:
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def halved(network: Network) -> Network:
    """The network without the smaller half of each layer's weights."""
    new = {}
    for layer in network.layers:
        weight = network.weights[layer.weight]
        new[layer.weight] = torch.where(weight.abs() >= weight.abs().median(), weight, 0)
    return network.with_weights(new)


@pytest.mark.parametrize(("exporter", "name"), CASES)
def test_both_exporters(name: str, exporter: str, exported: Callable[[str, str], Exported], tmp_path: Path) -> None:
    module, inputs, path = exported(name, exporter)
    assert model_format(path) == "onnx"
    network = read_model(path)
    assert network.batch is None
    # nn.MultiheadAttention holds three layers in a parameter of its own.
    packed = 1 if name == "vit" else 0
    assert len(network.layers) == packed + sum(isinstance(part, nn.Linear | nn.Conv2d) for part in module.modules())
    for count in (1, 2, 5):
        some = tuple(torch.cat([x] * 3)[:count] for x in inputs)
        (ours,) = network.run(some)
        assert close(ours, make.answers(path, some)[0])
        with torch.no_grad():
            assert close(ours, module(*some))

    target = tmp_path / "pruned"
    pruned = halved(network)
    write_model(pruned, path, target)
    assert close(make.answers(target, inputs)[0], pruned.run(inputs)[0])
    assert not torch.equal(network.run(inputs)[0], pruned.run(inputs)[0])
    again = read_model(target)
    assert all(torch.equal(again.weights[name], weight) for name, weight in pruned.weights.items())
    assert _spans(path, target) == {layer.weight for layer in network.layers}
    write_model(network, target, target)
    assert target.read_bytes() == path.read_bytes()


def _spans(before: Path, after: Path) -> set[str]:
    """Names of the initialisers whose bytes differ, after checking that all else is the same, byte for byte."""
    old, new = before.read_bytes(), after.read_bytes()
    assert len(old) == len(new)
    places = {}
    for item in onnx.load_model_from_string(old).graph.initializer:
        at = old.index(item.raw_data) if item.raw_data else 0
        places[item.name] = (at, at + len(item.raw_data))
    rest = bytearray(a ^ b for a, b in zip(old, new, strict=True))
    changed = set()
    for name, (start, stop) in places.items():
        if any(rest[start:stop]):
            changed.add(name)
            rest[start:stop] = bytes(stop - start)
    assert not any(rest)
    return changed


def test_gradients_are_those_of_the_module(exported: Callable[[str, str], Exported]) -> None:
    module, inputs, path = exported("vit", "legacy")
    network = read_model(path)
    layer = next(layer for layer in network.layers if layer.shape[0] == 2 * layer.shape[1])
    leaf = network.weights[layer.weight].clone().requires_grad_()
    network.run(inputs, {layer.weight: leaf})[0].logsumexp(1).sum().backward()
    wanted = next(m.weight for m in module.modules() if isinstance(m, nn.Linear) and torch.equal(m.weight, leaf))
    module.zero_grad()
    module(*inputs).logsumexp(1).sum().backward()
    assert wanted.grad is not None
    assert leaf.grad is not None
    assert close(leaf.grad, wanted.grad)


@pytest.mark.parametrize(("opset", "name"), [(13, "cnn"), (14, "bert"), (18, "bert")])
def test_opsets_of_the_older_exporter(tmp_path: Path, opset: int, name: str) -> None:
    module, inputs = single(name)
    path = make.export(module, inputs, tmp_path / "m", "legacy", opset)
    assert close(read_model(path).run(inputs)[0], make.answers(path, inputs)[0])


def test_numbers_in_a_list_of_floats_are_replaced_in_place(tmp_path: Path) -> None:
    def unpack(model: onnx.ModelProto) -> None:
        for item in model.graph.initializer:
            values = numpy_helper.to_array(item).ravel().tolist()
            item.ClearField("raw_data")
            item.float_data.extend(values)

    weight = make.floats(6, 4)
    data = make.model([make.node("MatMul", ["x", "w"], ["y"])], {"x": (1, ["n", 6])}, {"w": weight}, change=unpack)
    (tmp_path / "m").write_bytes(data)
    network = read_model(tmp_path / "m")
    assert network.layers[0].shape == (4, 6)
    assert torch.equal(network.weights["w"], torch.from_numpy(weight).T)
    pruned = halved(network)
    write_model(pruned, tmp_path / "m", tmp_path / "p")
    x = torch.randn(3, 6)
    assert close(make.answers(tmp_path / "p", [x])[0], pruned.run([x])[0])


def test_one_matrix_used_both_ways_round_is_one_leaf(tmp_path: Path) -> None:
    """An embedding tied to the last layer, and a matrix that two products take in two ways."""
    arrays = {"e": make.floats(5, 5), "w": make.floats(5, 5, seed=1)}
    nodes = [
        make.node("Gather", ["e", "ids"], ["h"]),
        make.node("Identity", ["w"], ["alias"]),
        make.node("MatMul", ["h", "alias"], ["a"]),
        make.node("Flatten", ["a"], ["f"], axis=2),
        make.node("Gemm", ["f", "w"], ["b"], transB=1),
        make.node("Transpose", ["e"], ["t"], perm=[1, 0]),
        make.node("MatMul", ["b", "t"], ["y"]),
    ]
    (tmp_path / "m").write_bytes(make.model(nodes, {"ids": (7, ["n", 3])}, arrays))
    network = read_model(tmp_path / "m")
    ids = torch.tensor([[0, 1, 2], [4, 3, 2]])
    assert close(network.run([ids])[0], make.answers(tmp_path / "m", [ids])[0])
    assert {layer.weight for layer in network.layers} == {"e", "w"}
    pruned = halved(network)
    write_model(pruned, tmp_path / "m", tmp_path / "p")
    assert close(make.answers(tmp_path / "p", [ids])[0], pruned.run([ids])[0])


def test_what_does_not_belong_to_the_file_is_not_written(tmp_path: Path) -> None:
    nodes = [make.node("MatMul", ["x", "w"], ["y"])]
    for name, width in (("a", 4), ("b", 5)):
        (tmp_path / name).write_bytes(make.model(nodes, {"x": (1, ["n", 6])}, {"w": make.floats(6, width)}))
    with pytest.raises(ModelError, match="does not belong"):
        write_model(read_model(tmp_path / "a"), tmp_path / "b", tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("name", ["cnn", "bert"])
def test_snows_on_an_onnx_network_comes_nearer_to_the_dense_one(
    name: str, exported: Callable[[str, str], Exported], tmp_path: Path
) -> None:
    module, inputs, path = exported(name, "legacy")
    network = read_model(path)
    data = calibration(zoo.make(name)._replace(module=module, inputs=inputs))
    plain, refined = (
        finish(prune(network, data, Recipe.parse({"select": {"algorithm": "magnitude", "sparsity": 0.5}, **more})))
        for more in ({}, {"refine": {"algorithm": "snows"}})
    )
    assert all(torch.equal(refined.masks[weight], mask) for weight, mask in plain.masks.items())
    (dense,), (before,), (after,) = (n.run(data.inputs) for n in (network, plain.network, refined.network))
    assert (after - dense).norm() < 0.7 * (before - dense).norm()
    write_model(refined.network, path, tmp_path / "pruned")
    assert close(make.answers(tmp_path / "pruned", data.inputs)[0], after)
