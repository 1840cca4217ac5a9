"""Runs what the documents show: one reading of their snippets for every test that does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

#: No proxy between, and one thread: the networks are small, and other tests run beside.
_ALONE = {"no_proxy": "*", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page, ``` ```language ```."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path, *languages: str) -> list[Snippet]:
    """Return the snippets of a page, in order; of these languages, if any are named."""
    text = page.read_text("utf-8")
    found = [
        Snippet(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]
    return [one for one in found if not languages or one.language in languages]


def script(parts: Iterable[Snippet]) -> str:
    """Return one bash script of ``sh`` and ``python`` snippets: each sees the files of those before.

    It sees their variables too, if it is of the same language with no other between: they are one session then.
    """
    lines = ["set -euo pipefail"]
    for language, group in groupby(parts, key=lambda one: one.language):
        session = list(group)
        lines.append(f"echo '# {session[0]}' >&2")
        code = "".join(one.code for one in session)
        # A document that the snippets do not contain ends it.
        lines.append(code if language == "sh" else f"python3 - <<'END OF SNIPPET'\n{code}END OF SNIPPET")
    return "\n".join(lines)


def run(
    parts: Iterable[Snippet], folder: Path, environment: Mapping[str, str] | None = None, seconds: int = 200
) -> str:
    """Run snippets in a folder and return what they wrote; fail with it, and with the snippet's place, if they fail."""
    binaries = folder / ".bin"
    binaries.mkdir(exist_ok=True)
    # `python3` of the documents is the one that has this package, and `prune` is of this tree.
    (binaries / "prune").write_text(f'#!/bin/sh\nexec {sys.executable} -m cli "$@"\n', "utf-8")
    (binaries / "prune").chmod(0o755)
    path = os.pathsep.join([str(binaries), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script(parts)],
        cwd=folder,
        env={**os.environ, **_ALONE, "PATH": path, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
