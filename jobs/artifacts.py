"""What a job that succeeded has made: a report, and for each level of sparsity a model, its masks, its compact form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from jobs.errors import LevelNeeded, NotFound

ArtifactName = Literal["model", "masks", "compact", "report"]


def wanted(artifacts: Mapping[str, Any], name: ArtifactName, sparsity: float | None) -> dict[str, Any]:
    """Return the record of one artifact: key, size, SHA-256.

    Args:
        artifacts: The outcome's: ``report``, and ``levels``, each with ``sparsity``, ``model``, ``masks``, ``compact``.
        name: Which one.
        sparsity: Which level, exactly as the outcome names it.

    >>> made = {"levels": [{"sparsity": 0.5, "model": {"key": "a"}}, {"sparsity": 0.9, "model": {"key": "b"}}]}
    >>> wanted(made, "model", 0.9)
    {'key': 'b'}

    Raises:
        NotFound: There is no such level.
        LevelNeeded: There are several, and none was named.
    """
    if name == "report":
        report: dict[str, Any] = artifacts["report"]
        return report
    # Outcomes of version 0.1 have the only level's artifacts beside the report.
    levels = artifacts.get("levels", [artifacts])
    named = [level.get("sparsity") for level in levels]
    if sparsity is None and len(levels) > 1:
        raise LevelNeeded(
            f"The job made {len(levels)} models; say of which sparsity.",
            expected=named,
            advice=f"Ask for ?sparsity={named[-1]}, for instance.",
        )
    for level in levels:
        if sparsity is None or level.get("sparsity") == sparsity:
            if name not in level:
                raise NotFound(
                    f"This job was done before there was a {name} form.", advice="Download the model, or prune again."
                )
            chosen: dict[str, Any] = level[name]
            return chosen
    raise NotFound(
        f"The job has no {name} of sparsity {sparsity}.",
        expected=named,
        received=sparsity,
        advice="The job's result lists its levels.",
    )
