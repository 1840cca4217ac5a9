"""Batch norms of a pruned network: their running statistics, computed anew on calibration samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pruning_core.algorithms.task import PruningTask, Selection, weights_of
from pruning_core.evaluate import compare, standing
from pruning_core.network import Network
from pruning_core.network.batch_norms import batch_norms


def recalibrated(task: PruningTask, selection: Selection, chunks: Sequence[Sequence[Tensor]]) -> Selection:
    """Return the selection with batch-norm statistics as they are in its network, where held-out data says so.

    Args:
        task: The job.
        selection: Mask and weights.
        chunks: Inputs to compute the statistics on.
    """
    own = weights_of(task, selection)
    buffers = statistics(task.network, chunks, own)
    if not buffers:
        return replace(selection, notes=(*selection.notes, "There is no batch norm to recalibrate."))
    found = compare(task.network, {"kept": own, "anew": {**own, **buffers}}, task.held_out)
    if not standing(found["anew"]) > standing(found["kept"]):
        note = "Recalibrated batch-norm statistics were left out: they were no better on held-out data."
        return replace(selection, notes=(*selection.notes, note))
    note = f"The running statistics of {len(buffers) // 2} batch norms were computed anew: better on held-out data."
    return replace(selection, buffers={**selection.buffers, **buffers}, notes=(*selection.notes, note))


def statistics(
    network: Network, chunks: Sequence[Sequence[Tensor]], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return running means and (unbiased) variances of all batch norms, each seen through those before it.

    Args:
        network: The network.
        chunks: Inputs, one list of tensors for each chunk of samples.
        weights: Replaces some of the network's.

    Returns:
        Name -> statistic, in the running statistics' own shapes and dtypes; empty where nothing can be computed.
    """
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        states = [network.begin(chunk) for chunk in chunks]
        for norm in batch_norms(network):
            updates = {**weights, **found}
            count, total = 0, None
            for number in range(len(states)):
                states[number], _ = network.advance(states[number], norm.node, updates)
                rows = states[number].values[norm.input].transpose(0, 1).flatten(1).double()
                # Around the old mean, or a large mean would swallow the variance.
                rows = rows - network.weights[norm.mean].double()[:, None]
                sums = torch.stack([rows.sum(1), rows.square().sum(1)])
                count, total = count + rows.shape[1], sums if total is None else total + sums
            if total is None or count < 2:
                return {}
            offset = total[0] / count
            mean = offset + network.weights[norm.mean].double()
            variance = (total[1] - count * offset.square()).clamp_min(0) / (count - 1)
            found[norm.mean] = mean.to(network.weights[norm.mean].dtype)
            found[norm.variance] = variance.to(network.weights[norm.variance].dtype)
    return found
