"""The whole service with keys: no secret is in any log, any answer, or the pruning process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from jobs.keys import Keys
from tests.api.live_api import Api, api
from tests.jobs.cluster import Cluster, cluster, eventually
from tests.jobs.inputs import digits, mlpnet


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cluster, Api]]:
    folder = tmp_path_factory.mktemp("secrets")
    with (
        cluster(folder) as servers,
        api(servers.environment, folder, api_keys="required", log_level="DEBUG") as started,
        servers.worker("hand", PRUNING_LOG_LEVEL="DEBUG"),
    ):
        yield servers, started


class Watch:
    """Reads command line and environment of every pruning process that lives while the block runs."""

    def __init__(self) -> None:
        self.seen: dict[int, bytes] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            for process in psutil.Process().children(recursive=True):
                if process.pid in self.seen:
                    continue
                try:
                    text = b"".join(Path(f"/proc/{process.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
                except (OSError, psutil.Error):
                    continue
                if b"worker.process" in text:
                    self.seen[process.pid] = text


def test_no_secret_comes_out(running: tuple[Cluster, Api]) -> None:
    servers, started = running
    keys = Keys(servers.service.bucket, servers.service.clock)
    made = [keys.create("red", scope, scope, by="test") for scope in ("read", "write", "admin")]  # type: ignore[arg-type]
    tokens = [token for _, token in made]
    answers: list[str] = []

    def call(method: str, path: str, token: str | None = tokens[2], **more: object) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        answer = httpx.request(method, started.url + path, headers=headers, timeout=60, **more)  # type: ignore[arg-type]
        answers.append(f"{answer.headers}{answer.text}")
        return answer

    # What goes well, up to a pruned model.
    model = call("PUT", "/models", content=mlpnet()).json()["id"]
    data = call("PUT", "/datasets", content=digits(300)).json()["id"]
    recipe = {"select": {"algorithm": "chita", "sparsity": 0.8}}
    with Watch() as watch:
        body = {"model": model, "calibration": data, "recipe": recipe}
        job = call("POST", "/jobs", tokens[1], json=body).json()["id"]
        eventually(lambda: call("GET", f"/jobs/{job}", tokens[0]).json()["state"] == "succeeded", 90, "the job")
    pruning = b"".join(watch.seen.values())
    assert watch.seen, "no pruning process was seen"
    new = call("POST", "/keys", json={"name": "k", "scope": "read"}).json()
    rotated = call("POST", f"/keys/{new['id']}/rotate").json()
    shown = [new["token"], rotated["token"]]
    answers = [answer.replace(shown[0], "").replace(shown[1], "") for answer in answers]

    # What does not: every kind of refusal, and outages.
    for token in (*tokens, None, tokens[0][:-1], f"{tokens[0]}x", tokens[2].replace("prk", "key")):
        for method, path, more in (
            ("GET", f"/jobs?key={tokens[2]}", {}),
            ("POST", "/jobs", {"content": b"{"}),
            ("POST", "/jobs", {"json": {"model": 1}}),
            ("PUT", "/models", {"content": b"no model"}),
            ("DELETE", "/models/mdl_01ARZ3NDEKTSV4RRFFQ69G5FAV", {}),
            ("PATCH", "/jobs", {}),
            ("POST", "/keys", {"json": {"name": "k", "scope": "root"}}),
            ("GET", "/nowhere", {}),
        ):
            call(method, path, token, **more)
    servers.stop_redis()
    for path in ("/jobs", "/readyz", "/usage"):
        call("GET", path)
    call("POST", f"/keys/{new['id']}/rotate")
    servers.start_redis()
    keys.revoke("red", made[0][0].id, by="test")
    call("GET", "/keys")
    call("GET", "/audit")

    secrets = {
        "Redis": servers.keys.redis_password,
        "S3": servers.keys.s3_secret_key,
        **{f"key {n}": token.rpartition("_")[2] for n, token in enumerate([*tokens, *shown])},
    }
    places = {path.name: path.read_text("utf-8", "replace") for path in servers.folder.glob("*.log")}
    assert {"hand.log", started.log.name} <= places.keys()
    assert f"/jobs/{job}" in places[started.log.name]
    assert job in places["hand.log"]
    places |= {"answers": "".join(answers), "the pruning process": pruning.decode("utf-8", "replace")}
    places["repr"] = repr([servers.settings, servers.service, [key for key, _ in made], keys.page("red")])
    found = [(name, where) for where, text in places.items() for name, secret in secrets.items() if secret in text]
    assert found == []
    assert b"PRUNING_" not in pruning
