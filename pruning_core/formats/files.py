"""Helpers for writing: a copy that appears whole or not at all, and comparison bit by bit."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from pruning_core.errors import ModelError
from pruning_core.formats.archive import Member

_CHUNK = 2**20


@contextmanager
def appearing(target: Path) -> Iterator[IO[bytes]]:
    """Yield an empty file that takes the target's place when the block ends without an error."""
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def copied(source: Path, target: Path) -> Iterator[IO[bytes]]:
    """Yield a copy of the source, to be patched in place, that takes the target's place in the end."""
    with appearing(target) as file, source.open("rb") as original:
        shutil.copyfileobj(original, file, _CHUNK)
        yield file


def rechecked(file: IO[bytes], member: Member) -> None:
    """Write the checksum of a stored member, of the bytes that it has now."""
    file.seek(member.offset)
    crc, left = 0, member.size
    while left:
        block = file.read(min(_CHUNK, left))
        crc, left = zlib.crc32(block, crc), left - len(block)
    for field in member.crc_fields:
        file.seek(field)
        file.write(crc.to_bytes(4, "little"))


def changed(weights: Mapping[str, Tensor], original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that differ from a file's, on the CPU.

    Args:
        weights: What is to be written.
        original: What the file holds.

    Raises:
        ModelError: The two have not the same names, shapes and dtypes.
    """
    kinds, wanted = (
        {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
        for tensors in (weights, original)
    )
    if kinds != wanted:
        odd = sorted(name for name in {*kinds, *wanted} if kinds.get(name) != wanted.get(name))
        raise ModelError(
            "The network does not belong to this file: its weights have other names, shapes or dtypes.",
            expected={name: str(wanted.get(name)) for name in odd[:5]},
            received={name: str(kinds.get(name)) for name in odd[:5]},
        )
    return {name: tensor.cpu() for name, tensor in weights.items() if not same_bits(tensor.cpu(), original[name])}


def impossible(shape: Iterable[int]) -> bool:
    """Return whether no tensor has this shape: of no element, perhaps, but too large in the other dimensions.

    >>> impossible((0, 2**62, 2**62)), impossible((0, 3, 2**40))
    (True, False)
    """
    return math.prod(n for n in shape if n) >= 2**60


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two CPU tensors of one shape and dtype hold the same bits (NaN equals NaN, 0 differs from -0).

    >>> same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    True
    >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    False
    """
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.numel() == 0:
        return True
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
