"""What takes minutes or gigabytes to make: ``make hostile`` runs it. The corpus has a small file of each kind."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.hostile import base, corpus, corpus_archives, corpus_graphs, corpus_old
from tests.hostile.base import GRAPH, node, tensor

pytestmark = [
    pytest.mark.skipif("PRUNING_HEAVY" not in os.environ, reason="make hostile runs it"),
    pytest.mark.timeout(600),
]


def a_million_nodes() -> bytes:
    whole = base.document()
    nodes = b",".join([json.dumps({"target": "", "inputs": [], "outputs": []}).encode()] * 10**6)
    whole["graph_module"]["graph"]["nodes"] = "HERE"
    text = json.dumps(whole).encode().replace(b'"HERE"', b"[" + nodes + b"]")
    return base.pt2(lambda members: members.update({GRAPH: text}))


def as_many_nodes_as_may_be() -> bytes:
    """A chain of 49 990 operations, every second one in place."""

    def change(nodes: list[object]) -> None:
        names = ["linear", *(f"v{i}" for i in range(49_990))]
        nodes[1:2] = [
            *(
                node(f"aten.{'relu_' if i % 2 else 'alias'}.default", new, self=tensor(old))
                for i, (old, new) in enumerate(itertools.pairwise(names))
            ),
            node("aten.relu.default", "relu", self=tensor(names[-1])),
        ]

    return base.with_nodes(change)


LIVE = {
    *("pickle as sample inputs", "pickle in the table of weights", "pickle in the table of constants"),
    *("weights in two forms", "expressions and guards", "pickles in older layouts"),
}

MADE = {
    "a million members": lambda: corpus_archives.empty_members(10**6),
    "a million nodes": a_million_nodes,
    "as many nodes as may be": as_many_nodes_as_may_be,
    "a long chain of views": lambda: corpus_graphs.views(40_000),
    "writes that must stay": lambda: corpus_graphs.writes_that_stay(20_000),
    "aliases, each written": lambda: corpus_graphs.written_views("aten.alias.default", 20_000),
    "transposes, each written": lambda: corpus_graphs.written_views("aten.t.default", 20_000),
    "a chain of views, its end written": lambda: corpus_graphs.deep_writes(3000),
    "layers behind one computation": lambda: corpus_graphs.computed(20_000),
    "32 MiB of braces": lambda: base.pt2(lambda members: members.update({GRAPH: b"{" * 2**25})),
    "a name of 60 MB": lambda: base.with_nodes(lambda nodes: nodes[1].update(target="x" * 60_000_000)),
    "60 MB of digits": lambda: base.pt2(lambda members: members.update({GRAPH: b"[" + b"1" * 60_000_000 + b"]"})),
}


@pytest.mark.parametrize("name", MADE)
def test_large_files_take_seconds_and_little_memory(name: str, tmp_path: Path) -> None:
    place = tmp_path / "0"
    place.mkdir()
    (place / "model").write_bytes(MADE[name]())
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.jail", str(tmp_path)],
        input=json.dumps({"task": "inspect_model", "files": [str(place)]}) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    told = json.loads(done.stdout.splitlines()[1])
    assert told["exit"] == 0, told
    assert told["grown"] < 2**30, told["grown"]
    assert told["cpu_seconds"] < 15, told["cpu_seconds"]
    (answer,) = told["answers"]
    assert "defect" not in answer, answer
    assert len(json.dumps(answer)) < 2**17


LOAD = """
import contextlib, pathlib, sys, torch
place, marker = map(pathlib.Path, sys.argv[1:])
for path in sorted(place.glob("*.pt2")):
    with contextlib.suppress(Exception):
        torch.export.load(path).module()
    if marker.exists():
        marker.rmdir()
        print(path.stem)
"""


def test_the_payloads_are_live(tmp_path: Path) -> None:
    """torch.export.load runs them: so a reader that were like it would be found out."""
    marker, inputs = tmp_path / "marker", io.BytesIO()
    torch.save(((torch.zeros(2, 3),), {}), inputs)
    for case in corpus.code(marker):
        for i, data in enumerate(case.files):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                members = {name.removeprefix("m/"): archive.read(name) for name in archive.namelist()}
            members = {"data/sample_inputs/model.pt": inputs.getvalue(), **members}
            (tmp_path / f"{case.name} {i}.pt2").write_bytes(base.zipped(members))
    for case in corpus_old.archives(marker):
        for i, data in enumerate(case.files):
            (tmp_path / f"{case.name} {i}.pt2").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, str(tmp_path), str(marker)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    ran = {name.rpartition(" ")[0] for name in done.stdout.splitlines()}
    assert ran >= LIVE, done.stdout + done.stderr[-2000:]
