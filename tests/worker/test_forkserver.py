"""The fork server: started once, never touched by what its children do, and never trusted to live."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.worker.test_sandbox import gone, run, wait_for
from worker import forkserver
from worker.sandbox import Result


def value(result: Result) -> dict[str, object]:
    assert result.value is not None, result
    return result.value


@pytest.fixture
def server(tmp_path: Path) -> int:
    """Id of the server that the next task of this thread is forked from."""
    return int(str(value(run("remember", tmp_path))["parent"]))


def test_one_server_serves_many_tasks_that_know_nothing_of_each_other(tmp_path: Path, server: int) -> None:
    for _ in range(3):
        seen = value(run("remember", tmp_path))
        assert seen["parent"] == server
        assert seen["before"] is None, "a task saw what another had set"


def test_a_task_holds_no_way_to_the_supervisor(tmp_path: Path, server: int) -> None:
    descriptors = value(run("remember", tmp_path))["descriptors"]
    # standard input, output, error; the pipe for progress; and the listing's own
    assert descriptors == ["0", "1", "2", *descriptors[3:]]  # type: ignore[index]
    assert len(descriptors) == 5, descriptors  # type: ignore[arg-type]


def test_a_server_that_died_idle_is_replaced(tmp_path: Path, server: int) -> None:
    os.kill(server, signal.SIGKILL)
    wait_for(lambda: gone(server))
    assert value(run("remember", tmp_path))["parent"] != server


def test_a_server_that_dies_at_work_takes_its_child_along(tmp_path: Path, server: int) -> None:
    def strike() -> None:
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        os.kill(server, signal.SIGKILL)

    striker = threading.Thread(target=strike)
    striker.start()
    result = run("sleep", tmp_path)
    striker.join()
    assert result.status == "died"
    assert "SIGKILL" in str(result.problem)
    wait_for(lambda: gone(int((tmp_path / "pid").read_text())), seconds=2)
    (tmp_path / "pid").unlink()
    assert value(run("remember", tmp_path))["parent"] != server


def test_an_environment_that_changed_gets_a_server_of_its_own(
    tmp_path: Path, server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert value(run("remember", tmp_path))["parent"] != server


def test_each_thread_has_its_own_because_the_kernel_ends_it_with_the_thread(tmp_path: Path, server: int) -> None:
    found: list[Result] = []
    thread = threading.Thread(target=lambda: found.append(run("remember", tmp_path)))
    thread.start()
    thread.join()
    other = int(str(value(found[0])["parent"]))
    assert other != server
    wait_for(lambda: gone(other))
    assert value(run("remember", tmp_path))["parent"] == server


def test_few_are_kept(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children()}
    for _ in range(4):
        forkserver.warm("tests.worker.hostile")
    run("nothing", tmp_path)
    run("nothing", tmp_path)
    started = time.monotonic()
    while len({child.pid for child in psutil.Process().children()} - before) > 2:
        assert time.monotonic() - started < 10
        run("nothing", tmp_path)
