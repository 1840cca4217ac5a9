"""`make demo`: the whole path, end to end, on real data; nothing is left running at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from cli.embedded import LOOPBACK, free_port

HERE = Path(__file__).resolve().parent


def wait_until_ready(url: str, service: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for ``GET /readyz`` to answer 200.

    Raises:
        RuntimeError: The service ended, or was not ready in time.
    """
    deadline = time.monotonic() + seconds
    while service.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.25)
    raise RuntimeError(f"the service was not ready within {seconds:g} s")


def demo(folder: Path) -> int:
    """Run the demo in this folder; return the exit status."""
    url = f"http://{LOOPBACK}:{free_port()}"
    log = folder / "service.log"
    print(f"1. starting the service at {url}", flush=True)
    with log.open("wb") as out:
        service = subprocess.Popen(
            [sys.executable, "-m", "cli.up", "--port", url.rpartition(":")[2], "--data", str(folder / "data")],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        print(
            "2. training a small CNN on scikit-learn's handwritten digits, exporting it with torch.export", flush=True
        )
        subprocess.run([sys.executable, "-m", "demo.train", str(folder)], check=True)
        wait_until_ready(url, service, seconds=60)
        print("3. upload, prune with CHITA at 90 %, download (demo/session.sh, as in the README)", flush=True)
        subprocess.run(["bash", str(HERE / "session.sh")], cwd=folder, env={**os.environ, "URL": url}, check=True)
        print("4. what was gained", flush=True)
        return subprocess.run([sys.executable, "-m", "demo.compare", str(folder)], check=False).returncode
    except (subprocess.CalledProcessError, RuntimeError) as error:
        print(f"demo: {error}\n--- the end of the service's log ---", file=sys.stderr)
        print(log.read_text("utf-8", "replace")[-8000:], file=sys.stderr)
        return 1
    finally:
        service.terminate()
        service.wait(60)


def main() -> int:
    if shutil.which("curl") is None:
        print("demo: needs curl on the PATH (apt-get install curl)", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="pruning-demo-") as folder:
        return demo(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
