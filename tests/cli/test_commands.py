"""The commands against a real api, as a script uses them: stdout, stderr, exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from client import Client
from tests.api import finished_job
from tests.api.live_api import Api, zip_bytes
from tests.cli.shell import environment
from tests.client.between import Between, Fault

SUBMIT = ("submit", "net.pt2", "--data", "data.npz", "--sparsity", "0.5")
BUSY = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.fixture
def shell(prune: Any, client_api: Api, token: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs commands in a folder with a model and data, against the api, which wants a key."""
    monkeypatch.setenv("PRUNING_API_KEY", token)
    prune.url = client_api.url
    return prune


def test_submit_prints_the_id_and_nothing_else(shell: Any, files: Path) -> None:
    done = shell(*SUBMIT, "--label", f"test={files.name}")
    assert done.exit_code == 0, done.stderr
    job = done.stdout.strip()
    assert job.startswith("job_")
    assert len(done.stdout.splitlines()) == 1
    assert "net.pt2" in done.stderr

    (listed,) = json.loads(shell("jobs", "--label", f"test={files.name}", "--json").stdout)
    assert (listed["id"], listed["recipe"]) == (job, {"select": {"sparsity": 0.5}})
    assert shell("jobs", "--label", f"test={files.name}", "--state", "failed", "--json").stdout == "[]\n"
    table = shell("jobs", "--label", f"test={files.name}").stdout.splitlines()
    assert table[0].split("\t")[:2] == ["JOB", "STATE"]
    assert table[1].split("\t")[:2] == [job, "queued"]
    assert len(shell("jobs", "--limit", 1, "--json").stdout) > 2
    assert f"job  {job}" in shell("job", job).stdout
    assert json.loads(shell("job", job, "--json").stdout)["id"] == job

    again = shell("submit", listed["model"], "--data", listed["calibration"], "--sparsity", "0.5", "--json")
    assert json.loads(again.stdout)["model"] == listed["model"], "what was sent before is named by its id"


def test_the_same_command_again_is_the_same_job_and_sends_nothing(shell: Any, proxy: Between, files: Path) -> None:
    shell.url = proxy.url
    once = (*SUBMIT, "--key", f"nightly-{files}")
    first = shell(*once)
    again = shell(*once)
    assert again.exit_code == 0, again.stderr
    assert again.stdout == first.stdout != ""
    assert "net.pt2  " in again.stderr
    assert again.stderr.count("there already") == 2
    assert proxy.count("PUT ") == 2, "model and data, once"
    # A machine that knows nothing of the first run, and whose file is newer: still the same bytes.
    (files / "net.pt2").touch()
    assert shell(*once).stdout == first.stdout
    # Results are named after the file, so another name is another upload; the key asks for the same job all the same.
    (files / "net.pt2").rename(files / "same.pt2")
    renamed = shell("submit", "same.pt2", *once[2:])
    assert (renamed.stdout, proxy.count("PUT ")) == (first.stdout, 3), renamed.stderr
    (files / "same.pt2").write_bytes(zip_bytes(6000))
    other = shell("submit", "same.pt2", *once[2:])
    assert (other.exit_code, other.stdout) == (1, "")
    assert "used before with another body" in other.stderr


def test_cancel_wait_and_delete(shell: Any) -> None:
    job = shell(*SUBMIT).stdout.strip()
    slow = shell("wait", job, "--timeout", "0.2")
    assert (slow.exit_code, job in slow.stderr) == (1, True)
    assert json.loads(shell("cancel", job, "--json").stdout)[0]["state"] == "cancelled"
    waited = shell("wait", job, "--json")
    assert waited.exit_code == 1
    assert json.loads(waited.stdout)["state"] == "cancelled"
    assert "was cancelled" in waited.stderr
    deleted = shell("delete", job, "--json")
    assert (deleted.exit_code, json.loads(deleted.stdout)) == (0, {"deleted": [job]})
    gone = shell("job", job, "--json")
    assert gone.exit_code == 1
    assert json.loads(gone.stdout)["error"]["type"].endswith(":not-found")
    assert "GET /jobs lists them" in gone.stderr, "the advice of the problem"


def test_a_refusal_is_the_text_of_the_problem(shell: Any, files: Path) -> None:
    (files / "net.pt2").write_text("this is no model, it is text", "utf-8")
    done = shell(*SUBMIT)
    assert done.exit_code == 1
    assert done.stdout == ""
    for part in ("Unsupported", "received: plain text", "advice: Save the model with torch.export.save"):
        assert part in done.stderr


