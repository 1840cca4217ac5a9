"""Large networks on a GPU: wall time and peak memory of CHITA's block solver and of SNOWS at 2:4.

    python -m benchmarks.large [--networks mobilenet-v1 resnet-50 vit-b-16 vit-l-16] [--device cuda] [--images 256]

Weights and images are random: time and memory do not depend on their values, accuracy is not claimed. Each network is
built, exported, read from its archive as data, and pruned through `pruning_core.prune`, as a job would be. On a CPU,
``--small`` runs the same networks at a small width and 64×64 images; peak memory is then the whole process's so far.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from pruning_core.accounts import device_name
from pruning_core.calibration import Dataset
from pruning_core.formats import read_model
from pruning_core.network import Network
from pruning_core.pipeline import Pruned, finish, prune
from pruning_core.recipe import Recipe

RECIPES: dict[str, dict[str, Any]] = {
    "CHITA block, 80 %": {"select": {"algorithm": "chita", "structure": "block", "sparsity": 0.8, "samples": 256}},
    "SNOWS 2:4": {"select": {"algorithm": "magnitude", "pattern": "2:4"}, "refine": {"algorithm": "snows"}},
}


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*parts, *([nn.ReLU()] if act else []))


def mobilenet_v1(width: int = 32) -> nn.Module:
    """Howard et al. 2017: depthwise and pointwise convolutions by turns; 4.2 million weights at width 32."""
    plan = [(2, 1), (4, 2), (4, 1), (8, 2), (8, 1), (16, 2), *[(16, 1)] * 5, (32, 2), (32, 1)]
    layers, channels = [_conv(3, width, 3, 2)], width
    for factor, stride in plan:
        layers += [_conv(channels, channels, 3, stride, groups=channels), _conv(channels, factor * width, 1)]
        channels = factor * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class Bottleneck(nn.Module):
    """He et al. 2016: 1×1, 3×3, 1×1 with a shortcut."""

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * middle
        self.body = nn.Sequential(
            _conv(inputs, middle, 1), _conv(middle, middle, 3, stride), _conv(middle, outputs, 1, act=False)
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, 1, stride, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return relu(body + shortcut)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet_50(width: int = 64) -> nn.Module:
    """He et al. 2016; 25.6 million weights at width 64."""
    layers: list[nn.Module] = [_conv(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            middle = width * 2**stage
            layers.append(Bottleneck(channels, middle, 2 if stage and not block else 1))
            channels = 4 * middle
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values).logits
        return logits


def vit(hidden: int, layers: int, heads: int, size: int = 224) -> nn.Module:
    """Dosovitskiy et al. 2021 with 16×16 patches, as transformers builds it."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        image_size=size,
        num_labels=1000,
    )
    return _Logits(ViTForImageClassification(config))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "mobilenet-v1": (mobilenet_v1, lambda: mobilenet_v1(8)),
    "resnet-50": (resnet_50, lambda: resnet_50(8)),
    "vit-b-16": (lambda: vit(768, 12, 12), lambda: vit(48, 2, 4, 64)),
    "vit-l-16": (lambda: vit(1024, 24, 16), lambda: vit(64, 3, 4, 64)),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One job."""

    device: str
    network: str
    recipe: str
    weights: int
    images: int
    seconds: float
    peak_bytes: int
    stages: str


def exported(module: nn.Module, size: int) -> Network:
    """Return the network as a job sees it: written by torch.export, read as data."""
    example = torch.randn(2, 3, size, size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        program = torch.export.export(module.eval(), (example,), dynamic_shapes=({0: Dim("batch")},))
        torch.export.save(program, path)
        return read_model(path)


def job(name: str, recipe: str, device: torch.device, images: int, small: bool) -> Row:
    """Run one job and measure it."""
    torch.manual_seed(0)
    size = 64 if small else 224
    network = exported(NETWORKS[name][small](), size)
    data = Dataset(inputs=(torch.randn(images, 3, size, size),), labels=torch.randint(1000, (images,)))
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    pruned: Pruned = finish(prune(network, data, Recipe.parse(RECIPES[recipe]), device=device))
    seconds = time.perf_counter() - started
    stages = pruned.report.stages
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else stages[-1].peak_memory_bytes or 0
    return Row(
        device=device_name(device),
        network=name,
        recipe=recipe,
        weights=sum(mask.numel() for mask in pruned.masks.values()),
        images=images,
        seconds=seconds,
        peak_bytes=peak,
        stages=", ".join(f"{stage.name} {stage.seconds:.1f}" for stage in stages),
    )


def run(
    seeds: int = 1,
    *,
    networks: Sequence[str] = tuple(NETWORKS),
    recipes: Sequence[str] = tuple(RECIPES),
    device: str | None = None,
    images: int = 256,
    small: bool = False,
) -> list[Row]:
    """Run every job once: nothing here depends on the seed."""
    del seeds
    there = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rows = []
    for name in networks:
        for recipe in recipes:
            rows.append(job(name, recipe, there, images, small))
            print(rows[-1], flush=True)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """Return the table."""
    lines = [
        f"On {rows[0].device}.",
        "",
        "| network | recipe | prunable weights | images | wall s | peak memory MB | stages (s) |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.network} | {r.recipe} | {r.weights:,} | {r.images} | {r.seconds:.1f} | {r.peak_bytes / 2**20:,.0f} | "
        f"{r.stages} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=sorted(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--recipes", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--device")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--small", action="store_true", help="small widths, 64×64 images: for a CPU")
    arguments = parser.parse_args()
    print(markdown(run(**vars(arguments))))


if __name__ == "__main__":
    main()
