"""What a client promises, blocking or not: against a real api, through a real proxy."""

from __future__ import annotations

import hashlib
import json
import os
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import pytest

from client import Client, DigestMismatch, NotOffered, Problem, Retry, StillRunning, Unreachable
from tests.api import finished_job
from tests.api.live_api import Api, safetensors_bytes, zip_bytes
from tests.client.between import Between, Fault
from tests.client.conftest import Make

RECIPE = {"select": {"algorithm": "magnitude", "sparsity": 0.5}}
MIB = 2**20


def submitted(client: Client, files: Path, **more: Any) -> str:
    model = client.upload("model", files / "net.pt2")
    data = client.upload("dataset", files / "data.npz")
    return client.create_job(model.id, data.id, RECIPE, **more).id


def finished(client: Client, api: Api, files: Path, levels: tuple[float, ...] = (0.5,)) -> tuple[str, bytes]:
    job, body = submitted(client, files), os.urandom(300_000)
    (files / "pruned").write_bytes(body)
    (files / "masks").write_bytes(b"masks")
    (files / "report.json").write_text('{"report": true}', "utf-8")
    each = {level: {"model": files / "pruned", "masks": files / "masks"} for level in levels}
    finished_job.finish(api.service, job, files / "report.json", each)
    return job, body


def test_a_small_file_is_sent_whole_with_its_digest(make: Make, proxy: Between, files: Path) -> None:
    sent: list[int] = []
    upload = make(proxy.url).upload("model", files / "net.pt2", sent=sent.append)
    assert upload.sha256 == hashlib.sha256((files / "net.pt2").read_bytes()).hexdigest()
    assert (upload.state, upload.filename) == ("inspecting", "net.pt2")
    assert proxy.requests == ["PUT /models/net.pt2"]
    assert "content-digest: sha-256=:" in proxy.heads[0].lower()
    assert sent[-1] == upload.size == (files / "net.pt2").stat().st_size
    assert make(proxy.url).get_upload("model", upload.id).id == upload.id


def test_an_upload_that_is_cut_is_sent_again(make: Make, proxy: Between, files: Path) -> None:
    (files / "net.pt2").write_bytes(zip_bytes(MIB))
    proxy.faults.append(Fault(like="PUT /models", what="cut sending", after=300_000, times=2))
    upload = make(proxy.url).upload("model", files / "net.pt2")
    assert upload.size == (files / "net.pt2").stat().st_size
    assert proxy.count("PUT /models") == 3


def test_a_large_file_that_is_cut_goes_on_with_the_parts_that_are_missing(
    make: Make, proxy: Between, parts_proxy: Between, files: Path
) -> None:
    (files / "net.pt2").write_bytes(zip_bytes(11 * MIB))
    parts_proxy.faults.append(Fault(like="PUT .*partNumber=2&", what="cut sending", after=MIB))
    sent: list[int] = []
    upload = make(proxy.url).upload("model", files / "net.pt2", parts_from=MIB, part_size=5 * MIB, sent=sent.append)
    assert [parts_proxy.count(f"PUT .*partNumber={number}&") for number in (1, 2, 3)] == [1, 2, 1]
    assert proxy.count("GET /uploads/") >= 1, "it asked which parts are there"
    assert proxy.count("PUT /models") == 0
    assert sent[-1] == upload.size == (files / "net.pt2").stat().st_size
    assert not any("authorization" in head.lower() for head in parts_proxy.heads), "the key is not for the store"


def test_an_upload_goes_on_in_another_process(make: Make, proxy: Between, parts_proxy: Between, files: Path) -> None:
    (files / "net.pt2").write_bytes(zip_bytes(11 * MIB))
    parts_proxy.faults.append(Fault(like="PUT .*partNumber=3&", what="cut sending", after=0))
    begun: list[str] = []
    how: dict[str, Any] = {"parts_from": MIB, "part_size": 5 * MIB}
    with pytest.raises(Unreachable):
        make(proxy.url, retry=Retry(seconds=0)).upload("model", files / "net.pt2", begun=begun.append, **how)
    parts_proxy.requests.clear()
    upload = make(proxy.url).upload("model", files / "net.pt2", resume=begun[0], **how)
    assert upload.id == begun[0]
    assert [parts_proxy.count(f"PUT .*partNumber={number}&") for number in (1, 2, 3)] == [0, 0, 1]


