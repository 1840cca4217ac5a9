"""What the commands say, and how they end.

Results go to stdout, everything else to stderr. Exit codes: 0 done; 1 the job failed or was cancelled, or there was a
problem; 2 the command line cannot be understood; 130 interrupted, 143 by SIGTERM.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, NoReturn, ParamSpec

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Column, Table

from client import Client, ClientError, Problem, Retry, Unreachable

P = ParamSpec("P")

FAILED, INTERRUPTED, TERMINATED = 1, 130, 143
_RETRY_SECONDS = 30.0
_QUIET_SECONDS = 10.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and everything else on stderr.")]


class Terminated(KeyboardInterrupt):
    """SIGTERM came: it ends like Ctrl-C, with the terminal as it was and a word on how to go on."""


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
    return Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line for people, as it is, on stderr."""
    err().print(text, markup=False)


def tell(*lines: object) -> None:
    """Print what a script wants to have, a line each, on stdout; in a terminal stderr has said it already."""
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()


def show(document: BaseModel | dict[str, Any] | list[Any]) -> None:
    """Print JSON on stdout: indented for a person, on one line for a pipe."""
    shown = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
    sys.stdout.write(json.dumps(shown, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def table(*columns: str, rows: list[tuple[object, ...]], aside: bool = False) -> None:
    """Print a table on stdout, or aside on stderr; without a terminal, with tabs, as `cut` and `awk` understand it."""
    stream, console = (sys.stderr, err()) if aside else (sys.stdout, out())
    if not stream.isatty():
        for row in [columns, *rows]:
            stream.write("\t".join("" if cell is None else str(cell) for cell in row) + "\n")
        return
    # What is named first, such as an id, is there to be copied: it is never cut short.
    widest = max((len(str(row[0])) for row in rows), default=1)
    named = Column(columns[0], no_wrap=True, min_width=widest)
    others = (Column(name, overflow="fold") for name in columns[1:])
    drawn = Table(named, *others, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        drawn.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(drawn, markup=False, soft_wrap=False)


@contextmanager
def service() -> Iterator[Client]:
    """Open the client that the options and the environment name."""
    last = ("", 0.0)

    def told(why: str, _pause: float) -> None:
        nonlocal last
        # Once for each reason, and now and then again: whoever waits wants to know that it is still so.
        if why != last[0] or time.monotonic() - last[1] > _QUIET_SECONDS:
            last = (why, time.monotonic())
            say(f"{client.url}: {why}; trying again for up to {WHERE.retry_seconds:g} s")

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
        except Terminated:
            raise typer.Exit(TERMINATED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return guarded


def fail(error: Exception, *, as_json: bool = False) -> NoReturn:
    """Say what went wrong and end with exit code 1.

    Raises:
        typer.Exit: Always.
    """
    text = said(error)
    say(f"prune: {text}")
    if as_json:
        document = error.document if isinstance(error, Problem) else {"type": "about:blank", "title": text}
        show({"error": document})
    raise typer.Exit(FAILED)


def said(error: Exception) -> str:
    """Return an error as a person reads it: what it is about, what is wrong, and what helps."""
    if isinstance(error, Unreachable):
        return f"{error}\n  advice: is a service there? `prune up` starts one here; --url or PRUNING_URL names another"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


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
