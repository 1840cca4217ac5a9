"""The options that make a recipe, the same for `submit`, `plan` and `run`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from cli.console import usage

_PANEL = "Recipe"


def _option(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=_PANEL)


AlgorithmOption = Annotated[
    str | None,
    _option("--algorithm", "-a", metavar="NAME", help="What chooses the mask; `prune algorithms` lists them."),
]
RefineOption = Annotated[
    str | None, _option("--refine", metavar="NAME", help="What re-fits the weights under the mask, such as snows.")
]
PatternOption = Annotated[
    str | None, _option("--pattern", "-p", metavar="PATTERN", help="unstructured, 2:4 (any N:M), 4x1 (blocks), mask.")
]
SparsityOption = Annotated[
    list[float] | None,
    _option("--sparsity", "-s", metavar="FRACTION", help="Weights to remove; repeat it for a model of each."),
]
AccuracyOption = Annotated[
    float | None,
    _option("--max-accuracy-drop", metavar="FRACTION", help="The highest sparsity that costs at most this: 0.01."),
]
LossOption = Annotated[
    float | None, _option("--max-loss-increase", metavar="LOSS", help="The highest sparsity that costs at most this.")
]
ExcludeOption = Annotated[
    list[str] | None, _option("--exclude", metavar="GLOB", help="Layers that are left as they are; repeatable.")
]
SeedOption = Annotated[int | None, _option("--seed", metavar="N", help="Same seed, same bytes.")]
PreprocessOption = Annotated[
    list[str] | None,
    _option("--preprocess", metavar="KEY=VALUE", help="How pictures become inputs: resize=256, crop=224; repeatable."),
]
MoreOption = Annotated[
    list[str] | None,
    _option(
        "--option",
        metavar="KEY=VALUE",
        help="An option of the algorithm, or with refine.KEY=VALUE of the refinement; VALUE is JSON or text.",
    ),
]
RecipeOption = Annotated[
    str | None,
    _option("--recipe", metavar="FILE", help="A recipe as JSON, '-' for stdin; the other options change it."),
]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the command line says about the recipe: an option for each field."""

    algorithm: AlgorithmOption = None
    refine: RefineOption = None
    pattern: PatternOption = None
    sparsity: SparsityOption = None
    max_accuracy_drop: AccuracyOption = None
    max_loss_increase: LossOption = None
    exclude: ExcludeOption = None
    seed: SeedOption = None
    preprocess: PreprocessOption = None
    option: MoreOption = None
    recipe: RecipeOption = None


