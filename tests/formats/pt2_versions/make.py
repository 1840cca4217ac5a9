"""Exports a few tiny nets with whatever torch runs it: the archives beside, packed in one zip for each version.

``python make.py export FOLDER`` writes the archives and ``outputs.json``, what this torch computes with them;
``python make.py load FOLDER`` prints what it computes with the archives there. It needs nothing but torch (2.4
or later), and no random numbers, so that every version makes the same nets. README.md has the rest.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch._higher_order_ops.wrap  # without it torch 2.4 to 2.6 cannot load their own files with a no_grad region
from torch import nn
from torch.nn import functional

Made = tuple[nn.Module, tuple[torch.Tensor, ...], Any]


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.max_pool2d(self.relu(self.bn1(self.conv1(x))), 2)
        x = self.relu(self.bn2(self.conv2(x)) + x[:, :, ::2, ::2])
        return self.fc(self.drop(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)))


class Tied(nn.Module):
    """Words in, words out, by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.inner = nn.Embedding(7, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 7, bias=False)
        self.decoder.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.words(ids))
        return self.decoder(x + functional.gelu(self.inner(x)))


class Constants(nn.Module):
    """A buffer that is saved and one that is not, a constant, a no_grad region and a write in place."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("scale", torch.arange(4.0) + 1)
        self.register_buffer("shift", torch.arange(4.0) - 2, persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            wave = torch.cos(self.scale * 0.5)
        x = self.fc1(x) * wave + self.shift
        x += torch.tensor([0.5, -0.5, 0.25, -0.25])
        return {"logits": self.fc2(torch.sigmoid(x)), "hidden": x}


class Dynamic(nn.Module):
    """Attention and arithmetic on sizes, for any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.fc = nn.Linear(4, 12), nn.Linear(4, 4), nn.Linear(12, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.reshape(x.shape[0], 3, 2, 2).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0] * 3, 4)
        return self.fc((x + self.out(y).view(-1, 3, 4)).view(x.shape[0], -1))


def floats(*shape: int) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32) * 0.7 + len(shape)).sin().reshape(shape)


def nets() -> dict[str, Made]:
    """Name -> module, inputs, dynamic shapes."""
    mlp = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    ids = torch.arange(6).reshape(2, 3)
    batch = torch.export.Dim("batch", min=1, max=64)
    found: dict[str, Any] = {
        "mlp": (mlp, (floats(2, 3),), None),
        "cnn": (Convolutional(), (floats(2, 1, 8, 8),), None),
        "tied": (Tied(), (ids,), None),
        "constants": (Constants(), (floats(2, 4),), None),
        "dynamic": (Dynamic(), (floats(2, 3, 4),), ({0: batch},)),
    }
    for module, _, _ in found.values():
        module.eval()
        with torch.no_grad():
            for i, parameter in enumerate(module.parameters()):
                parameter.copy_(floats(*parameter.shape).cos() * 0.5 + 0.01 * i)
            for name, buffer in module.named_buffers():
                if name.endswith("running_var"):
                    buffer.copy_(1.5 + floats(*buffer.shape))
                elif name.endswith("running_mean"):
                    buffer.copy_(0.3 * floats(*buffer.shape))
    return found


def export(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (module, inputs, shapes) in nets().items():
        torch.export.save(torch.export.export(module, inputs, dynamic_shapes=shapes), str(folder / f"{name}.pt2"))
    (folder / "outputs.json").write_text(json.dumps(computed(folder)))


def computed(folder: Path) -> dict[str, Any]:
    """What this torch computes with each archive; for one that it cannot load, why."""
    found: dict[str, Any] = {"torch": torch.__version__}
    for name, (_, inputs, _) in nets().items():
        try:
            result = torch.export.load(str(folder / f"{name}.pt2")).module()(*inputs)
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        tensors = [*result.values()] if isinstance(result, dict) else [result]
        found[name] = [tensor.detach().flatten().tolist() for tensor in tensors]
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    task, place = sys.argv[1], Path(sys.argv[2])
    if task == "export":
        export(place)
    else:
        print(json.dumps(computed(place)))
