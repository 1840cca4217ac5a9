"""Tell a file's format from its first bytes, without opening it.

The formats that are read at all: a zip archive (``.pt2``, ``.npz``, safetensors with its config, class folders) and
safetensors; ONNX for models; Parquet and tar for data. Whether the inside is sound is found by the worker's inspection.
"""

from __future__ import annotations

from typing import Any, Literal

from jobs.errors import UnsupportedMedia
from jobs.ids import UploadKind

_ONNX = "an ONNX model"

Format = Literal["zip", "safetensors", "parquet", "tar", "onnx"]

#: Bytes that are looked at. The magic number of tar lies deepest, at 257.
SNIFFED_BYTES = 512
#: The reference implementation refuses longer headers as well.
_MAX_SAFETENSORS_HEADER = 100_000_000

_EXPECTED: dict[UploadKind, str] = {
    "model": (
        "a .pt2 file of torch.export.save, an .onnx file, a .pth file of torch.save(model.state_dict()), "
        "a .safetensors file, or a zip of model.safetensors and config.json"
    ),
    "dataset": (
        "an .npz file (numpy.savez), a .safetensors file, a Parquet file of pictures or numbers, or a zip or tar of "
        "class folders with pictures"
    ),
    "mask": "a .safetensors file of boolean arrays by weight name (true = kept), as GET /jobs/{id}/masks gives",
}
_ADVICE: dict[UploadKind, str] = {
    "model": "Save the model with torch.export.save(torch.export.export(model.eval(), inputs), 'model.pt2').",
    "dataset": "Save the arrays with numpy.savez('data.npz', x=..., y=...).",
    "mask": "Save {weight name: boolean tensor} with safetensors.torch.save_file(masks, 'masks.safetensors').",
}
# (offset, magic, name)
_KNOWN: tuple[tuple[int, bytes, str], ...] = (
    (0, b"PK\x05\x06", "an empty zip archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras, PyTables)"),
    (0, b"\x93NUMPY", "a single numpy array (.npy)"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\x00", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"GGUF", "a GGUF model"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x7fELF", "an ELF program"),
    (0, b"<!DOCTYPE", "an HTML page"),
    (0, b"<html", "an HTML page"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file it points to"),
)


def sniff(kind: UploadKind, head: bytes) -> Format:
    """Return the format that the first bytes announce.

    Args:
        kind: What the file is to be; a mask is never a zip archive.
        head: The first `SNIFFED_BYTES` bytes, or all there are.

    >>> sniff("model", b"PK" + bytes([3, 4]) + b"...")
    'zip'

    Raises:
        UnsupportedMedia: They announce none of these formats.
    """
    if head.startswith(b"PK\x03\x04") and kind != "mask":
        return "zip"
    if kind == "dataset" and head.startswith(b"PAR1"):
        return "parquet"
    if kind == "dataset" and head[257:262] == b"ustar":
        return "tar"
    if _is_safetensors(head):
        return "safetensors"
    if kind == "model" and _guess(head) == _ONNX:
        return "onnx"
    guess = _guess(head)
    raise UnsupportedMedia(
        f"The first bytes are not those of a {kind} this service reads"
        + (f"; this looks like {guess}." if guess else "."),
        expected=_EXPECTED[kind],
        received=guess or f"a file that begins with {head[:16].hex(' ')}",
        advice=_advice(kind, guess),
    )


def _is_safetensors(head: bytes) -> bool:
    """Return whether the head is an 8-byte little-endian length and the start of a JSON object.

    The header may be padded with spaces behind it, never before: the format asks for '{' first.
    """
    if len(head) < 10 or head[8:9] != b"{":
        return False
    return 2 <= int.from_bytes(head[:8], "little") <= _MAX_SAFETENSORS_HEADER


def _guess(head: bytes) -> str | None:
    for offset, magic, name in _KNOWN:
        if head[offset : offset + len(magic)] == magic:
            return name
    # A pickle says its protocol first; files of old torch.save are pickles behind a magic number.
    if head[:1] == b"\x80" and head[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}:
        return "a Python pickle (which is never opened here)"
    # ONNX is a protobuf: field 1 (ir_version, a small number), then field 2 (producer_name) or 8 (opset_import).
    if head[:1] == b"\x08" and head[1:2] <= b"\x20" and head[2:3] in {b"\x12", b"\x1a", b"\x22", b"\x42", b"\x3a"}:
        return _ONNX
    if head[:1] in {b"{", b"["}:
        return "JSON text"
    if len(head) >= 16 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "plain text"
    return None


def _advice(kind: UploadKind, guess: str | None) -> str:
    if guess is not None and any(word in guess for word in ("gzip", "bzip2", "xz", "Zstandard", "7-Zip", "RAR", "tar")):
        return "Unpack it and send the file inside."
    if kind == "model" and guess is not None and "pickle" in guess:
        return "Save the state dict again with torch.save of PyTorch 1.6 or newer, or as safetensors."
    return _ADVICE[kind]


def formats(kind: UploadKind) -> str:
    """Return what an upload of this kind may be, in words."""
    return _EXPECTED[kind]


def describe(kind: UploadKind) -> dict[str, Any]:
    """Return the same for the OpenAPI document."""
    return {"description": f"The bytes of {formats(kind)}.", "type": "string", "format": "binary"}
