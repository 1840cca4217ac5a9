"""Which format a file has, and reading and writing it."""

from __future__ import annotations

from pathlib import Path

from pruning_core.errors import ModelError
from pruning_core.formats import hf
from pruning_core.formats.archive import MAGIC, Archive
from pruning_core.formats.document import too_deep
from pruning_core.formats.onnx_read import read_onnx
from pruning_core.formats.onnx_wire import looks_like_onnx
from pruning_core.formats.onnx_write import write_onnx
from pruning_core.formats.pt2 import read_pt2
from pruning_core.formats.pt2_write import write_pt2
from pruning_core.formats.pth import read_pth, write_pth
from pruning_core.formats.tensors import (
    CONFIG_NAME,
    TENSORS_NAME,
    looks_like_safetensors,
    read_folder,
    read_safetensors,
    read_zip,
    write_folder,
    write_safetensors,
    write_zip,
)
from pruning_core.formats.torch_file import is_torch_file
from pruning_core.network.network import Network

_READERS = {
    "onnx": read_onnx,
    "pt2": read_pt2,
    "pth": read_pth,
    "safetensors": read_safetensors,
    "safetensors-zip": read_zip,
    "safetensors-folder": read_folder,
    "transformers": hf.read_single,
    "transformers-zip": hf.read_zip,
    "transformers-folder": hf.read_folder,
}
_WRITERS = {
    "onnx": write_onnx,
    "pt2": write_pt2,
    "pth": write_pth,
    "safetensors": write_safetensors,
    "safetensors-zip": write_zip,
    "safetensors-folder": write_folder,
    "transformers": hf.write_single,
    "transformers-zip": hf.write_zip,
    "transformers-folder": hf.write_folder,
}


def model_format(path: str | Path) -> str:
    """Return the format of a model, judged by its first bytes and the names of its members, never by its file name.

    Returns:
        ``"pt2"``, ``"onnx"``, ``"pth"``, ``"safetensors"``, ``"safetensors-zip"``, ``"transformers"``,
        ``"transformers-zip"``; for a directory ``"safetensors-folder"`` or ``"transformers-folder"``.

    Raises:
        ModelError: It is none of them.
    """
    path = Path(path)
    if path.is_dir():
        return "transformers-folder" if hf.is_folder(path) else "safetensors-folder"
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(MAGIC):
        archive = Archive(path, deflated=True)
        if hf.is_zip(archive):
            return "transformers-zip"
        archive = Archive(path)
        if {TENSORS_NAME, CONFIG_NAME} <= archive.members.keys():
            return "safetensors-zip"
        return "pth" if is_torch_file(archive) else "pt2"
    if looks_like_safetensors(head, path.stat().st_size):
        return "transformers" if hf.is_single(path) else "safetensors"
    if looks_like_onnx(head):
        return "onnx"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise ModelError(
            "This is a Python pickle, which is never opened here (torch.save wrote such files before PyTorch 1.6).",
            expected="a zip archive of torch.save or torch.export.save, or safetensors",
            received=f"a file that begins with {head[:8].hex(' ')}",
            advice="Save the state dict again with torch.save of PyTorch 1.6 or newer, or as safetensors.",
        )
    raise ModelError(
        "This is not a model file that is known.",
        expected="a .pt2 archive (torch.export.save), an ONNX file, or safetensors with a config",
        received=f"a file that begins with {head[:8].hex(' ')}" if head else "an empty file",
        advice="Export with torch.export.save(torch.export.export(model.eval(), ...), 'model.pt2').",
    )


def read_model(path: str | Path) -> Network:
    """Return the network in a model file. Nothing in the file is executed; weights are read lazily.

    Args:
        path: A ``.pt2`` archive; an ONNX file; a ``.pth`` state dict or a ``.safetensors`` file of a built-in
            architecture; a zip archive of ``model.safetensors`` and ``config.json``, or a directory that holds the
            two.

    Raises:
        ModelError: The file is broken, hostile or not a model.
        UnsupportedModel: It is sound, but uses something that is not supported; says what and what to do.
    """
    path = Path(path)
    try:
        return _READERS[model_format(path)](path)
    except RecursionError:
        raise too_deep("The model file") from None


def write_model(network: Network, source: str | Path, target: str | Path) -> None:
    """Write a network in the format of the file that it was read from, byte for byte but for changed weights.

    Args:
        network: Read from ``source``, perhaps with other weights since.
        source: Where it was read from.
        target: What to write; it appears whole or not at all.

    Raises:
        ModelError: The network and the source do not belong together.
    """
    source, target = Path(source), Path(target)
    _WRITERS[model_format(source)](network.weights, source, target)
