"""``python -m pruning_core.algorithms --write | --check``: the catalogue that the service reads without torch."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pruning_core
from pruning_core.algorithms import describe

CATALOGUE = Path(pruning_core.__file__).with_name("catalogue.json")


def main(arguments: list[str] | None = None) -> int:
    """Write the catalogue, or check that it is what the registry says; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m pruning_core.algorithms", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", action="store_true", help="rewrite pruning_core/catalogue.json")
    action.add_argument("--check", action="store_true", help="fail if it is out of date")
    chosen = parser.parse_args(arguments)
    text = json.dumps(describe(), indent=2, ensure_ascii=False) + "\n"
    if chosen.write:
        CATALOGUE.write_text(text, "utf-8")
        return 0
    if CATALOGUE.read_text("utf-8") != text:
        sys.stderr.write(f"{CATALOGUE.name} is out of date; run: make catalogue\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
