"""`prune submit` and `prune plan`: files and options become a job, or what a job would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli import recipes
from cli.console import AsJson, command, on_interrupt, out, say, service, show, table
from cli.progress import watch
from cli.recipes import (
    AccuracyOption,
    AlgorithmOption,
    ExcludeOption,
    Given,
    LossOption,
    MoreOption,
    PatternOption,
    PreprocessOption,
    RecipeOption,
    RefineOption,
    SeedOption,
    SparsityOption,
)
from cli.transfers import fetch_models, sent
from client import Client, Job

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


@command
def submit(
    model: ModelArgument,
    data: DataOption,
    validation: ValidationOption = None,
    masks: MasksOption = None,
    algorithm: AlgorithmOption = None,
    refine: RefineOption = None,
    pattern: PatternOption = None,
    sparsity: SparsityOption = None,
    max_accuracy_drop: AccuracyOption = None,
    max_loss_increase: LossOption = None,
    exclude: ExcludeOption = None,
    seed: SeedOption = None,
    preprocess: PreprocessOption = None,
    option: MoreOption = None,
    recipe: RecipeOption = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Your own; repeatable.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="TEXT", help="Idempotency-Key: the same key and request give the same job."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended; 1 if it fails.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Wait, and save the pruned model here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send a model and data, and prune it.

    Prints the id of the job, or with --json the whole job. With --wait or -o it waits, shows how far it is, and ends
    with 1 if the job fails. --algorithm snows (a refinement) means: refine with it, after the default way to choose.
    """
    given = Given(
        algorithm=algorithm,
        refine=refine,
        pattern=pattern,
        sparsity=sparsity,
        max_accuracy_drop=max_accuracy_drop,
        max_loss_increase=max_loss_increase,
        exclude=exclude,
        seed=seed,
        preprocess=preprocess,
        options=option,
        recipe=recipe,
        has_masks=masks is not None,
    )
    named = recipes.labels(label)
    with service() as client:
        wanted = recipes.build(given, lambda: parts(client))
        job = client.create_job(
            sent(client, "model", model),
            sent(client, "dataset", data),
            wanted,
            validation=None if validation is None else sent(client, "dataset", validation),
            masks=None if masks is None else sent(client, "mask", masks),
            labels=named,
            key=key,
        )
        if wait or output is not None:
            attend(client, job.id, output=output, as_json=as_json)
        elif as_json:
            show(job)
        else:
            say(f"queued; `prune wait {job.id}` waits for it")
            typer.echo(job.id)


@command
def plan(
    model: ModelArgument,
    data: Annotated[str | None, typer.Option("--data", "-d", metavar="FILE", help="Makes the estimate better.")] = None,
    masks: MasksOption = None,
    algorithm: AlgorithmOption = None,
    refine: RefineOption = None,
    pattern: PatternOption = None,
    sparsity: SparsityOption = None,
    max_accuracy_drop: AccuracyOption = None,
    max_loss_increase: LossOption = None,
    exclude: ExcludeOption = None,
    seed: SeedOption = None,
    preprocess: PreprocessOption = None,
    option: MoreOption = None,
    recipe: RecipeOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what a job would do: the layers, the weights that would stay, memory and time. Nothing is queued."""
    given = Given(
        algorithm=algorithm,
        refine=refine,
        pattern=pattern,
        sparsity=sparsity,
        max_accuracy_drop=max_accuracy_drop,
        max_loss_increase=max_loss_increase,
        exclude=exclude,
        seed=seed,
        preprocess=preprocess,
        options=option,
        recipe=recipe,
        has_masks=masks is not None,
    )
    with service() as client:
        wanted = recipes.build(given, lambda: parts(client))
        ids = {"model": sent(client, "model", model)}
        client.wait_upload("model", ids["model"])
        if data is not None:
            ids["calibration"] = sent(client, "dataset", data)
            client.wait_upload("dataset", ids["calibration"])
        if masks is not None:
            ids["masks"] = sent(client, "mask", masks)
            client.wait_upload("mask", ids["masks"])
        found = client.plan(ids["model"], wanted, calibration=ids.get("calibration"), masks=ids.get("masks"))
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
        out().print(f"{kept} of {level['weights']} weights would stay{asked}")
    estimate = found.estimate
    if estimate:
        memory, seconds = estimate["memory_bytes"] / 2**20, estimate["seconds_at_least"]
        out().print(f"about {memory:.0f} MiB, at least {seconds:.1f} s", markup=False)


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
) -> None:
    """Wait for a job, show how far it is, save its model, and say what came out.

    Raises:
        Problem: It failed or was cancelled.
        StillRunning: The time is over.
    """
    advice = f"Interrupted; {id} goes on. `prune wait {id}` waits again, `prune cancel {id}` ends it."
    with on_interrupt(lambda: advice):
        with watch(id) as shown:
            job = client.wait_job(id, timeout=timeout, told=shown.event)
        if job.state != "succeeded":
            if as_json:
                show(job)
                say_problem(job)
                raise typer.Exit(1)
            job.check()
        files = [] if output is None else fetch_models(client, job, output)
    if as_json:
        show({**job.model_dump(mode="json"), "files": [str(path) for path in files]})
        return
    summary(job.levels)
    if output is None:
        say(f"`prune download {id} -o FILE` saves the model, `prune report {id}` says what was measured")


def say_problem(job: Job) -> None:
    """Say on stderr why a job gave nothing."""
    try:
        job.check()
    except Exception as error:
        say(f"prune: {error}")


def summary(levels: list[dict[str, Any]]) -> None:
    """Show what came out, level by level."""
    rows: list[tuple[object, ...]] = [
        (f"{level['sparsity']:.4g}", _quality(level, "quality"), _quality(level, "magnitude"), level.get("size_bytes"))
        for level in levels
    ]
    table("SPARSITY", "QUALITY", "BY MAGNITUDE", "BYTES", rows=rows)


def _quality(level: dict[str, Any], which: str) -> str:
    """Return the one or two figures that say most; the report has all."""
    found = level.get(which) or {}
    named = [(name, found[name]) for name in ("accuracy", "agreement", "loss", "output_error") if name in found]
    return ", ".join(f"{name} {value:.4f}" for name, value in named[:2])
