"""Gradient rows, Grams and labels against plain autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pruning_core.calibration import Dataset
from pruning_core.curvature import (
    BlockGram,
    GradientRows,
    Layout,
    LossKind,
    collect_columns,
    loss_kind,
    predict,
    resolve_labels,
    sample_losses,
)
from pruning_core.errors import DatasetError
from pruning_core.pipeline import finish
from tests.core.fakes import ModuleNetwork, cnn_network, mlp_network, samples


def oracle(network: ModuleNetwork, layout: Layout, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the mean loss over x, float64, (p,)."""
    weights = {n: t.double() if t.is_floating_point() else t for n, t in network.weights.items()}
    for name in layout.names:
        weights[name].requires_grad_()
    loss = functional.cross_entropy(functional_call(network.module, weights, (x.double(),)), y)
    gradients = torch.autograd.grad(loss, [weights[name] for name in layout.names])
    return torch.cat([g.reshape(-1) for g in gradients])


def rows_of(network: ModuleNetwork, data: Dataset, *, rows: int, batch_size: int, seed: int = 3) -> GradientRows:
    labels = resolve_labels(network, data, "auto", seed)
    return GradientRows(network, Layout(network.layers), data, labels, rows=rows, batch_size=batch_size, seed=seed)


@pytest.mark.parametrize("make", [mlp_network, cnn_network])
@pytest.mark.parametrize(("rows", "batch_size"), [(1000, 1), (10, 1), (1000, 5), (3, 20), (1, 500)])
def test_rows_are_the_gradients_of_batch_means(make: object, rows: int, batch_size: int) -> None:
    network = make()
    data = samples(network)
    stream = rows_of(network, data, rows=rows, batch_size=batch_size)
    G = torch.cat([block.clone() for block in stream])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    assert stream.count == min(rows, 64 // stream.batch_size) == len(G)
    for i in {0, len(G) // 2, len(G) - 1}:
        chosen = order[i * stream.batch_size : (i + 1) * stream.batch_size]
        truth = oracle(network, stream.layout, data.inputs[0][chosen], data.labels[chosen])
        assert (G[i] - truth).norm() <= 1e-5 * truth.norm()


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_a_fixed_batch_gives_the_same_rows(batch_size: int) -> None:
    free, fixed = mlp_network(), mlp_network(batch=4)
    data = samples(free)
    a, b = (rows_of(net, data, rows=9, batch_size=batch_size) for net in (free, fixed))
    torch.testing.assert_close(torch.cat(list(a)), torch.cat(list(b)), rtol=1e-5, atol=1e-7)
    assert not b.vectorised


class Unvectorisable(nn.Module):
    """Boolean indexing, which vmap refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = self.fc(x).clone()
        return out + out[out > 0].sum() * 0.1


def test_networks_that_cannot_be_vectorised_fall_back_to_a_loop() -> None:
    network = ModuleNetwork(Unvectorisable(), torch.zeros(1, 12))
    data = samples(network, 8)
    stream = rows_of(network, data, rows=8, batch_size=1)
    G = torch.cat([block.clone() for block in stream])
    assert not stream.vectorised
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    truth = oracle(network, stream.layout, data.inputs[0][order[2:3]], data.labels[order[2:3]])
    assert (G[2] - truth).norm() <= 1e-5 * truth.norm()


def test_what_the_machine_lacks_is_no_reason_to_take_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    # PyTorch imports half of itself, and looks for a folder to write to, at the first vmap: on a full disk that fails.
    # One backward per row would do, with other last bits: the same job would not give the same bytes any more.
    def full(*_: object, **__: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    network = mlp_network()
    stream = rows_of(network, samples(network), rows=8, batch_size=1)
    monkeypatch.setattr("pruning_core.curvature.rows.vmap", full)
    with pytest.raises(FileNotFoundError):
        list(stream)


def test_blocks_stay_small_and_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    network = mlp_network()
    monkeypatch.setattr("pruning_core.curvature.rows.BLOCK_BYTES", 4 * 392 * 7)
    sizes = [len(block) for block in rows_of(network, samples(network), rows=64, batch_size=1)]
    assert sum(sizes) == 64
    assert max(sizes) == 7


def test_columns_are_the_rows_transposed_with_their_moments() -> None:
    network = mlp_network()
    stream = rows_of(network, samples(network), rows=50, batch_size=1)
    G = torch.cat([block.clone() for block in stream])
    columns = finish(collect_columns(stream))
    torch.testing.assert_close(columns.values, G.T)
    torch.testing.assert_close(columns.diagonal, G.square().mean(0))
    torch.testing.assert_close(columns.mean, G.mean(0))


def test_block_gram_is_the_block_diagonal_of_the_fisher() -> None:
    G = torch.randn(30, 18, generator=torch.Generator().manual_seed(0))
    gram = BlockGram((11, 7), 4, torch.device("cpu"))
    for part in G.split(11):
        gram.add(part)
    first, second = gram.mean()
    fisher = G.T @ G / 30
    assert first.shape == (2, 6, 6)
    assert second.shape == (1, 7, 7)
    torch.testing.assert_close(first[0], fisher[:6, :6])
    torch.testing.assert_close(first[1, :5, :5], fisher[6:11, 6:11])
    torch.testing.assert_close(second[0], fisher[11:, 11:])
    assert not first[1, 5:].any()
    assert BlockGram.bytes_needed((11, 7), 4) == 4 * (2 * 36 + 49)


def test_predict_fills_up_fixed_batches() -> None:
    free, fixed = mlp_network(), mlp_network(batch=4)
    x = torch.randn(10, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(predict(free, [x]), predict(fixed, [x]))


@pytest.mark.parametrize(
    ("output", "labels", "kind"),
    [
        (torch.zeros(5, 3), torch.zeros(5, dtype=torch.long), LossKind.CLASSES_LAST),
        (torch.zeros(5, 7, 3), torch.zeros(5, 7, dtype=torch.int32), LossKind.CLASSES_LAST),
        (torch.zeros(5, 3, 4, 4), torch.zeros(5, 4, 4, dtype=torch.long), LossKind.CLASSES_SECOND),
        (torch.zeros(5, 1), torch.zeros(5), LossKind.SQUARED_ERROR),
    ],
)
def test_the_loss_follows_shapes_and_types(output: Tensor, labels: Tensor, kind: LossKind) -> None:
    assert loss_kind(output, labels) is kind
    assert sample_losses(kind, output, labels).shape == (5,)


def test_token_losses_are_means_over_the_labelled_tokens() -> None:
    output = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1, -100, 2], [-100, -100, -100]])
    losses = sample_losses(LossKind.CLASSES_LAST, output, labels)
    assert losses[0] == pytest.approx(float(functional.cross_entropy(output[0, [0, 2]], labels[0, [0, 2]])))
    assert losses[1] == 0


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DatasetError, match="do not fit the model's output"):
        loss_kind(torch.zeros(5, 3), torch.zeros(5, 2, dtype=torch.long))
    network = mlp_network()
    data = Dataset(inputs=(torch.zeros(3, 12),), labels=torch.tensor([0, 1, 9]))
    with pytest.raises(DatasetError, match="out of range") as problem:
        resolve_labels(network, data, "auto", 0)
    assert problem.value.received == {"smallest": 0, "largest": 9}


def test_missing_labels_are_drawn_from_the_model_with_the_seed() -> None:
    network = mlp_network()
    data = samples(network, 400, labels=False)
    a, b, c = (resolve_labels(network, data, "auto", seed).values for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    chances = torch.softmax(network.run(data.inputs)[0], -1)
    torch.testing.assert_close(torch.bincount(a, minlength=4) / 400.0, chances.mean(0), atol=0.08, rtol=0)
    model = resolve_labels(network, data, "model", 0).values
    assert torch.equal(model, network.run(data.inputs)[0].argmax(-1))


def test_a_model_that_is_no_classifier_reconstructs_its_outputs() -> None:
    network = ModuleNetwork(nn.Sequential(nn.Linear(12, 1)), torch.zeros(1, 12))
    data = samples(network, 5, labels=False)
    labels = resolve_labels(network, data, "auto", 0)
    assert labels.kind is LossKind.RANDOM_SUM
    assert labels.origin == "reconstruction of the model's own outputs"
    with pytest.raises(DatasetError, match="does not look like a classifier") as problem:
        resolve_labels(network, data, "sampled", 0)
    assert "'output'" in str(problem.value.advice)


def test_features_whose_softmax_is_flat_are_no_classes() -> None:
    wide = ModuleNetwork(nn.Linear(12, 200), torch.zeros(1, 12))
    data = samples(wide, 40, labels=False)
    assert resolve_labels(wide, data, "auto", 0).kind is LossKind.RANDOM_SUM
    with torch.no_grad():
        wide.weights["weight"].mul_(100)
    assert resolve_labels(wide, data, "auto", 0).kind is LossKind.CLASSES_LAST


def test_output_rows_estimate_the_gauss_newton_matrix() -> None:
    network = mlp_network()
    data = samples(network, 40, labels=False)
    layout = Layout(network.layers)
    weights = {n: t.double() for n, t in network.weights.items()}

    def outputs(flat: Tensor) -> Tensor:
        parts = layout.split(flat)
        return functional_call(network.module, {**weights, **parts}, (data.inputs[0].double(),))

    flat = torch.cat([weights[name].reshape(-1) for name in layout.names])
    J = torch.func.jacrev(outputs)(flat)  # (samples, outputs, p)
    truth = torch.einsum("sop,soq->pq", J, J) / (J.shape[0] * J.shape[1])
    found, draws = torch.zeros_like(truth), 400
    for seed in range(draws):
        labels = resolve_labels(network, data, "output", seed)
        stream = GradientRows(network, layout, data, labels, rows=40, batch_size=1, seed=0)
        G = torch.cat([block.clone() for block in stream]).double()
        if seed == 0:  # one row exactly: zᵀJ/√o of its sample
            order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
            row = labels.values[order[3]].double() @ J[order[3]] / J.shape[1] ** 0.5
            assert (G[3] - row).norm() <= 1e-5 * row.norm()
        found += G.T @ G / (40 * draws)
    assert (found - truth).norm() <= 0.05 * truth.norm()


def test_squared_error_rows() -> None:
    network = ModuleNetwork(nn.Sequential(nn.Linear(3, 1, bias=False)), torch.zeros(1, 3))
    x, y = torch.randn(6, 3), torch.randn(6)
    stream = rows_of(network, Dataset(inputs=(x,), labels=y), rows=6, batch_size=1, seed=0)
    G = torch.cat([block.clone() for block in stream])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    w = network.weights["0.weight"]
    truth = 2 * (x @ w.T - y[:, None]) * x
    torch.testing.assert_close(G, truth[order], rtol=1e-4, atol=1e-6)
