"""Small networks of every kind that is supported, with random weights: what to export, and on which inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional


class Model(NamedTuple):
    module: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic_shapes: Any


def _model(module: nn.Module, *inputs: Tensor) -> Model:
    """Eval mode, float64 (so that equal means equal), batch norm statistics that are not trivial."""
    module = module.double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.3)
            part.running_var.uniform_(0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, 0, 0.3)
    inputs = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    return Model(module, inputs, tuple({0: Dim("batch", min=1, max=64)} for _ in inputs))


class Residual(nn.Module):
    def __init__(self, channels: int, stride: int = 1, inplace: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels * stride, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels * stride)
        self.conv2 = nn.Conv2d(channels * stride, channels * stride, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels * stride)
        self.relu = nn.ReLU(inplace=inplace)
        self.inplace = inplace
        self.downsample = nn.Sequential()
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, channels * stride, 1, stride, bias=False), nn.BatchNorm2d(channels * stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.inplace:
            y += self.downsample(x)
        else:
            y = y + self.downsample(x)
        return self.relu(y)


class Convolutional(nn.Module):
    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=inplace))
        self.blocks = nn.Sequential(Residual(8, inplace=inplace), Residual(8, 2, inplace=inplace))
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.adaptive_avg_pool2d(self.blocks(functional.max_pool2d(self.stem(x), 2)), 1)
        return self.fc(self.drop(torch.flatten(x, 1)))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.Hardswish(),
            nn.Conv2d(8, 8, 3, 1, padding="same", groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.Conv2d(8, 16, 1),
            nn.ReLU6(),
            nn.AvgPool2d(2),
        )
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 10, width))
        self.block = Block(width, 2)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = self.norm(self.block(x))
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0])


class Encoder(nn.Module):
    """BERT-like: token and position embeddings, padding mask, output matrix tied to the token embedding."""

    def __init__(self, words: int = 23, width: int = 12, length: int = 9) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(words, width, padding_idx=0), nn.Embedding(length, width)
        self.register_buffer("ids", torch.arange(length).expand(1, -1), persistent=False)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList([Block(width, 3), Block(width, 3)])
        self.decoder = nn.Linear(width, words)
        self.decoder.weight = self.words.weight

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(ids) + self.positions(self.ids[:, : ids.shape[1]]))
        bias = mask[:, None, None, :].to(x.dtype).sub(1.0).mul(1e4)
        for block in self.blocks:
            x = block(x, bias)
        return self.decoder(x)


class Decoder(nn.Module):
    """GPT-like: causal attention, rotary angles computed under no_grad, output tied to the embedding."""

    def __init__(self, words: int = 19, width: int = 12) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.blocks = nn.ModuleList([Block(width, 2, causal=True), Block(width, 2, causal=True)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            angle = torch.arange(ids.shape[1])[:, None] * torch.logspace(0, -1, 12).to(torch.float64)
            wave = angle.cos()
        x = self.words(ids) * wave
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(12, 10), nn.Linear(10, 10), nn.Linear(10, 4, bias=False)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.fc2(torch.relu(self.fc2(torch.relu(self.fc1(x)))))  # fc2 twice
        return {"logits": self.fc3(x), "hidden": x}


def mlp() -> Model:
    return _model(Perceptron(), torch.randn(4, 12))


def cnn() -> Model:
    return _model(Convolutional(), torch.randn(4, 3, 12, 12))


def inplace_cnn() -> Model:
    return _model(Convolutional(inplace=True), torch.randn(4, 3, 12, 12))


def depthwise() -> Model:
    return _model(Depthwise(), torch.randn(4, 3, 12, 12))


def vit() -> Model:
    return _model(VisionTransformer(), torch.randn(4, 3, 12, 12))


def bert() -> Model:
    mask = torch.ones(4, 7, dtype=torch.int64)
    mask[1, 5:] = 0
    return _model(Encoder(), torch.randint(1, 23, (4, 7)), mask)


def decoder() -> Model:
    return _model(Decoder(), torch.randint(0, 19, (4, 6)))


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model(input_ids=ids, attention_mask=mask).logits


def transformers_bert() -> Model:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=31,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
    )
    mask = torch.ones(3, 8, dtype=torch.int64)
    mask[2, 6:] = 0
    return _model(_Logits(BertForMaskedLM(config)), torch.randint(1, 31, (3, 8)), mask)


def transformers_gpt2() -> Model:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=31, n_embd=16, n_layer=2, n_head=2, n_positions=12, use_cache=False)
    return _model(_Logits(GPT2LMHeadModel(config)), torch.randint(1, 31, (3, 8)), torch.ones(3, 8, dtype=torch.int64))


ZOO: dict[str, Callable[[], Model]] = {
    make.__name__: make
    for make in (mlp, cnn, inplace_cnn, depthwise, vit, bert, decoder, transformers_bert, transformers_gpt2)
}


def make(name: str) -> Model:
    """The same network with the same weights each time."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return ZOO[name]()


def export(model: Model, path: Path, *, dynamic: bool = True) -> torch.export.ExportedProgram:
    """Write the model with torch.export, as a user does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            model.module, model.inputs, dynamic_shapes=model.dynamic_shapes if dynamic else None
        )
        torch.export.save(program, path)
    return program


def load(path: Path) -> torch.export.ExportedProgram:
    """Read a file of our own making with plain torch.export.load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path)


def eager(model: Model, inputs: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
    """The module's flat tensor outputs."""
    result = model.module(*(inputs or model.inputs))
    return tuple(result.values()) if isinstance(result, dict) else (result,)
