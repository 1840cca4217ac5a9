"""The sandbox with real processes: every limit is really hit, and nothing outlives its supervisor."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from pruning_core.report import Progress
from worker import sandbox
from worker.environment import available_cores, cgroup_cores
from worker.sandbox import Limits, Result

LIMITS = Limits(memory_bytes=2 * 2**30, cpu_seconds=60, file_bytes=2**22, wall_seconds=60)


def run(
    task: str,
    folder: Path,
    arguments: dict[str, Any] | None = None,
    *,
    limits: Limits = LIMITS,
    on_progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], str | None] = lambda: None,
) -> Result:
    return sandbox.run(
        task, folder, arguments or {}, limits=limits, on_progress=on_progress, stop=stop, module="tests.worker.hostile"
    )


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def protections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bool]:
    """What this machine lets an unprivileged process give up."""
    seen: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())

    log, handler = logging.getLogger("worker.sandbox"), Keep()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    sandbox._log_protections.cache_clear()
    try:
        run("refuse", tmp_path_factory.mktemp("protections"))
    finally:
        log.removeHandler(handler)
        log.setLevel(logging.NOTSET)
    (message,) = seen
    found: dict[str, bool] = json.loads(message.removeprefix("sandbox: "))["protections"]
    return found


def test_no_credentials_in_sight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protections: dict[str, bool]) -> None:
    monkeypatch.setenv("PRUNING_S3_SECRET_KEY", "hush")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    result = run("environment", tmp_path)
    assert result.value is not None
    allowed = {
        *(
            "PATH",
            "LANG",
            "HOME",
            "TMPDIR",
            "OMP_NUM_THREADS",
            "OMP_WAIT_POLICY",
            "CUDA_VISIBLE_DEVICES",
            "LD_LIBRARY_PATH",
        ),
        *("PYTHONPATH", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "CUBLAS_WORKSPACE_CONFIG", "LC_CTYPE"),
    }
    assert set(result.value["own"]) <= allowed
    assert "hush" not in json.dumps(result.value["own"])
    assert result.value["own"]["HOME"] == result.value["cwd"] == str(tmp_path)
    assert result.value["session"]
    assert result.value["stdin"] == ""
    if protections["files"]:
        assert result.value["parent"] == "PermissionError"


def test_the_supervisors_environment_is_out_of_reach(tmp_path: Path, protections: dict[str, bool]) -> None:
    """The parent here really started with the secret, so that its /proc/<pid>/environ holds it."""
    if not protections["files"]:
        pytest.skip("this kernel has no Landlock")
    code = (
        "import sys, pathlib, tests.worker.test_sandbox as t\n"
        "assert b'hush' in pathlib.Path('/proc/self/environ').read_bytes()\n"
        f"print(t.run('environment', pathlib.Path({str(tmp_path)!r})).value)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PRUNING_S3_SECRET_KEY": "hush"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PermissionError" in done.stdout
    assert "hush" not in done.stdout


def test_no_network(tmp_path: Path, protections: dict[str, bool]) -> None:
    if not protections["network"]:
        pytest.skip("this platform does not let an unprivileged process drop the network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
        result = run("network", tmp_path, {"port": port})
    assert result.value is not None
    assert result.value["connected"] is False


def test_only_its_own_folder(tmp_path: Path, protections: dict[str, bool]) -> None:
    if not protections["files"]:
        pytest.skip("this kernel has no Landlock")
    folder, secret = tmp_path / "work", tmp_path / "keys.json"
    folder.mkdir()
    secret.write_text("secret")
    result = run("files", folder, {"secret": str(secret)})
    assert result.value is not None
    assert {key: result.value[key] for key in ("read", "write", "link", "own")} == {
        "read": False,
        "write": False,
        "link": False,
        "own": True,
    }
    assert secret.read_text() == "secret"


def test_privileges_and_parent_hold_on_linux(protections: dict[str, bool]) -> None:
    assert protections["privileges"] == protections["parent"] == (sys.platform == "linux")


def limit(result: Result) -> str:
    assert result.status == "failed"
    assert result.problem is not None
    assert result.problem["type"].endswith(":limit-exceeded")
    assert result.problem["advice"]
    name: str = result.problem["limit"]
    assert f"{result.problem['value']:,}" in result.problem["detail"]
    return name


@pytest.mark.parametrize("task", ["memory", "mapped_memory"])
def test_memory_limit(tmp_path: Path, task: str) -> None:
    assert limit(run(task, tmp_path, limits=replace(LIMITS, memory_bytes=200 * 2**20))) == "memory_bytes"


def test_memory_limit_met_inside_torch(tmp_path: Path) -> None:
    assert limit(run("torch_memory", tmp_path)) == "memory_bytes"


@pytest.mark.parametrize("task", ["cpu", "stubborn_cpu"])
def test_cpu_limit(tmp_path: Path, task: str) -> None:
    assert limit(run(task, tmp_path, limits=replace(LIMITS, cpu_seconds=1))) == "cpu_seconds"


def test_wall_clock_limit(tmp_path: Path) -> None:
    start = time.monotonic()
    assert limit(run("sleep", tmp_path, limits=replace(LIMITS, wall_seconds=1.5))) == "wall_seconds"
    assert time.monotonic() - start < 4


@pytest.mark.parametrize("task", ["big_file", "big_tensor_file"])
def test_file_size_limit(tmp_path: Path, task: str) -> None:
    assert limit(run(task, tmp_path)) == "file_bytes"
    assert all(path.stat().st_size <= LIMITS.file_bytes for path in tmp_path.iterdir())


def test_stop_kills_within_two_seconds(tmp_path: Path) -> None:
    asked: list[float] = []

    def stop() -> str | None:
        if (tmp_path / "pid").exists():
            asked.append(time.monotonic())
            return "cancelled"
        return None

    result = run("grandchild", tmp_path, stop=stop)
    assert time.monotonic() - asked[0] < 2
    assert result == Result(status="stopped", reason="cancelled")
    wait_for(lambda: gone(int((tmp_path / "pid").read_text())))


def test_grandchildren_do_not_outlive_the_task(tmp_path: Path) -> None:
    result = run("grandchild", tmp_path, {"leave": True})
    assert result.value is not None
    wait_for(lambda: gone(int((tmp_path / "pid").read_text())))


def test_a_callback_that_raises_leaves_nothing_running(tmp_path: Path) -> None:
    def on_progress(_: Progress) -> None:
        raise ConnectionError("Redis went away")

    with pytest.raises(ConnectionError):
        run("sleep", tmp_path, on_progress=on_progress)
    pid = tmp_path / "pid"
    assert not pid.exists() or gone(int(pid.read_text()))


@contextmanager
def supervisor(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    code = f"import pathlib, tests.worker.test_sandbox as t; t.run('sleep', pathlib.Path({str(folder)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_the_child_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    with supervisor(tmp_path) as process:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        pid = int((tmp_path / "pid").read_text())
        assert not gone(pid)
        process.kill()
        wait_for(lambda: gone(pid), seconds=2)


def test_a_refusal_arrives_as_its_problem(tmp_path: Path) -> None:
    result = run("refuse", tmp_path)
    assert result.status == "failed"
    assert result.problem == {
        **{"type": "urn:pruning-service:problem:invalid-dataset", "title": "Invalid dataset", "status": 422},
        **{"detail": "Not good.", "expected": "better", "received": "worse", "advice": "Improve it."},
    }


@pytest.mark.parametrize(
    ("task", "arguments", "words"),
    [
        ("crash", {"signal": int(signal.SIGSEGV)}, "SIGSEGV"),
        ("crash", {"signal": int(signal.SIGKILL)}, "SIGKILL"),
        ("leave", {"code": 7}, "exit code 7"),
        ("leave", {"code": 0}, "exit code 0"),
        ("leave", {"code": 3}, "exit code 3"),
        ("defect", {}, "ZeroDivisionError: a defect"),
        ("no such task", {}, "KeyError"),
    ],
)
def test_deaths_say_what_was_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, task: str, arguments: dict[str, Any], words: str
) -> None:
    (tmp_path / "result.json").write_text('{"left": "from an earlier attempt"}')
    (tmp_path / "problem.json").write_text('{"left": "from an earlier attempt"}')
    result = run(task, tmp_path, arguments)
    assert result.status == "died"
    assert result.problem is not None
    assert words in result.problem["detail"]
    assert "Traceback" not in json.dumps(result.problem)
    if task == "defect":
        assert "Traceback" in caplog.text


@pytest.mark.parametrize(("how", "status"), [("open", "stopped"), ("torch", "stopped"), ("text", "failed")])
def test_a_full_disk_is_told_from_what_the_user_did(tmp_path: Path, how: str, status: str) -> None:
    result = run("full", tmp_path, {"how": how})
    assert (result.status, result.reason) == (status, sandbox.DISK_FULL if status == "stopped" else None)


def test_the_first_gradient_of_a_task_imports_nothing() -> None:
    # It would take a second and more of every task, and fail on a full disk.
    code = """
