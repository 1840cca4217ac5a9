"""Models of transformers as people keep them: a folder, that folder as one zip, or one safetensors file.

``config.json`` says what it is; the weights are ``model.safetensors``, or shards of it. What else is there (tokenizer,
preprocessor, notes) is neither read nor changed: it goes back as it came.
"""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats.archive import Archive, open_map
from pruning_core.formats.document import mapping, parse_json
from pruning_core.formats.files import appearing, changed, copied, rechecked
from pruning_core.formats.hf_config import is_config
from pruning_core.formats.hf_model import network_of
from pruning_core.formats.tensors import (
    CONFIG_NAME,
    MAX_CONFIG_BYTES,
    Entry,
    patch,
    raw_bytes,
    read_header,
    tensors_of,
)
from pruning_core.network.network import Network

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
_PICKLES = re.compile(r".*\.(bin|pt|pth|ckpt|h5|msgpack|pkl)")
_MAX_SHARDS = 1000
_CHUNK = 2**20
_ADVICE = (
    "Save it with model.save_pretrained(folder), which writes config.json and model.safetensors, and zip the folder."
)


def is_folder(path: Path) -> bool:
    """Return whether a directory holds a model of transformers."""
    config = path / CONFIG_NAME
    return config.is_file() and config.stat().st_size <= MAX_CONFIG_BYTES and _names_one(config.read_bytes())


def is_zip(archive: Archive) -> bool:
    """Return whether an archive holds a model of transformers."""
    config = _root(archive) + CONFIG_NAME
    return config in archive.members and _names_one(bytes(archive.view(config, MAX_CONFIG_BYTES)))


def is_single(path: Path) -> bool:
    """Return whether a safetensors file has a configuration of transformers in its metadata."""
    _, metadata = read_header(memoryview(open_map(path)))
    return len(metadata.get("config", "")) <= MAX_CONFIG_BYTES and _names_one(metadata.get("config", "").encode())


def _names_one(config: bytes) -> bool:
    try:
        found = parse_json(config, "The config")
    except ModelError:
        return False
    return isinstance(found, dict) and is_config(found)


def _root(archive: Archive) -> str:
    """Return the one folder that a zip of a folder has, with its slash; nothing if there is none."""
    roots = {name.split("/", 1)[0] for name in archive.members}
    root = next(iter(roots)) + "/" if len(roots) == 1 else ""
    return root if all(name.startswith(root) for name in archive.members) else ""


def read_single(path: Path) -> Network:
    """Return the network of one safetensors file whose metadata has the configuration.

    Raises:
        ModelError: The file is broken, or does not fit its configuration.
        UnsupportedModel: The architecture is not read here.
    """
    data = memoryview(open_map(path))
    entries, metadata = read_header(data)
    return _network(metadata["config"].encode(), {path.name: (data, entries)})


def read_zip(path: Path) -> Network:
    """Return the network of a zipped folder; as `read_single`."""
    archive = Archive(path, deflated=True)
    config = bytes(archive.view(_root(archive) + CONFIG_NAME, MAX_CONFIG_BYTES))
    return _network(config, dict(_parts(archive)))


def read_folder(path: Path) -> Network:
    """Return the network of a directory; as `read_single`."""
    names = [item.name for item in path.iterdir() if item.is_file()]
    files = {name: memoryview(open_map(path / name)) for name in _weights(names)}
    return _network((path / CONFIG_NAME).read_bytes(), {n: (d, read_header(d)[0]) for n, d in files.items()})


def _parts(archive: Archive) -> Iterator[tuple[str, tuple[memoryview, dict[str, Entry]]]]:
    root = _root(archive)
    for name in _weights([name.removeprefix(root) for name in archive.members]):
        data = archive.view(root + name)
        yield root + name, (data, read_header(data)[0])