def test_a_recipe_that_cannot_be_used_is_refused_by_the_service(shell: Any) -> None:
    done = shell(*SUBMIT, "--pattern", "2:4", "--sparsity", "0.9")
    assert done.exit_code == 1
    assert "recipe.select.sparsity" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*SUBMIT, "--algorithm", "chitta"), "did you mean chita? offered: alps"),
        ((*SUBMIT, "-o", "no/such/out.pt2"), "there is no folder no/such"),
        (("submit", ".", *SUBMIT[2:]), "is a folder"),
        (("submit", "missing.pt2", *SUBMIT[2:]), "no such file"),
        (("submit", "dst_01JD3Z9XB3M8R6N0QSWJ5T7K2P", *SUBMIT[2:]), "no id of a model"),
        (("submit", "net.pt2"), "--data"),
        (("jobs", "--state", "failing"), "did you mean failed? offered: queued"),
        (("download", "job_1", "model", "--compact"), "--compact"),
        (("algorithms", "chitta"), "offered: alps"),
        (("nonsense",), "nonsense"),
    ],
)
def test_a_command_line_that_cannot_be_understood_is_2(shell: Any, arguments: tuple[str, ...], says: str) -> None:
    done = shell(*arguments)
    assert done.exit_code == 2, done.stderr
    assert says in done.stderr
    assert done.stdout == ""


def test_algorithms_come_from_the_service(shell: Any) -> None:
    listed = [line.split("\t")[:2] for line in shell("algorithms").stdout.splitlines()]
    assert ["snows", "refine"] in listed
    assert ["chita", "select"] in listed
    assert "stages" in shell("algorithms", "chita").stdout
    assert json.loads(shell("algorithms", "--json").stdout)["algorithms"]["chita"]["part"] == "select"


