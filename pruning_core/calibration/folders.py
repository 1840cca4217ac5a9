"""Class folders in an archive: names of members become samples in a fixed order, and labels."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pruning_core.errors import DatasetError

MAX_MEMBERS = 100_000
MAX_NAME_LENGTH = 512
MAX_CLASSES = 10_000
_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
_ADVICE = "Pack one folder for each class, with the pictures in it: cat/1.jpg, dog/2.png."

Where = TypeVar("Where")


@dataclass(frozen=True, kw_only=True)
class Folders(Generic[Where]):
    """What an archive of class folders holds.

    Attributes:
        places: Where each picture lies, sorted by class and name.
        labels: Class indices; None if the pictures lie in no folder.
        classes: Folder names, sorted by code points: their order gives the indices.
    """

    places: tuple[Where, ...]
    labels: Tensor | None
    classes: tuple[str, ...]


def is_picture(name: str) -> bool:
    """Return whether a member's name is that of a picture: by its ending, without hidden and system files.

    >>> is_picture("a/b.JPG"), is_picture("__MACOSX/a/b.jpg"), is_picture("a/.b.jpg")
    (True, False, False)
    """
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in _SUFFIXES and not hidden


def arrange(members: Iterable[tuple[str, Where]]) -> Folders[Where]:
    """Sort members into classes; what is no picture by its name is left out.

    Raises:
        DatasetError: A name leads out of the archive or comes twice, or the folders are no classes.
    """
    found: dict[tuple[str, str], Where] = {}
    roots: set[tuple[str, ...]] = set()
    seen: set[str] = set()
    for name, where in members:
        parts = _parts(name)
        plain = unicodedata.normalize("NFC", "/".join(parts)).casefold()
        if plain in seen:
            raise refused(
                f"The archive holds {ascii(name)[:80]} twice (letter case does not count).", "every name once"
            )
        seen.add(plain)
        if is_picture(name):
            *root, folder, file = ("", *parts) if len(parts) == 1 else parts
            roots.add(tuple(root))
            found[folder, file] = where
    if not found:
        raise refused("The archive holds no picture.", f"files that end in {', '.join(sorted(_SUFFIXES))}")
    if len(roots) > 1 or ("" in {folder for folder, _ in found} and len({folder for folder, _ in found}) > 1):
        shown = sorted(ascii("/".join(root))[:80] for root in roots)[:10]
        raise refused("The class folders do not lie side by side.", "all class folders in one folder", shown)
    classes = tuple(sorted({folder for folder, _ in found} - {""}))
    if len(classes) > MAX_CLASSES:
        raise refused(f"The archive holds {len(classes)} folders.", f"at most {MAX_CLASSES} classes", len(classes))
    index = {name: i for i, name in enumerate(classes)}
    order = sorted(found)
    labels = torch.tensor([index[folder] for folder, _ in order]) if classes else None
    return Folders(places=tuple(found[key] for key in order), labels=labels, classes=classes)


def refused(detail: str, expected: object, received: object = None) -> DatasetError:
    """Return the error for an archive that cannot be used."""
    return DatasetError(detail, expected=expected, received=received, advice=_ADVICE)


def _parts(name: str) -> Sequence[str]:
    def strange() -> Iterator[bool]:
        yield not 0 < len(name) <= MAX_NAME_LENGTH
        yield name.startswith("/") or "\\" in name or any(part in ("", "..") for part in name.split("/"))
        yield any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in name)

    if any(strange()):
        raise refused(
            f"The archive holds a member named {ascii(name)[:80]}.", "plain relative names of letters, digits and signs"
        )
    return [part for part in name.split("/") if part != "."] or [name]
