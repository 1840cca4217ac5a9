"""A network that was read as data computes what the module computes: outputs, gradients, per-sample gradients."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from pruning_core.errors import ModelError
from pruning_core.formats import read_model
from pruning_core.network import Network, NodeFailed
from tests.formats import zoo
from tests.formats.conftest import Exported

#: Networks whose batch norm is an affine map here: the same up to rounding. All others: the same bits.
BATCH_NORM = {"cnn", "inplace_cnn", "depthwise"}
EVERY = [*zoo.ZOO]


def same(name: str, got: Tensor, wanted: Tensor) -> bool:
    if name in BATCH_NORM:
        return torch.allclose(got, wanted, rtol=1e-11, atol=1e-12)
    return torch.equal(got, wanted)


def losses(outputs: tuple[Tensor, ...]) -> Tensor:
    return sum((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in outputs)


def gradients(network: Network, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    leaves = {n: t.clone().requires_grad_() for n, t in network.weights.items() if t.is_floating_point()}
    found = torch.autograd.grad(losses(network.run(inputs, leaves)), [*leaves.values()], materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic", "static"])
@pytest.mark.parametrize("name", EVERY)
def test_outputs_and_gradients_equal_eager(name: str, dynamic: bool, exported: Exported) -> None:
    model = zoo.make(name)
    network = read_model(exported(name, dynamic))
    assert network.batch == (None if dynamic else model.inputs[0].shape[0])
    wanted = zoo.eager(model)
    got = network.run(model.inputs)
    assert len(got) == len(wanted)
    assert all(same(name, a, b) for a, b in zip(got, wanted, strict=True))

    losses(wanted).backward()
    found = gradients(network, model.inputs)
    parameters = dict(model.module.named_parameters())
    assert parameters.keys() <= found.keys()
    for key, parameter in parameters.items():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(found[key], expected, rtol=1e-11, atol=1e-12), key
    assert network.parameter_count == sum(p.numel() for p in parameters.values())


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("name", EVERY)
def test_a_dynamic_batch_may_have_any_size(name: str, batch: int, exported: Exported) -> None:
    model = zoo.make(name)
    index = torch.arange(batch) % model.inputs[0].shape[0]
    inputs = tuple(x[index] for x in model.inputs)
    with torch.no_grad():
        got, wanted = read_model(exported(name)).run(inputs), zoo.eager(model, inputs)
    assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-12) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_per_sample_gradients_by_vmap_equal_a_loop(name: str, exported: Exported) -> None:
    model = zoo.make(name)
    network = read_model(exported(name))
    chosen = {layer.weight: network.weights[layer.weight] for layer in network.layers}

    def loss(weights: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return losses(network.run([x.unsqueeze(0) for x in sample], weights))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vmap says where it falls back to a loop of its own
        rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, *(0 for _ in model.inputs)))(chosen, *model.inputs)
    for i in range(model.inputs[0].shape[0]):
        single = gradients(network, tuple(x[i : i + 1] for x in model.inputs))
        for key in chosen:
            assert torch.allclose(rows[key][i], single[key], rtol=1e-9, atol=1e-11), key


@pytest.mark.parametrize("name", ["mlp", "cnn", "vit", "bert", "decoder"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.func.jvp itself scripts its decompositions
def test_forward_mode_agrees_with_reverse_mode(name: str, exported: Exported) -> None:
    model = zoo.make(name)
    network = read_model(exported(name))
    primal = {layer.weight: network.weights[layer.weight] for layer in network.layers}
    generator = torch.Generator().manual_seed(1)
    tangent = {k: torch.randn(w.shape, generator=generator, dtype=w.dtype) for k, w in primal.items()}
    _, slope = torch.func.jvp(lambda w: losses(network.run(model.inputs, w)), (primal,), (tangent,))
    found = gradients(network, model.inputs)
    assert torch.allclose(slope, sum((found[k] * tangent[k]).sum() for k in primal), rtol=1e-9)


def test_eval_batch_norm_is_right_where_the_fused_backward_is_wrong(tmp_path) -> None:
    """Batch 1, gradient through flatten -> transpose: aten.batch_norm's eval backward is off by over 100 %."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.fc = torch.nn.Conv2d(3, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.bn(self.conv(x)).flatten(2).transpose(1, 2)).tanh()

    torch.manual_seed(0)
    model = zoo._model(Net(), torch.randn(1, 3, 8, 8))
    zoo.export(model, tmp_path / "net.pt2", dynamic=False)
    network = read_model(tmp_path / "net.pt2")
    x, step = model.inputs[0], 1e-6
    found = gradients(network, (x,))["conv.weight"]
    direction = torch.randn_like(found)
    weight = network.weights["conv.weight"]
    up, down = (losses(network.run([x], {"conv.weight": weight + s * step * direction})) for s in (1, -1))
    assert (found * direction).sum().item() == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-6)


def test_running_never_writes_to_a_weight(exported: Exported) -> None:
    for name in ("inplace_cnn", "bert", "mlp"):
        network = read_model(exported(name))
        before = {key: tensor.clone() for key, tensor in network.weights.items()}
        network.run(zoo.make(name).inputs)
        assert all(torch.equal(before[key], network.weights[key]) for key in before)


def test_other_weights_and_wrong_ones(exported: Exported) -> None:
    network, model = read_model(exported("mlp")), zoo.make("mlp")
    zeros = {"fc3.weight": torch.zeros(4, 10, dtype=torch.float64)}
    assert network.run(model.inputs, zeros)[0].count_nonzero() == 0
    changed = network.with_weights(zeros)
    assert changed.run(model.inputs)[0].count_nonzero() == 0
    assert network.run(model.inputs)[0].count_nonzero() > 0
    assert changed.layers == network.layers
    with pytest.raises(ModelError, match="no weight 'fc9"):
        network.with_weights({"fc9.weight": zeros["fc3.weight"]})
    with pytest.raises(ModelError, match="another shape"):
        network.run(model.inputs, {"fc3.weight": torch.zeros(3, 10)})
    with pytest.raises(ModelError, match="another dtype"):
        network.with_weights({"fc3.weight": torch.zeros(4, 10)})


def test_inputs_that_do_not_fit_are_named(exported: Exported) -> None:
    network, x = read_model(exported("cnn")), zoo.make("cnn").inputs[0]
    with pytest.raises(ModelError, match="number of inputs"):
        network.run([x, x])
    with pytest.raises(ModelError, match="another dtype") as error:
        network.run([x.float()])
    assert error.value.problem()["expected"] == "torch.float64"
    with pytest.raises(ModelError, match="another shape") as error:
        network.run([x[:, :2]])
    assert error.value.expected == [None, 3, 12, 12]
    with pytest.raises(ModelError, match="another shape") as error:
        read_model(exported("cnn", False)).run([x[:2]])
    assert error.value.expected == [4, 3, 12, 12]


def test_an_operation_that_fails_is_named(exported: Exported) -> None:
    network = read_model(exported("bert"))
    ids, mask = zoo.make("bert").inputs
    with pytest.raises(NodeFailed, match=r"aten\.embedding") as failed:
        network.run([ids + 1000, mask])
    assert isinstance(failed.value, RuntimeError)
    assert "node" in failed.value.problem()


def test_moving_to_a_device_keeps_everything_else(exported: Exported) -> None:
    network, model = read_model(exported("decoder")), zoo.make("decoder")
    moved = network.to("cpu")
    assert moved.device == torch.device("cpu")
    assert torch.equal(moved.run(model.inputs)[0], network.run(model.inputs)[0])
