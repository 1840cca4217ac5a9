"""Files that look right from their first bytes and are not: what only an inspection can find."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from tests.formats import surgery
from tests.hostile import base, corpus, corpus_data, corpus_graphs


class Scaled(nn.Module):
    """A network whose only weight is in no linear or convolution layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * self.scale)


class Bomb:
    """Unpickles into a file: proof that code ran."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def exported(module: nn.Module, path: Path, *, train: bool = False) -> Path:
    """Export with inputs (N, 8), N dynamic."""
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(module.train(train), (torch.randn(4, 8),), dynamic_shapes=(batch,))
    torch.export.save(program, path)
    return path


def sound_model(path: Path) -> Path:
    torch.manual_seed(0)
    return exported(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), path)


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def pickled_weights(source: Path, folder: Path, marker: Path) -> bytes:
    """The model, with each weight's raw bytes replaced by a pickle that runs a command, and marked as one."""
    bomb = io.BytesIO()
    torch.save(Bomb(marker), bomb)

    def change(contents: dict[str, bytes]) -> None:
        def mark(document: dict[str, dict[str, dict[str, object]]]) -> None:
            for entry in document["config"].values():
                entry["use_pickle"] = True
                contents[f"data/weights/{entry['path_name']}"] = bomb.getvalue()

        surgery.edit_json(contents, surgery.WEIGHTS, mark)

    return surgery.edited(source, folder / "pickled.pt2", change).read_bytes()


def bad_models(folder: Path, marker: Path) -> dict[str, tuple[bytes, str]]:
    """Name -> (bytes, the slug of the problem that the inspection must find)."""
    source = sound_model(folder / "sound.pt2")
    sound = source.read_bytes()
    mlp = {f"fc{n}.weight": torch.randn(shape) for n, shape in ((1, (40, 784)), (2, (20, 40)), (3, (10, 21)))}
    config = json.dumps({"architecture": "mlpnet-mnist"})
    return {
        "truncated.pt2": (sound[: len(sound) // 2], "invalid-model"),
        "pickled.pt2": (pickled_weights(source, folder, marker), "unsupported-model"),
        "elementwise.pt2": (exported(Scaled(), folder / "elementwise.pt2").read_bytes(), "nothing-to-prune"),
        "training.pt2": (
            exported(nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4)), folder / "t.pt2", train=True).read_bytes(),
            "unsupported-model",
        ),
        "shapes.safetensors": (save(mlp, {"config": config}), "invalid-model"),
        "code.pt2": (
            next(case.files[0] for case in corpus.code(marker) if "touch files" in case.name),
            "unsupported-model",
        ),
        "views.pt2": (corpus_graphs.writes_that_stay(5000), "unsupported-model"),
        "header.safetensors": ((10_000).to_bytes(8, "little") + b'{"x": {"dtype"', "invalid-model"),
    }


def bad_masks() -> dict[str, tuple[bytes, str]]:
    """Name -> (bytes, the slug of the problem that the inspection must find)."""
    sound = save({"0.weight": torch.ones(16, 8, dtype=torch.bool)})
    return {
        "numbers.safetensors": (save({"0.weight": torch.ones(16, 8)}), "invalid-mask"),
        "truncated.safetensors": (sound[:-5], "invalid-mask"),
        "nothing.safetensors": (save({}), "invalid-mask"),
        "bytes.safetensors": (sound[:-1] + b"\x07", "invalid-mask"),
    }


def bad_datasets() -> dict[str, tuple[bytes, str]]:
    """Name -> (bytes, the slug of the problem that the inspection must find)."""
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    sound = npz(x=x)
    poisoned = x.copy()
    poisoned[7, 3] = np.nan
    return {
        "nan.npz": (npz(x=poisoned), "invalid-dataset"),
        "truncated.npz": (sound[: len(sound) - 100], "invalid-dataset"),
        "bomb.npz": (next(case.files[0] for case in corpus_data.arrays() if case.name == "bombs"), "invalid-dataset"),
        "surrogate.safetensors": (
            base.safetensors(b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
            "invalid-dataset",
        ),
        "objects.npz": (npz(x=np.array([{"a": 1}], dtype=object)), "invalid-dataset"),
    }
