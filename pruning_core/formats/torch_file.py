"""Files of ``torch.save``: the table of tensors, never their bytes, through torch's restricted unpickler.

Three gates, because a pickle is a program: the archive's members are checked as any archive's; the pickle's operations
and names are screened against the few that a dictionary of tensors needs, without running it; then ``torch.load`` reads
it with ``weights_only=True`` on the device ``meta``, so that no byte of a storage is read and nothing is allocated.
What it says of sizes is compared with the records, from which the tensors are read raw.
"""

from __future__ import annotations

import io
import pickletools
import re
import warnings
from collections.abc import Mapping
from typing import IO, Any, cast

import torch
import torch.utils.serialization.config  # what torch.load imports when it is first called
from torch import Tensor

from pruning_core.errors import ModelError, PruningError, UnsupportedModel
from pruning_core.formats.archive import Archive
from pruning_core.formats.pt2_types import DTYPES
from pruning_core.formats.pt2_weights import (
    MAX_DIMENSIONS,
    MAX_NAME_LENGTH,
    MAX_WEIGHTS,
    RESERVED_NAME,
    Payload,
    check_fits,
)
from pruning_core.network.ops import words

MAX_PICKLE_BYTES = 16 * 2**20
#: A tensor takes about 40.
MAX_OPERATIONS = 500_000
_KNOWN = re.compile(
    r"data\.pkl|data/\d+|byteorder|version|\.data/(version|serialization_id)|\.format_version|\.storage_alignment"
)
#: Names that a dictionary of tensors refers to.
_GLOBALS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch\.nn\.parameter Parameter|torch Size"
    r"|torch (Float|Double|Half|BFloat16|Byte|Char|Short|Int|Long|Bool|ComplexFloat|ComplexDouble)Storage"
)
#: Operations that write data, and no more: calls are REDUCE only, of the names above.
_OPERATIONS = words(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL REDUCE BUILD "
    "BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE"
)
#: Where training scripts put the weights in a larger dictionary.
_INSIDE = ("state_dict", "model_state_dict", "model", "net")
_ADVICE = "Save it with torch.save(model.state_dict(), path) and nothing else, or as safetensors."


def is_torch_file(archive: Archive) -> bool:
    """Return whether an archive is one of ``torch.save``, judged by its names."""
    roots = {name.split("/", 1)[0] for name in archive.members}
    return len(roots) == 1 and f"{roots.pop()}/data.pkl" in archive.members


def read_tensors(archive: Archive, what: str) -> dict[str, Payload]:
    """Return the tensors of a saved dictionary, by name, as views of the archive's records.

    Of a larger dictionary, as training scripts save it, the one under ``state_dict`` or the like.

    Args:
        archive: Of ``torch.save``, stored.
        what: Its name, for messages.

    Raises:
        ModelError: It is damaged, or claims more than it holds.
        UnsupportedModel: It holds anything else than a dictionary of plain tensors.
    """
    root = _root(archive, what)
    table = bytes(archive.view(f"{root}data.pkl", MAX_PICKLE_BYTES))
    _screen(table, what)
    found = _load(archive, what)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise _refused(f"{what} holds no dictionary.", type(found).__name__)
    inside = [key for key in _INSIDE if isinstance(found.get(key), Mapping)]
    if len(inside) == 1 and not any(isinstance(value, Tensor) for value in found.values()):
        found = found[inside[0]]
    if other := next((n for n, v in found.items() if not isinstance(v, Tensor) or not isinstance(n, str)), None):
        raise _refused(f"{what} holds something else than tensors: {str(other)[:80]!r}.", type(found[other]).__name__)
    tensors: dict[str, Tensor] = dict(found)
    if len(tensors) > MAX_WEIGHTS or any(len(n) > MAX_NAME_LENGTH or n == RESERVED_NAME for n in tensors):
        raise ModelError(f"{what} has too many weights, or one with an impossible name.", received=len(tensors))
    records = {member.offset: name for name, member in archive.members.items()}
    payloads = {name: _payload(name, tensor, archive, records) for name, tensor in tensors.items()}
    for record in dict.fromkeys(payload.record for payload in payloads.values()):
        archive.view(record)  # compares its checksum
    return payloads