import sys
from worker.process import _tasks
_tasks()
import torch
from torch.func import grad, vmap
before = set(sys.modules)
vmap(grad(lambda w, x: (w * x).sum()), in_dims=(None, 0))(torch.ones(3), torch.ones(2, 3))
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "linked folder"])
def test_nothing_that_leads_out_of_the_folder_is_handed_on(tmp_path: Path, kind: str) -> None:
    """Landlock lets no process make these; where it is missing, the supervisor looks."""
    folder, outside = tmp_path / "work", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("secret")
    if kind == "pipe":
        os.mkfifo(folder / "pruned")
    elif kind == "hard link":
        (folder / "pruned").hardlink_to(outside)
    else:
        (folder / "pruned").symlink_to(outside if kind == "symlink" else tmp_path)
    result = run("nothing", folder)
    assert result.status == "died"
    assert result.problem is not None
    assert "'pruned', which is no regular file" in result.problem["detail"]


def test_progress_is_only_what_the_task_reports_and_never_falls(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = run("chatter", tmp_path, on_progress=seen.append)
    assert result == Result(status="ok", value={"done": True})
    assert [step.fraction for step in seen] == [0.2, 0.2, 0.6]
    assert {step.stage for step in seen} == {"speak"}


def test_a_flood_of_progress_is_thinned(tmp_path: Path) -> None:
    seen: list[Progress] = []
    assert run("flood", tmp_path, on_progress=seen.append).status == "ok"
    assert len(seen) < 200


def test_cores_follow_quota_and_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cgroup_cores(tmp_path) is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cgroup_cores(tmp_path) is None
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert cgroup_cores(tmp_path) == 2
    (tmp_path / "cpu.max").unlink()
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_cores(tmp_path) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert available_cores() == 1
