"""The container files, checked by what runs without a Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", dockerfile], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_image_runs_as_an_ordinary_user_and_copies_only_what_exists(dockerfile: Path) -> None:
    text = dockerfile.read_text("utf-8")
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1] == "10001"
    for sources in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for source in sources.split()[:-1]:
            assert (ROOT / source).exists(), f"{dockerfile.name} copies {source}, which is not there"


def compose() -> dict:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))


def test_compose_has_every_part_with_health_checks_and_volumes() -> None:
    services = compose()["services"]
    assert set(services) == {"api", "worker", "inspector", "redis", "s3"}
    for name, service in services.items():
        assert service["restart"] == "unless-stopped"
        image_checks = "build" in service and "HEALTHCHECK" in (ROOT / service["build"]["dockerfile"]).read_text(
            "utf-8"
        )
        assert "healthcheck" in service or image_checks, f"{name} has no health check"
    for name in ("redis", "s3", "worker", "inspector"):
        assert any(volume.partition(":")[0] in compose()["volumes"] for volume in services[name].get("volumes", ())), (
            name
        )
    assert services["api"]["ports"] == ["${BIND:-127.0.0.1}:${PORT:-8000}:8000"]
    assert services["api"]["environment"]["PRUNING_API_KEYS"] == "required"


def test_compose_names_every_setting_the_embedded_service_sets() -> None:
    from cli.embedded import Keys, service_environment

    keys = Keys(redis_password="r", s3_access_key="a", s3_secret_key="s")
    for service in ("api", "worker", "inspector"):
        missing = set(service_environment(keys, redis_port=1, s3_port=2)) - set(
            compose()["services"][service]["environment"]
        )
        assert not missing, service


def test_docker_compose_accepts_the_file() -> None:
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("docker-compose is not installed (Debian: apt-get install docker-compose)")
    done = subprocess.run(
        [command, "--env-file", ".env.example", "config"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["services"].keys() == compose()["services"].keys()
    without = subprocess.run(
        [command, "--env-file", os.devnull, "config"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert without.returncode != 0, "compose must refuse to start without secrets"


@pytest.mark.timeout(300)
def test_api_image_steps_install_without_torch(tmp_path: Path) -> None:
    """The Dockerfile's own COPY and pip lines, run in a clean virtual environment."""
    text = (ROOT / "docker" / "api.Dockerfile").read_text("utf-8")
    for sources in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        for source in sources.split()[:-1]:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, tmp_path / source)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    step = re.search(r"^RUN (pip install(?:\\\n|.)*)", text, re.MULTILINE)
    assert step is not None
    environment = {
        "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PIP_NO_COMPILE": "1",  # half of the time
    }
    done = subprocess.run(
        ["bash", "-ec", step[1]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
