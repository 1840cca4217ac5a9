"""Hand-written networks for the zoo: one for each construction that a reader could trip over."""

# ruff: noqa: D102 - what a forward pass returns, its class says
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.formats import zoo

Made = tuple[nn.Module, tuple[Tensor, ...]]


class UNet(nn.Module):
    """Down, up by transposed convolution, skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, 2), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu_(self.down1(x))
        up = functional.interpolate(self.up(self.down2(first).relu()), scale_factor=1.0, mode="nearest")
        return self.out(torch.cat([first, up], 1))


class Recurrent(nn.Module):
    """An embedding, a recurrent layer, a head on the last state."""

    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.body = kind(12, 10, batch_first=True, **options)
        self.head = nn.Linear(20 if options.get("bidirectional") else 10, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.words(ids))[0][:, -1])


class Buffered(nn.Module):
    """Writes into slices of a tensor of its own, as detection and audio code does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        out = torch.zeros_like(y)
        out[:, :4] = y[:, 4:]
        out[:, 4:].add_(y[:, :4])
        out[:, 0].mul_(2.0)
        out[:, 1].fill_(1.0)
        return self.fc2(out)


class Written(nn.Module):
    """index_put_, masked_fill_, copy_ and in-place arithmetic on views."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        z = y.clone()
        z[:, torch.tensor([0, 2])] = 0.5
        z.view(-1, 2, 4)[:, 0].copy_(y[:, :4] * 2)
        z.masked_fill_(z > 1, 1.0)
        z += y
        z.clamp_(-2, 2)
        return self.fc2(z)


class Region(nn.Module):
    """A part without gradients, and a part under autocast."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self.fc1, self.fc2, self.autocast = nn.Linear(6, 8), nn.Linear(8, 4), autocast

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.abs().mean(1, keepdim=True) + 1
        if self.autocast:
            with torch.autocast("cpu", enabled=False):
                y = self.fc1(x / scale).float()
        else:
            y = self.fc1(x / scale)
        return self.fc2(y.tanh())


class HalfRegion(nn.Module):
    """Autocast to bfloat16 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = self.fc1(x).tanh()
        return self.fc2(y.float())


class Named(nn.Module):
    """Takes a dictionary, returns a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(5, 8)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        both = self.left(batch["a"]) + self.right(batch["b"])
        return {"sum": both, "left": both.relu()}


class Bag(nn.Module):
    """Bags of words."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 8, mode="mean"), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bag(ids))


class Gated(nn.Module):
    """Mixture of two experts, each as one slice of a three-dimensional parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts, self.head = nn.Linear(6, 2), nn.Parameter(torch.randn(2, 6, 8) / 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        each = torch.einsum("ni,eio->neo", x, self.experts)
        return self.head((each * self.gate(x).softmax(-1)[..., None]).sum(1))


class Separable(nn.Module):
    """MobileNet-like: depthwise, pointwise, squeeze and excite."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True))
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.point, self.head = nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depth(self.stem(x))
        gate = functional.hardsigmoid(self.excite(functional.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(functional.adaptive_avg_pool2d(self.point(x * gate), 1).flatten(1))


class Wave(nn.Module):
    """One-dimensional convolutions, grouped, transposed, with group norm and GLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv1d(1, 8, 5, 2), nn.Conv1d(8, 16, 3, groups=4)
        self.norm, self.up, self.head = nn.GroupNorm(2, 8), nn.ConvTranspose1d(8, 4, 4, 2), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.glu(self.grouped(functional.gelu(self.norm(self.first(x)))), 1)
        return self.head(functional.leaky_relu_(self.up(x), 0.1).amax(-1))


def _weight_norm() -> nn.Module:
    conv = parametrizations.weight_norm(nn.Conv1d(2, 6, 3))
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(6 * 14, 4))


def _from_tests(name: str) -> Callable[[], Made]:
    def make() -> Made:
        model = zoo.make(name)
        return model.module, model.inputs

    return make


def _plain(module: Callable[[], nn.Module], *shape: int, words: int = 0) -> Callable[[], Made]:
    def make() -> Made:
        x = torch.randint(0, words, shape) if words else torch.randn(shape)
        return module().eval(), (x,)

    return make


def _dictionary() -> Made:
    return Named().eval(), ({"a": torch.randn(3, 6), "b": torch.randn(3, 5)},)  # type: ignore[return-value]


def _stack(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


FAMILIES: dict[str, Callable[[], Made]] = {
    "perceptron, one layer used twice": _from_tests("mlp"),
    "ResNet-like": _from_tests("cnn"),
    "ResNet-like, in place": _from_tests("inplace_cnn"),
    "depthwise CNN": _from_tests("depthwise"),
    "MobileNet-like": _plain(Separable, 3, 3, 16, 16),
    "UNet-like": _plain(UNet, 3, 3, 8, 8),
    "ViT-like": _from_tests("vit"),
    "BERT-like, tied": _from_tests("bert"),
    "GPT-like, tied": _from_tests("decoder"),
    "nn.TransformerEncoder": _plain(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2), 3, 5, 8
    ),
    "LSTM": _plain(lambda: Recurrent(nn.LSTM), 3, 7, words=20),
    "LSTM, two layers, both ways": _plain(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), 3, 7, words=20),
    "GRU": _plain(lambda: Recurrent(nn.GRU), 3, 7, words=20),
    "RNN": _plain(lambda: Recurrent(nn.RNN), 3, 7, words=20),
    "1-D grouped and transposed convolutions": _plain(Wave, 3, 1, 32),
    "3-D convolution": _plain(
        lambda: _stack(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)), 3, 2, 4, 4, 4
    ),
    "weight norm": _plain(_weight_norm, 3, 2, 16),
    "spectral norm": _plain(lambda: _stack(parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 3)), 3, 6),
    "writes to slices": _plain(Buffered, 3, 6),
    "writes through views": _plain(Written, 3, 6),
    "no_grad region": _plain(lambda: Region(False), 3, 6),
    "autocast region, off": _plain(lambda: Region(True), 3, 6),
    "autocast region, bfloat16": _plain(HalfRegion, 3, 6),
    "dictionary in, dictionary out": _dictionary,
    "bags of embeddings": _plain(Bag, 3, 7, words=20),
    "experts in one parameter": _plain(Gated, 3, 6),
    "PixelShuffle and PReLU": _plain(
        lambda: _stack(nn.Conv2d(3, 12, 3, padding=1), nn.PReLU(), nn.PixelShuffle(2), nn.Conv2d(3, 2, 3)), 3, 3, 6, 6
    ),
    "instance norm": _plain(lambda: _stack(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4), nn.Conv2d(4, 2, 1)), 3, 3, 8, 8),
    "dropout everywhere (eval)": _plain(
        lambda: _stack(nn.Dropout(), nn.Linear(6, 8), nn.AlphaDropout(), nn.ReLU(), nn.Dropout1d(), nn.Linear(8, 2)),
        3,
        6,
    ),
}
