"""`prune`: the conformance suite over the registry, and what the report says."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from pruning_core.algorithms import REGISTRY, describe
from pruning_core.algorithms.__main__ import main
from pruning_core.calibration import Dataset
from pruning_core.errors import Diverged, LimitExceeded, ModelError, NothingToPrune
from pruning_core.patterns import kept_count
from pruning_core.pipeline import Pruned, finish, planned_layers, prune
from pruning_core.recipe import Recipe
from tests.core.fakes import ModuleNetwork, cnn_network, mlp, mlp_network, samples

VARIANTS = [
    ("magnitude", {}),
    ("chita", {"structure": "block", "block_size": 64}),
    ("chita", {"structure": "global", "samples": 40}),
    ("chita", {"structure": "global", "first_order": True, "batch_size": 4, "ridge": 0.1}),
]


def recipe(algorithm: str = "chita", sparsity: float = 0.7, *, seed: int = 0, **select: object) -> Recipe:
    return Recipe.parse({"select": {"algorithm": algorithm, "sparsity": sparsity, **select}, "seed": seed})


def run(network: ModuleNetwork, *, labels: bool = True, **options: object) -> Pruned:
    return finish(prune(network, samples(network, labels=labels), recipe(**options)))


def test_every_algorithm_has_a_variant_here() -> None:
    assert {name for name, _ in VARIANTS} == set(REGISTRY)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("make", [mlp_network, cnn_network])
@pytest.mark.parametrize(("algorithm", "options"), VARIANTS)
def test_conformance(algorithm: str, options: dict[str, object], make: Callable[[], ModuleNetwork], scope: str) -> None:
    network = make()
    before = {name: t.clone() for name, t in network.weights.items()}
    pattern = {"type": "unstructured", "scope": scope}
    pruned = run(network, algorithm=algorithm, pattern=pattern, **options)
    report = pruned.report
    # The exact pattern, in the masks and in the weights.
    sizes = [t.numel() for t in pruned.masks.values()]
    kept = [int(m.sum()) for m in pruned.masks.values()]
    if scope == "global":
        assert sum(kept) == kept_count(sum(sizes), 0.7)
    else:
        assert kept == [kept_count(size, 0.7) for size in sizes]
    assert report.pattern_holds
    zeros = sum(int((pruned.network.weights[name] == 0).sum()) for name in pruned.masks)
    assert report.sparsity == zeros / sum(sizes)
    assert all(not pruned.network.weights[name][~mask].any() for name, mask in pruned.masks.items())
    # Untouched tensors are bit-identical, and the given network has not changed.
    for name, tensor in before.items():
        assert torch.equal(network.weights[name], tensor)
        if name not in pruned.masks:
            assert torch.equal(pruned.network.weights[name], tensor)
    # The same bytes again.
    again = run(make(), algorithm=algorithm, pattern=pattern, **options)
    for name in pruned.masks:
        assert torch.equal(pruned.network.weights[name], again.network.weights[name])
        assert torch.equal(pruned.masks[name], again.masks[name])
    if algorithm != "magnitude":
        assert report.objective["end"] <= report.objective["start"]


@pytest.mark.parametrize(("algorithm", "options"), VARIANTS)
def test_zero_sparsity_is_the_identity(algorithm: str, options: dict[str, object]) -> None:
    network = cnn_network()
    pruned = run(network, algorithm=algorithm, sparsity=0, **options)
    assert all(torch.equal(pruned.network.weights[name], t) for name, t in network.weights.items())
    assert all(mask.all() for mask in pruned.masks.values())
    assert pruned.report.sparsity == 0


def test_magnitude_keeps_the_largest_as_they_are() -> None:
    network = mlp_network()
    pruned = run(network, algorithm="magnitude")
    flat = torch.cat([network.weights[name].abs().flatten() for name in pruned.masks])
    mask = torch.cat([m.flatten() for m in pruned.masks.values()])
    assert flat[mask].min() >= flat[~mask].max()
    assert all(
        torch.equal(pruned.network.weights[name][m], network.weights[name][m]) for name, m in pruned.masks.items()
    )


def test_weights_without_influence_go_first() -> None:
    network = mlp_network()
    network.weights["0.weight"][:, 3] = 100.0
    data = samples(network)
    data.inputs[0][:, 3] = 0.0  # a dead input: its weights have no gradient, whatever their size
    for options in ({"structure": "block"}, {"structure": "global"}):
        pruned = finish(prune(network, data, recipe(sparsity=0.3, **options)))
        assert not pruned.masks["0.weight"][:, 3].any()
        assert pruned.report.objective["start"] < 100


def test_weights_keep_their_type() -> None:
    network = ModuleNetwork(mlp().double(), torch.zeros(1, 12, dtype=torch.float64))
    x = torch.randn(40, 12, dtype=torch.float64)
    pruned = finish(prune(network, Dataset(inputs=(x,), labels=network.run([x])[0].argmax(1)), recipe()))
    assert pruned.network.weights["2.weight"].dtype == torch.float64


def test_progress_rises_to_one_and_stages_are_timed() -> None:
    network = mlp_network()
    steps = list(prune(network, samples(network), recipe(structure="global")))
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert list(dict.fromkeys(step.stage for step in steps)) == ["gradients", "select", "evaluate"]
    report = run(network, structure="global").report
    assert [stage.name for stage in report.stages] == ["gradients", "select", "evaluate"]
    assert all(stage.peak_memory_bytes for stage in report.stages)


def test_closing_cancels() -> None:
    network = mlp_network()
    steps = prune(network, samples(network), recipe())
    next(steps)
    runs = network.runs
    steps.close()
    assert network.runs == runs
    with pytest.raises(StopIteration):
        next(steps)


def test_report_says_what_was_measured_and_chosen() -> None:
    network = mlp_network()
    data, validation = samples(network), samples(network, 40, seed=9)
    report = finish(prune(network, data, recipe(), validation=validation)).report
    assert report.data == "validation"
    assert report.dense.samples == report.pruned.samples == 40
    assert report.dense.accuracy is not None
    assert report.pruned.agreement is not None
    assert report.options["ridge"] > 0
    assert report.options["batch_size"] == 1
    assert report.options["samples"] == 64
    assert any("64 gradient rows" in note for note in report.notes)
    truth = network.run(validation.inputs)[0].argmax(-1) == validation.labels
    assert report.dense.accuracy == pytest.approx(float(truth.float().mean()))
    assert run(network).report.data == "calibration"


def test_unlabelled_data_works_and_has_no_accuracy() -> None:
    report = run(mlp_network(), labels=False).report
    assert report.dense.accuracy is None
    assert report.pruned.output_error is not None
    assert any("drawn from the model's own softmax" in note for note in report.notes)


def test_magnitude_doing_better_is_said() -> None:
    network = mlp_network()
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    wrong = Dataset(inputs=(x,), labels=(network.run([x])[0].argmin(-1)))
    right = Dataset(inputs=(x,), labels=(network.run([x])[0].argmax(-1)))
    bad = finish(prune(network, wrong, recipe(ridge=1e-6, structure="global", first_order=True), validation=right))
    assert bad.report.pruned.accuracy < bad.report.magnitude.accuracy
    assert any("Magnitude pruning does better" in note for note in bad.report.notes)


def test_layers_are_included_by_pattern() -> None:
    network = cnn_network()
    pruned = run(network, layers={"exclude": ["fc*"]})
    assert [layer.name for layer in pruned.report.layers] == ["conv1", "conv2"]
    assert pruned.report.excluded == ("fc1", "fc2")
    with pytest.raises(NothingToPrune, match="leaves no layer"):
        planned_layers(network, recipe(layers={"include": ["nothing"]}))


def test_bad_weights_and_gradients_are_refused() -> None:
    network = mlp_network()
    broken = network.with_weights({"2.weight": torch.full((10, 16), torch.nan)})
    with pytest.raises(ModelError, match="not finite"):
        finish(prune(broken, samples(network), recipe()))
    data = samples(network)
    data.inputs[0][:] *= 1e30
    for structure in ("block", "global"):
        with pytest.raises(Diverged):
            finish(prune(network, data, recipe(structure=structure)))


def test_what_does_not_fit_into_memory_is_refused_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pruning_core.algorithms.chita.available_bytes", lambda _: 1000)
    network = mlp_network()
    with pytest.raises(LimitExceeded) as problem:
        run(network, structure="global")
    assert "structure 'block'" in str(problem.value.advice)
    with pytest.raises(LimitExceeded) as problem:
        run(network, structure="block")
    assert "smaller block_size" in str(problem.value.advice)


def test_a_better_model_than_magnitude_on_an_overparametrised_net() -> None:
    torch.manual_seed(0)
    x = torch.randn(1200, 12)
    y = (x[:, :3] @ torch.randn(3, 4)).argmax(1)
    network = mlp_network()
    for p in network.module.parameters():
        p.requires_grad_()
    optimiser = torch.optim.Adam(network.module.parameters(), 0.02)
    for _ in range(200):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network.module(x[:800]), y[:800]).backward()
        optimiser.step()
    trained = ModuleNetwork(network.module, network.example)
    data, held_out = Dataset(inputs=(x[:800],), labels=y[:800]), Dataset(inputs=(x[800:],), labels=y[800:])
    for structure in ("block", "global"):
        report = finish(prune(trained, data, recipe(structure=structure), validation=held_out)).report
        assert report.pruned.loss < report.magnitude.loss


def test_catalogue_is_up_to_date_and_closed() -> None:
    assert main(["--check"]) == 0
    for entry in describe().values():
        assert entry["options"]["additionalProperties"] is False
        assert all("description" in field for field in entry["options"]["properties"].values())


DIGEST = "from tests.core.test_prune import digests; print(*digests())"


def digests() -> list[str]:
    found = []
    for structure in ("block", "global"):
        pruned = run(cnn_network(), structure=structure)
        parts = [t.numpy().tobytes() for t in pruned.network.weights.values()]
        found.append(hashlib.sha256(b"".join(parts)).hexdigest())
    return found


def test_a_fresh_process_gives_the_same_bytes() -> None:
    threads = str(torch.get_num_threads())
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    fresh = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, check=True, text=True)
    assert fresh.stdout.split() == digests()
