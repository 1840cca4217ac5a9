"""What is fuzzed: for each parser its seeds, how its input is mutated, and what must hold of what it reads."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fuzz import http_targets, mutators, operations, seeds
from fuzz.guards import TooMuch, storable
from fuzz.mutators import Chance
from pruning_core.calibration import Pictures, bind, prepare, read_dataset
from pruning_core.errors import ModelError
from pruning_core.formats import hf_model, read_model, same_bits, write_model
from pruning_core.formats.archive import Archive
from pruning_core.formats.masks import read_masks, write_masks
from pruning_core.formats.pt2_weights import read_tensor
from pruning_core.formats.torch_file import is_torch_file, read_tensors
from pruning_core.masks import masked_layers
from pruning_core.network import Input, Network, kernels
from pruning_core.network.ops import ALLOWED
from pruning_core.recipe import Recipe
from worker.work import inspect_dataset, inspect_mask, inspect_model

torch.set_num_threads(1)
repr(torch.empty(0, device="meta"))  # imports what torch's messages about pickles are made with
#: In the fuzzer an operation may make this many elements out of scalars, so that each input takes little time.
kernels.MAX_ELEMENTS = 2**20
_MOST_ELEMENTS = 2**16
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


@dataclass(frozen=True, kw_only=True)
class Target:
    """One parser.

    Attributes:
        run: Parses the bytes; whatever it raises but a `PruningError` is a finding.
        seeds: Real inputs.
        mutate: Knows the input's structure; None where bytes will do.
        most: The longest input.
    """

    run: Callable[[bytes], None]
    seeds: Callable[[], tuple[bytes, ...]]
    mutate: mutators.Mutate | None = None
    most: int = 1 << 17


def _file(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.write_bytes(data)
    return path


def _nothing(_progress: Any) -> None:
    pass


def pt2(data: bytes) -> None:
    """Read a model of any format as the inspection does, run it, write it back, and read that."""
    path = _file("model", data)
    network = read_model(path)
    try:
        storable(inspect_model(_FOLDER, {}, _nothing))
    finally:
        _whole(path, network)
    _forward(network)


def pth(data: bytes) -> None:
    """The tensors of a file of torch.save; and as a model, if it is one."""
    path = _file("model", data)
    archive = Archive(path)
    if is_torch_file(archive):
        for payload in read_tensors(archive, "The file").values():
            read_tensor(archive, payload)
    pt2(data)


def transformers(data: bytes) -> None:
    """A model of transformers up to the module that is built for it: what is exported then is of our own making."""
    path = _file("model", data)
    whole, hf_model._exported = hf_model._exported, _built
    try:
        read_model(path)
    finally:
        hf_model._exported = whole


def _built(*_: Any) -> Any:
    raise ModelError("The module is built.", expected="this")


def _whole(path: Path, network: Network) -> None:
    """Assert that what was read can be written, and reads the same."""
    copy = _FOLDER / "copy"
    write_model(network, path, copy)
    if copy.read_bytes() != path.read_bytes():
        raise AssertionError("a copy without changes differs")
    flipped = {
        layer.weight: torch.where(torch.isfinite(w := network.weights[layer.weight]), 0, w) for layer in network.layers
    }
    write_model(network.with_weights(flipped), path, copy)
    again = read_model(copy)
    for name, weight in again.weights.items():
        if not same_bits(weight, flipped.get(name, network.weights[name])):
            raise AssertionError("what was written reads otherwise")
    copy.unlink()


def _forward(network: Network) -> None:
    """Run on tiny inputs: what they take must follow from them, not from the scalars of the graph."""
    inputs = []
    for wanted in network.inputs:
        shape = [2 if size is None else size for size in wanted.shape]
        count = 1
        for size in shape:
            count *= size
        if not 0 <= count <= _MOST_ELEMENTS or min(shape, default=0) < 0:
            return
        inputs.append(torch.ones(shape, dtype=wanted.dtype))
    with torch.no_grad():
        try:
            network.run(inputs)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate memory" not in str(error):
                raise
            raise TooMuch(_operation(error)) from None


def operated(data: bytes) -> None:
    """A model of arbitrary operations, read and run."""
    network = read_model(_file("model", operations.archive(data)))
    inspect_model(_FOLDER, {}, _nothing)
    _forward(network)


def _operation(error: BaseException) -> str:
    frame = error.__traceback__
    while frame is not None and "node" not in frame.tb_frame.f_locals:
        frame = frame.tb_next
    return str(frame.tb_frame.f_locals["node"].op) if frame else "?"


def archive(data: bytes) -> None:
    """The zip reader alone; what it accepts, Python's own reader must see in the same way."""
    path = _file("archive", data)
    found = Archive(path)
    contents = {name: bytes(found.view(name)) for name in found.members}
    with zipfile.ZipFile(path) as other:
        seen = {info.filename: other.read(info) for info in other.infolist() if not info.is_dir()}
    if seen != contents:
        raise AssertionError("two readers see two archives")


