"""The operator's commands: the service on this machine, keys and limits. What they need is imported by them only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from cli.console import command, usage


@command
def up(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: PORT, else 8000.")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Holds all that is stored; default: DATA, else data.")
    ] = None,
) -> None:
    """Run the whole service on this machine, until Ctrl-C."""
    given = [*(() if port is None else ("--port", str(port))), *(() if data is None else ("--data", str(data)))]
    raise typer.Exit(_main("cli.up")(given))


@command
def keys(context: typer.Context) -> None:
    """Make, list, rotate and revoke API keys, on the bucket of the environment (`prune keys --help`)."""
    raise typer.Exit(_main("cli.keys")(context.args))


@command
def quotas(context: typer.Context) -> None:
    """Show or set the limits of a tenant, on the bucket of the environment (`prune quotas --help`)."""
    raise typer.Exit(_main("cli.quotas")(context.args))


def _main(module: str) -> Callable[[Sequence[str]], int]:
    try:
        found: Callable[[Sequence[str]], int] = import_module(module).main
    except ImportError as error:
        raise usage(
            f"this needs the service as well: pip install 'pruning-service[api,worker,embedded]' ({error})"
        ) from None
    return found
