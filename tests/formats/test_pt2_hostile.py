"""Hostile and unsupported archives, each made from a real one: refused with a reason, and nothing in them has run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats import model_format, read_model, write_model
from tests.formats import surgery, zoo
from tests.formats.conftest import Exported
from tests.formats.surgery import CONSTANTS, GRAPH, WEIGHTS, edit_json

Contents = dict[str, bytes]


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "the-payload-has-run"


@pytest.fixture
def bomb(marker: Path) -> bytes:
    return pickle.dumps(Bomb(marker))


def refused(source: Path, folder: Path, change: Callable[[Contents], Any], message: str) -> ModelError:
    path = surgery.edited(source, folder / "hostile.pt2", change)
    with pytest.raises(ModelError, match=message) as error:
        read_model(path)
    problem = error.value.problem()
    assert problem["status"] == 422
    json.dumps(problem)
    assert [entry.name for entry in folder.iterdir()] == ["hostile.pt2"]  # nothing has run
    return error.value


def in_entry(table: str, **fields: Any) -> Callable[[Contents], None]:
    """Change fields of the first entry of a weights table."""

    def change(contents: Contents) -> None:
        edit_json(contents, table, lambda d: next(iter(d["config"].values())).update(fields))

    return change


def in_meta(**fields: Any) -> Callable[[Contents], None]:
    def change(contents: Contents) -> None:
        edit_json(contents, WEIGHTS, lambda d: next(iter(d["config"].values()))["tensor_meta"].update(fields))

    return change


def in_graph(change: Callable[[Any], Any]) -> Callable[[Contents], None]:
    return lambda contents: edit_json(contents, GRAPH, change)


def ints(*values: int) -> list[dict[str, int]]:
    return [{"as_int": value} for value in values]


def test_the_bomb_works(marker: Path, bomb: bytes) -> None:
    pickle.loads(bomb)
    assert marker.exists()


def test_pickled_weights(exported: Exported, tmp_path: Path, bomb: bytes) -> None:
    def change(contents: Contents) -> None:
        in_entry(WEIGHTS, use_pickle=True)(contents)
        contents["data/weights/weight_0"] = bomb

    assert "plain tensors" in refused(exported("mlp"), tmp_path, change, "pickle").problem()["advice"]


def test_pickled_constants(exported: Exported, tmp_path: Path, bomb: bytes) -> None:
    def change(contents: Contents) -> None:
        in_entry(CONSTANTS, use_pickle=True)(contents)
        contents["data/constants/tensor_0"] = bomb

    refused(exported("bert"), tmp_path, change, "pickle")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/weights/model.pt", "weights in two forms"),
        ("data/constants/model.pt", "weights in two forms"),
        ("data/constants/custom_obj_0", "custom"),
        ("data/constants/opaque_obj_0", "custom"),
        ("data/aotinductor/model/model.so", "compiled code"),
        ("data/weights/lib.so", "compiled code"),
        ("model.cpp", "compiled code"),
        ("data.pkl", "not known"),
        ("code/__torch__.py", "not known"),
        ("models/second.json", "one model"),
    ],
)
def test_members_that_torch_would_run(name: str, message: str, exported: Exported, tmp_path: Path, bomb: bytes) -> None:
    refused(exported("mlp"), tmp_path, lambda contents: contents.update({name: bomb}), message)


def test_sample_inputs_and_extra_files_are_never_opened(
    exported: Exported, tmp_path: Path, marker: Path, bomb: bytes
) -> None:
    def change(contents: Contents) -> None:
        contents["data/sample_inputs/model.pt"] = bomb
        contents["extra/notes.pkl"] = bomb

    path = surgery.edited(exported("mlp"), tmp_path / "sly.pt2", change)
    network, x = read_model(path), zoo.make("mlp").inputs
    assert torch.equal(network.run(x)[0], read_model(exported("mlp")).run(x)[0])
    write_model(network, path, tmp_path / "copy.pt2")
    assert not marker.exists()


def test_size_expressions_and_guards_are_never_evaluated(exported: Exported, tmp_path: Path, marker: Path) -> None:
    code = f"__import__('os').mkdir({str(marker)!r})"

    def change(document: Any) -> None:
        document["guards_code"] = [code]
        document["range_constraints"] = {code: {"min_val": 2, "max_val": None}}
        for meta in document["graph_module"]["graph"]["tensor_values"].values():
            for size in meta["sizes"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code
        for value in document["graph_module"]["graph"]["sym_int_values"].values():
            value.update({"as_expr": {"expr_str": code, "hint": None}})
        document["graph_module"]["module_call_graph"] = [{"fqn": code}]

    path = surgery.edited(exported("cnn"), tmp_path / "sly.pt2", in_graph(change))
    network, x = read_model(path), zoo.make("cnn").inputs
    assert torch.equal(network.run(x)[0], read_model(exported("cnn")).run(x)[0])
    assert network.inputs[0].shape == (None, 3, 12, 12)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("torch.ops.aten.from_file.default", "not on the list"),
        ("torch.ops.aten.set_.source_Storage", "in place"),
        ("torch.ops.aten.as_strided.default", "not on the list"),
        ("torch.ops.aten.item.default", "depends on the data"),
        ("torch.ops.aten.rand.default", "random"),
        ("torch.ops.aten.bernoulli.p", "random"),
        ("torch.ops.aten.relu.__class__", "not on the list"),
        ("torch.ops.aten.copy_.default", "in place"),
        ("torch.ops.higher_order.cond", "control flow"),
        ("torch.ops.profiler._record_function_enter.default", "aten"),
        ("torch.ops.load_library", "aten"),
        ("_operator.attrgetter", "not on the list"),
        ("os.system", "aten"),
        ("builtins.eval", "aten"),
        ("", "aten"),
    ],
)
def test_operations_outside_the_allowlist(target: str, message: str, exported: Exported, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        surgery.node(document, "relu.default")["target"] = target

    error = refused(exported("mlp"), tmp_path, in_graph(change), message)
    assert isinstance(error, UnsupportedModel)
    assert error.problem()["operations"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_meta(sizes=ints(10**6, 10**6), strides=ints(0, 0)), "more than its record"),
        (in_meta(sizes=ints(11, 12)), "more than its record"),
        (in_meta(storage_offset={"as_int": 1}), "more than its record"),
        (in_meta(strides=ints(2**62, 1)), "more than its record"),
        (in_meta(sizes=ints(2**63 - 1, 2**63 - 1), strides=ints(0, 0)), "more than its record"),
        (in_meta(sizes=ints(-10, 12)), "non-negative"),
        (in_meta(strides=ints(-1, 1)), "non-negative"),
        (in_meta(sizes=ints(10)), "another number of strides"),
        (in_meta(sizes=[{"as_expr": {"expr_str": "1", "hint": None}}] * 2), "non-negative"),
        (in_meta(sizes=[{"as_int": True}] * 2), "64-bit"),
        (in_meta(sizes=[{"as_int": 10**30}] * 2), "64-bit"),
        (in_meta(sizes="everything"), "array"),
        (in_meta(dtype=29), "dtype"),
        (in_meta(dtype=1000), "dtype"),
        (in_meta(layout=1), "strided"),
        (in_entry(WEIGHTS, tensor_meta=None), "object"),
        (in_entry(WEIGHTS, path_name="../../../../etc/passwd"), "not there"),
        (in_entry(WEIGHTS, path_name="model_weights_config.json"), "not there"),
        (in_entry(WEIGHTS, path_name="weight_999"), "not there"),
        (in_entry(WEIGHTS, use_pickle="no"), "true or false"),
        (lambda c: c.update({WEIGHTS: b"{}"}), "lacks 'config'"),
        (lambda c: c.update({WEIGHTS: b"\xff\xfe"}), "JSON"),
        (lambda c: c.update({WEIGHTS: b"[" * 10**6}), "nests too deeply"),
        (lambda c: c.update({WEIGHTS: b'{"config": ' + b"9" * 5000 + b"}"}), "JSON"),
        (lambda c: c.pop(WEIGHTS), "no member"),
        (lambda c: c.update({"data/weights/weight_0": b"1234"}), "more than its record"),
        (lambda c: edit_json(c, WEIGHTS, lambda d: d["config"].clear()), "no values for"),
    ],
)
def test_weight_tables_that_lie(change: Callable[[Contents], Any], message: str, exported, tmp_path: Path) -> None:
    refused(exported("mlp"), tmp_path, change, message)


def _many_nodes(document: Any) -> None:
    nodes = surgery.nodes(document)
    nodes.extend(nodes[:1] * 50_001)


def _deep_region(document: Any) -> None:
    inner: dict[str, Any] = {"inputs": [], "outputs": [], "nodes": []}
    for _ in range(20):
        call = [
            {"name": "", "arg": {"as_bool": False}},
            {"name": "", "arg": {"as_graph": {"name": "g", "graph": inner}}},
        ]
        target = "torch.ops.higher_order.wrap_with_set_grad_enabled"
        inner = {"inputs": [], "outputs": [], "nodes": [{"target": target, "inputs": call, "outputs": [], "name": "r"}]}
    surgery.nodes(document).extend(inner["nodes"])


def _unknown_name(document: Any) -> None:
    surgery.node(document, "relu.default")["inputs"][0]["arg"]["as_tensor"]["name"] = "nowhere"


def _twice(document: Any) -> None:
    nodes = surgery.nodes(document)
    nodes.append(nodes[0])


def _unknown_argument(document: Any) -> None:
    surgery.node(document, "relu.default")["inputs"].append({"name": "out", "arg": {"as_none": True}, "kind": 2})


def _custom_object(document: Any) -> None:
    surgery.node(document, "relu.default")["inputs"][0]["arg"] = {"as_custom_obj": {"name": "x", "class_fqn": "y"}}


def _mutation(document: Any) -> None:
    specs = document["graph_module"]["signature"]["output_specs"]
    specs.append({"buffer_mutation": {"arg": {"name": "x"}, "buffer_name": "bn.running_mean"}})


def _token(document: Any) -> None:
    document["graph_module"]["signature"]["input_specs"].append({"token": {"arg": {"name": "t"}}})


def _schema(document: Any) -> None:
    document["schema_version"]["major"] = 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_many_nodes, "too large"),
        (_deep_region, "nests too deeply"),
        (_unknown_name, "before it is defined"),
        (_twice, "twice"),
        (_unknown_argument, "does not have"),
        (_custom_object, "as_custom_obj"),
        (_mutation, "changes its own state"),
        (_token, "kind 'token'"),
        (_schema, "version of the export schema that is not read"),
        (lambda d: d.pop("graph_module"), "lacks 'graph_module'"),
        (lambda d: d["graph_module"]["graph"].update(nodes={}), "array"),
        (lambda d: d["graph_module"]["graph"].update(outputs=[{"as_none": True}]), "returns no tensor"),
        (lambda d: d["graph_module"]["graph"]["tensor_values"].clear(), "lacks 'x'"),
    ],
)
def test_graphs_that_are_malformed(change: Callable[[Any], Any], message: str, exported, tmp_path: Path) -> None:
    refused(exported("mlp"), tmp_path, in_graph(change), message)


def test_other_versions_of_the_archive(exported: Exported, tmp_path: Path) -> None:
    for name, value in (("archive_format", b"pt3"), ("archive_version", b"1"), ("byteorder", b"big")):
        refused(exported("mlp"), tmp_path, lambda c, n=name, v=value: c.update({n: v}), name)


@pytest.mark.parametrize("size", [[2**40], [2**20, 2**20], [2**31, 2**31]])
@pytest.mark.parametrize("op", ["zeros.default", "ones.default", "empty.memory_format"])
def test_scalars_that_ask_for_huge_tensors(op: str, size: list[int], exported: Exported, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        arguments = [{"name": "size", "arg": {"as_ints": size}, "kind": 1}]
        outputs = [{"as_tensor": {"name": "huge"}}]
        target = f"torch.ops.aten.{op}"
        surgery.nodes(document).append({"target": target, "inputs": arguments, "outputs": outputs, "name": "huge"})

    path = surgery.edited(exported("mlp"), tmp_path / "huge.pt2", in_graph(change))
    with pytest.raises(UnsupportedModel, match="would make a tensor"):
        read_model(path).run(zoo.make("mlp").inputs)


class TrainMode(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.fc, self.part = nn.Linear(6, 6), part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(self.fc(x))


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize(
    "part", [nn.BatchNorm1d(6), nn.Dropout(0.5), nn.AlphaDropout(0.5), Noise()], ids=["bn", "dropout", "alpha", "noise"]
)
def test_train_mode_is_refused_with_advice(part: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "hostile.pt2"
    zoo.export(zoo.Model(TrainMode(part).train(), (torch.randn(4, 6),), None), path, dynamic=False)
    with pytest.raises(UnsupportedModel, match=r"train mode|random|own state") as error:
        read_model(path)
    assert "model.eval()" in error.value.problem()["advice"]


def test_something_else_altogether(tmp_path: Path, bomb: bytes) -> None:
    for content in (b"", b"x", bomb, b"\x80\x02" + bytes(100), b"PK", b"<html>" * 20, os.urandom(200)):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ModelError):
            read_model(tmp_path / "f")
    with zipfile.ZipFile(tmp_path / "f", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(ModelError):
        read_model(tmp_path / "f")
    torch.save({"w": torch.zeros(3)}, tmp_path / "f")
    assert model_format(tmp_path / "f") == "pth"
    with pytest.raises(ModelError, match="which architecture"):
        read_model(tmp_path / "f")
