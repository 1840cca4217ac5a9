"""Every file of the corpus, opened as an inspection opens it: nothing runs, nothing hangs, memory stays bounded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import corpus, corpus_archives, corpus_data, corpus_graphs, corpus_old, corpus_transformers
from tests.hostile.case import Case

#: What one fork may take beyond what importing torch took.
MEMORY_BYTES = 512 * 2**20
CPU_SECONDS = 6.0


GROUPS: dict[str, Callable[[Path], Iterator[Case]]] = {
    "code": corpus.code,
    "pickles": corpus.pickles,
    "archives": lambda _: corpus_archives.archives(),
    "tables": lambda _: corpus_graphs.tables(),
    "graphs": lambda _: corpus_graphs.graphs(),
    "older": corpus_old.archives,
    "transformers": corpus_transformers.models,
    "tensors": lambda _: corpus_data.tensors(),
    "arrays": lambda _: corpus_data.arrays(),
    "cut": lambda _: corpus_data.cut(),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def opened(place: Path) -> dict[str, list[tuple[Case, dict[str, Any]]]]:
    """Group -> each of its cases, and what the jail said of it."""
    found = [(group, case) for group, make in GROUPS.items() for case in make(place / "marker")]
    lines = []
    for i, (_, case) in enumerate(found):
        folders = [place / f"{i}-{j}" for j in range(len(case.files))]
        for folder, data in zip(folders, case.files, strict=True):
            folder.mkdir()
            (folder / case.kind).write_bytes(data)
        lines.append(json.dumps({"task": f"inspect_{case.kind}", "files": [str(folder) for folder in folders]}))
    before = set(place.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.jail", str(place)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _, *answers = map(json.loads, done.stdout.splitlines())
    made = {path.relative_to(place) for path in set(place.rglob("*")) - before}
    assert made == {Path("model"), Path("dataset"), Path("mask")}  # the jail's own, to warm up
    told: dict[str, list[tuple[Case, dict[str, Any]]]] = {group: [] for group in GROUPS}
    for (group, case), answer in zip(found, answers, strict=True):
        told[group].append((case, answer))
    return told


@pytest.mark.parametrize("group", GROUPS)
def test_hostile_files(group: str, opened: dict[str, list[tuple[Case, dict[str, Any]]]], place: Path) -> None:
    wrong = [f"{case.kind}, {case.name}: {what}" for case, told in opened[group] for what in faults(case, told)]
    assert not wrong, "\n".join(wrong)
    assert not (place / "marker").exists()


def faults(case: Case, told: dict[str, Any]) -> Iterator[str]:
    """Yield what went otherwise than it must."""
    if told["exit"] != 0:
        yield f"ended by {told['exit']} after {told['cpu_seconds']:.1f} s of CPU"
        return
    if told["cpu_seconds"] > CPU_SECONDS:
        yield f"took {told['cpu_seconds']:.1f} s of CPU"
    if told["grown"] > MEMORY_BYTES:
        yield f"took {told['grown'] >> 20} MiB"
    assert len(told["answers"]) == len(case.files)
    for i, answer in enumerate(told["answers"]):
        if "defect" in answer:
            yield f"file {i}: {answer['defect']}"
        elif "result" in answer and case.outcome == "refused":
            yield f"file {i} was read: {str(answer['result'])[:300]}"
        elif "problem" in answer:
            problem = answer["problem"]
            if case.outcome == "read":
                yield f"file {i} was refused: {problem}"
            elif answer["wrong"] or not says_what_is_wrong(problem, case.says):
                yield f"file {i}: {answer['wrong']} {problem}"


def says_what_is_wrong(problem: dict[str, Any], says: str) -> bool:
    return (
        400 <= problem["status"] < 500
        and len(problem["detail"]) > 10
        and bool({"expected", "received", "advice"} & problem.keys())
        and re.search(says, problem["detail"]) is not None
    )
