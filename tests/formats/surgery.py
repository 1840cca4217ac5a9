"""Takes real archives apart and puts hostile ones together."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def members(path: Path) -> dict[str, bytes]:
    """The members without their folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write(path: Path, contents: dict[str, bytes], root: str = "m", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents.items():
            archive.writestr(f"{root}/{name}" if root else name, data)
    return path


def edited(source: Path, target: Path, change: Callable[[dict[str, bytes]], Any]) -> Path:
    """A copy of an archive whose members were changed."""
    contents = members(source)
    change(contents)
    return write(target, contents)


GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


def edit_json(contents: dict[str, bytes], name: str, change: Callable[[Any], Any]) -> None:
    document = json.loads(contents[name])
    change(document)
    contents[name] = json.dumps(document).encode()


def nodes(document: Any) -> list[Any]:
    return document["graph_module"]["graph"]["nodes"]


def node(document: Any, target: str) -> Any:
    return next(n for n in nodes(document) if n["target"] == f"torch.ops.aten.{target}")