def _weights(names: list[str]) -> list[str]:
    """Return the safetensors files of a model among the names of its folder.

    Raises:
        UnsupportedModel: Its weights are pickles.
        ModelError: There are none, or some are missing.
    """
    found = sorted(name for name in names if _WEIGHTS.fullmatch(name))
    if not found:
        if pickles := sorted(name for name in names if _PICKLES.fullmatch(name)):
            raise UnsupportedModel(
                f"The model's weights are in {pickles[0]!r}, which is not safetensors and is never opened here.",
                expected="model.safetensors",
                received=pickles[:9],
                advice=_ADVICE,
            )
        raise ModelError("The folder has no model.safetensors.", expected="model.safetensors", received=names[:20])
    if "model.safetensors" in found:
        return ["model.safetensors"]
    count = int(found[0].removesuffix(".safetensors").rsplit("-", 1)[1])
    wanted = [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, min(count, _MAX_SHARDS) + 1)]
    if found != wanted:
        raise ModelError("The model's shards are not complete.", expected=wanted[:9], received=found[:9])
    return found


def _network(config: bytes, parts: Mapping[str, tuple[memoryview, Mapping[str, Entry]]]) -> Network:
    tensors: dict[str, Tensor] = {}
    for name, (data, entries) in parts.items():
        if both := sorted(tensors.keys() & entries.keys()):
            raise ModelError(f"The tensor {both[0]!r} is in two files.", received=name)
        tensors.update(tensors_of(data, entries))
    return network_of(mapping(parse_json(config, "The config"), "The config"), tensors)


def _new(weights: Mapping[str, Tensor], data: memoryview, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Return the tensors of a file that have other values now; what the network does not use stays."""
    original = tensors_of(data, entries)
    return changed({name: weights.get(name, tensor) for name, tensor in original.items()}, original)


def write_single(weights: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy a safetensors file with the bytes of changed tensors replaced.

    Args:
        weights: Of the network that was read from the source.
        source: The file.
        target: What to write; it appears whole or not at all.
    """
    data = memoryview(open_map(source))
    entries, _ = read_header(data)
    with copied(source, target) as file:
        patch(file, _new(weights, data, entries), entries, 0)


def write_folder(weights: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy a directory's files, with changed tensors replaced; as `write_single`."""
    target.mkdir(parents=True, exist_ok=True)
    names = [item.name for item in source.iterdir() if item.is_file()]
    parts = _weights(names)
    for name in names:
        if name in parts:
            write_single(weights, source / name, target / name)
        elif (source / name).resolve() != (target / name).resolve():
            shutil.copyfile(source / name, target / name)


def write_zip(weights: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy a zipped folder with changed tensors replaced; as `write_single`.

    Stored members are patched where they are. If one with changes is compressed the archive is written anew, with the
    same members in the same order, each as it was compressed.
    """
    archive = Archive(source, deflated=True)
    parts = dict(_parts(archive))
    new = {name: _new(weights, data, entries) for name, (data, entries) in parts.items()}
    if any(archive.members[name].packed != archive.members[name].size for name in parts):
        _write_anew(archive, {name: (*parts[name], new[name]) for name in parts}, source, target)
        return
    with copied(source, target) as file:
        for name, (_, entries) in parts.items():
            member = archive.members[name]
            patch(file, new[name], entries, member.offset)
            rechecked(file, member)


def _write_anew(
    archive: Archive,
    parts: Mapping[str, tuple[memoryview, Mapping[str, Entry], Mapping[str, Tensor]]],
    source: Path,
    target: Path,
) -> None:
    with zipfile.ZipFile(source) as given, appearing(target) as out, zipfile.ZipFile(out, "w") as written:
        for info in given.infolist():
            if info.is_dir():
                written.writestr(info, b"")
                continue
            kept = zipfile.ZipInfo(info.filename, info.date_time)
            kept.compress_type, kept.external_attr = info.compress_type, info.external_attr
            kept.create_system = info.create_system
            data: memoryview | bytearray = archive.view(info.filename)
            if info.filename in parts:
                _, entries, new = parts[info.filename]
                data = bytearray(data)
                for name, tensor in new.items():
                    entry = entries[name]
                    data[entry.offset : entry.offset + entry.size] = raw_bytes(tensor)
            with written.open(kept, "w", force_zip64=len(data) > 2**31) as member:
                for start in range(0, len(data), _CHUNK):
                    member.write(data[start : start + _CHUNK])
