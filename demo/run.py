"""`make demo`: the whole path, end to end, on real data; nothing is left running at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cli.embedded import LOOPBACK, free_port, wait_for
from cli.up import is_ready

HERE = Path(__file__).resolve().parent


def demo(folder: Path) -> int:
    """Run the demo in this folder; return the exit status."""
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"
    log = folder / "service.log"
    print(f"1. starting the service at {url}", flush=True)
    with log.open("wb") as out:
        service = subprocess.Popen(
            [sys.executable, "-m", "cli.up", "--port", str(port), "--data", str(folder / "data")],
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        print(
            "2. training a small CNN on scikit-learn's handwritten digits, exporting it with torch.export", flush=True
        )
        subprocess.run([sys.executable, "-m", "demo.train", str(folder)], check=True)
        wait_for(lambda: is_ready(port) or service.poll() is not None, seconds=60, what="the service")
        print("3. upload, prune with CHITA at 90 %, download (demo/session.sh, as in the README)", flush=True)
        subprocess.run(["bash", str(HERE / "session.sh")], cwd=folder, env={**os.environ, "URL": url}, check=True)
        print("4. what was gained", flush=True)
        return subprocess.run([sys.executable, "-m", "demo.compare", str(folder)], check=False).returncode
    except (subprocess.CalledProcessError, TimeoutError) as error:
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