def masks(data: bytes) -> None:
    """A masks file, and whether it fits a network."""
    path = _file("mask", data)
    found = read_masks(path)
    storable(inspect_mask(_FOLDER, {}, _nothing))
    write_masks(found, _FOLDER / "copy")
    again = read_masks(_FOLDER / "copy")
    if again.keys() != found.keys() or not all(same_bits(again[name], found[name]) for name in found):
        raise AssertionError("masks written and read again differ")
    masked_layers(_network(), found)


_networks: list[Network] = []


def _network() -> Network:
    if not _networks:
        _networks.append(read_model(_file("fixed", seeds.pt2()[0])))
    return _networks[0]


_SIGNATURES = (
    (Input(name="x", dtype=torch.float32, shape=(None, 4)),),
    (Input(name="a", dtype=torch.float64, shape=(None, 2, 2)), Input(name="b", dtype=torch.bool, shape=(None,))),
    (Input(name="inputs", dtype=torch.int64, shape=(3, None)),),
    (Input(name="x", dtype=torch.bfloat16, shape=()),),
    (Input(name="x", dtype=torch.float32, shape=(None, 3, 4, 4)),),
)


def dataset(data: bytes) -> None:
    """A dataset as the inspection reads it."""
    path = _file("dataset", data)
    read_dataset(path, max_bytes=1 << 26)
    storable(inspect_dataset(_FOLDER, {}, _nothing))


def pictures(data: bytes) -> None:
    """A dataset of pictures or numbers, as the inspection reads it and as a job decodes it."""
    path = _file("dataset", data)
    storable(inspect_dataset(_FOLDER, {}, _nothing))
    found = read_dataset(path, max_bytes=1 << 26)
    if isinstance(found, Pictures):
        prepare(found, _SIGNATURES[4], None)


def bound(data: bytes) -> None:
    """A dataset's way to the inputs of a network."""
    which, data = data[:1], data[1:]
    signature = _SIGNATURES[(which or b"\0")[0] % len(_SIGNATURES)]
    bind(read_dataset(_file("bound", data), max_bytes=1 << 26), signature)


def recipe(data: bytes) -> None:
    """A JSON body: as a job, as a plan, as a recipe. A recipe accepted must be accepted again as it is then written."""
    document = http_targets.json_body(data)
    if isinstance(document, dict) and "recipe" in document:
        document = document["recipe"]
    parsed = Recipe.parse(document)
    again = Recipe.parse(json.loads(parsed.model_dump_json()))
    if again != parsed:
        raise AssertionError("a recipe written and read again differs")
    parsed.select.layers.accepts("layer1.0.conv1")


_SETTINGS = (
    "BertModel",
    "BertForMaskedLM",
    "bert",
    "auto_map",
    "hidden_size",
    "num_labels",
    "eager",
    "gelu",
    "id2label",
)
_SETTINGS += ("attn_implementation", "torch_dtype", "text_config", "pruned_heads", "vocab_size", "is_decoder")
_OPERATIONS = tuple(sorted(f"torch.ops.{op}" if op.startswith("aten.") else op for op in ALLOWED))


def _in_model(name: str, data: bytes, chance: Chance) -> bytes:
    if name.endswith(".safetensors"):
        return mutators.framed(data, chance)
    return mutators.document(data, chance, _OPERATIONS) if name.endswith(".json") else mutators.bytewise(data, chance)


def _saved(name: str, data: bytes, chance: Chance) -> bytes:
    return mutators.pickled(data, chance) if name.endswith("data.pkl") else mutators.bytewise(data, chance)


