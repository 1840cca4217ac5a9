"""What stands in docs/after-pruning.md, run on the files of a real job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning_core import read_masks, read_model
from tests.documents import DOCS, Snippet, run, snippets
from tests.jobs.inputs import digits
from tests.worker.finished import finish

PAGE = DOCS / "after-pruning.md"
RECIPE = {"select": {"algorithm": "magnitude", "sparsity": [0.5, 0.8]}}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    folder = tmp_path_factory.mktemp("job")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    batch = torch.export.Dim("batch", min=2, max=512)
    program = torch.export.export(module, (torch.randn(4, 784),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "net.pt2")
    shutil.copy(folder / "net.pt2", folder / "model")
    (folder / "calibration").write_bytes(digits(64))
    finish(folder, RECIPE)
    names = {
        "pruned-1": "net-pruned.pt2",
        "masks-1.safetensors": "masks.safetensors",
        "compact-1": "net-pruned.compact",
    }
    for made, name in {**names, "masks-0.safetensors": "other.safetensors"}.items():
        shutil.copy(folder / made, folder / name)
    return folder, module


def test_fine_tuning(job: tuple[Path, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, module = job
    monkeypatch.chdir(folder)
    batches: list[tuple[Tensor, Tensor]] = [(torch.randn(8, 784), torch.randint(0, 10, (8,))) for _ in range(5)]
    pruned = read_model("net-pruned.pt2").weights
    (shown,) = snippets(PAGE, "python")
    exec(compile(shown.code, str(shown), "exec"), {"module": module, "batches": batches})
    state = module.state_dict()
    for name, mask in read_masks("masks.safetensors").items():
        assert not state[name][~mask].any()
        assert not torch.equal(state[name], pruned[name]), "it was trained"


@pytest.mark.parametrize("shown", snippets(PAGE, "sh"), ids=("masks", "compact", "exports"))
def test_commands(job: tuple[Path, nn.Module], shown: Snippet) -> None:
    run([shown], job[0])
    if "diff" in shown.code:
        masked, pruned = (read_model(job[0] / name).weights for name in ("masked.pt2", "net-pruned.pt2"))
        assert all(torch.equal(masked[name], pruned[name]) for name in pruned), "magnitude pruning moves no weight"
