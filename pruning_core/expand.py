"""Make the pruned model out of its compact form: ``python -m pruning_core.expand model.compact model.pt2``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pruning_core.compact import expand
from pruning_core.errors import PruningError


def main(arguments: list[str] | None = None) -> int:
    """Expand a file.

    Returns:
        The exit status: 0 if the target holds the very bytes that were made compact, 1 if the file is broken, 2 if one
        cannot be opened.
    """
    parser = argparse.ArgumentParser(prog="python -m pruning_core.expand", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("compact", type=Path, help="as downloaded from /jobs/{id}/compact")
    parser.add_argument("model", type=Path, help="what to write")
    given = parser.parse_args(arguments)
    aside = given.model.with_name(given.model.name + ".part")
    try:
        made = expand(given.compact.read_bytes())
        aside.write_bytes(made)
        aside.replace(given.model)
    except PruningError as error:
        sys.stderr.write(f"expand: {error.detail}\n")
        return 1
    except OSError as error:
        aside.unlink(missing_ok=True)
        sys.stderr.write(f"expand: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
