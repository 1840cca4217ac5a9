"""One level of sparsity: select, refine, and the guard that the result is no worse than magnitude pruning."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pruning_core import recipe
from pruning_core.accounts import Clock
from pruning_core.algorithms import (
    REFINERS,
    REGISTRY,
    PruningTask,
    Saved,
    Selection,
    Selector,
    Step,
    Within,
    remember,
    weights_of,
)
from pruning_core.errors import Diverged
from pruning_core.evaluate import compare, standing
from pruning_core.patterns import Pattern, build
from pruning_core.report import Progress, Quality

#: How much of the work comes before what was made is evaluated, for progress; statistics and levels share it.
WORK_SHARE = 0.95
STATISTICS_SHARE = 0.5
#: Names of a selection's buffers in its checkpoint begin with this.
_BUFFER = "buffer:"


@dataclass(frozen=True, kw_only=True)
class Made:
    """One level as it was made: the selection, and its quality (and the dense one) on held-out data.

    ``pattern`` is ``spec`` built for ``sparsity``, which is None where the pattern has its own.
    """

    spec: recipe.Pattern
    sparsity: float | None
    pattern: Pattern
    selection: Selection
    quality: Quality
    dense: Quality
    refine_options: dict[str, Any] | None = None
    fell_back: bool = False


class Levels:
    """Makes levels of one job; statistics are computed once, when the first level needs them.

    Args:
        task: The job's.
        asked: Algorithm, refinement and options.
        expected: How many levels will be made, for progress.
        clock: Of the job.
        mask: The uploaded mask (p,), for recipes that take one.
    """

    def __init__(
        self, task: PruningTask, asked: recipe.Recipe, expected: int, clock: Clock, mask: Tensor | None = None
    ) -> None:
        self._task, self._recipe, self._clock, self._mask = task, asked, clock, mask
        self._expected, self._begun = max(1, expected), 0
        self._fraction = 0.0
        self._selector: Selector | None = None

    def make(self, key: str, spec: recipe.Pattern, sparsity: float | None) -> Generator[Progress, None, Made]:
        """Make one level, or take it from its checkpoint.

        Args:
            key: Of the level, unique within the job.
            spec: The pattern,
            sparsity: and the sparsity it is built for; None where the pattern has its own.
        """
        shapes = [layer.shape for layer in self._task.layout.layers]
        pattern = build(spec, shapes, sparsity, self._mask)
        refine = self._recipe.refine
        span = (WORK_SHARE - STATISTICS_SHARE) / self._expected
        begin = min(STATISTICS_SHARE + span * self._begun, WORK_SHARE - span)
        self._begun += 1
        part = span / 2 if refine else span
        selected = yield from self._kept(f"{key}/select", self._select(pattern), begin, part)
        if not bool(selected.mask.any()) or pattern.kept == pattern.size or refine is None:
            refined = None
        else:
            step = self._refine(f"{key}/refine", selected)
            refined = yield from self._kept(f"{key}/refine", step, begin + part, part)
        made = self._best(spec, sparsity, pattern, selected, refined)
        self._clock.lap("choose")
        return made

    def _kept(
        self, key: str, make: Generator[Step, None, Selection], begin: float, span: float
    ) -> Generator[Progress, None, Selection]:
        def saved() -> Generator[Step, None, Saved]:
            selection = yield from make
            tensors = {"mask": selection.mask}
            if selection.weights is not None:
                tensors["weights"] = selection.weights
            tensors |= {f"{_BUFFER}{name}": value for name, value in selection.buffers.items()}
            facts = {
                "objective": dict(selection.objective),
                "options": dict(selection.options),
                "notes": list(selection.notes),
            }
            return Saved(tensors=tensors, facts=facts)

        found = yield from self._shown(remember(self._task.checkpoints, key, saved()), begin, span)
        make.close()
        device = self._task.weights.device
        tensors = {name: tensor.to(device) for name, tensor in found.tensors.items()}
        return Selection(
            mask=tensors["mask"],
            weights=tensors.get("weights"),
            objective=found.facts["objective"],
            options=found.facts["options"],
            notes=tuple(found.facts["notes"]),
            buffers={name[len(_BUFFER) :]: value for name, value in tensors.items() if name.startswith(_BUFFER)},
        )

    def _shown(
        self, steps: Generator[Step, None, Saved], begin: float, span: float
    ) -> Generator[Progress, None, Saved]:
        """Turn an algorithm's steps into the job's progress, and count their time."""
        stage = "select"
        try:
            while True:
                try:
                    step = next(steps)
                except StopIteration as end:
                    value: Saved = end.value
                    self._clock.lap(stage)
                    return value
                stage = step.stage
                self._clock.lap(stage)
                # Statistics come inside the first level's steps, and have their own share.
                place = step.fraction * STATISTICS_SHARE if self._selector is None else begin + span * step.fraction
                self._fraction = max(self._fraction, min(place, WORK_SHARE))
                yield Progress(stage=stage, done=step.done, total=step.total, fraction=self._fraction)
                self._clock.skip()
        finally:
            steps.close()

    def _select(self, pattern: Pattern) -> Generator[Step, None, Selection]:
        task, select = self._task, self._recipe.select
        entry = REGISTRY[select.algorithm]
        options = entry.parse(select.options)
        if pattern.kept == pattern.size:
            # Nothing is to go: the identity, whatever the algorithm would do to the survivors.
            note = "Sparsity 0: the network was left as it is."
            keep = torch.ones_like(task.weights, dtype=torch.bool)
            return Selection(mask=keep, options=options.model_dump(), notes=(note,))
        if self._selector is None:
            self._selector = yield from entry.run(task, options)
        selection: Selection = yield from self._selector(pattern)
        return _finite(selection)

    def _refine(self, key: str, selected: Selection) -> Generator[Step, None, Selection]:
        assert self._recipe.refine is not None
        entry = REFINERS[self._recipe.refine.algorithm]
        options = entry.parse(self._recipe.refine.options)
        task = replace(self._task, checkpoints=Within(self._task.checkpoints, key))
        refined: Selection = yield from entry.run(task, options, selected)
        return _finite(refined)

    def _best(
        self,
        spec: recipe.Pattern,
        sparsity: float | None,
        pattern: Pattern,
        selected: Selection,
        refined: Selection | None,
    ) -> Made:
        """Return the best on held-out data of: refined, selected, magnitude. The recipe's own result wins ties."""
        task = self._task
        plain = Selection(mask=pattern.keep(task.weights.abs()))
        candidates = {"refined": refined, "selected": selected, "magnitude": plain}
        weights = {name: weights_of(task, s) for name, s in candidates.items() if s is not None}
        found = compare(task.network, weights, task.held_out)
        own = "refined" if refined is not None else "selected"
        best = max(weights, key=lambda name: (standing(found[name]), name == own, name == "selected"))
        chosen = candidates[best]
        assert chosen is not None
        notes = [note for s in (selected, refined) if s is not None for note in s.notes]
        if best != own:
            notes.append(
                f"On the held-out calibration data {'plain magnitude pruning' if best == 'magnitude' else best} did "
                f"better than what was asked for ({_words(found[best])} against {_words(found[own])}) and was taken."
            )
        return Made(
            spec=spec,
            sparsity=sparsity,
            pattern=pattern,
            selection=replace(
                chosen,
                objective={**selected.objective, **(_prefixed(refined.objective) if refined else {})},
                options=selected.options,
                notes=tuple(notes),
            ),
            quality=found[best],
            dense=found["dense"],
            refine_options=None if refined is None else dict(refined.options),
            fell_back=best != own and best == "magnitude",
        )


def _finite(selection: Selection) -> Selection:
    if selection.weights is not None and not bool(torch.isfinite(selection.weights).all()):
        raise Diverged("The algorithm produced weights that are not finite.", advice="Give a larger ridge.")
    return selection


def _prefixed(objective: Any) -> dict[str, float]:
    return {f"refine_{name}": value for name, value in objective.items()}


def _words(quality: Quality) -> str:
    if quality.accuracy is not None:
        return f"accuracy {quality.accuracy:.4g}"
    if quality.loss is not None:
        return f"loss {quality.loss:.4g}"
    return "an output error of " + ("?" if quality.output_error is None else f"{quality.output_error:.4g}")
