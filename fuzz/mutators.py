"""Mutations that keep a file's frame sound, so that what is changed inside is reached: checksums, lengths, JSON."""

from __future__ import annotations

import io
import itertools
import json
import pickletools
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

Chance = random.Random
_GLOBALS = (
    *(b"os\nsystem", b"builtins\neval", b"builtins\nbytearray", b"torch\nSize", b"torch\nFloatStorage", b"torch\nload"),
    *(b"torch._utils\n_rebuild_tensor_v2", b"torch._utils\n_rebuild_parameter", b"collections\nOrderedDict"),
    *(b"torch\nHalfStorage", b"torch\nComplexDoubleStorage", b"torch\nBoolStorage", b"torch.nn.parameter\nParameter"),
)
Mutate = Callable[[bytes, Chance], bytes]

_NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 8, 64, 127, 128, 255, 256, 4096, 65535, 2**20, 2**28, 2**31 - 1, 2**31, 2**32, 2**40),
    *(2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, 1e-320),
)
_TEXTS = (
    *(
        "",
        "x",
        "..",
        "/",
        "\x00",
        "é",
        "\ud800",
        "\u202e",
        "a" * 300,
        "Infinity",
        "NaN",
        "-Infinity",
        "weight_0",
        "fc1",
    ),
    *("as_int", "as_tensor", "as_none", "as_ints", "as_name", "as_expr", "as_string", "as_sym_int", "as_tensors"),
    *("as_float", "as_bool", "as_graph", "as_scalar_type", "as_optional_tensors", "as_nested_tensors", "as_device"),
    *("F32", "BOOL", "U64", "I8", "F8_E5M2", "config", "x", "y", "labels", "*", "[a-z]", "mask", "2:4", "4x1"),
)


def bytewise(data: bytes, chance: Chance) -> bytes:
    """Change, insert, cut or repeat some bytes."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        at, kind = chance.randrange(len(out) + 1), chance.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 1 and out:
            out[at % len(out)] ^= 1 << chance.randrange(8)
        elif kind == 2:
            out[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 3:
            del out[at : at + chance.choice((1, 2, 4, 30, len(out)))]
        elif kind == 4:
            out[at:at] = out[at : at + chance.randrange(1, 60)]
        else:
            width = chance.choice((2, 4, 8))
            number = int(chance.choice([n for n in _NUMBERS if isinstance(n, int)])) % 256**width
            out[at : at + width] = number.to_bytes(width, "little")
    return bytes(out)


def document(data: bytes, chance: Chance, words: tuple[str, ...] = ()) -> bytes:
    """Change a JSON document somewhere inside; what is no JSON changes bytewise."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return bytewise(data, chance)
    holder = {"": value}
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        try:
            _change(holder, chance, words)
        except RecursionError:
            break
    try:
        return json.dumps(holder[""], separators=(",", ":")).encode()
    except (RecursionError, ValueError):
        return data


def _places(value: Any, found: list[tuple[Any, Any]]) -> None:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found.append((value, key))
        if isinstance(item, dict | list):
            _places(item, found)


def _change(holder: dict[str, Any], chance: Chance, words: tuple[str, ...]) -> None:
    places: list[tuple[Any, Any]] = []
    _places(holder, places)
    parent, key = chance.choice(places)
    other, at = chance.choice(places)
    kind = chance.randrange(12)
    if kind <= 2:
        parent[key] = _value(parent[key], chance, words)
    elif kind <= 4:
        parent[key] = json.loads(json.dumps(other[at]))
    elif kind == 5 and key != "":
        del parent[key]
    elif kind == 6 and isinstance(parent, list):
        parent.insert(chance.randrange(len(parent) + 1), json.loads(json.dumps(parent[key])))
    elif kind == 7 and isinstance(parent, dict) and key != "":
        parent[chance.choice((*_TEXTS, *words, *map(str, parent)))] = parent.pop(key)
    elif kind == 8 and isinstance(parent, list):
        chance.shuffle(parent)
    elif kind == 9:
        inner: Any = parent[key]
        for _ in range(chance.choice((1, 2, 30, 400))):
            inner = [inner] if chance.random() < 0.5 else {chance.choice(("as_sym_int", "as_optional_tensor")): inner}
        parent[key] = inner
    elif kind == 10 and isinstance(parent[key], list) and parent[key]:
        parent[key] = parent[key] * chance.choice((2, 3, 40))
    else:
        same = [(p, k) for p, k in places if isinstance(p[k], str)]
        if same:
            (a, i), (b, j) = chance.choice(same), chance.choice(same)
            a[i] = b[j]


def _value(old: Any, chance: Chance, words: tuple[str, ...]) -> Any:
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float) and chance.random() < 0.4:
        return old + chance.choice((-1, 1, 2, -2))
    if isinstance(old, str) and words and chance.random() < 0.6:
        return chance.choice(words)
    return chance.choice(
        (
            *(chance.choice(_NUMBERS), chance.choice(_NUMBERS), chance.choice(_TEXTS), chance.choice(_TEXTS)),
            *(None, True, False, [], {}, [[]], {"as_int": chance.choice(_NUMBERS)}, {"as_none": True}),
        )
    )