def takes_recipe(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in place of its parameter ``given``, the options of a recipe."""

    @wraps(function)
    def command(**options: Any) -> None:
        given = Given(**{field.name: options.pop(field.name) for field in fields(Given)})
        function(given=given, **options)

    types = get_type_hints(Given, include_extras=True)
    recipe = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=types[name]) for name in types]
    own = signature(function, eval_str=True).parameters.values()
    shown = [part for one in own for part in (recipe if one.name == "given" else [one.replace(kind=one.KEYWORD_ONLY)])]
    # Typer reads both.
    command.__signature__ = Signature(shown)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in shown}
    return command


def build(given: Given, parts: Callable[[], Mapping[str, str]], *, has_masks: bool = False) -> dict[str, Any]:
    """Return the recipe that the options ask for; whether it can be used is for the service or the core to say.

    Args:
        given: The options.
        parts: Returns for each algorithm the part of a recipe that names it; asked only if an algorithm is named.
        has_masks: Whether the job has masks to prune by.

    Raises:
        typer.BadParameter: The options contradict each other, or name an algorithm that there is not.
    """
    recipe = _read(given.recipe)
    select, refine = dict(recipe.get("select") or {}), dict(recipe.get("refine") or {})
    algorithm, refiner = given.algorithm, given.refine
    if algorithm is not None or refiner is not None:
        known = parts()
        # `--algorithm snows` alone: that one re-fits, so it is the refinement, after the default way to choose.
        if algorithm is not None and known.get(algorithm) == "refine" and refiner is None:
            algorithm, refiner = None, algorithm
        _check("--algorithm", algorithm, "select", known)
        _check("--refine", refiner, "refine", known)
    alone = given.algorithm is not None and algorithm is None
    if algorithm is not None:
        # Options in a recipe file are of the algorithm it names.
        select = {"algorithm": algorithm, **_common(select, algorithm)}
    if refiner is not None:
        refine = {**(refine if refine.get("algorithm") == refiner else {}), "algorithm": refiner}
    for text in given.option or ():
        name, value = _pair("--option", text)
        part, _, rest = name.partition(".")
        if part in ("select", "refine") and rest:
            (refine if part == "refine" else select)[rest] = value
        else:
            (refine if alone else select)[name] = value
    if given.exclude:
        select["layers"] = {**(select.get("layers") or {}), "exclude": list(given.exclude)}
    if given.pattern is not None:
        select["pattern"] = given.pattern
    if (sparsity := _sparsity(given)) is not None:
        select["sparsity"] = sparsity
    if has_masks and "pattern" not in select and (select or not refine):
        select["pattern"] = "mask"
    if refine and "algorithm" not in refine:
        raise usage("an option of the refinement needs --refine NAME")
    if not select and not refine:
        raise usage("it is not said how to prune: give --sparsity 0.9, a goal, --pattern 2:4, --masks or --recipe FILE")
    preprocess = {**(recipe.get("preprocess") or {}), **dict(_pair("--preprocess", t) for t in given.preprocess or ())}
    made_of = {"select": select or None, "refine": refine or None, "preprocess": preprocess or None}
    made = {**recipe, **made_of, **({} if given.seed is None else {"seed": given.seed})}
    return {name: value for name, value in made.items() if value is not None}


def labels(given: list[str] | None) -> dict[str, str]:
    """Return what ``--label name=value`` says.

    Raises:
        typer.BadParameter: One cannot be read.
    """
    found = {}
    for text in given or ():
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise usage(f"--label: expected name=value, got {text!r}")
        found[name] = value
    return found


def _common(select: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
    if select.get("algorithm") in (None, algorithm):
        return {name: value for name, value in select.items() if name != "algorithm"}
    return {name: select[name] for name in ("sparsity", "pattern", "layers") if name in select}


def _check(option: str, name: str | None, part: str, known: Mapping[str, str]) -> None:
    if name is None or known.get(name) == part:
        return
    offered = sorted(other for other, its in known.items() if its == part)
    if name not in known:
        raise usage(f"{option} {name}: there is no such algorithm; {offer(name, offered)}")
    raise usage(f"{option} {name}: it is a {known[name]} algorithm; offered: {', '.join(offered)}")


def offer(name: str, offered: Sequence[str]) -> str:
    """Return what there is instead of a name, the most similar first.

    >>> offer("chitta", ["alps", "chita"])
    'did you mean chita? offered: alps, chita'
    """
    similar = get_close_matches(name.lower(), offered, n=1)
    return "".join(f"did you mean {one}? " for one in similar) + f"offered: {', '.join(offered)}"


def _sparsity(given: Given) -> float | list[float] | dict[str, float] | None:
    goals = {
        name: value
        for name in ("max_accuracy_drop", "max_loss_increase")
        if (value := getattr(given, name)) is not None
    }
    if len(goals) + bool(given.sparsity) > 1:
        raise usage("give one of --sparsity, --max-accuracy-drop and --max-loss-increase")
    if goals:
        return goals
    levels = sorted(set(given.sparsity or ()))
    return None if not levels else levels[0] if len(levels) == 1 else levels


def _pair(option: str, text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise usage(f"{option}: expected key=value, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _read(where: str | None) -> dict[str, Any]:
    if where is None:
        return {}
    try:
        text = sys.stdin.read() if where == "-" else Path(where).read_text("utf-8")
        document = json.loads(text)
    except OSError as error:
        raise usage(f"--recipe {where}: {error.strerror}") from None
    except ValueError as error:
        raise usage(f"--recipe {where}: this is no JSON: {error}") from None
    if not isinstance(document, dict) or not all(
        isinstance(document.get(part) or {}, dict) for part in ("select", "refine", "preprocess")
    ):
        raise usage(f'--recipe {where}: expected an object such as {{"select": {{"sparsity": 0.9}}}}')
    return document