def test_what_is_there_already_is_not_sent_again(make: Make, proxy: Between, client_api: Api, files: Path) -> None:
    client, path = make(proxy.url), files / "net.pt2"
    path.write_bytes(zip_bytes(5000) + os.urandom(8))
    first = client.upload("model", path, reuse=True)
    assert client.upload("model", path, reuse=True).id == first.id
    assert [found.id for found in client.list_uploads("model", sha256=first.sha256)] == [first.id]
    assert client.upload("model", path, reuse=True, filename="other.pt2").id != first.id, "results have its name"
    assert client.upload("model", path).id != first.id, "only if it is asked for"
    assert proxy.count("PUT /models") == 3
    for known in client.list_uploads("model", sha256=first.sha256):
        finished_job.reject(client_api.service, known.id, {"type": "about:blank", "title": "Bad"})
    client.upload("model", path, reuse=True)
    assert proxy.count("PUT /models") == 4, "one that was rejected is of no use"


def test_parts_that_cannot_reach_the_store_go_through_the_api(
    make: Make, proxy: Between, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "net.pt2").write_bytes(zip_bytes(6 * MIB))
    document = b'{"parts": [{"number": 1, "size": 1, "url": "http://127.0.0.1:9/x"}]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    proxy.faults.append(
        Fault(like="POST /uploads/.*/urls", what="instead", answer=head % len(document) + document, times=9)
    )
    upload = make(proxy.url).upload("model", files / "net.pt2", parts_from=MIB)
    assert upload.size == (files / "net.pt2").stat().st_size
    assert proxy.count("PUT /models/net.pt2") == proxy.count("DELETE /uploads/") == 1


def test_a_lost_answer_makes_one_job(make: Make, proxy: Between, files: Path) -> None:
    client = make(proxy.url)
    proxy.faults.append(Fault(like="POST /jobs$", what="answer lost", times=2))
    job = submitted(client, files, labels={"test": files.name})
    assert proxy.count("POST /jobs$") == 3
    assert [found.id for found in client.list_jobs(label=("test", files.name))] == [job]


def test_the_same_key_is_the_same_job(make: Make, proxy: Between, files: Path) -> None:
    client = make(proxy.url)
    model, data = client.upload("model", files / "net.pt2"), client.upload("dataset", files / "data.npz")
    jobs = {client.create_job(model.id, data.id, RECIPE, key=f"key-{files}").id for _ in range(2)}
    assert len(jobs) == 1
    with pytest.raises(Problem) as refused:
        client.create_job(model.id, data.id, {"select": {"sparsity": 0.7}}, key=f"key-{files}")
    assert refused.value.status == 409


def test_it_waits_as_long_as_the_service_says(make: Make, proxy: Between) -> None:
    busy = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    proxy.faults.append(Fault(like="GET /algorithms", what="instead", answer=busy))
    pauses: list[float] = []
    retry = Retry(seconds=20, first_pause=0.01, told=lambda _, pause: pauses.append(pause))
    began = time.monotonic()
    assert "chita" in make(proxy.url, retry=retry).algorithms().algorithms
    assert time.monotonic() - began >= 1
    assert pauses == [1.0]


def test_a_wait_beyond_patience_is_the_problem_itself(make: Make, proxy: Between) -> None:
    busy = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3600\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    proxy.faults.append(Fault(like="GET /algorithms", what="instead", answer=busy))
    with pytest.raises(Problem) as refused:
        make(proxy.url).algorithms()
    assert refused.value.status == 429
    assert len(proxy.requests) == 1


def test_errors_of_the_service_are_tried_again(make: Make, proxy: Between) -> None:
    for status in (500, 503):
        answer = b"HTTP/1.1 %d No\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno" % status
        proxy.faults.append(Fault(like="GET /algorithms", what="instead", answer=answer))
    assert make(proxy.url).algorithms().recipe
    assert len(proxy.requests) == 3


def test_nobody_there_is_said_plainly(make: Make) -> None:
    with pytest.raises(Unreachable, match="No answer from the service"):
        make("http://127.0.0.1:9", retry=Retry(seconds=0.1, first_pause=0.01)).algorithms()


