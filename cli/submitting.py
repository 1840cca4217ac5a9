"""`prune submit` and `prune plan`: files and options become a job, or what a job would do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from cli import recipes
from cli.console import FAILED, AsJson, command, on_interrupt, say, service, show, table, tell
from cli.progress import watch
from cli.recipes import Given, takes_recipe
from cli.transfers import fetch_models, placed, sending
from client import Client, Job
from client.models import Kind

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="The model file, or the id of one that was sent.")]
DataOption = Annotated[
    str, typer.Option("--data", "-d", metavar="FILE", help="Calibration data: a file, or the id of one that was sent.")
]
ValidationOption = Annotated[
    str | None, typer.Option("--validation", metavar="FILE", help="Data to measure quality on; default: --data.")
]
MasksOption = Annotated[
    str | None, typer.Option("--masks", metavar="FILE", help="Masks to prune by: a file, or the id of one.")
]

_FIGURES = ("accuracy", "agreement", "loss", "output_error")


@command
@takes_recipe
def submit(
    model: ModelArgument,
    data: DataOption,
    given: Given,
    validation: ValidationOption = None,
    masks: MasksOption = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Your own; repeatable.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="TEXT", help="Idempotency-Key: the same key and request give the same job."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended; 1 if it fails.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", callback=placed, help="Wait, and save the pruned model here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send a model and data, and prune it.

    Prints the id of the job, or with --json the whole job. With --wait or -o it waits, shows how far it is, and ends
    with 1 if the job fails. Files that the service has already are not sent again. --algorithm snows (a refinement)
    means: refine with it, after the default way to choose.
    """
    named = recipes.labels(label)
    with service() as client:
        wanted = recipes.build(given, lambda: parts(client), has_masks=masks is not None)
        with sending(client) as sent:
            job = client.create_job(
                sent("model", model),
                sent("dataset", data),
                wanted,
                validation=None if validation is None else sent("dataset", validation),
                masks=None if masks is None else sent("mask", masks),
                labels=named,
                key=key,
            )
        waits = wait or output is not None
        if not as_json:
            say(f"{job.id} is {job.state}" + ("" if waits else f"; `prune wait {job.id}` waits for it"))
            tell(job.id)
        if waits:
            attend(client, job.id, output=output, as_json=as_json)
        elif as_json:
            show(job)


@command
@takes_recipe
def plan(
    model: ModelArgument,
    given: Given,
    data: Annotated[str | None, typer.Option("--data", "-d", metavar="FILE", help="Makes the estimate better.")] = None,
    masks: MasksOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what a job would do: the layers, the weights that would stay, memory and time. Nothing is queued."""
    with service() as client:
        wanted = recipes.build(given, lambda: parts(client), has_masks=masks is not None)
        with sending(client) as sent:

            def inspected(kind: Kind, given: str) -> str:
                return client.wait_upload(kind, sent(kind, given)).id

            found = client.plan(
                inspected("model", model),
                wanted,
                calibration=None if data is None else inspected("dataset", data),
                masks=None if masks is None else inspected("mask", masks),
            )
    if as_json:
        show(found)
        return
    rows: list[tuple[object, ...]] = [
        (layer["name"], layer["kind"], "x".join(map(str, layer["shape"])), "yes" if layer["takes_part"] else "no")
        for layer in found.layers
    ]
    table("LAYER", "KIND", "SHAPE", "TAKES PART", rows=rows)
    for level in found.levels:
        asked = "" if level["sparsity"] is None else f" at sparsity {level['sparsity']:g}"
        kept = "as many as the search finds" if level["kept"] is None else level["kept"]
        say(f"{kept} of {level['weights']} weights would stay{asked}")
    estimate = found.estimate
    if estimate:
        memory, seconds = estimate["memory_bytes"] / 2**20, estimate["seconds_at_least"]
        say(f"about {memory:.0f} MiB, at least {seconds:.1f} s")


def parts(client: Client) -> dict[str, str]:
    """Return each algorithm of the service with the part of a recipe that names it."""
    return {name: found.part for name, found in client.algorithms().algorithms.items()}


def attend(
    client: Client,
    id: str,
    *,
    output: Path | None = None,
    timeout: float | None = None,
    as_json: bool = False,
) -> list[Path]:
    """Wait for a job, show how far it is, save its models, say what came out, and return where they are.

    Raises:
        Problem: It failed or was cancelled.
        StillRunning: The time is over.
    """
    advice = f"Interrupted; the job goes on.\n  wait for it:  prune wait {id}\n  end it:       prune cancel {id}"
    with on_interrupt(lambda: advice):
        with watch(id) as shown:
            job = client.wait_job(id, timeout=timeout, told=shown.event)
        if job.state != "succeeded":
            if as_json:
                show(job)
                say_problem(job)
                raise typer.Exit(FAILED)
            job.check()
        files = [] if output is None else fetch_models(client, job, output)
    if as_json:
        show({**job.model_dump(mode="json"), "files": [str(path) for path in files]})
        return files
    summary(job.levels, aside=True)
    if output is None:
        say(f"  save the model:     prune download {id} -o FILE\n  what was measured:  prune report {id}")
    return files


def say_problem(job: Job) -> None:
    """Say on stderr why a job gave nothing."""
    try:
        job.check()
    except Exception as error:
        say(f"prune: {error}")


def summary(levels: list[dict[str, Any]], *, aside: bool = False) -> None:
    """Show what came out, level by level; aside: on stderr."""
    # The two figures that say most; the report has all.
    named = [name for name in _FIGURES if any(name in (level.get("quality") or {}) for level in levels)][:2]
    columns = [column for name in named for column in (name.replace("_", " ").upper(), "BY MAGNITUDE")]
    rows: list[tuple[object, ...]] = [
        (f"{level['sparsity']:.4g}", *_figures(level, named), level.get("size_bytes")) for level in levels
    ]
    table("SPARSITY", *columns, "BYTES", rows=rows, aside=aside)


def _figures(level: dict[str, Any], named: list[str]) -> Iterator[str]:
    for name in named:
        for which in ("quality", "magnitude"):
            value = (level.get(which) or {}).get(name)
            yield "" if value is None else f"{value:.4f}"