def test_results_of_several_levels(shell: Any, client_api: Api, files: Path) -> None:
    job = shell(*SUBMIT).stdout.strip()
    early = shell("download", job)
    assert early.exit_code == 1
    assert "it is queued" in early.stderr
    (files / "pruned").write_bytes(os.urandom(2000))
    (files / "report.json").write_text('{"a": "report"}', "utf-8")
    each = {"model": files / "pruned", "masks": files / "pruned"}
    finished_job.finish(client_api.service, job, files / "report.json", {0.5: each, 0.9: each})
    done = shell("wait", job, "-o", "out.pt2", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["files"] == ["out-0.5.pt2", "out-0.9.pt2"]
    assert (files / "out-0.9.pt2").read_bytes() == (files / "pruned").read_bytes()
    waited = shell("wait", job, "-o", "out.pt2")
    assert waited.stdout == "out-0.5.pt2\nout-0.9.pt2\n"
    assert "SPARSITY\tACCURACY\tBY MAGNITUDE\tBYTES\n0.5\t1.0000\t\t\n" in waited.stderr
    assert "0.9\t1.0000" in shell("job", job).stdout
    needed = shell("download", job)
    assert needed.exit_code == 1
    assert "0.5" in needed.stderr
    saved = shell("download", job, "masks", "-s", "0.9")
    assert (saved.exit_code, saved.stdout) == (0, "net-masks-0.9.safetensors\n")
    assert (files / "net-masks-0.9.safetensors").exists()
    assert shell("report", job).stdout == '{"a": "report"}\n'


def test_a_report_that_the_service_does_not_have_is_said(shell: Any, proxy: Between) -> None:
    shell.url = proxy.url
    body = b"{}"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
    proxy.faults.append(Fault(like="GET /jobs/job_1/report", what="instead", answer=head + body))
    done = shell("report", "job_1", "--format", "html")
    assert done.exit_code == 1
    assert "has no report as text/html" in done.stderr
    assert "--format json" in done.stderr
    assert "accept: text/html" in proxy.heads[0].lower()


def test_what_was_cut_goes_on_with_the_next_command(
    shell: Any, proxy: Between, parts_proxy: Between, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "net.pt2").write_bytes(zip_bytes(9 * 2**20))
    shell.url = proxy.url
    parts_proxy.faults.append(Fault(like="PUT .*", what="instead", answer=BUSY, times=99))
    proxy.faults.append(Fault(like="GET /uploads/", what="instead", answer=BUSY, times=99))
    small = {**(Client.upload.__kwdefaults__ or {}), "parts_from": 2**20, "part_size": 5 * 2**20}
    monkeypatch.setattr(Client.upload, "__kwdefaults__", small)
    assert shell("--retry-seconds", "0", *SUBMIT).exit_code == 1
    begun = proxy.count("POST /uploads$")
    proxy.faults.clear()
    parts_proxy.faults.clear()
    proxy.faults.append(Fault(like="POST /jobs$", what="instead", answer=BUSY, times=99))
    assert shell("--retry-seconds", "0", *SUBMIT).exit_code == 1
    assert parts_proxy.count("PUT ") > 1, "now the parts are there, but no job"
    parts_proxy.requests.clear()
    proxy.faults.clear()
    done = shell(*SUBMIT)
    assert done.exit_code == 0, done.stderr
    assert proxy.count("POST /uploads$") == begun == 1, "the other commands go on with the upload of the first"
    assert (parts_proxy.count("PUT "), proxy.count("PUT /datasets")) == (0, 1), "the third has nothing to send"
    assert not list((files / "cache" / "pruning-service" / "uploads").iterdir()), "and then it is forgotten"


_SMALL_PARTS = """
from client import Client
Client.upload.__kwdefaults__.update(parts_from=2**20, part_size=5 * 2**20)
from cli.main import main
main()
"""


def test_a_client_that_is_killed_has_lost_only_the_part_it_was_sending(
    shell: Any, parts_proxy: Between, files: Path, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "net.pt2").write_bytes(zip_bytes(14 * 2**20))
    parts_proxy.faults.append(Fault(like="PUT .*partNumber=2&", what="instead", answer=BUSY, times=99))
    variables = {**environment(files, shell.url), "PRUNING_API_KEY": token}
    command = [sys.executable, "-c", _SMALL_PARTS, *SUBMIT]
    sending = subprocess.Popen(command, cwd=files, env=variables, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not parts_proxy.count("PUT .*partNumber=2&"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sending.kill()
    sending.wait()
    parts_proxy.faults.clear()
    parts_proxy.requests.clear()
    monkeypatch.setattr(
        Client.upload, "__kwdefaults__", {**Client.upload.__kwdefaults__, "parts_from": 2**20, "part_size": 5 * 2**20}
    )
    done = shell(*SUBMIT)
    assert done.exit_code == 0, done.stderr
    assert [parts_proxy.count(f"PUT .*partNumber={number}&") for number in (1, 2, 3)] == [0, 1, 1]


def test_a_report_in_the_browser_and_a_disk_that_is_full(
    shell: Any, client_api: Api, files: Path, token: str, tmp_path: Path
) -> None:
    job = shell(*SUBMIT).stdout.strip()
    (files / "pruned").write_bytes(os.urandom(50_000))
    (files / "report.json").write_text('{"a": "report"}', "utf-8")
    each = {"model": files / "pruned", "masks": files / "pruned"}
    finished_job.finish(client_api.service, job, files / "report.json", {0.5: each})
    browser = tmp_path / "browser"
    browser.write_text('#!/bin/sh\necho "$1" >opened\n', "utf-8")
    browser.chmod(0o755)
    variables = {**environment(files, shell.url), "PRUNING_API_KEY": token, "BROWSER": str(browser)}
    # The limit stands for the disk: 32 blocks of 512 bytes or of 1 KiB.
    script = f"""
    {sys.executable} -m cli report {job} --format json --open && cat opened
    ulimit -f 32
    {sys.executable} -m cli download {job} -o big.pt2
    """
    done = subprocess.run(
        ["sh", "-c", script], cwd=files, env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    report = files / f"{job}-report.json"
    assert done.stdout == f"{report.as_uri()}\n", done.stderr
    assert report.read_text("utf-8") == '{"a": "report"}'
    assert done.returncode == 1
    assert re.search(r"prune: \.big\.pt2\.\w+\.part: File too large$", done.stderr.strip()), done.stderr
    assert not (files / "big.pt2").exists()


def test_nobody_there_is_said_while_it_is_tried_again(prune: Any) -> None:
    done = prune("--retry-seconds", "0.3", "jobs")
    assert done.exit_code == 1
    assert done.stderr.count("trying again for up to 0.3 s") == 1, "once, however often it is tried"
    assert "No answer from the service" in done.stderr
    assert "PRUNING_URL names another" in done.stderr


def test_a_key_that_is_missing_is_said(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRUNING_API_KEY")
    done = shell("jobs")
    assert done.exit_code == 1
    assert done.stderr.startswith("prune: No valid key: ")
    assert "Authorization: Bearer" in done.stderr


def test_ended_while_waiting_the_id_is_told_and_how_to_go_on(shell: Any, token: str, files: Path) -> None:
    command = [sys.executable, "-m", "cli", *SUBMIT, "--wait"]
    variables = {**environment(files, shell.url), "PRUNING_API_KEY": token}
    waiting = subprocess.Popen(
        command, cwd=files, env=variables, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert waiting.stderr is not None
    said = ""
    deadline = time.monotonic() + 60
    while "queued  0%" not in said:
        assert time.monotonic() < deadline, said
        said += waiting.stderr.readline()
    waiting.send_signal(signal.SIGTERM)
    out, rest = waiting.communicate(timeout=20)
    assert waiting.returncode == 143
    (job,) = out.splitlines()
    assert f"prune wait {job}\n" in rest
    assert f"prune cancel {job}\n" in rest
    assert "Traceback" not in rest
    assert shell("cancel", job).exit_code == 0
