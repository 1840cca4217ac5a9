"""The sandboxed process: ``python -m worker.process <task> <folder> <settings>``.

It confines itself first, then imports torch and opens what the user sent. It speaks to its supervisor
(`worker.sandbox`) in JSON: lines on standard output, and ``result.json`` or ``problem.json`` in its folder.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from pruning_core.errors import PruningError
from pruning_core.report import Progress
from worker.confine import confine, gpu_present
from worker.limits import Died, LimitName, Limits, limit_exceeded

#: What a task gets: its folder, the arguments, and where to say how far it is. It returns what goes to result.json.
Task = Callable[[Path, dict[str, Any], Callable[[Progress], None]], dict[str, Any]]

#: Exit codes: problem.json says why. After the first a retry cannot help, after the second it may.
REFUSED, UNEXPECTED = 3, 4

_OUT_OF_MEMORY = ("allocate memory", "out of memory", "bad_alloc", "failed to map segment", "can't start new thread")


def main(load: Callable[[], Mapping[str, Task]]) -> int:
    """Run the task that the command line names.

    Args:
        load: Returns the tasks by name; called once the process is confined.

    Returns:
        The exit code: 0 with result.json, else `REFUSED` or `UNEXPECTED` with problem.json.
    """
    name, folder, settings = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    limits = Limits(**settings["limits"])
    # Whatever prints to standard output must not be taken for progress.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    protections = confine(folder, limits, parent=settings["parent"], use_gpu=_may_use_gpu(folder))
    print(json.dumps({"protections": protections}), file=channel)

    def report(progress: Progress) -> None:
        print(progress.model_dump_json(), file=channel)

    try:
        arguments = json.loads((folder / "arguments.json").read_text("utf-8"))
        _write(folder / "result.json", load()[name](folder, arguments, report))
    except Exception as error:
        return _refuse(folder, limits, error)
    return 0


def _may_use_gpu(folder: Path) -> bool:
    device = json.loads((folder / "arguments.json").read_text("utf-8")).get("device", "auto")
    return device != "cpu" and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in ("", "-1") and gpu_present()


def _refuse(folder: Path, limits: Limits, error: Exception) -> int:
    """Write why there is no result: the user's doing, a limit, or a defect."""
    limit = _limit_behind(error)
    if limit is not None:
        error.__traceback__ = None  # frames hold the tensors; writing the problem needs room
        _write(folder / "problem.json", limit_exceeded(limits, limit).problem())
        return REFUSED
    if isinstance(error, PruningError) and error.status < 500:
        _write(folder / "problem.json", error.problem())
        return REFUSED
    traceback.print_exception(error, file=sys.stderr)
    said = Died(f"The process ended with {type(error).__name__}: {str(error)[:500]}").problem()
    _write(folder / "problem.json", said)
    return UNEXPECTED


def _limit_behind(error: Exception) -> LimitName | None:
    if isinstance(error, PruningError) and not isinstance(error, RuntimeError):
        return None  # its text may quote the user; one that is a RuntimeError too passes on what PyTorch said
    if isinstance(error, MemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY):
        return "memory_bytes"
    if getattr(error, "errno", None) == errno.EFBIG or "File too large" in str(error):
        return "file_bytes"
    return None


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, allow_nan=False), "utf-8")


def _tasks() -> Mapping[str, Task]:
    from worker.work import TASKS  # imports torch

    return cast("Mapping[str, Task]", TASKS)


if __name__ == "__main__":
    sys.exit(main(_tasks))
