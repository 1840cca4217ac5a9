"""Models as safetensors with a config that names a built-in architecture: a file, a zip archive or a directory.

The header is parsed and checked here, so that one code reads a file, a member of an archive and what will be patched;
tests hold it against the safetensors library.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats.archive import Archive, open_map
from pruning_core.formats.builtin import build, recognise
from pruning_core.formats.document import integer, mapping, member, parse_json, sequence, text
from pruning_core.formats.files import changed, copied, impossible, rechecked
from pruning_core.network.network import Network

TENSORS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
MAX_HEADER_BYTES = 32 * 2**20
MAX_CONFIG_BYTES = 2**20
_MAX_DIMENSIONS = 64
_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a safetensors file: where its bytes are, from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    size: int


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Return whether a file of this size that begins like this may be safetensors: a length, then a JSON object."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= min(size - 8, MAX_HEADER_BYTES)


def read_header(data: memoryview) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Args:
        data: The whole file; only its header is read.

    Raises:
        ModelError: The header lies about sizes, or the file has bytes that belong to no tensor or to two.
        UnsupportedModel: A tensor has an uncommon dtype.
    """
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, MAX_HEADER_BYTES):
        raise ModelError(
            "The safetensors header is longer than the file or than the limit.",
            expected=f"at most {min(max(len(data) - 8, 0), MAX_HEADER_BYTES)} bytes",
            received=length,
            advice="Send the file again; it may be truncated.",
        )
    document = mapping(parse_json(data[8 : 8 + length], "The safetensors header"), "The safetensors header")
    metadata = mapping(document.pop("__metadata__", {}), "__metadata__")
    start, room = 8 + length, len(data) - 8 - length
    entries: dict[str, Entry] = {}
    end = 0
    spans: dict[str, tuple[int, int]] = {}
    for name, item in document.items():
        ends = sequence(member(item, "data_offsets", name), f"{name}: data_offsets")
        if len(ends) != 2:
            raise ModelError(f"{name}: data_offsets should be two numbers.", received=str(ends)[:80])
        spans[name] = integer(ends[0], name), integer(ends[1], name)
    for name, (first, last) in sorted(spans.items(), key=lambda pair: pair[1]):
        entries[name] = _entry(name, document[name], start + first, last - first)
        if first != end or last > room:
            raise ModelError(
                f"The tensor {name!r} does not begin where the one before it ends, or reaches beyond the end.",
                expected={"begin": end, "end": f"at most {room}"},
                received={"begin": first, "end": last},
                advice="Send the file again; it may be truncated.",
            )
        end = last
    if end != room:
        raise ModelError("The safetensors file has bytes that belong to no tensor.", expected=end, received=room)
    return {name: entries[name] for name in sorted(entries)}, {key: text(metadata[key], key) for key in metadata}


def _entry(name: str, item: Any, offset: int, size: int) -> Entry:
    code = text(member(item, "dtype", name), f"{name}: dtype")
    if code not in _DTYPES:
        raise UnsupportedModel(
            f"The tensor {name!r} has a dtype that is not supported.", expected=[*_DTYPES], received=code
        )
    shape = tuple(integer(n, name) for n in sequence(member(item, "shape", name), f"{name}: shape", _MAX_DIMENSIONS))
    wanted = math.prod(shape) * _DTYPES[code].itemsize
    if min(shape, default=0) < 0 or wanted != size or impossible(shape):
        raise ModelError(f"The tensor {name!r} has another size than its shape needs.", expected=wanted, received=size)
    return Entry(dtype=_DTYPES[code], shape=shape, offset=offset, size=size)


