"""Small real files of every format: where fuzzing begins."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
import warnings
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save
from torch import Tensor, nn

from tests.formats import onnx_models as made
from tests.formats import surgery, zoo
from tests.hostile import corpus_old, corpus_transformers

_VERSIONS = Path(__file__).parents[1] / "tests" / "formats" / "pt2_versions"


class Tiny(nn.Module):
    """A little of everything that the reader has a rule for: in-place, no_grad, tied weights, views, constants."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.fc = nn.Linear(4, 5, bias=False)
        self.fc.weight = self.words.weight
        self.register_buffer("scale", torch.arange(4.0), persistent=False)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return something of shape (N, 3, 5), and something else."""
        with torch.no_grad():
            wave = (torch.arange(ids.shape[1]) * 0.5).cos()[:, None]
        x = self.words(ids) * wave + self.scale
        x = x.masked_fill(mask[..., None], 0.0).relu_()
        x += 1.0
        return self.fc(x), x.transpose(1, 2).reshape(ids.shape[0], -1)[:, 1:3]


class Conv(nn.Module):
    """Convolutions, padding, pooling and arithmetic on sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 3)."""
        x = nn.functional.pad(torch.relu(self.norm(self.conv(x))), (1, 1))
        x = nn.functional.adaptive_avg_pool2d(x, 2)
        return self.fc(x.view(x.shape[0], x.shape[1] * 4))


@cache
def pt2() -> tuple[bytes, ...]:
    """Archives as torch writes them, without the stack traces that make them long."""
    torch.manual_seed(0)
    conv = Conv().eval()
    tiny = (torch.randint(0, 5, (2, 3)), torch.zeros(2, 3, dtype=torch.bool))
    models = [
        zoo.Model(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (torch.randn(2, 3),), None),
        zoo.Model(conv, (torch.randn(2, 1, 4, 4),), ({0: torch.export.Dim("batch")},)),
        zoo.Model(Tiny().eval(), tiny, ({0: torch.export.Dim("batch")},) * 2),
        zoo.make("mlp"),
    ]
    files = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in models:
            path = Path(folder) / "model.pt2"
            zoo.export(model, path, dynamic=model.dynamic_shapes is not None)
            files.append(surgery.edited(path, Path(folder) / "small.pt2", _shorten).read_bytes())
            if len(files) == 1:
                files.append(path.read_bytes())
    return tuple(files)


def _shorten(contents: dict[str, bytes]) -> None:
    contents.pop("data/sample_inputs/model.pt", None)
    _short_graph(contents, surgery.GRAPH)


def _short_graph(contents: dict[str, bytes], name: str) -> None:
    document = json.loads(contents[name])
    module = document["graph_module"]
    _no_metadata(module["graph"])
    module["module_call_graph"] = []
    contents[name] = json.dumps(document, separators=(",", ":")).encode()


def _no_metadata(value: Any) -> None:
    if isinstance(value, dict):
        if "metadata" in value and "target" in value:
            value["metadata"] = {}
        for item in value.values():
            _no_metadata(item)
    elif isinstance(value, list):
        for item in value:
            _no_metadata(item)


@cache
def graphs() -> tuple[bytes, ...]:
    """The JSON graphs of `pt2`, to be put into an archive that is sound."""
    found = []
    for data in pt2():
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found += [archive.read(name) for name in archive.namelist() if "/models/" in name]
    return tuple(found)


@cache
def pt2_older() -> tuple[bytes, ...]:
    """Archives as older versions of torch write them, without what makes them long."""
    files = [*corpus_old.old()]
    for version, name in (("2.4.1", "constants"), ("2.5.1", "tied"), ("2.7.1", "dynamic"), ("2.8.0", "cnn")):
        with zipfile.ZipFile(_VERSIONS / f"{version}.zip") as packed:
            archive = zipfile.ZipFile(io.BytesIO(packed.read(f"{name}.pt2")))
        contents = {n: archive.read(n) for n in archive.namelist() if "inputs" not in n}
        for graph in [n for n in contents if n.endswith("program.json") or "/models/" in n]:
            _short_graph(contents, graph)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as small:
            for member, data in contents.items():
                small.writestr(member, data)
        files.append(out.getvalue())
    return tuple(files)


@cache
def pth() -> tuple[bytes, ...]:
    """State dicts by torch.save: plain, of one storage for two, within a checkpoint, and of a built-in architecture."""
    small = {"fc1.weight": torch.zeros(2, 3), "n": torch.zeros(2, dtype=torch.int64)}
    kinds: tuple[Any, ...] = (
        small,
        {"state_dict": {f"module.{n}": w for n, w in small.items()}, "epoch": 3, "lr": [0.1, None, "x"]},
        dict(nn.Linear(2, 3).named_parameters()),
        {"a": (w := torch.zeros(4, 4)), "b": w.t(), "c": w[1:], "d": torch.ones(2, dtype=torch.bool)},
        perceptron(),
    )
    files = []
    for kind in kinds:
        out = io.BytesIO()
        torch.save(kind, out)
        files.append(out.getvalue())
    return tuple(files)


@cache
def transformers() -> tuple[bytes, ...]:
    """A small BERT: zipped, compressed in a folder of its own, as one file, and as one that only lacks a weight."""
    made = corpus_transformers
    return (
        made.folder(),
        made.folder({"tokenizer.json": b"{}"}, "mine/", zipfile.ZIP_DEFLATED),
        made.single(made.config()),
        made.single(made.config(architectures=["BertForMaskedLM"], num_labels=3, id2label={"0": "a"})),
    )


def perceptron() -> dict[str, Tensor]:
    """The weights of the built-in perceptron, most of them alike (so that the file is small when compressed)."""
    shapes = {"fc1": (40, 784), "fc2": (20, 40), "fc3": (10, 20)}
    weights = {f"{name}.weight": torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": torch.ones(shape[0], dtype=torch.float16) for name, shape in shapes.items()}
    return weights


@cache
def model_safetensors() -> tuple[bytes, ...]:
    """Built-in models as one safetensors file."""
    config = json.dumps({"architecture": "mlpnet-mnist"})
    small = {"fc1.weight": torch.zeros(2, 3), "x": torch.zeros(2, dtype=torch.int64)}
    return save(perceptron(), {"config": config}), save(small, {"config": config}), save({}, {"config": config})


@cache
def model_zip() -> tuple[bytes, ...]:
    """Built-in models as zip archives."""
    files = []
    for tensors in (save(perceptron()), save({"fc1.weight": torch.zeros(2, 3)})):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("config.json", json.dumps({"architecture": "mlpnet-mnist", "more": [1, {"a": None}]}))
            archive.writestr("model.safetensors", tensors)
        files.append(out.getvalue())
    return tuple(files)


@cache
def dataset_safetensors() -> tuple[bytes, ...]:
    """Datasets as safetensors."""
    x, y = torch.ones(3, 4), torch.tensor([0, 1, 2])
    return (
        save({"x": x, "y": y}),
        save({"inputs": x.bfloat16(), "labels": y.to(torch.uint8)}, {"a": "b"}),
        save({"a": x.double(), "b": torch.ones(3, dtype=torch.bool), "c": y.to(torch.uint16)}),
    )


@cache
def masks() -> tuple[bytes, ...]:
    """Masks."""
    return (
        save({"0.weight": torch.ones(4, 3, dtype=torch.bool), "2.weight": torch.zeros(2, 4, dtype=torch.bool)}),
        save({"w": torch.ones(1, dtype=torch.bool)}, {"made": "by"}),
    )


@cache
def npz() -> tuple[bytes, ...]:
    """Datasets as npz: stored, deflated, of every kind of dtype and order."""
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    arrays: list[dict[str, Any]] = [
        {"x": x, "y": np.array([0, 1, 2])},
        {"inputs": np.asfortranarray(x.astype(">f8")), "labels": np.array([1, 0, 1], np.uint8)},
        {"a": x.astype(np.float16), "b": x > 3, "c": np.array([[1], [2], [3]], ">i4"), "y": np.array([1, 2, 3], "u2")},
    ]
    files = []
    for each in arrays:
        for write in (np.savez, np.savez_compressed):
            out = io.BytesIO()
            write(out, **each)
            files.append(out.getvalue())
    return tuple(files)


RECIPES: tuple[Any, ...] = (
    {"select": {"algorithm": "chita", "sparsity": 0.9}},
    {"select": {"algorithm": "magnitude", "sparsity": [0.5, 0.9], "pattern": "4x1", "layers": {"exclude": ["fc*"]}}},
    {"select": {"algorithm": "wanda", "pattern": {"type": "n:m", "n": 2, "m": 4}}, "refine": {"algorithm": "snows"}},
    {"refine": {"algorithm": "snows", "window": 2}, "seed": 7},
    {"select": {"sparsity": {"max_accuracy_drop": 0.01, "precision": 0.01}, "pattern": {"scope": "layer"}}},
    {"select": {"algorithm": "chita", "sparsity": 0.9, "block_size": 7, "pattern": {"max_layer_sparsity": 0.95}}},
)


def recipes() -> tuple[bytes, ...]:
    """Recipes as JSON."""
    return tuple(json.dumps(recipe).encode() for recipe in RECIPES)


def job_requests() -> tuple[bytes, ...]:
    """Bodies of ``POST /jobs``."""
    ids = {"model": "mdl_01JD3Z8Q9W3V6Y6T0B1C2D3E4F", "calibration": "dst_01JD3Z9XB3M8R6N0QSWJ5T7K2P"}
    bodies = [{**ids, "recipe": recipe, "labels": {"team": "vision", "a/b": "é"}} for recipe in RECIPES]
    return (*(json.dumps(body).encode() for body in bodies), b'{"a":1,"a":2}', b"[1e999, NaN]", b'"\\ud800"')


def forms() -> tuple[bytes, ...]:
    """A line with the content type, then the body of a form."""
    kind = b"multipart/form-data; boundary=XX\n"
    head = b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.pt2"\r\nContent-Type: x/y\r\n\r\n'
    return (
        kind + head + b"some\r\nbytes\r\n--X\r\n--XX--\r\n",
        kind + b"preamble\r\n" + head + b"\r\n--XX--",
        kind + head + b"a\r\n--XX\r\nContent-Disposition: form-data; name=other\r\n\r\nb\r\n--XX--\r\n",
        b'multipart/form-data; boundary="a b"\n--a b\r\nContent-Disposition: form-data; name=file; filename=x\r\n\r\n.',
        b"multipart/form-data\n",
    )


def headers() -> tuple[bytes, ...]:
    """One header's text each."""
    digest = b"sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"
    return (
        *(b"bytes=0-1", b"bytes=-5", b"bytes=3-", b"bytes = 1-2 ", b"bytes=0-1,3-4", b"bytes=99999999999999999999-"),
        *(digest, b"md5=:AAAA:, " + digest, b"sha-512=:x:", b"ab" * 32, b'W/"a", "b"', b"*"),
        *(b"localhost:8000", b"[::1]:80", b"a@b", b"http://localhost:8000", b"127.0.0.1", b"evil.example."),
        *(b"../../etc/passwd", b"C:\\models\\net.pt2", "r\u00e9sum\u00e9.pt2".encode(), b"a.tar.gz", b"..", b"x" * 300),
    )


