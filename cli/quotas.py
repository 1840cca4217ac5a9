"""`python -m cli.quotas TENANT`: show or set the limits of a tenant, on the bucket that the environment names.

A number is a limit, ``none`` takes it away, ``default`` goes back to what ``PRUNING_QUOTA_…`` of the api says. It takes
effect within seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from jobs.audit import Audit, Entry
from jobs.quotas import Limits
from jobs.service import Service
from pruning_core.errors import PruningError


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m cli.quotas", description="Show or set the limits of a tenant.")
    parser.add_argument("tenant")
    for name in Limits.model_fields:
        parser.add_argument(f"--{name.replace('_', '-')}", type=_limit, metavar="N|none|default")
    options = parser.parse_args(arguments)
    changes = {name: value for name in Limits.model_fields if (value := getattr(options, name)) is not None}
    service = Service()
    try:
        quotas = service.quotas
        if changes:
            Audit(service.bucket).write(Entry(tenant=options.tenant, by="operator", action="set_quotas"))
            quotas.set_limits(options.tenant, changes)
        found = {"limits": quotas.limits(options.tenant).model_dump(), "used": quotas.used(options.tenant)}
    except PruningError as error:
        sys.stderr.write(f"quotas: {error.detail}\n" + (f"        {error.advice}\n" if error.advice else ""))
        return 1
    finally:
        service.close()
    print(json.dumps({"tenant": options.tenant, **found}))
    return 0


def _limit(text: str) -> int | str:
    if text in {"none", "default"}:
        return text
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number, 'none' or 'default', not {text!r}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
