"""`python -m cli.keys`: the operator's side of API keys, for any tenant; also the way to the first key of all.

It works on the bucket and Redis that the environment names (``PRUNING_…``, as for the api), so whoever has the bucket's
credentials is the operator. A token is printed once, alone on stdout; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from jobs.audit import Audit, Entry
from jobs.bucket import Bucket
from jobs.clock import Clock
from jobs.keys import SCOPES, Key, Keys
from jobs.settings import Settings
from jobs.tenants import DEFAULT, is_tenant
from pruning_core.errors import InputError, PruningError

_BY = "operator"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit status."""
    options = _parser().parse_args(arguments)
    settings = Settings()
    bucket, clock = Bucket(settings), Clock(settings)
    try:
        bucket.ensure()
        if not is_tenant(options.tenant):
            raise InputError("This cannot be the name of a tenant.", advice="a-z, 0-9 and '-', at most 63.")
        if options.command != "list":
            # First: what cannot be recorded is not done.
            target = getattr(options, "id", None)
            audit = Audit(bucket)
            audit.write(Entry(tenant=options.tenant, by=_BY, action=f"{options.command}_key", target=target))
        _do(options, Keys(bucket, clock))
    except PruningError as error:
        sys.stderr.write(f"keys: {error.detail}\n" + (f"      {error.advice}\n" if error.advice else ""))
        return 1
    finally:
        bucket.close()
        clock.redis.close()
    return 0


def _do(options: argparse.Namespace, keys: Keys) -> None:
    if options.command == "create":
        days = options.expires_days
        expires_at = None if days is None else datetime.now(UTC) + timedelta(days=days)
        _show(*keys.create(options.tenant, options.name, options.scope, by=_BY, expires_at=expires_at))
    elif options.command == "rotate":
        _show(*keys.rotate(options.tenant, options.id, grace=timedelta(seconds=options.grace_seconds)))
    elif options.command == "revoke":
        key = keys.revoke(options.tenant, options.id, by=_BY)
        sys.stderr.write(f"revoked {key.id} ({key.name}) of tenant {key.tenant}\n")
    else:
        for key in keys.page(options.tenant):
            print(json.dumps({"state": key.state, **key.model_dump(mode="json", exclude={"secrets"})}))


def _show(key: Key, token: str) -> None:
    sys.stderr.write(f"{key.id}: scope {key.scope} of tenant {key.tenant}. This token is shown only now:\n")
    print(token, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cli.keys", description="Make, list, rotate and revoke API keys.")
    parser.add_argument("--tenant", default=DEFAULT, help="whose keys (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="make a key, and print its token")
    create.add_argument("--name", default="made by the operator", help="what people call it")
    create.add_argument("--scope", choices=SCOPES, default="admin", help="what it may do (default: %(default)s)")
    create.add_argument("--expires-days", type=float, default=None, help="after which it ends (default: never)")
    rotate = commands.add_parser("rotate", help="give a key a new secret, and print the new token")
    rotate.add_argument("id")
    rotate.add_argument("--grace-seconds", type=float, default=86400, help="for the old token (default: a day)")
    commands.add_parser("revoke", help="end a key for good").add_argument("id")
    commands.add_parser("list", help="show a tenant's keys, one JSON document a line")
    return parser


if __name__ == "__main__":
    sys.exit(main())
