"""The operator's commands: the service on this machine, keys and limits. What they need is imported by them only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from cli.console import command, missing


@command
def up(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: PORT, else 8000.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Holds all that is stored; default: DATA, else data.")
    ] = None,
) -> None:
    """Run the whole service on this machine, until Ctrl-C."""
    given = [*(() if port is None else ("--port", str(port))), *(() if data is None else ("--data", str(data)))]
    raise typer.Exit(_run("cli.up", given))


@command
def keys(context: typer.Context) -> None:
    """Make, list, rotate and revoke API keys, on the bucket of the environment (`prune keys --help`)."""
    raise typer.Exit(_run("cli.keys", context.args))


@command
def quotas(context: typer.Context) -> None:
    """Show or set the limits of a tenant, on the bucket of the environment (`prune quotas --help`)."""
    raise typer.Exit(_run("cli.quotas", context.args))


def _run(module: str, arguments: Sequence[str]) -> int:
    try:
        main: Callable[[Sequence[str]], int] = import_module(module).main
        return main(arguments)
    except ImportError as error:
        raise missing("the service", "api,worker,embedded", error) from None
