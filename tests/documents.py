"""Runs what the documents show: one reading of their snippets for every test that does."""

from __future__ import annotations

import atexit
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from tempfile import mkdtemp
from textwrap import dedent

from tests import interpreter
from tests.interpreter import SOCKET

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
        Snippet(page, text.count("\n", 0, match.start()) + 1, match[1], dedent(match[2]))
        for match in re.finditer(r"^ *```([^\n]*)\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
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
) -> subprocess.CompletedProcess[str]:
    """Run snippets in a folder; fail with what they wrote, and with the snippet's place, if they fail.

    Returns:
        What they wrote to stdout and stderr.
    """
    done = run_script(script(parts), folder, environment, seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_script(
    code: str, folder: Path, environment: Mapping[str, str] | None = None, seconds: int = 200
) -> subprocess.CompletedProcess[str]:
    """Run a bash script in a folder, with `python3`, `python` and `prune` of this tree (see `tests.interpreter`)."""
    path = os.pathsep.join([str(_commands()), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name not in ("PRUNING_API_KEY", "COLUMNS")}
    own = {"PATH": path, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / ".cache"), SOCKET: _interpreter()}
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", code],
        cwd=folder,
        env={**kept, **_ALONE, **own, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


@cache
def _commands() -> Path:
    """Return a folder with the commands of the documents."""
    folder = Path(mkdtemp(prefix="commands-"))
    atexit.register(shutil.rmtree, folder)
    asks = f'exec "{sys.executable}" -I -S "{interpreter.__file__}"'
    for name, code in {"python": asks, "python3": asks, "prune": f"{asks} -m cli"}.items():
        (folder / name).write_text(f'#!/bin/sh\n{code} "$@"\n', "utf-8")
        (folder / name).chmod(0o755)
    return folder


@cache
def _interpreter() -> str:
    """Return where the Python listens that runs the commands; it ends with this process."""
    path = str(_commands() / "socket")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.interpreter", "--serve", path],
        cwd=ROOT,
        env={**os.environ, **_ALONE, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    atexit.register(server.communicate)
    return path
