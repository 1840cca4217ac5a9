"""``python -m tests.chaos``: the whole run; writes its table to ``RESULTS.md``. Exit status 1: a promise broke."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.faults import SHORT, WHOLE
from tests.chaos.run import chaos
from tests.chaos.stage import AS_DEPLOYED, QUICK


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--gap", type=float, default=4.0, help="seconds between faults, on average")
    parser.add_argument("--short", action="store_true", help="each kind of fault once or twice, 20 jobs")
    parser.add_argument("--keep", action="store_true", help="keep the logs, and say where they are")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    jobs, counts = (20, SHORT) if options.short else (options.jobs, WHOLE)
    try:
        account = chaos(
            folder,
            seed=options.seed,
            jobs=jobs,
            counts=counts,
            workers=options.workers,
            gap=options.gap,
            settings=QUICK if options.short else AS_DEPLOYED,
        )
    finally:
        if options.keep:
            print(f"logs: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    print(account.table())
    if not options.short:
        text = f"# Chaos\n\n`make chaos` on {machine}; {options.workers} workers.\n\n{account.table()}\n"
        Path(__file__).with_name("RESULTS.md").write_text(text, "utf-8")
    for line in account.broken():
        print(f"BROKEN {line}")
    return 1 if account.broken() else 0


if __name__ == "__main__":
    sys.exit(main())
