"""What is agreed with whoever sends a file in parts: how many there are, and how large each is."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from jobs.errors import TooLarge
from jobs.ids import UploadKind
from jobs.multipart import MAX_PART_BYTES, MIN_PART_BYTES, Part
from pruning_core.errors import InputError

_PREFERRED_PART_BYTES = 16 * 2**20
_MiB = 2**20


class Session(BaseModel):
    """What was agreed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    kind: UploadKind
    filename: str | None
    size: int
    sha256: str | None
    part_size: int
    blob: str
    multipart: str
    created_at: datetime
    expires_at: datetime

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-self.size // self.part_size)

    def length(self, number: int) -> int:
        """Return the size of a part; the last one is what is left."""
        return min(self.part_size, self.size - (number - 1) * self.part_size)

    @property
    def expired(self) -> bool:
        """Whether it is too late."""
        return datetime.now(UTC) >= self.expires_at


def missing_parts(session: Session, stored: Iterable[Part]) -> list[int]:
    """Return the numbers of the parts that the store has not, or not in their right size."""
    right = {part.number for part in stored if part.size == session.length(part.number)}
    return [number for number in range(1, session.parts + 1) if number not in right]


def part_size_for(size: int, wanted: int | None, max_parts: int, max_bytes: int) -> int:
    """Return the size of all parts but the last.

    >>> part_size_for(100, None, 10_000, 10**12), part_size_for(10**12, None, 10_000, 10**12)
    (16777216, 100663296)

    Raises:
        TooLarge: The file is larger than the service accepts.
        InputError: The wanted size does not do.
    """
    if size > max_bytes:
        raise TooLarge(
            f"The file is larger than the {max_bytes} bytes that this service accepts.",
            expected=f"at most {max_bytes} bytes",
            received=f"{size} bytes",
            limit=max_bytes,
        )
    least = max(MIN_PART_BYTES, -(-size // max_parts))
    if wanted is None:
        return -(-max(_PREFERRED_PART_BYTES, least) // _MiB) * _MiB
    if not least <= wanted <= MAX_PART_BYTES:
        raise InputError(
            "Parts of this size do not do.",
            expected=f"{least} to {MAX_PART_BYTES} bytes, so that there are at most {max_parts} parts",
            received=wanted,
        )
    return wanted
