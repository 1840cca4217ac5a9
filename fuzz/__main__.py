"""Command line: fuzz one target or all for a time, keep what was found, print one row of the table.

Each run is a process of its own (`fuzz.engine`), because an input may end it (a signal, the time limit); it is then
kept as a finding and the run goes on with what it had learned until the time is over.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from fuzz.names import TARGETS

_STATUS = re.compile(r"#(\d+)\s+\w+\s+cov: (\d+) ft: (\d+) corp: (\d+)")


def main() -> int:
    """Run what the command line asks for; the exit code is 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", choices=[*TARGETS, "all"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=Path("data/fuzz"), help="corpus and findings; kept between runs")
    options = parser.parse_args()
    names = TARGETS if options.target == "all" else (options.target,)
    return int(sum(fuzz(name, options.seconds, options.out) for name in names) > 0)


def fuzz(name: str, seconds: float, out: Path) -> int:
    """Fuzz one target; return how many findings there are."""
    folder = (out / name).resolve()
    for part in ("corpus", "findings"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    began, cpu, executions, edges, corpus, restarts = time.monotonic(), 0.0, 0, 0, 0, 0
    while (left := int(began + seconds - time.monotonic())) > 0:
        with (folder / "log").open("a+b") as log:
            start = log.seek(0, os.SEEK_END)
            process = subprocess.Popen(
                [sys.executable, "-m", "fuzz.engine", name, str(folder), str(left)],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
                stdout=log,
                stderr=log,
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            cpu += usage.ru_utime + usage.ru_stime
            log.seek(start)
            seen = _STATUS.findall(log.read().decode("utf-8", "replace"))
        if seen:
            executions += int(seen[-1][0])
            edges, corpus = max(edges, int(seen[-1][1])), int(seen[-1][3])
        elif process.returncode:
            print(f"{name}: the engine did not start; see {folder / 'log'}", file=sys.stderr)
            return 1
        restarts += 1
    findings = [path for path in (folder / "findings").iterdir() if path.suffix != ".txt"]
    row = (name, f"{(time.monotonic() - began) / 60:.1f}", f"{cpu / 60:.1f}", f"{executions:,}", edges, corpus)
    line = "| " + " | ".join(map(str, (*row, restarts - 1, len(findings)))) + " |"
    print(line, flush=True)
    with (out / "rows.md").open("a") as table:
        table.write(line + "\n")
    return len(findings)


if __name__ == "__main__":
    sys.exit(main())
