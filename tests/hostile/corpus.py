"""The hostile corpus: what would run code. For every way to lie, here and beside, the smallest file that does it."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile import base
from tests.hostile.base import WEIGHTS, Contents, node, tensor
from tests.hostile.case import Bomb, Case


def code(marker: Path) -> Iterator[Case]:
    """The vectors of DESIGN section 4: what torch.export.load would run."""
    bomb, code = pickle.dumps(Bomb(marker)), f"__import__('os').mkdir({str(marker)!r})"

    def pickled(table: dict[str, Any]) -> None:
        table["config"]["0.weight"]["use_pickle"] = True

    def bombed(change: Callable[[dict[str, Any]], Any]) -> bytes:
        table = base.weights_table()
        change(table)
        return base.pt2(lambda m: m.update({WEIGHTS: json.dumps(table).encode(), "data/weights/weight_0": bomb}))

    def put(name: str, data: bytes = bomb) -> bytes:
        return base.pt2(lambda m: m.update({name: data}))

    def constant(members: Contents) -> None:
        found = {"c": {**base.weights_table()["config"]["0.bias"], "path_name": "tensor_0", "use_pickle": True}}
        members.update({base.CONSTANTS: json.dumps({"config": found}).encode(), "data/constants/tensor_0": bomb})

    def expressions(whole: dict[str, Any]) -> None:
        whole["guards_code"] = [code]
        whole["range_constraints"] = {code: {"min_val": 2, "max_val": None}}
        whole["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0] = {"as_expr": {"expr_str": code, "hint": None}}
        whole["graph_module"]["module_call_graph"] = [{"fqn": code}]
        whole["graph_module"]["metadata"] = {"nn_module_stack": code, "source_fn_stack": code}

    def target(name: str, **arguments: Any) -> bytes:
        return base.with_nodes(lambda nodes: nodes.insert(2, {**node("aten.x", "y", **arguments), "target": name}))

    text = {"as_string": "/etc/passwd"}
    yield Case(name="pickle in the table of weights", files=(bombed(pickled),), says="pickle")
    yield Case(name="pickle in the table of constants", files=(base.pt2(constant),), says="pickle")
    yield Case(name="pickle as sample inputs", files=(put("data/sample_inputs/model.pt"),), outcome="read")
    yield Case(name="pickle as an extra file", files=(put("extra/data.pkl"),), outcome="read")
    old = ("data/weights/model.pt", "data/constants/model.pt", "weights/model.pt", "constants.pkl")
    yield Case(name="weights in two forms", files=tuple(put(name) for name in old), says="two forms|not known")
    yield Case(name="custom objects", files=(put("data/constants/custom_obj_0"), put("data/constants/opaque_obj_0")))
    libraries = ("data/aotinductor/m/m.so", "data/aotinductor/m/m.cpp", "data/weights/x.so", "lib.dll", "x.pyd")
    elf = b"\x7fELF" + bytes(60)
    yield Case(name="shared library", files=tuple(put(name, elf) for name in libraries), says="compiled code|not known")
    yield Case(name="TorchScript", files=(put("code/__torch__.py", code.encode()), put("model.json", b"{}")))
    yield Case(name="expressions and guards", files=(base.with_graph(expressions),), outcome="read")
    yield Case(
        name="operations that touch files or code",
        files=(
            target("torch.ops.aten.from_file.default", filename=text, shared={"as_bool": True}, size={"as_int": 100}),
            target("torch.ops.load_library", path=text),
            target("torch.ops.aten.save.default", self=tensor("relu"), filename=text),
            *(
                target(name, a=text)
                for name in ("os.system", "builtins.eval", "_operator.methodcaller", "pickle.loads")
            ),
            target("torch.ops.higher_order.call_torchbind", obj={"as_custom_obj": {"name": "x", "class_fqn": "y"}}),
            target("torch.ops.aten.relu.__globals__", self=tensor("relu")),
            target("_operator.__builtins__", a=text),
        ),
        says="uses|as_custom_obj",
    )


def pickles(marker: Path) -> Iterator[Case]:
    """Files of torch.save: pickles that call, build, allocate or nest."""

    def put(table: bytes, **more: bytes) -> bytes:
        return base.zipped({"data.pkl": table, "version": b"3\n", "byteorder": b"little", "data/0": bytes(48), **more})

    def call(name: bytes, *arguments: bytes) -> bytes:
        return b"\x80\x02}X\x01\0\0\0xc" + name + b"\n(" + b"".join(arguments) + b"tRs."

    text, huge, size = str(marker).encode(), b"J\xff\xff\xff\x7f", b"K\x0c"
    made = b"X" + struct.pack("<L", len(text)) + text
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu%stQ"
    rebuild = b"torch._utils\n_rebuild_tensor_v2"
    rest = b"\x89ccollections\nOrderedDict\n)R"
    names = (
        b"os\nmkdir",
        b"posix\nmkdir",
        b"builtins\neval",
        b"builtins\nbytearray",
        b"_codecs\nencode",
        b"torch\nload",
    )
    yield Case(
        name="pickles that call",
        files=(
            put(pickle.dumps({"x": Bomb(marker)}, 2)),
            put(pickle.dumps({"x": Bomb(marker)}, 5)),
            *(put(call(name, made)) for name in names),
            put(call(b"builtins\nbytearray", huge)),
            put(call(b"torch\nTensor", huge)),
            put(call(b"torch._utils\n_rebuild_sparse_tensor", made)),
        ),
        says="more in it than tensors",
    )
    yield Case(
        name="pickles whose tensors claim too much",
        files=(
            put(call(rebuild, storage % huge, b"K\0", b"K\x0c\x85", b"K\1\x85", rest)),
            put(call(rebuild, storage % size, b"K\0", huge + b"\x85", b"K\1\x85", rest)),
            put(call(rebuild, storage % size, huge, b"K\x0c\x85", b"K\1\x85", rest)),
            put(call(rebuild, storage % size, b"K\0", huge + huge + b"\x86", b"K\0K\0\x86", rest)),
            put(call(rebuild, storage % b"J\xff\xff\xff\xff", b"K\0", b"K\x0c\x85", b"K\1\x85", rest)),
            put(call(rebuild, storage % (b"\x8a\x08" + b"\xff" * 7 + b"\x7f"), b"K\0", b"K\x0c\x85", b"K\1\x85", rest)),
        ),
    )
    yield Case(
        name="pickles that are none, or nest",
        files=tuple(
            put(table)
            for table in (
                *(b"", b".", b"\x80\x02.", b"\x80\x02}", b"\xff" * 100, b"\x80\x02(((((.", b"\x80\x02h\x07."),
                *(b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".", b"\x80\x02" + b"}q\0h\0h\0s" * 10**5 + b"."),
                *(
                    b"\x80\x02" + b")" + b"\x85" * 10**6 + b".",
                    b"\x80\x02X\xff\xff\xff\xffx.",
                    b"I" + b"9" * 10**5 + b"\n.",
                ),
            )
        ),
    )
