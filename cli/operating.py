"""Commands whose options other modules read: the service here, keys, limits, masks, exports. Each imports its own."""

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


@command
def masks(context: typer.Context) -> None:
    """Compare two masks files; set a model's weights to zero under one (`prune masks --help`)."""
    raise typer.Exit(_run("pruning_core.mask_tools", context.args, "the core", "core"))


@command
def export(context: typer.Context) -> None:
    """Log a job to MLflow, or lay its model out as a folder for a hub (`prune export --help`)."""
    raise typer.Exit(_run("cli.exports", context.args))


def _run(module: str, arguments: Sequence[str], what: str = "the service", extra: str = "api,worker,embedded") -> int:
    try:
        main: Callable[[Sequence[str]], int] = import_module(module).main
        return main(arguments)
    except ImportError as error:
        raise missing(what, extra, error) from None
