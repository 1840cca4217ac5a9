"""The commands for what a job made: `download`, `report`, and `verify`, which needs no service."""

from __future__ import annotations

import sys
import webbrowser
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.console import FAILED, AsJson, command, missing, out, say, service, show, tell, usage
from cli.looking import JobArgument
from cli.progress import Told, transfer
from cli.transfers import placed, put
from client import Client, NotOffered, Problem

_TYPES = {"json": "application/json", "html": "text/html", "md": "text/markdown"}


class What(StrEnum):
    """What a job made."""

    MODEL = "model"
    MASKS = "masks"
    COMPACT = "compact"
    REPORT = "report"


class Format(StrEnum):
    """A form of the report."""

    JSON = "json"
    HTML = "html"
    MD = "md"


@command
def download(
    id: JobArgument,
    what: Annotated[What, typer.Argument(help="Which file.")] = What.MODEL,
    sparsity: Annotated[
        float | None, typer.Option("--sparsity", "-s", metavar="FRACTION", help="Which level, where there are several.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", callback=placed, help="Where to; default: under its own name."),
    ] = None,
    compact: Annotated[
        bool, typer.Option("--compact", help="Fetch the model without its zeros, and put them in here.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Save what a job made; goes on after a cut, and checks the SHA-256."""
    if compact and (what is not What.MODEL or output is None or output.is_dir()):
        raise usage("--compact is for the model, and needs -o FILE")
    with service() as client, transfer(f"fetching the {what.value}") as told:
        if compact and output is not None:
            path = _expanded(client, id, output, sparsity, told)
        else:
            path = client.download(id, what.value, output, sparsity=sparsity, got=told)
    say(f"saved {path}")
    if as_json:
        show({"file": str(path), "size": path.stat().st_size})
    else:
        tell(path)


def _expanded(client: Client, id: str, output: Path, sparsity: float | None, told: Told) -> Path:
    """Fetch the compact form, and write the model that it stands for."""
    try:
        from pruning_core.compact import expand
        from pruning_core.errors import PruningError
    except ImportError as error:
        raise missing("the compact form", "compact", error) from None

    small = client.download(id, "compact", output.with_name(f".{output.name}.compact"), sparsity=sparsity, got=told)
    try:
        whole = expand(small.read_bytes())
    except PruningError as error:
        raise Problem(error.problem()) from None
    finally:
        small.unlink(missing_ok=True)
    with put(output) as aside:
        aside.write_bytes(whole)
    return output


@command
def report(
    id: JobArgument,
    format: Annotated[Format | None, typer.Option("--format", "-f", help="Default: json; with --open html.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", callback=placed, help="Where to; default: stdout."),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Save it, and open it in the browser.")] = False,
) -> None:
    """Show what was measured on the produced files."""
    wanted = format or (Format.HTML if open_it else Format.JSON)
    with service() as client:
        try:
            found = client.report(id, _TYPES[wanted.value])
        except NotOffered as error:
            raise NotOffered(f"{error} `prune report {id} --format json` shows what it has.") from None
    if output is None and not open_it:
        sys.stdout.buffer.write(found.content + (b"" if found.content.endswith(b"\n") else b"\n"))
        sys.stdout.flush()
        return
    path = output or Path(f"{id}-report.{wanted.value}")
    with put(path) as aside:
        aside.write_bytes(found.content)
    say(f"saved {path}")
    if open_it and not webbrowser.open(path.resolve().as_uri()):
        say(f"no browser could be started; open {path.resolve().as_uri()}")


@command
def verify(
    model: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The pruned model.")],
    report: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The report, as JSON.")],
    masks: Annotated[Path | None, typer.Option(exists=True, metavar="FILE", help="Of the same level.")] = None,
    dense: Annotated[Path | None, typer.Option(exists=True, metavar="FILE", help="The model as it was sent.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a model against its report, on this machine, without a service; 1 if something does not hold."""
    try:
        from pruning_core import verify as core
    except ImportError as error:
        raise missing("the core", "core", error) from None

    checks = core.verify(model, report, masks=masks, dense=dense)
    failed = sum(not check.holds for check in checks)
    if as_json:
        each = [{"what": check.what, "holds": check.holds, "seen": check.seen} for check in checks]
        show({"holds": failed == 0, "checks": each})
    else:
        width = max(len(check.what) for check in checks)
        for check in checks:
            out().print(f"{'ok  ' if check.holds else 'FAIL'}  {check.what:<{width}}  {check.seen}", markup=False)
        out().print(f"{len(checks)} checks, {failed} failed")
    if failed:
        raise typer.Exit(FAILED)
