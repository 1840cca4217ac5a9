"""safetensors with a config: the trained networks of the assets, in all three forms."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from torch.nn import functional

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats import model_format, read_model, write_model
from pruning_core.formats.tensors import read_header

ASSETS = Path(os.environ.get("PRUNING_ASSETS", Path(__file__).resolve().parents[3] / "shared" / "assets"))
needs_assets = pytest.mark.skipif(
    not (ASSETS / "resnet20_cifar10.safetensors").is_file(),
    reason=f"the trained models are not at {ASSETS}; set PRUNING_ASSETS to their directory",
)
NAMES = {"mlpnet-mnist": "mlpnet_mnist", "resnet20-cifar10": "resnet20_cifar10"}


def weights(architecture: str) -> dict[str, Tensor]:
    return load_file(ASSETS / f"{NAMES[architecture]}.safetensors")


def config(architecture: str) -> str:
    return json.dumps({"architecture": architecture})


def as_file(folder: Path, tensors: dict[str, Tensor], config: str) -> Path:
    save_file(tensors, folder / "model.bin", metadata={"config": config})
    return folder / "model.bin"


def as_zip(folder: Path, tensors: dict[str, Tensor], config: str) -> Path:
    with zipfile.ZipFile(folder / "model.zip", "w") as archive:
        archive.writestr("config.json", config)
        archive.writestr("model.safetensors", save(tensors))
    return folder / "model.zip"


def as_folder(folder: Path, tensors: dict[str, Tensor], config: str) -> Path:
    (folder / "model").mkdir()
    save_file(tensors, folder / "model" / "model.safetensors")
    (folder / "model" / "config.json").write_text(config)
    return folder / "model"


FORMS = {"safetensors": as_file, "safetensors-zip": as_zip, "safetensors-folder": as_folder}


def plain_resnet20(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Written apart from the graph builder, with aten's own batch norm."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = (w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(x, *parts)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        return functional.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2)

    x = norm(conv(x, "conv1"), "bn1").relu()
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
            y = norm(conv(y, f"{name}.conv2"), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in w:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + y).relu()
    return functional.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1), w["fc.weight"], w["fc.bias"])


def plain_mlpnet(w: dict[str, Tensor], x: Tensor) -> Tensor:
    return (((x @ w["fc1.weight"].T).relu() @ w["fc2.weight"].T).relu()) @ w["fc3.weight"].T


PLAIN: dict[str, Callable[[dict[str, Tensor], Tensor], Tensor]] = {
    "mlpnet-mnist": plain_mlpnet,
    "resnet20-cifar10": plain_resnet20,
}


@needs_assets
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("architecture", NAMES)
def test_outputs_equal_a_plain_implementation_in_every_form(architecture: str, form: str, tmp_path: Path) -> None:
    tensors = {k: t.double() if t.is_floating_point() else t for k, t in weights(architecture).items()}
    path = FORMS[form](tmp_path, tensors, config(architecture))
    assert model_format(path) == form
    network = read_model(path)
    assert network.batch is None
    torch.manual_seed(0)
    x = torch.randn(5, *network.inputs[0].shape[1:], dtype=torch.float64)
    assert torch.allclose(network.run([x])[0], PLAIN[architecture](tensors, x), rtol=1e-11, atol=1e-12)


@needs_assets
def test_dense_accuracy(tmp_path: Path) -> None:
    data = np.load(ASSETS / "cifar10_test.npz")
    images = (torch.from_numpy(data["x"]).float() / 255 - 0.5) / 0.5
    resnet = read_model(as_file(tmp_path, weights("resnet20-cifar10"), config("resnet20-cifar10")))
    with torch.no_grad():
        right = resnet.run([images.permute(0, 3, 1, 2)])[0].argmax(1) == torch.from_numpy(data["y"])
    assert right.sum() == 770  # of 846: 91.0 %
    assert (len(resnet.layers), resnet.layers[0].name, resnet.layers[-1].name) == (22, "conv1", "fc")
    assert "layer2.0.downsample.0" in {layer.name for layer in resnet.layers}
    assert resnet.unprunable == {}

    data = np.load(ASSETS / "mnist_test.npz")
    images = (torch.from_numpy(data["x"]).float() / 255 - 0.1307) / 0.3081
    mlpnet = read_model(as_file(tmp_path, weights("mlpnet-mnist"), config("mlpnet-mnist")))
    with torch.no_grad():
        right = mlpnet.run([images.flatten(1)])[0].argmax(1) == torch.from_numpy(data["y"])
    assert 0.938 < right.float().mean() < 0.941
    assert mlpnet.parameter_count == 32360


def mlp_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {"fc1": (40, 784), "fc2": (20, 40), "fc3": (10, 20)}
    return {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("form", FORMS)
def test_a_pruned_model_is_written_in_its_own_form(form: str, tmp_path: Path) -> None:
    tensors = mlp_weights() | {"fc2.bias": torch.randn(20)}
    path = FORMS[form](tmp_path, tensors, config("mlpnet-mnist"))
    network = read_model(path)
    pruned = {k: torch.where(t > 0, t, 0.0) for k, t in tensors.items() if k != "fc2.bias"}
    target = tmp_path / "pruned"
    write_model(network.with_weights(pruned), path, target)
    assert model_format(target) == form
    again = read_model(target)
    assert all(torch.equal(again.weights[k], pruned.get(k, t)) for k, t in tensors.items())
    if form == "safetensors":
        assert all(torch.equal(t, again.weights[k]) for k, t in load_file(target).items())
    if form == "safetensors-zip":
        with zipfile.ZipFile(target) as archive:
            assert archive.testzip() is None
    write_model(network, path, tmp_path / "same")
    if path.is_file():
        assert (tmp_path / "same").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc3.weight"), "missing"),
        (lambda t: t.update({"fc2.weight": torch.zeros(20, 41)}), "another shape"),
        (lambda t: t.update({"fc4.weight": torch.zeros(2, 2)}), "no place for"),
        (lambda t: t.update({"fc2.weight": torch.zeros(20, 40, dtype=torch.float64)}), "one floating-point dtype"),
        (lambda t: t.update({"fc2.bias": torch.zeros(20, dtype=torch.bool)}), "bool"),
    ],
)
def test_weights_that_do_not_fit_the_architecture(change, message: str, tmp_path: Path) -> None:
    tensors = mlp_weights()
    change(tensors)
    with pytest.raises(ModelError, match=message):
        read_model(as_file(tmp_path, tensors, config("mlpnet-mnist")))


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"architecture": "vgg"}', "not built in"), ("{}", "not built in"), ("[1]", "object"), ("{", "JSON")],
)
def test_a_config_that_names_nothing_known(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        read_model(as_file(tmp_path, mlp_weights(), text))


def test_without_a_config_the_weights_say_what_they_are(tmp_path: Path) -> None:
    save_file(mlp_weights(), tmp_path / "m")
    network = read_model(tmp_path / "m")
    assert [layer.name for layer in network.layers] == ["fc1", "fc2", "fc3"]
    save_file(mlp_weights() | {"fc4.weight": torch.zeros(2, 2)}, tmp_path / "m")
    with pytest.raises(UnsupportedModel, match="which architecture") as error:
        read_model(tmp_path / "m")
    assert "no place for the weight 'fc4.weight'" in error.value.problem()["expected"]["mlpnet-mnist"]
    assert "metadata" in error.value.problem()["advice"]
    (tmp_path / "d").mkdir()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        read_model(tmp_path / "d")


@needs_assets
@pytest.mark.parametrize("name", NAMES.values())
def test_the_papers_checkpoints_are_read_as_they_are(name: str) -> None:
    assert read_model(ASSETS / f"{name}.safetensors").layers


def header(document: object, data: bytes = b"") -> memoryview:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return memoryview(len(text).to_bytes(8, "little") + text + data)


def tensor(first: int, last: int, shape: list[int] | None = None, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape or [last - first], "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (memoryview(b""), "longer than"),
        (memoryview((2**62).to_bytes(8, "little") + b"{}"), "longer than"),
        (header(b"{" * 100_000), "JSON|nests"),
        (header(b"[" * 100_000), "JSON|nests"),
        (header({"a": tensor(0, 4)}, b"123"), "beyond the end"),
        (header({"a": tensor(0, 3)}, b"1234"), "belong to no tensor"),
        (header({"a": tensor(0, 3), "b": tensor(2, 4)}, b"1234"), "one before it"),
        (header({"a": tensor(0, 2), "b": tensor(3, 4)}, b"1234"), "one before it"),
        (header({"a": tensor(0, 4, [10**12])}, b"1234"), "another size"),
        (header({"a": tensor(0, 4, [-2, -2])}, b"1234"), "another size"),
        (header({"a": tensor(-4, 0, [4])}, b"1234"), "one before it"),
        (header({"a": tensor(0, 4, [1], "F8_E4M3")}, b"1234"), "dtype"),
        (header({"a": {"dtype": "U8", "shape": [2**70], "data_offsets": [0, 4]}}, b"1234"), "64-bit"),
        (header({"a": {"dtype": "U8", "shape": [4]}}, b"1234"), "data_offsets"),
        (header({"a": 5}), "object"),
    ],
)
def test_a_header_that_lies_is_refused(data: memoryview, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_header(data)


@given(
    st.dictionaries(st.text(min_size=1, max_size=8), st.lists(st.integers(0, 4), max_size=3), max_size=5),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.uint8]),
    st.data(),
)
def test_the_header_means_what_the_library_says(shapes: dict[str, list[int]], dtype: torch.dtype, data) -> None:
    shapes.pop("__metadata__", None)
    raw = save({name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()})
    entries, _ = read_header(memoryview(raw))
    assert {name: list(entry.shape) for name, entry in entries.items()} == shapes
    assert all(entry.dtype == dtype for entry in entries.values())
    cut = data.draw(st.integers(0, len(raw) - 1))
    with pytest.raises((ModelError, UnsupportedModel)):
        read_header(memoryview(raw[:cut]))
    from safetensors.torch import load

    with pytest.raises((SafetensorError, ValueError)):
        load(raw[:cut])
