"""What the commands say, and how they end.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 the job failed or was cancelled, or there was a
problem; 2 the command line cannot be understood; 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, NoReturn, ParamSpec

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Column, Table

from client import Client, ClientError, Problem, Retry

P = ParamSpec("P")

FAILED, INTERRUPTED = 1, 130
_RETRY_SECONDS = 30.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and everything else on stderr.")]


@dataclass
class Where:
    """Which service; set by the options before the command."""

    url: str | None = None
    retry_seconds: float = _RETRY_SECONDS


WHERE = Where()


def err() -> Console:
    """Return the console of stderr, as it is now."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def out() -> Console:
    """Return the console of stdout, as it is now."""
    return Console(highlight=False)


def say(text: str) -> None:
    """Print a line for people, as it is, on stderr."""
    err().print(text, markup=False)


def show(document: BaseModel | dict[str, Any] | list[Any]) -> None:
    """Print JSON on stdout: indented for a person, on one line for a pipe."""
    shown = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    sys.stdout.write(json.dumps(shown, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def table(*columns: str, rows: list[tuple[object, ...]]) -> None:
    """Print a table on stdout; without a terminal, columns between tabs, which `cut` and `awk` understand."""
    if not sys.stdout.isatty():
        for row in [columns, *rows]:
            sys.stdout.write("\t".join("" if cell is None else str(cell) for cell in row) + "\n")
        return
    # What is named first, such as an id, is there to be copied: it is never cut short.
    widest = max((len(str(row[0])) for row in rows), default=1)
    named = Column(columns[0], no_wrap=True, min_width=widest)
    drawn = Table(named, *columns[1:], box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*("" if cell is None else str(cell) for cell in row))
    out().print(drawn, markup=False)


@contextmanager
def service() -> Iterator[Client]:
    """Open the client that the options and the environment name."""

    def told(why: str, pause: float) -> None:
        say(f"{client!r}: {why}; trying again in {pause:.1f} s")

    with Client(WHERE.url, retry=Retry(seconds=WHERE.retry_seconds, told=told)) as client:
        yield client


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Make a function a command: what goes wrong becomes a text on stderr and an exit code."""

    @wraps(function)
    def guarded(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            function(*arguments, **options)
        except (ClientError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                # Whoever read our output has gone; so do we, and the interpreter is not to flush into nothing.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise typer.Exit(FAILED) from None
            fail(error, as_json=bool(options.get("as_json")))
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return guarded


def fail(error: Exception, *, as_json: bool = False) -> NoReturn:
    """Say what went wrong and end with exit code 1.

    Raises:
        typer.Exit: Always.
    """
    say(f"prune: {error}")
    if as_json:
        document = error.document if isinstance(error, Problem) else {"type": "about:blank", "title": str(error)}
        show({"error": document})
    raise typer.Exit(FAILED)


@contextmanager
def on_interrupt(advice: Callable[[], str]) -> Iterator[None]:
    """Say how to go on when the block is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        with suppress(OSError):
            say("\n" + advice())
        raise


def usage(message: str) -> typer.BadParameter:
    """Return an error of the command line: exit code 2."""
    return typer.BadParameter(message)


def missing(what: str, extra: str, error: ImportError) -> ClientError:
    """Return the error of a command that needs more than the client."""
    return ClientError(f"this command needs {what} on this machine: pip install 'pruning-service[{extra}]' ({error})")