def test_a_refusal_carries_the_problem_document(make: Make, proxy: Between, files: Path) -> None:
    (files / "net.txt").write_text("no model at all, just text", "utf-8")
    with pytest.raises(Problem) as refused:
        make(proxy.url).upload("model", files / "net.txt")
    problem = refused.value
    assert (problem.status, problem.slug) == (415, "unsupported-media")
    assert problem.type == problem.document["type"]
    assert problem.title
    assert problem.detail
    assert problem.expected
    assert problem.received == "plain text"
    assert problem.advice
    assert "plain text" in str(problem)
    assert problem.advice in str(problem)
    assert len(proxy.requests) == 1, "a refusal is not tried again"


def test_lists_go_on_over_pages(make: Make, proxy: Between, token: str, files: Path) -> None:
    client = make(proxy.url)
    ids = [client.upload("mask", _mask(files, number)).id for number in range(3)]
    page = httpx.get(proxy.url + "/masks?limit=1", headers={"Authorization": f"Bearer {token}"}).json()
    body = json.dumps(page).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    proxy.faults.append(Fault(like="GET /masks", what="instead", answer=head % len(body) + body))
    listed = [upload.id for upload in client.list_uploads("mask")]
    assert listed[:3] == ids[::-1]
    assert len(set(listed)) == len(listed)
    assert proxy.requests[-1] == f"GET /masks?cursor={page['next_cursor']}", "the second page"


def _mask(files: Path, number: int) -> Path:
    path = files / f"{number}.safetensors"
    path.write_bytes(safetensors_bytes())
    return path


def test_a_job_is_followed_to_its_end_through_broken_streams(
    make: Make, proxy: Between, client_api: Api, files: Path
) -> None:
    client = make(proxy.url)
    job = submitted(client, files)
    # The first stream breaks in the middle, the second ends the job.
    proxy.faults.append(Fault(like="GET /jobs/.*/events", what="cut answer", after=300))
    events: list[Any] = []

    def told(event: Any) -> None:
        events.append(event)
        if len(events) == 1:
            client_api.service.cancel_job(job)

    ended = client.wait_job(job, told=told)
    assert ended.state == "cancelled"
    assert [event.kind for event in events][-1] == "outcome"
    # A stream that is taken up again may begin with the state that was told last.
    states = [state for state, _ in groupby(event.data["state"] for event in events if event.kind == "state")]
    assert states == ["queued", "cancelled"]
    assert proxy.count("GET /jobs/.*/events") >= 2
    assert any("last-event-id" in head.lower() for head in proxy.heads)
    with pytest.raises(Problem, match="cancelled"):
        ended.check()


