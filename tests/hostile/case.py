"""What the hostile corpus is made of: one attack, its files, and what must come of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Case:
    """Files of one kind of attack, and what must come of each.

    Attributes:
        name: Of the attack.
        kind: What the files are sent as.
        files: Their bytes.
        outcome: "refused" with a problem; "read" as if the attack were not there; "either".
        says: A pattern that the problem's text matches.
    """

    name: str
    kind: Literal["model", "dataset", "mask"] = "model"
    files: tuple[bytes, ...]
    outcome: Literal["refused", "read", "either"] = "refused"
    says: str = ""


class Bomb:
    """Unpickling it makes a folder: proof that code ran."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)
