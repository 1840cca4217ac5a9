"""A process with the sandbox's limits that opens hostile files, each case in a fork: ``python -m tests.hostile.jail``.

Standard input: one JSON line per case, ``{"task", "files"}``. Standard output: one line per case that says how it went.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from fuzz.guards import Watch, storable, wrong_with
from pruning_core.errors import PruningError
from pruning_core.formats.hf_config import build
from tests.hostile import corpus_transformers
from worker.confine import confine
from worker.limits import Limits

#: As an inspection's, but small: so that a test fails before the machine does.
LIMITS = Limits(memory_bytes=2 * 2**30, cpu_seconds=600, file_bytes=2**26, wall_seconds=600)
#: On the clock of a busy machine; what is judged is CPU time.
SECONDS = 60.0


def main(folder: Path) -> None:
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1)  # type: ignore[assignment]
    with contextlib.suppress(PruningError):  # what a configuration makes it import is there then
        build(json.loads(corpus_transformers.config()), {})
    held = confine(folder, LIMITS, parent=os.getppid(), use_gpu=False)
    from worker.work import TASKS

    watch = Watch((str(folder),))
    for task, name in (("inspect_model", "model"), ("inspect_dataset", "dataset"), ("inspect_mask", "mask")):
        try:  # what is imported when first used is there then
            (folder / name).write_bytes(b"PK")
            TASKS[task](folder, {}, lambda _: None)
        except Exception:
            pass
    print(json.dumps({"protections": held}))
    for line in sys.stdin:
        print(json.dumps(_one(TASKS, watch, folder, json.loads(line))))


def _one(tasks: Any, watch: Any, folder: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Fork, run the task on each file in turn, and tell what came of it."""
    reading, writing = os.pipe()
    began = time.monotonic()
    if (child := os.fork()) == 0:
        os.close(reading)
        with os.fdopen(writing, "w") as out:
            before = _resident()
            answers = [_answer(tasks[case["task"]], watch, Path(path)) for path in case["files"]]
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
            json.dump({"answers": answers, "grown": grown}, out)
        os._exit(0)
    os.close(writing)
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reading, selectors.EVENT_READ)
        while (left := began + SECONDS - time.monotonic()) > 0:
            if selector.select(left):
                if not (block := os.read(reading, 1 << 16)):
                    break
                said += block
        else:
            os.kill(child, signal.SIGKILL)
    os.close(reading)
    _, ended, usage = os.wait4(child, 0)
    status = os.waitstatus_to_exitcode(ended)
    found = json.loads(said) if said and status == 0 else {"answers": [], "grown": 0}
    return {**found, "exit": status, "cpu_seconds": usage.ru_utime + usage.ru_stime}


def _answer(task: Any, watch: Any, place: Path) -> dict[str, Any]:
    try:
        with watch:
            result = task(place, {}, lambda _: None)
            storable(result)
    except PruningError as error:
        return {"problem": error.problem(), "wrong": wrong_with(error)}
    except BaseException as error:
        return {"defect": "".join(traceback.format_exception(error))[-3000:]}
    return {"result": result}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