def test_without_streams_it_asks_again_and_again(make: Make, proxy: Between, client_api: Api, files: Path) -> None:
    client = make(proxy.url)
    job = submitted(client, files)
    full = b'{"type": "urn:pruning-service:problem:too-many-streams", "title": "Too many streams", "status": 429}'
    head = (
        b"HTTP/1.1 429 No\r\nContent-Type: application/problem+json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    )
    proxy.faults.append(Fault(like="GET /jobs/.*/events", what="instead", answer=head % len(full) + full, times=99))
    asked: list[Any] = []

    def told(event: Any) -> None:
        if not asked and event.data.get("state") == "queued":
            asked.append(event)
            client_api.service.cancel_job(job)

    assert client.wait_job(job, told=told).state == "cancelled"
    assert any("prefer: wait=10" in head.lower() for head in proxy.heads)


def test_waiting_ends_in_time(make: Make, client_api: Api, files: Path) -> None:
    client = make(client_api.url)
    job, began = submitted(client, files), time.monotonic()
    with pytest.raises(StillRunning, match=job):
        client.wait_job(job, timeout=0.3)
    assert time.monotonic() - began < 5
    assert client.cancel_job(job).state == client.cancel_job(job).state == "cancelled"
    client.delete_job(job)
    with pytest.raises(Problem) as gone:
        client.get_job(job)
    assert gone.value.slug == "not-found"


def test_a_download_that_is_cut_goes_on_where_it_was(
    make: Make, proxy: Between, client_api: Api, files: Path, tmp_path: Path
) -> None:
    client = make(proxy.url)
    job, body = finished(client, client_api, files)
    proxy.requests.clear()
    proxy.heads.clear()
    proxy.faults.append(Fault(like="GET /jobs/.*/model", what="cut answer", after=100_000))
    (tmp_path / "out").mkdir()
    path = client.download(job, "model", tmp_path / "out")
    assert path == tmp_path / "out" / "net-pruned.pt2"
    assert path.read_bytes() == body
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing is left aside"
    assert proxy.count("GET /jobs/.*/model") == 2
    ranges = [line for head in proxy.heads for line in head.splitlines() if line.lower().startswith("range:")]
    assert len(ranges) == 1
    assert int(ranges[0].partition("=")[2].rstrip("-")) > 50_000


def test_a_download_that_was_damaged_is_not_handed_out(
    make: Make, proxy: Between, client_api: Api, files: Path, tmp_path: Path
) -> None:
    client = make(proxy.url)
    job, body = finished(client, client_api, files)
    other = os.urandom(len(body))
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(other)
    proxy.faults.append(Fault(like="GET /jobs/.*/model", what="instead", answer=head + other))
    with pytest.raises(DigestMismatch):
        client.download(job, "model", tmp_path / "out.pt2")
    assert not [entry for entry in tmp_path.iterdir() if "out.pt2" in entry.name]
    # What an earlier run has left, damaged: it is thrown away, and fetched anew.
    digest = hashlib.sha256(body).hexdigest()
    (tmp_path / f".out.pt2.{digest[:16]}.part").write_bytes(other[:1000])
    assert client.download(job, "model", tmp_path / "out.pt2").read_bytes() == body


def test_levels_masks_and_report(make: Make, client_api: Api, files: Path, tmp_path: Path) -> None:
    client = make(client_api.url)
    job, body = finished(client, client_api, files, (0.5, 0.9))
    ended = client.wait_job(job).check()
    assert [level["sparsity"] for level in ended.levels] == [0.5, 0.9]
    with pytest.raises(Problem) as refused:
        client.download(job, "model", tmp_path / "m")
    assert refused.value.slug == "level-needed", "also to HEAD, which has no body, there is a reason"
    assert client.download(job, "model", tmp_path / "m", sparsity=0.9).read_bytes() == body
    assert client.download(job, "masks", tmp_path / "k", sparsity=0.5).read_bytes() == b"masks"
    assert client.report(job).content == b'{"report": true}'
    with pytest.raises(NotOffered, match="application/x-unheard-of"):
        client.report(job, "application/x-unheard-of")


def test_a_plan_and_an_upload_that_is_ready_or_rejected(make: Make, client_api: Api, files: Path) -> None:
    client = make(client_api.url)
    model = client.upload("model", files / "net.pt2")
    with pytest.raises(Problem) as early:
        client.plan(model.id, RECIPE)
    assert early.value.slug == "not-ready"
    layer = {"name": "fc", "weight": "fc.weight", "kind": "linear", "shape": [4, 4], "weights": 16}
    found = {"format": "pt2", "parameters": 16, "layers": [layer], "unprunable": {}, "inputs": [], "batch": None}
    finished_job.accept(client_api.service, model.id, found)
    assert client.wait_upload("model", model.id).state == "ready"
    assert client.plan(model.id, RECIPE).levels[0]["kept"] == 8
    bad = client.upload("dataset", files / "data.npz")
    with pytest.raises(StillRunning):
        client.wait_upload("dataset", bad.id, timeout=0)
    finished_job.reject(client_api.service, bad.id, {"type": "about:blank", "title": "Bad", "detail": "It is bad."})
    with pytest.raises(Problem, match="It is bad"):
        client.wait_upload("dataset", bad.id)
    client.delete_upload("dataset", bad.id)


def test_a_deletion_whose_answer_was_lost_has_happened(make: Make, proxy: Between, files: Path) -> None:
    client = make(proxy.url)
    model = client.upload("model", files / "net.pt2")
    proxy.faults.append(Fault(like="DELETE", what="answer lost"))
    client.delete_upload("model", model.id)
    assert proxy.count("DELETE") == 2
    with pytest.raises(Problem):
        client.delete_upload("model", model.id)
