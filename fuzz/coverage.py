"""Which lines of the parsers the kept corpus reaches: ``python -m fuzz.coverage [folder]`` prints a table."""

from __future__ import annotations

import contextlib
import dis
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from pruning_core.errors import PruningError

_FILES = (
    *(
        "pruning_core/formats/",
        "pruning_core/calibration/",
        "pruning_core/network/graph",
        "pruning_core/network/inplace",
    ),
    *("pruning_core/network/ops", "pruning_core/network/layers", "pruning_core/network/allocation"),
    *("pruning_core/network/interpreter", "pruning_core/recipe", "api/bodies", "api/ranges", "api/digests"),
    *("api/filenames", "api/json_bodies", "api/sniff"),
)


def main(folder: Path) -> None:
    """Run every input of every corpus under a tracer; print lines reached and those that were not."""
    reached: dict[str, set[int]] = defaultdict(set)
    root = str(Path(__file__).resolve().parents[1]) + "/"

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(root) or not name[len(root) :].startswith(_FILES):
            return None
        if event == "line":
            reached[name].add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    from fuzz.targets import TARGETS

    for name, target in TARGETS.items():
        for path in sorted((folder / name / "corpus").glob("*")):
            with contextlib.suppress(PruningError, AssertionError):
                target.run(path.read_bytes())
    sys.settrace(None)
    for file in sorted(reached):
        code = compile(Path(file).read_text("utf-8"), file, "exec")
        lines = _lines(code)
        missing = sorted(lines - reached[file])
        print(f"| {file[len(root) :]} | {len(lines & reached[file])} | {len(lines)} | {missing} |")


def _lines(code: CodeType) -> set[int]:
    found = {line for _, line in dis.findlinestarts(code) if line}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _lines(constant)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/fuzz"))
