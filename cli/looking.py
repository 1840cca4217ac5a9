"""The commands that look at jobs, wait for them, and end them."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from cli import recipes
from cli.console import AsJson, command, out, say, service, show, table, tell, usage
from cli.submitting import attend, summary
from cli.transfers import placed
from client import Job
from client.errors import Problem
from client.models import JobState

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Its id, job_….")]
_STATES = get_args(JobState)


@command
def jobs(
    state: Annotated[str | None, typer.Option(metavar="STATE", help=f"Only these: {', '.join(_STATES)}.")] = None,
    label: Annotated[str | None, typer.Option(metavar="NAME=VALUE", help="Only jobs with this label.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The newest so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    if state is not None and state not in _STATES:
        raise usage(f"--state {state}: there is no such state; {recipes.offer(state, _STATES)}")
    pair = next(iter(recipes.labels([label]).items())) if label is not None else None
    with service() as client:
        found = list(islice(client.list_jobs(state=cast("JobState | None", state), label=pair), limit))
    if as_json:
        show([job.model_dump(mode="json") for job in found])
        return
    table("JOB", "STATE", "STAGE", "DONE", "CREATED", "ALGORITHM", "LABELS", rows=[_row(job) for job in found])


@command
def job(id: JobArgument, as_json: AsJson = False) -> None:
    """Show a job."""
    with service() as client:
        found = client.get_job(id)
    if as_json:
        show(found)
        return
    fields = {
        "job": found.id,
        "state": found.state,
        "stage": found.stage,
        "done": f"{found.progress:.0%}",
        "left": None if found.eta_seconds is None else f"{found.eta_seconds:.0f} s",
        "in queue": found.queue_position,
        "attempt": found.attempt,
        "created": found.created_at.isoformat(timespec="seconds"),
        "ended": found.ended_at and found.ended_at.isoformat(timespec="seconds"),
        "model": found.model,
        "calibration": found.calibration,
        "labels": _labels(found),
    }
    for name, value in fields.items():
        if value not in (None, ""):
            out().print(f"{name:>12}  {value}", markup=False)
    if found.levels:
        summary(found.levels)
    if found.error is not None:
        out().print(str(Problem(found.error)), markup=False)


@command
def wait(
    id: JobArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", callback=placed, help="Then save the pruned model here."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Give up after this long.")] = None,
    as_json: AsJson = False,
) -> None:
    """Wait until a job has ended; 1 if it failed or was cancelled, or the time is over."""
    with service() as client:
        files = attend(client, id, output=output, timeout=timeout, as_json=as_json)
    if not as_json:
        tell(*files)


@command
def cancel(ids: Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids.")], as_json: AsJson = False) -> None:
    """Cancel jobs: a queued one at once, a running one within seconds."""
    with service() as client:
        found = [client.cancel_job(id) for id in ids]
    for one in found:
        say(f"{one.id}  {one.state if one.ended else 'is being cancelled'}")
    if as_json:
        show([one.model_dump(mode="json") for one in found])


@command
def delete(ids: Annotated[list[str], typer.Argument(metavar="JOB...", help="Ids.")], as_json: AsJson = False) -> None:
    """Delete jobs that have ended, with all that they made. This cannot be undone."""
    with service() as client:
        for id in ids:
            client.delete_job(id)
            say(f"{id}  deleted")
    if as_json:
        show({"deleted": ids})


@command
def algorithms(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the options of this one.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the algorithms of the service, or the options of one."""
    with service() as client:
        found = client.algorithms()
    if name is not None and name not in found.algorithms:
        raise usage(f"there is no algorithm {name}; {recipes.offer(name, sorted(found.algorithms))}")
    if as_json:
        show(found if name is None else found.algorithms[name])
        return
    if name is None:
        rows: list[tuple[object, ...]] = [
            (known, about.part, about.summary.partition(". ")[0]) for known, about in found.algorithms.items()
        ]
        table("NAME", "PART", "WHAT IT DOES", rows=rows)
        return
    about = found.algorithms[name]
    say(f"{name} ({about.part})\n{about.summary}\n{about.source}\n")
    options = about.options.get("properties", {})
    table(
        *("OPTION", "DEFAULT", "MEANING"),
        rows=[(option, known.get("default"), known.get("description")) for option, known in options.items()],
    )


def _row(job: Job) -> tuple[object, ...]:
    algorithm = (job.recipe.get("select") or {}).get("algorithm") or (job.recipe.get("refine") or {}).get("algorithm")
    created = job.created_at.astimezone().strftime("%Y-%m-%d %H:%M")
    return (job.id, job.state, job.stage, f"{job.progress:.0%}", created, algorithm, _labels(job))


def _labels(job: Job) -> str:
    return " ".join(f"{name}={value}" for name, value in job.labels.items())
