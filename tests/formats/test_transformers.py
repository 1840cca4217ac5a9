"""Folders of transformers: a folder, a zip of it, one file; what goes back is what came, with other weights."""

from __future__ import annotations

import json
import sys
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pruning_core.errors import ModelError, UnsupportedModel
from pruning_core.formats import hf_model, model_format, read_model, write_model
from tests.hostile import corpus_transformers
from worker import sandbox
from worker.work import prune


@cache
def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return BertForMaskedLM(BertConfig(vocab_size=31, max_position_embeddings=40, **sizes)).eval()


@cache
def vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=5, **sizes)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What save_pretrained writes, with a file more."""
    found = {}
    for name, make in (("bert", bert), ("vit", vit)):
        found[name] = tmp_path_factory.mktemp(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make().save_pretrained(found[name])
        (found[name] / "README.md").write_text("notes")
        assert (found[name] / "model.safetensors").is_file()
    return found


def zipped(folder: Path, target: Path, compression: int = zipfile.ZIP_STORED, root: str = "") -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, root + path.name)
    return target


def single(folder: Path, target: Path) -> Path:
    save_file(load_file(folder / "model.safetensors"), target, {"config": (folder / "config.json").read_text()})
    return target


def sharded(folder: Path, target: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    target.mkdir()
    names = sorted(tensors)
    for i, part in enumerate((names[:5], names[5:]), start=1):
        save_file({n: tensors[n] for n in part}, target / f"model-{i:05}-of-00002.safetensors", {"format": "pt"})
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    return target


def logits(module: nn.Module, *inputs: Tensor) -> Tensor:
    names = ("input_ids", "attention_mask") if len(inputs) == 2 else ("pixel_values",)
    with torch.no_grad():
        return module(**dict(zip(names, inputs, strict=True))).logits


def words() -> tuple[Tensor, Tensor]:
    mask = torch.ones(3, 8, dtype=torch.int64)
    mask[1, 5:] = 0
    return torch.randint(1, 31, (3, 8), generator=torch.Generator().manual_seed(0)), mask


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "transformers-folder": sharded,
    "transformers-zip": lambda folder, target: zipped(folder, target, zipfile.ZIP_DEFLATED, "mine/"),
    "transformers": single,
}


@pytest.mark.parametrize("form", FORMS)
def test_read_pruned_and_written_as_it_came(form: str, folders: dict[str, Path], tmp_path: Path) -> None:
    source = FORMS[form](folders["bert"], tmp_path / "source")
    assert model_format(source) == form
    network = read_model(source)
    assert [i.name for i in network.inputs] == ["input_ids", "attention_mask"]
    assert torch.allclose(network.run(words())[0], logits(bert(), *words()), atol=1e-5)
    tied = "bert.embeddings.word_embeddings.weight"
    assert tied in {layer.weight for layer in network.layers}
    pruned = {layer.weight: network.weights[layer.weight] * 0 for layer in network.layers}
    target = tmp_path / "target"
    write_model(network.with_weights(pruned), source, target)
    assert model_format(target) == form
    parts = tmp_path / "parts"
    if form == "transformers-zip":
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target) as new:
            assert new.testzip() is None
            assert [i.filename for i in old.infolist()] == [i.filename for i in new.infolist()]
            changed = [n for n in old.namelist() if old.read(n) != new.read(n)]
            assert changed == ["mine/model.safetensors"]
            new.extractall(parts)
        tensors = load_file(parts / "mine" / "model.safetensors")
    elif form == "transformers-folder":
        tensors = {k: t for part in target.glob("*.safetensors") for k, t in load_file(part).items()}
    else:
        tensors = load_file(target)
    before = load_file(folders["bert"] / "model.safetensors")
    assert tensors.keys() == before.keys()
    assert all(torch.equal(tensors[name], pruned.get(name, before[name])) for name in before)


def test_a_stored_zip_is_patched_and_a_job_prunes_it(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    zipped(folders["vit"], tmp_path / "model")
    pixels = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(read_model(tmp_path / "model").run([pixels])[0], logits(vit(), pixels), atol=1e-5)
    with (tmp_path / "calibration").open("wb") as file:
        np.savez(file, pixel_values=pixels.numpy())
    (tmp_path / "checkpoints").mkdir()
    recipe = {"select": {"algorithm": "wanda", "sparsity": 0.5}, "refine": {"algorithm": "snows", "window": 1}}
    prune(tmp_path, {"recipe": recipe, "device": "cpu"}, lambda _: None)
    with zipfile.ZipFile(tmp_path / "model") as old, zipfile.ZipFile(tmp_path / "pruned-0") as new:
        assert [n for n in old.namelist() if old.read(n) != new.read(n)] == ["model.safetensors"]
        new.extractall(tmp_path / "parts")
    from transformers import ViTForImageClassification

    again = ViTForImageClassification.from_pretrained(tmp_path / "parts", local_files_only=True).eval()
    assert torch.allclose(read_model(tmp_path / "pruned-0").run([pixels])[0], logits(again, pixels), atol=1e-5)
    kept = again.vit.state_dict()
    assert sum(int((t == 0).sum()) for n, t in kept.items() if t.dim() == 2) >= 896  # half of what the layers have


def test_built_and_exported_once_for_files_of_one_kind(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = []
    export = hf_model._exported
    monkeypatch.setattr(hf_model, "_exported", lambda *given: exports.append(1) or export(*given))
    monkeypatch.setattr(hf_model, "_last", None)
    network = read_model(folders["bert"])
    name = network.layers[0].weight
    write_model(network.with_weights({name: network.weights[name] * 2}), folders["bert"], tmp_path / "pruned")
    again = read_model(zipped(tmp_path / "pruned", tmp_path / "zip"))
    assert len(exports) == 1
    assert torch.equal(again.weights[name], network.weights[name] * 2)
    assert not torch.equal(again.run(words())[0], network.run(words())[0])
    # another setting under the same shapes is another graph, and other dtypes are others
    config = tmp_path / "pruned" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"}))
    assert not torch.equal(read_model(tmp_path / "pruned").run(words())[0], again.run(words())[0])
    tensors = load_file(tmp_path / "pruned" / "model.safetensors")
    save_file({n: t.double() for n, t in tensors.items()}, tmp_path / "pruned" / "model.safetensors")
    assert read_model(tmp_path / "pruned").run(words())[0].dtype == torch.float64
    assert len(exports) == 3


def test_where_transformers_is_not_installed_it_says_what_to_do(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf_model, "_last", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for form in FORMS:
        with pytest.raises(UnsupportedModel, match="transformers is not installed") as caught:
            read_model(FORMS[form](folders["bert"], tmp_path / form))
        assert "pip install 'pruning-service[hf]'" in (caught.value.advice or "")
        assert "torch.export.save" in (caught.value.advice or "")


def lying(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lying(lambda c: c.update(auto_map={"AutoModel": "code.Model"})), "points outside itself"),
        (lying(lambda c: c.update(quantization_config={"bits": 4})), "points outside itself"),
        (lying(lambda c: c.update(backbone="org/model")), "points outside itself"),
        (lying(lambda c: c.update(architectures=["os.system"])), "is not read"),
        (lying(lambda c: c.update(architectures=["BertForQuestionAnswering"])), "is not read"),
        (lying(lambda c: c.update(architectures=["ViTForImageClassification"])), "is not read"),
        (lying(lambda c: c.update(architectures=[])), "does not name one"),
        (lying(lambda c: c.update(model_type="../../x")), "is not read"),
        (lying(lambda c: c.update(hidden_size=10**9)), "another shape|cannot build"),
        (lying(lambda c: c.update(hidden_size=32)), "another shape"),
        (lying(lambda c: c.update(num_hidden_layers=10**7)), "larger than the weights allow"),
        (lying(lambda c: c.update(num_hidden_layers=2)), "has no weight"),
        (lying(lambda c: c.update(vocab_size=10**12)), "larger than the weights allow"),
        (lying(lambda c: c.update(hidden_act="eval")), "cannot build"),
        (lying(lambda c: c.update(hidden_size="16")), "cannot build|another shape"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "never opened here"),
        (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors"),
        (lambda f: (f / "model.safetensors").rename(f / "model-00002-of-00003.safetensors"), "not complete"),
    ],
)
def test_folders_that_lie_are_refused(edit: Any, message: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in folders["bert"].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    edit(folder)
    for path in (folder, zipped(folder, tmp_path / "zip")):
        with pytest.raises((ModelError, UnsupportedModel), match=message):
            read_model(path)


def test_the_hostile_corpus_changes_what_is_sound(tmp_path: Path) -> None:
    for i, data in enumerate((corpus_transformers.folder(), corpus_transformers.single(corpus_transformers.config()))):
        (tmp_path / str(i)).write_bytes(data)
        assert len(read_model(tmp_path / str(i)).layers) == 7


def test_zips_that_lie_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    source = folders["bert"]
    bomb = tmp_path / "bomb"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(source / "config.json", "config.json")
        archive.writestr("model.safetensors", bytes(2**25))
    with pytest.raises(ModelError, match="grow too much"):
        read_model(bomb)
    for name in ("../model.safetensors", "/etc/model.safetensors"):
        with zipfile.ZipFile(bomb, "w") as archive:
            archive.write(source / "config.json", "config.json")
            archive.write(source / "model.safetensors", name)
        with pytest.raises(ModelError, match=r"not allowed|no model\.safetensors"):
            read_model(bomb)
    sound = zipped(source, tmp_path / "sound", zipfile.ZIP_DEFLATED).read_bytes()
    at = sound.index(b"PK\x01\x02", sound.index(b"PK\x01\x02") + 4)
    at = sound.index(b"PK\x01\x02", at + 4)
    (tmp_path / "lies").write_bytes(sound[: at + 24] + (10**6).to_bytes(4, "little") + sound[at + 28 :])
    with pytest.raises(ModelError, match=r"disagrees|another size"):
        read_model(tmp_path / "lies")


def test_the_sandbox_lets_transformers_work(folders: dict[str, Path], tmp_path: Path) -> None:
    zipped(folders["vit"], tmp_path / "model")
    limits = sandbox.Limits(memory_bytes=2**32, cpu_seconds=200, file_bytes=2**22, wall_seconds=200)
    found = sandbox.run("inspect_model", tmp_path, {}, limits=limits, on_progress=lambda _: None, stop=lambda: None)
    assert found.status == "ok", found
    assert found.value is not None
    assert found.value["format"] == "transformers-zip"
