"""The hostile corpus, continued: models of transformers whose configuration, weights or folder lie."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.hostile import base
from tests.hostile.base import Contents, entry, patched, safetensors
from tests.hostile.case import Bomb, Case

_SIZES = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 6}
_SIZES |= {"vocab_size": 5, "max_position_embeddings": 8, "type_vocab_size": 2}


#: Values of a size with which the exporter is asked; its own code is not what the corpus is about.
_FINE: dict[str, tuple[Any, ...]] = {"num_hidden_layers": (True, 1, 0, -1), "num_attention_heads": (True, 1, -1)}


def config(**changes: Any) -> bytes:
    return json.dumps({"model_type": "bert", "architectures": ["BertModel"], **_SIZES, **changes}).encode()


def weights() -> bytes:
    """Those of a BERT of one layer, all zero."""
    shapes = {f"embeddings.{n}_embeddings": [k, 4] for n, k in (("word", 5), ("position", 8), ("token_type", 2))}
    linear = {f"attention.self.{name}": [4, 4] for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": [4, 4], "intermediate.dense": [6, 4], "output.dense": [4, 6]}
    layers = {f"encoder.layer.0.{name}": shape for name, shape in linear.items()} | {"pooler.dense": [4, 4]}
    found = {f"{name}.weight": shape for name, shape in {**shapes, **layers}.items()}
    found |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    norms = ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output")
    found |= {f"{name}.LayerNorm.{part}": [4] for name in norms for part in ("weight", "bias")}
    header, end = {}, 0
    for name, shape in found.items():
        size = 4 * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        header[name] = entry("F32", shape, end, end + size)
        end += size
    return safetensors(header, bytes(end))


def folder(changes: Contents | None = None, root: str = "", compression: int = zipfile.ZIP_STORED) -> bytes:
    """A sound zipped folder with other members, or more of them."""
    members = {"config.json": config(), "model.safetensors": weights(), **(changes or {})}
    return base.zipped({name: data for name, data in members.items() if data is not None}, root, compression)


def single(text: bytes) -> bytes:
    """The one-file form with a configuration."""
    length = int.from_bytes(weights()[:8], "little")
    header = json.loads(weights()[8 : 8 + length])
    return safetensors({**header, "__metadata__": {"config": text.decode()}}, weights()[8 + length :])


def _both(*configs: bytes) -> tuple[bytes, ...]:
    return tuple(file for text in configs for file in (folder({"config.json": text}), single(text)))


def models(marker: Path) -> Iterator[Case]:
    """Configurations that point elsewhere or ask for too much, and folders that are not what they seem."""
    bomb, code = pickle.dumps(Bomb(marker)), f"__import__('os').mkdir({str(marker)!r})"
    script = {"modeling.py": code.encode(), "configuration.py": code.encode()}
    elsewhere = ("../../etc/passwd", "org/model", "modeling.Bert", code)
    keys = ("auto_map", "custom_pipelines", "quantization_config", "backbone", "encoder", "decoder", "timm_config")
    pointing = [config(**{key: {"AutoModel": value}}) for key in keys for value in elsewhere[-2:]]
    pointing += [config(text_config={"auto_map": {"AutoConfig": value}}) for value in elsewhere]
    yield Case(
        name="configurations that point to code or other models",
        files=(*_both(*pointing), folder({"config.json": pointing[0], **script}, "mine/")),
        says="points outside itself",
    )
    named: tuple[Any, ...] = (
        *elsewhere,
        "os.system",
        "__class__",
        "AutoModel",
        "BertForQuestionAnswering",
        "",
        7,
        None,
    )
    yield Case(
        name="architectures that are none",
        files=_both(
            *(config(architectures=[name]) for name in (*named, {"a": 1}, ["BertModel"])),
            *(config(architectures=names) for names in (None, "BertModel", [], ["BertModel"] * 2, {"BertModel": 1})),
            *(config(model_type=name) for name in named if name != "AutoModel"),
        ),
        says="is not read|does not name one",
    )
    # The rest of these would be refused anyway, after all that is in them was looked at: a size is another.
    trusted = {"trust_remote_code": True, "_name_or_path": "../..", "name_or_path": "org/model", "hidden_size": 8}
    asked = ("_attn_implementation", "attn_implementation", "_experts_implementation", "torch_dtype", "dtype")
    yield Case(
        name="configurations that would trust",
        files=(
            folder({"config.json": config(**trusted), **script}),
            *_both(*(config(**{key: value}, hidden_size=8) for key in asked for value in elsewhere)),
            *_both(*(config(text_config={key: value}, hidden_size=8) for key in asked for value in elsewhere)),
        ),
        says="another shape",
    )
    numbers = (0, -1, 2**31 - 1, 10**9, 10**12, 2**63, 10**40, 1.5, "4", None, True, [4], {"a": 4})
    sizes = [config(**{key: number}) for key in _SIZES for number in numbers if number not in _FINE.get(key, (True, 1))]
    sizes += [config(num_labels=10**9), config(id2label={str(i): "x" for i in range(10**4)}, hidden_size=8)]
    sizes += [config(chunk_size_feed_forward=10**9, hidden_size=8), config(pruned_heads={"0": [0]}, hidden_size=8)]
    floats = (b"NaN", b"Infinity", b"1e999", b"-1e999", b"9" * 5000)
    sizes += [config(hidden_size=8, layer_norm_eps="?").replace(b'"?"', number) for number in floats]
    sizes += [config(hidden_act=name) for name in ("eval", "__class__", "", 7, None, ["gelu"], {"a": 1})]
    yield Case(name="configurations with absurd values", files=_both(*sizes))
    deep = [b"[" * 3000, b'{"a":' * 3000, b'{"model_type":' + b"[" * 900 + b"]" * 900 + b"}"]
    for depth in (100, 300, 480, 900):
        deep.append(config(hidden_size=8, a="?").replace(b'"?"', b'{"a":' * depth + b"1" + b"}" * depth))
        deep.append(config(hidden_size=8, a="?").replace(b'"?"', b"[" * depth + b"]" * depth))
    deep += [b'{"model_type": "bert", "\\ud800": 1}', b'{"model_type": "bert"}' * 2, b"", b"\xff\xfe", config() + b"x"]
    yield Case(name="configurations that nest or are none", files=tuple(folder({"config.json": text}) for text in deep))
    long = b'{"model_type": "bert", "x": "' + b"x" * 2**20 + b'"}'
    yield Case(name="configurations that are long", files=_both(long), says="too large|no config|does not name")
    yield Case(name="folders that are not what they seem", files=tuple(_folders(bomb)))


def _folders(bomb: bytes) -> Iterator[bytes]:
    def without(**members: bytes) -> bytes:
        return base.zipped({"config.json": config(), **{n.replace("__", "."): d for n, d in members.items()}}, "")

    for name in ("pytorch_model__bin", "model__pt", "model__pth", "model__ckpt", "tf_model__h5", "model__msgpack"):
        yield without(**{name: bomb})
        yield without(**{name: bomb, "model__safetensors": b"\xff" * 64})
    first, other = "model-00001-of-00002__safetensors", "model-00002-of-00002__safetensors"
    for place in ("../../etc/passwd", "/etc/passwd", "model.safetensors", "pytorch_model.bin", "http://x.invalid/x"):
        index = json.dumps({"metadata": {}, "weight_map": {"pooler.dense.weight": place}}).encode()
        yield without(model__safetensors__index__json=index)
        yield without(model__safetensors__index__json=index, **{first: weights()})
    yield without(**{first: weights(), other: weights()})
    for name in ("00001-of-99999", "00000-of-00001", "00002-of-00001", "99999-of-99999"):
        yield without(**{f"model-{name}__safetensors": weights()})
    for name in ("../model.safetensors", "/model.safetensors", "a/../model.safetensors", "MODEL.SAFETENSORS", "C:x"):
        yield folder({name: weights()})
    yield folder({"model.safetensors": safetensors({"x": entry("F32", [2**31, 2**31], 0, 48)}, bytes(48))})
    yield folder({"model.safetensors": weights()[:-4]})
    yield folder({"model.safetensors": weights() + bytes(4)})
    yield folder({"model.safetensors": b""})
    for name, data in (
        ("config.json", b" " * 2**24),
        ("model.safetensors", bytes(2**24)),
        ("config.json", bytes(10**6)),
    ):
        yield folder({name: data}, compression=zipfile.ZIP_DEFLATED)
    sound = folder(compression=zipfile.ZIP_DEFLATED)
    for at in base.central_entries(sound):
        for place, lie in ((10, b"\x08\0"), (10, b"\0\0"), (10, b"\x0c\0"), (16, bytes(4)), (24, b"\1\0\0\0")):
            if sound[at + place : at + place + len(lie)] != lie:
                yield patched(sound, at + place, lie)
        for size in (2**31 - 1, 2**32 - 1):
            yield patched(sound, at + 24, struct.pack("<L", size))