def _torch_file(data: bytes, chance: Chance) -> bytes:
    return mutators.zipped(data, chance, _saved, deflate=False, first="data.pkl")


def _in_older(name: str, data: bytes, chance: Chance) -> bytes:
    return _torch_file(data, chance) if name.endswith(".pt") else _in_model(name, data, chance)


def _older(data: bytes, chance: Chance) -> bytes:
    return mutators.zipped(data, chance, _in_older, deflate=False, first=chance.choice((".json", ".pt")))


def _transformers(data: bytes, chance: Chance) -> bytes:
    if not data.startswith(b"PK"):
        return mutators.framed(data, chance, _SETTINGS)
    return mutators.zipped(data, chance, _in_transformers, deflate=True, first="config.json")


def _in_transformers(name: str, data: bytes, chance: Chance) -> bytes:
    inside = mutators.framed if name.endswith(".safetensors") else mutators.document
    return inside(data, chance, _SETTINGS)


def _zip_model(data: bytes, chance: Chance) -> bytes:
    return mutators.zipped(data, chance, _in_model, deflate=False)


def _either_model(data: bytes, chance: Chance) -> bytes:
    return _zip_model(data, chance) if data.startswith(b"PK") else mutators.framed(data, chance)


def _npz(data: bytes, chance: Chance) -> bytes:
    return mutators.zipped(data, chance, lambda _, content, c: mutators.npy(content, c), deflate=True)


def _behind_a_byte(inner: mutators.Mutate) -> mutators.Mutate:
    return lambda data, chance: (chance.randbytes(1) if chance.random() < 0.2 else data[:1]) + inner(data[1:], chance)


def _either_dataset(data: bytes, chance: Chance) -> bytes:
    return _npz(data, chance) if data.startswith(b"PK") else mutators.framed(data, chance)


def _numbered(files: Callable[[], tuple[bytes, ...]]) -> Callable[[], tuple[bytes, ...]]:
    return lambda: tuple(bytes([i]) + data for i, data in enumerate(files()))


def _heads() -> tuple[bytes, ...]:
    return (*(data[:600] for data in (*_datasets(), *seeds.pt2()[:1])), b"<html>", b"\x08\x03\x12")


def _datasets() -> tuple[bytes, ...]:
    return (*seeds.dataset_safetensors(), *seeds.npz())


TARGETS: dict[str, Target] = {
    "pt2": Target(run=pt2, seeds=seeds.pt2, mutate=_zip_model),
    "pt2_older": Target(run=pt2, seeds=seeds.pt2_older, mutate=_older),
    "pth": Target(run=pth, seeds=seeds.pth, mutate=_torch_file),
    "transformers": Target(run=transformers, seeds=seeds.transformers, mutate=_transformers),
    "onnx": Target(run=pt2, seeds=seeds.onnx_models, most=1 << 14),
    "operations": Target(run=operated, seeds=lambda: tuple(bytes([i]) * 24 for i in range(0, 256, 5)), most=96),
    "archive": Target(
        run=archive, seeds=lambda: (*seeds.pt2()[:1], *seeds.npz()[::2]), mutate=_zip_model, most=1 << 15
    ),
    "builtin": Target(
        run=pt2, seeds=lambda: (*seeds.model_zip(), *seeds.model_safetensors()), mutate=_either_model, most=1 << 17
    ),
    "masks": Target(run=masks, seeds=seeds.masks, mutate=mutators.framed, most=1 << 14),
    "npz": Target(run=dataset, seeds=seeds.npz, mutate=_npz, most=1 << 14),
    "dataset_safetensors": Target(run=dataset, seeds=seeds.dataset_safetensors, mutate=mutators.framed, most=1 << 14),
    "pictures": Target(run=pictures, seeds=seeds.pictures, most=1 << 14),
    "bind": Target(run=bound, seeds=_numbered(_datasets), mutate=_behind_a_byte(_either_dataset), most=1 << 14),
    "recipe": Target(
        run=recipe, seeds=lambda: (*seeds.recipes(), *seeds.job_requests()), mutate=mutators.document, most=1 << 14
    ),
    "form": Target(run=http_targets.form, seeds=seeds.forms, most=1 << 12),
    "headers": Target(run=http_targets.headers, seeds=lambda: (*seeds.headers(), *_heads()), most=1 << 10),
}