def pickled(data: bytes, chance: Chance) -> bytes:
    """Change a pickle by its operations: drop, repeat or swap some, put in other numbers, names or calls."""
    try:
        found = [(operation.name, at) for operation, _, at in pickletools.genops(data)]
    except Exception:  # what is no pickle any more raises anything
        return bytewise(data, chance)
    places = [at for _, at in found] + [len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(places)]
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at, kind = chance.randrange(len(parts)), chance.randrange(7)
        numbers = [i for i, part in enumerate(parts) if part[:1] in (b"K", b"M", b"J")]
        names = [i for i, part in enumerate(parts) if part[:1] == b"c"]
        if kind == 0 and len(parts) > 1:
            del parts[at]
        elif kind == 1:
            parts[at:at] = parts[at : at + chance.randrange(1, 9)]
        elif kind == 2:
            other = chance.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3 and names:
            parts[chance.choice(names)] = b"c" + chance.choice(_GLOBALS) + b"\n"
        elif kind == 4:
            parts[at:at] = [
                chance.choice((b"]", b"}", b")", b"(", b"t", b"\x85", b"R", b"b", b"Q", b"0", b"2", b"N", b"."))
            ]
        elif numbers:
            number = int(chance.choice([n for n in _NUMBERS if isinstance(n, int)])) % 2**64
            short = b"J" + (number % 2**32).to_bytes(4, "little")
            parts[chance.choice(numbers)] = (
                short if chance.random() < 0.6 else b"\x8a\x08" + number.to_bytes(8, "little")
            )
    return b"".join(parts)


def framed(data: bytes, chance: Chance, words: tuple[str, ...] = ()) -> bytes:
    """Change the header of a safetensors file, or its numbers, and set the length right."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 9 or length > len(data) - 8:
        return bytewise(data, chance)
    header, body = data[8 : 8 + length], data[8 + length :]
    if chance.random() < 0.8:
        header = document(header, chance, words)
    else:
        body = bytewise(body, chance)
    if chance.random() < 0.3:
        body = (body + bytes(64))[: chance.choice((0, 8, len(body), max(0, len(body) - 4), len(body) + 4))]
    return len(header).to_bytes(8, "little") + header + body


def npy(data: bytes, chance: Chance) -> bytes:
    """Change the header of an npy array and set its length right, or the whole bytewise."""
    if not data.startswith(b"\x93NUMPY\x01") or chance.random() < 0.2:
        return bytewise(data, chance)
    length = int.from_bytes(data[8:10], "little")
    text, body = data[10 : 10 + length].decode("latin-1"), data[10 + length :]
    swaps = (
        (r"'[<>|=]?[a-z]\d'", chance.choice(("'<f4'", "'>i8'", "'|O'", "'|b1'", "'<u2'", "'<M8'", "'=f2'", "'|V8'"))),
        (
            r"\(.*\)",
            chance.choice(("()", "(0,)", "(3,)", "(-1,)", "(4, 3)", "(99999999999999, 9)", "(1,)*9", "((1,),)")),
        ),
        (r"True|False", chance.choice(("True", "False", "None"))),
        (r"'shape'", chance.choice(("'descr'", "'x'", "'shape': (1,), 'shape'"))),
    )
    pattern, new = chance.choice(swaps)
    head = re.sub(pattern, new, text, count=1).encode("latin-1")
    if chance.random() < 0.3:
        head = bytewise(head, chance)[:65000]
    return data[:8] + len(head).to_bytes(2, "little") + head + body


def zipped(
    data: bytes,
    chance: Chance,
    inside: Callable[[str, bytes, Chance], bytes],
    *,
    deflate: bool,
    first: str = ".json",
) -> bytes:
    """Change one member of a zip archive and write it again with sizes and checksums that are right, or nearly.

    Mostly one whose name ends with ``first``.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()[:60]]
    except (
        OSError,
        ValueError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        zlib.error,
        EOFError,
        OverflowError,
    ):
        return bytewise(data, chance)
    except struct.error:
        return bytewise(data, chance)
    if not members:
        return bytewise(data, chance)
    at, kind = chance.randrange(len(members)), chance.random()
    name, content = members[at]
    if kind < 0.84:
        documents = [i for i, (each, _) in enumerate(members) if each.endswith(first)]
        if documents and chance.random() < 0.8:
            at = chance.choice(documents)
            name, content = members[at]
        members[at] = (name, inside(name, content, chance))
    elif kind < 0.88:
        del members[at]
    elif kind < 0.92:
        members.append((members[at][0], content))
    else:
        new = chance.choice(
            ("../x", "/etc/x", "a\\b", "é", "\u202ex", name.upper(), name + "/", name + "0", "x" * 70_0)
        )
        members[at] = (new, content)
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(out, "w") as archive:
            for each, content in members:
                method = zipfile.ZIP_DEFLATED if deflate and chance.random() < 0.5 else zipfile.ZIP_STORED
                info = zipfile.ZipInfo(each or "x")
                info.compress_type = method
                archive.writestr(info, content)
    except (ValueError, UnicodeEncodeError, OSError, RuntimeError, struct.error):
        return bytewise(data, chance)
    result = out.getvalue()
    return bytewise(result, chance) if chance.random() < 0.1 else result
