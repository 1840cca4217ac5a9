"""One Python that has imported everything, of which each command of the documents is a fork: starting is what costs.

``python3`` and ``prune`` of a snippet are this file, which asks the process that `tests.documents` keeps; it forks, and
the fork takes over arguments, directory, environment and the three streams, and answers with its exit code. What a
command does is what it always does: only the imports before it are shared.
"""

from __future__ import annotations

import json
import os
import socket
import sys

#: The environment variable that says where it listens.
SOCKET = "SNIPPETS_INTERPRETER"


def ask(arguments: list[str]) -> int:
    """Have the command run, on this process's streams; return its exit code."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[SOCKET])
        what = json.dumps({"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}).encode()  # noqa: PTH109 - pathlib costs as much as the rest
        socket.send_fds(connection, [len(what).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(what)
        code = connection.recv(1)
    return code[0] if code else 134  # it died without a word


def serve(path: str) -> None:
    """Fork for each command until stdin ends: the end of whoever started this."""
    import select

    import numpy  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch.export  # noqa: F401

    import cli.main  # noqa: F401
    import pruning_core.pipeline  # noqa: F401

    forks: set[int] = set()  # they answer themselves; here they are only buried
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        print("ready", flush=True)
        while True:
            come, _, _ = select.select([listening, sys.stdin], [], [])
            if sys.stdin in come:
                return
            connection, _ = listening.accept()
            forks = {fork for fork in forks if os.waitpid(fork, os.WNOHANG) == (0, 0)}
            fork = os.fork()
            if fork == 0:
                listening.close()
                _answer(connection)
            forks.add(fork)
            connection.close()


def _answer(connection: socket.socket) -> None:
    size, streams, _, _ = socket.recv_fds(connection, 8, 3)
    what = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    for stream, number in zip(streams, (0, 1, 2), strict=True):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (open(i, mode, closefd=False) for i, mode in enumerate("rww"))  # noqa: SIM115
    os.chdir(what["folder"])
    os.environ.clear()
    os.environ.update(what["environment"])
    code = 1
    try:
        code = _run(what["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send(bytes([code % 256]))
        os._exit(code % 256)


def _run(arguments: list[str]) -> int:
    import runpy
    import traceback
    from pathlib import Path

    kind, *rest = arguments
    try:
        if kind == "-m":
            sys.argv, sys.path[0] = rest, str(Path.cwd())
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif kind in ("-c", "-"):
            code, sys.argv, sys.path[0] = (rest[0] if kind == "-c" else sys.stdin.read()), arguments[:1], ""
            sys.argv += rest[1:] if kind == "-c" else rest
            exec(compile(code, "<stdin>" if kind == "-" else "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv, sys.path[0] = arguments, str(Path(kind).resolve().parent)
            runpy.run_path(kind, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1:]))