@cache
def pictures() -> tuple[bytes, ...]:
    """Small pictures in every carrier, and a Parquet file of numbers."""
    shades = {f"{'ab'[i % 2]}/{i}.png": np.full((4, 5, 3), 40 * i, np.uint8) for i in range(3)}
    encoded = {}
    for name, array in shades.items():
        out = io.BytesIO()
        Image.fromarray(array).save(out, "PNG")
        encoded[name] = out.getvalue()
    zipped, tarred, hugging_face, numbers = (io.BytesIO() for _ in range(4))
    with zipfile.ZipFile(zipped, "w") as archive, tarfile.open(fileobj=tarred, mode="w") as tape:
        for name, data in encoded.items():
            archive.writestr(name, data)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tape.addfile(entry, io.BytesIO(data))
    rows = [{"bytes": data, "path": name} for name, data in encoded.items()]
    parquet.write_table(pa.table({"image": rows, "label": [0, 1, 0]}), hugging_face)
    parquet.write_table(pa.table({"x": [[[1.0, 2.0]], [[3.0, 4.0]]], "label": [0, 1]}), numbers)
    return tuple(out.getvalue() for out in (zipped, tarred, hugging_face, numbers))


@cache
def onnx_models() -> tuple[bytes, ...]:
    """Small ONNX files: layers, and arithmetic on shapes."""
    node, arrays = made.node, {"w": made.floats(4, 3), "b": made.floats(3), "k": made.floats(2, 1, 3, 3)}
    layers = [node("MatMul", ["x", "w"], ["a"]), node("Add", ["a", "b"], ["h"]), node("Relu", ["h"], ["y"])]
    shapes = [
        node("Conv", ["x", "k"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Shape", ["c"], ["s"]),
        node("Gather", ["s", "i"], ["n"]),
        node("Concat", ["n", "m"], ["t"], axis=0),
        node("Reshape", ["c", "t"], ["y"]),
    ]
    places = {"k": arrays["k"], "i": made.ints(0), "m": made.ints(-1)}
    return (
        made.model(layers, {"x": (1, ["n", 4])}, {name: arrays[name] for name in ("w", "b")}),
        made.model(shapes, {"x": (1, ["n", 1, 4, 4])}, places),
    )