def _root(archive: Archive, what: str) -> str:
    roots = {name.split("/", 1)[0] for name in archive.members}
    root = roots.pop() + "/" if len(roots) == 1 else ""
    for name in archive.members:
        inner = name.removeprefix(root)
        if inner == "constants.pkl" or inner.startswith("code/"):
            raise UnsupportedModel(f"{what} is TorchScript, which is a program.", received=name, advice=_ADVICE)
        if not root or not _KNOWN.fullmatch(inner):
            raise UnsupportedModel(f"{what} has a member that is not known.", received=name, advice=_ADVICE)
    order = f"{root}byteorder"
    if order in archive.members and bytes(archive.view(order, 16)) != b"little":
        raise UnsupportedModel(f"{what} is of another byte order.", expected="little", advice=_ADVICE)
    return root


def _screen(table: bytes, what: str) -> None:
    """Refuse a pickle that does anything but list data. Runs nothing of it."""
    try:
        for count, (operation, argument, _) in enumerate(pickletools.genops(table)):
            if count > MAX_OPERATIONS:
                raise ModelError(f"The table of {what} is too long.", expected=f"at most {MAX_OPERATIONS} operations")
            if operation.name not in _OPERATIONS:
                raise _refused(f"{what} has a pickle with more in it than tensors.", f"operation {operation.name}")
            if operation.name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
                raise _refused(f"{what} has a pickle with more in it than tensors.", str(argument)[:200])
    except (ValueError, IndexError, OverflowError, UnicodeDecodeError) as error:
        raise ModelError(f"The table of {what} is damaged: {str(error)[:200]}", advice="Send it again.") from None


class _Window(io.RawIOBase):
    """A part of a memory map as a file to read."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._at = view, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer; return how many bytes there were."""
        piece = self._view[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._view)}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        """Return where reading goes on."""
        return self._at


def _load(archive: Archive, what: str) -> Any:
    """Return what the pickle describes, with tensors that have no memory."""
    view = memoryview(archive.map)[archive.start : archive.start + archive.size]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.load(cast("IO[bytes]", _Window(view)), map_location="meta", weights_only=True)
        except (PruningError, MemoryError):
            raise
        except Exception as error:  # an unpickler of damaged bytes may raise anything
            raise ModelError(
                f"{what} cannot be read: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
                advice=_ADVICE,
            ) from None


def _payload(name: str, tensor: Tensor, archive: Archive, records: Mapping[int, str]) -> Payload:
    where = f"The tensor {name!r}"
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.is_meta and tensor.layout == torch.strided
    if not plain or tensor.dtype not in DTYPES.values() or tensor.dim() > MAX_DIMENSIONS:
        raise _refused(
            f"{where} is not a plain dense one.", f"{type(tensor).__name__}, {tensor.dtype}, {tensor.layout}"
        )
    storage = tensor.untyped_storage()
    place: int | None = getattr(storage, "_checkpoint_offset", None)
    record = records.get(archive.start + place) if place is not None else None
    if record is None or "/data/" not in record:
        raise ModelError(f"{where} has no record of its own in the file.", expected="data/<number>", received=place)
    if archive.members[record].size != storage.nbytes():
        raise ModelError(
            f"{where} claims another size than its record has.",
            expected=f"{archive.members[record].size} bytes",
            received=f"{storage.nbytes()} bytes",
        )
    payload = Payload(
        name=name,
        record=record,
        dtype=tensor.dtype,
        sizes=tuple(tensor.shape),
        strides=tuple(tensor.stride()),
        offset=int(tensor.storage_offset()),
        is_parameter=isinstance(tensor, torch.nn.Parameter),
    )
    check_fits(payload, archive.members[record], where)
    return payload


def _refused(detail: str, received: str) -> UnsupportedModel:
    return UnsupportedModel(detail, expected="a dictionary of dense tensors", received=received, advice=_ADVICE)