def tensors_of(data: memoryview, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Return the tensors of a file, reading its bytes lazily where they are aligned."""
    tensors = {}
    for name, entry in entries.items():
        raw: memoryview | bytearray = data[entry.offset : entry.offset + entry.size]
        if entry.size == 0:
            tensors[name] = torch.empty(entry.shape, dtype=entry.dtype)
            continue
        if torch.frombuffer(raw, dtype=torch.uint8).data_ptr() % entry.dtype.itemsize:
            raw = bytearray(raw)
        tensors[name] = torch.frombuffer(raw, dtype=entry.dtype).reshape(entry.shape)
    return tensors


def _network(data: memoryview, config: str | bytes | memoryview | None) -> Network:
    entries, metadata = read_header(data)
    if config is None:
        config = metadata.get("config")
    if config is None:
        return recognise(tensors_of(data, entries))
    raw = config.encode() if isinstance(config, str) else config
    if len(raw) > MAX_CONFIG_BYTES:
        raise ModelError("The config is too large.", expected=f"at most {MAX_CONFIG_BYTES} bytes", received=len(raw))
    return build(mapping(parse_json(raw, "The config"), "The config"), tensors_of(data, entries))


def read_safetensors(path: Path) -> Network:
    """Return the network of a safetensors file whose metadata has the config, or whose weights say what they are.

    Raises:
        ModelError: The file is broken, or does not fit its architecture.
        UnsupportedModel: The architecture is not built in.
    """
    return _network(memoryview(open_map(path)), None)


def read_zip(path: Path) -> Network:
    """Return the network of a zip archive of ``model.safetensors`` and ``config.json``; as `read_safetensors`."""
    archive = Archive(path)
    return _network(archive.view(TENSORS_NAME), archive.view(CONFIG_NAME, MAX_CONFIG_BYTES))


def read_folder(path: Path) -> Network:
    """Return the network of a directory with ``model.safetensors`` and ``config.json``; as `read_safetensors`."""
    for name in (TENSORS_NAME, CONFIG_NAME):
        if not (path / name).is_file():
            raise ModelError(f"The directory has no {name}.", expected=[TENSORS_NAME, CONFIG_NAME], received=name)
    with (path / CONFIG_NAME).open("rb") as file:
        config = file.read(MAX_CONFIG_BYTES + 1)
    return _network(memoryview(open_map(path / TENSORS_NAME)), config)


def write_safetensors(weights: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy a safetensors file with the bytes of changed tensors replaced.

    Args:
        weights: Every tensor of the source by name, some of them with new values.
        source: The file that the tensors come from.
        target: What to write; it appears whole or not at all.

    Raises:
        ModelError: The weights are not the source's.
    """
    data = memoryview(open_map(source))
    entries, _ = read_header(data)
    new = changed(weights, tensors_of(data, entries))
    with copied(source, target) as file:
        patch(file, new, entries, 0)


def write_zip(weights: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy a zip archive with the bytes of changed tensors, and their checksum, replaced; as `write_safetensors`."""
    archive = Archive(source)
    inside = archive.members[TENSORS_NAME]
    data = archive.view(TENSORS_NAME)
    entries, _ = read_header(data)
    new = changed(weights, tensors_of(data, entries))
    with copied(source, target) as file:
        patch(file, new, entries, inside.offset)
        rechecked(file, inside)


def write_folder(weights: Mapping[str, Tensor], source: Path, target: Path) -> None:
    """Copy ``model.safetensors`` with changed tensors, and ``config.json``, to a directory; as `write_safetensors`."""
    target.mkdir(parents=True, exist_ok=True)
    write_safetensors(weights, source / TENSORS_NAME, target / TENSORS_NAME)
    if (source / CONFIG_NAME).resolve() != (target / CONFIG_NAME).resolve():
        shutil.copyfile(source / CONFIG_NAME, target / CONFIG_NAME)


def patch(file: IO[bytes], new: Mapping[str, Tensor], entries: Mapping[str, Entry], start: int) -> None:
    """Write tensors to their places in a file whose safetensors part begins at ``start``."""
    for name, tensor in new.items():
        file.seek(start + entries[name].offset)
        file.write(raw_bytes(tensor))


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a CPU tensor in row-major order."""
    data: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data
