"""What `benchmarks.service` found, as tables."""

from __future__ import annotations

import statistics
from typing import Any

from benchmarks.http_load import Load

POLLED_JOBS = 10_000
CONNECTIONS = 16
SECONDS = 10.0
FILE_BYTES = 512 * 2**20


def markdown(found: dict[str, Any]) -> str:
    """Return the tables."""
    rounds: list[tuple[Load, Load]] = found["polling"]["rounds"]
    ours, bare = ([pair[i] for pair in rounds] for i in (0, 1))

    def middle(loads: list[Load], field: str) -> float:
        return statistics.median(getattr(one, field) for one in loads)

    def row(name: str, per_second: float, p50: float, p99: float) -> str:
        return f"| {name} | {per_second:.0f} | {p50:.1f} | {p99:.1f} |"

    rate, bare_rate = middle(ours, "per_second"), middle(bare, "per_second")
    first: Load = found["polling"]["first"]
    lines = [
        f"### Polling: `GET /jobs/{{id}}` at random, {POLLED_JOBS} jobs that have ended, {CONNECTIONS} connections",
        "",
        "| | requests/s | p50 ms | p99 ms |",
        "|---|---|---|---|",
        row("bare FastAPI route, fixed document", bare_rate, middle(bare, "p50"), middle(bare, "p99")),
        row("the service", rate, middle(ours, "p50"), middle(ours, "p99")),
        row(f"the service, its first {SECONDS:.0f} s (nothing in memory)", first.per_second, first.p50, first.p99),
        "",
        f"{rate / bare_rate:.2f} of the bare route's rate. One api process; the load generator shares the machine. "
        f"Reading all {POLLED_JOBS} jobs' keys anew after Redis was wiped took {found['polling']['rebuild']:.1f} s.",
        "",
        "### Listing: `GET /jobs?limit=50`, median milliseconds",
        "",
    ]
    kinds = list(found["listing"][0][1])
    lines += [f"| jobs stored | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    lines += [
        f"| {count} | {' | '.join(f'{times[kind]:.0f}' for kind in kinds)} |" for count, times in found["listing"]
    ]
    lines += [
        "",
        f"### Transfers of {FILE_BYTES // 2**20} MiB",
        "",
        "| | boto3 alone MB/s | the service MB/s | ratio |",
        "|---|---|---|---|",
    ]
    for name, pairs in found["transfers"].items():
        service, alone = (FILE_BYTES / 1e6 / statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        lines.append(f"| {name} | {alone:.0f} | {service:.0f} | {service / alone:.2f} |")
    lines += [
        "",
        "An upload through the service crosses loopback twice, and its SHA-256 is taken on the way.",
        "",
        "### Jobs: from `POST /jobs` to `succeeded`, beside `pruning_core.prune` with reading and writing",
        "",
        "| work | library s | service s | added s | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, pairs in found["jobs"].items():
        service, alone = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
        verdict = "met" if (service - alone <= 1.5 if name == "short" else service / alone <= 1.05) else "not met"
        goal = "at most 1.5 s added" if name == "short" else "at most 1.05 times"
        figures = f"{alone:.2f} | {service:.2f} | {service - alone:.2f} | {service / alone:.3f}"
        lines.append(f"| {name} | {figures} ({goal}: {verdict}) |")
    lines += [
        "",
        "The service does more than the library's call: it also measures each produced file (size, latency, a second "
        "reading that compares every weight) and stores model, masks and report.",
    ]
    return "\n".join(lines)
