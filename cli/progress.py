"""How far it is: a bar where there is a terminal, a line for each stage where there is none; always on stderr."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskProgressColumn, TextColumn, TransferSpeedColumn
from rich.table import Column

from cli.console import err, say
from client import Event

_QUIET_SECONDS = 10.0
_WIDE = 76


class Told(Protocol):
    """Told how many bytes of how many have passed."""

    def __call__(self, done: int, total: int, /) -> None:
        """Show it."""


def _canvas() -> Console | None:
    """Return where bars can be drawn; None where there is no terminal, or one that only writes on."""
    console = err()
    # Room for the ^C that a terminal writes at the end of the line: it must not begin another.
    console.width = max(console.width - 3, 10)
    return console if console.is_terminal and not console.is_dumb_terminal else None


@contextmanager
def transfer(what: str, total: int | None = None) -> Iterator[Told]:
    """Show bytes that pass; nothing where there is no terminal."""
    console = _canvas()
    if console is None:
        yield lambda _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class Watch:
    """Shows a job: `event` for one of a service, `step` for one in this process."""

    def __init__(self, what: str, bar: Progress | None) -> None:
        self._what, self._bar = what, bar
        self._task = None if bar is None else bar.add_task(what, total=1.0, stage="", eta="")
        self._stage: str | None = None
        self._said = 0.0

    def event(self, event: Event) -> None:
        """Show what happened to a job."""
        data = event.data
        if event.kind == "state" or event.kind == "outcome":
            state = str(data.get("state"))
            self.step(state, float(data.get("progress") or 0.0) if state != "succeeded" else 1.0, None)
        elif event.kind == "progress":
            self.step(str(data.get("stage")), float(data.get("progress") or 0.0), data.get("eta_seconds"))

    def step(self, stage: str, fraction: float, eta: float | None) -> None:
        """Show where it is, from 0 to 1."""
        left = "" if eta is None else f"{_span(eta)} left"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=fraction, stage=stage, eta=left)
            return
        now = time.monotonic()
        if stage != self._stage or now - self._said > _QUIET_SECONDS:
            self._stage, self._said = stage, now
            say(f"{self._what}  {stage}  {fraction:.0%}" + (f"  {left}" if left else ""))


@contextmanager
def watch(what: str) -> Iterator[Watch]:
    """Show a job while the block runs."""
    console = _canvas()
    if console is None:
        yield Watch(what, None)
        return
    columns = (
        # Where it is narrow, how far it is matters more than what; that was said on a line before.
        *((TextColumn("{task.description}"),) if console.width >= _WIDE else ()),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[stage]}", table_column=Column(no_wrap=True, min_width=9)),
        TextColumn("{task.fields[eta]}", table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console) as bar:
        yield Watch(what, bar)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
