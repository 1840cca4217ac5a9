"""Tasks that misbehave, run by the tests inside the real sandbox: ``python -m tests.worker.hostile <task> ...``."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pruning_core.errors import DatasetError
from pruning_core.report import Progress
from worker.process import Task, main

Report = Callable[[Progress], None]


def environment(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    parent = ""
    try:
        parent = Path(f"/proc/{os.getppid()}/environ").read_bytes().decode("latin-1")
    except OSError as error:
        parent = type(error).__name__
    return {
        "own": dict(os.environ),
        "parent": parent,
        "cwd": str(Path.cwd()),
        "session": os.getsid(0) == os.getpid(),
        "stdin": sys.stdin.read(),
    }


def network(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    try:
        socket.create_connection(("127.0.0.1", arguments["port"]), timeout=2).close()
    except OSError as error:
        return {"connected": False, "error": str(error)}
    return {"connected": True}


def files(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    outcome: dict[str, Any] = {}
    for name, action in {
        "read": lambda: Path(arguments["secret"]).read_text(),
        "write": lambda: Path(arguments["secret"]).write_text("changed"),
        "link": lambda: (folder / "link").symlink_to(arguments["secret"]),
        "kill": lambda: os.kill(os.getppid(), 0),
        "own": lambda: (folder / "own").write_text("fine"),
    }.items():
        try:
            action()
            outcome[name] = True
        except OSError:
            outcome[name] = False
    return outcome


def memory(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    blocks = []
    while True:
        blocks.append(bytearray(b"x" * 2**24))


def mapped_memory(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    """Memory that RLIMIT_DATA does not count: shared mappings; only the supervisor's watch sees it."""
    import mmap

    blocks = []
    while True:
        block = mmap.mmap(-1, 2**24)
        block.write(b"x" * 2**24)
        blocks.append(block)


def torch_memory(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    import torch

    return {"size": torch.zeros(2**34).numel()}


def cpu(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    while True:
        pass


def stubborn_cpu(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    signal.signal(signal.SIGXCPU, signal.SIG_IGN)
    while True:
        pass


def sleep(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    report(Progress(stage="sleep", done=0, total=1, fraction=0.5))
    (folder / "pid").write_text(str(os.getpid()))
    while True:
        time.sleep(60)


def grandchild(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    (folder / "pid").write_text(str(child.pid))
    if arguments.get("leave"):
        return {"left": child.pid}
    child.wait()
    return {}


def big_file(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    with (folder / "pruned").open("wb") as file:
        while True:
            file.write(bytes(2**20))


def big_tensor_file(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2**22)}, folder / "pruned")
    return {}


def crash(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    os.kill(os.getpid(), arguments["signal"])
    time.sleep(5)
    return {}


def leave(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    os._exit(arguments["code"])


def refuse(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    raise DatasetError("Not good.", expected="better", received="worse", advice="Improve it.")


def defect(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    raise ZeroDivisionError("a defect")


def full(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    if arguments["how"] == "open":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if arguments["how"] == "torch":
        raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
    raise DatasetError("No space left on device")  # a name that the user chose


def chatter(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    print('{"stage": "printed", "done": 1, "total": 1, "fraction": 1.0}', flush=True)
    os.write(2, b"y" * 10**6)
    for fraction in (0.2, 0.1, 0.6):
        report(Progress(stage="speak", done=1, total=3, fraction=fraction))
        time.sleep(0.25)
    return {"done": True}


def flood(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    for step in range(20_000):
        report(Progress(stage="flood", done=step, total=20_000, fraction=step / 20_000))
    return {}


def remember(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    before, os.environ["SEEN"] = os.environ.get("SEEN"), "yes"
    return {
        "before": before,
        "parent": os.getppid(),
        "descriptors": sorted(path.name for path in Path("/proc/self/fd").iterdir()),
    }


def nothing(folder: Path, arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    return {}


def load() -> Mapping[str, Task]:
    return {name: value for name, value in globals().items() if name in NAMES}


NAMES = (
    *("environment", "network", "files", "memory", "mapped_memory", "torch_memory", "cpu", "stubborn_cpu", "sleep"),
    *("grandchild", "big_file", "big_tensor_file", "crash", "leave", "refuse", "defect", "chatter", "flood", "nothing"),
    *("remember", "full"),
)

if __name__ == "__main__":
    sys.exit(main(load))
