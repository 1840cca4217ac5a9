"""One run of chaos: reference bytes, users and faults, and the account of it."""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.crowd import RECIPES, Crowd
from tests.chaos.faults import KILLS, Kind, Strike, Striker, schedule
from tests.chaos.proxy import Error
from tests.chaos.stage import Stage
from tests.events.receiver import receiver
from tests.jobs.cluster import eventually

_DISK_BYTES = 768 * 2**20


@dataclass(kw_only=True)
class Account:
    """What a run found."""

    seed: int
    seconds: float = 0.0
    accepted: int = 0
    states: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    ended_twice: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    not_listed: list[str] = field(default_factory=list)
    unsettled_uploads: list[str] = field(default_factory=list)
    not_told: list[str] = field(default_factory=list)
    webhooks: int = 0
    cancelled_but_not: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    retries: int = 0
    attempts: int = 0
    injected: dict[Error, int] = field(default_factory=dict)
    strikes: list[Strike] = field(default_factory=list)
    skipped: list[Kind] = field(default_factory=list)

    @property
    def kills(self) -> int:
        """Processes that were killed."""
        return sum(strike.kind in KILLS for strike in self.strikes)

    def recoveries(self, kind: Kind) -> list[float]:
        return [s.recovered for s in self.strikes if s.kind == kind and s.recovered is not None]

    @property
    def never_recovered(self) -> list[Kind]:
        return [strike.kind for strike in self.strikes if strike.watched and strike.recovered is None]

    def broken(self) -> list[str]:
        """Every promise that was not kept; empty if all is well."""
        checks = {
            "lost": self.lost,
            "ended twice": self.ended_twice,
            "bytes different": self.different,
            "failed": self.failed,
            "not listed": self.not_listed,
            "uploads never inspected": self.unsettled_uploads,
            "ended, and no webhook said so": self.not_told,
            "cancelled, but ended otherwise": self.cancelled_but_not,
            "scratch folders left": self.left_over,
            "faults never recovered from": self.never_recovered,
        }
        return [f"{name}: {found}" for name, found in checks.items() if found]

    def table(self) -> str:
        lines = [
            f"Seed {self.seed}; {self.seconds:.0f} s; {len(self.strikes)} faults, {self.kills} of them kills.",
            "",
            "| jobs | |",
            "|---|---|",
            f"| accepted | {self.accepted} |",
            f"| ended | {', '.join(f'{n} {state}' for state, n in sorted(self.states.items()))} |",
            f"| **lost** | **{len(self.lost)}** |",
            f"| **ended twice** | **{len(self.ended_twice)}** |",
            f"| **bytes different from an undisturbed run** | **{len(self.different)}** |",
            f"| ended, and no webhook said so | {len(self.not_told)} ({self.webhooks} webhooks came) |",
            f"| attempts | {self.attempts} |",
            f"| requests that users had to send again | {self.retries} |",
            f"| S3 requests that failed by the proxy's doing | "
            f"{', '.join(f'{n} {error}' for error, n in self.injected.items())} |",
            "",
            "| fault | times | kept away (median s) | recovery median (s) | worst (s) |",
            "|---|---|---|---|---|",
        ]
        for kind in dict.fromkeys(strike.kind for strike in self.strikes):
            strikes = [strike for strike in self.strikes if strike.kind == kind]
            held, times = statistics.median(s.held for s in strikes), self.recoveries(kind)
            shown = f"{statistics.median(times):.1f} | {max(times):.1f}" if times else "- | -"
            lines.append(f"| {kind} | {len(strikes)} | {f'{held:.1f}' if held else '-'} | {shown} |")
        if self.skipped:
            lines += ["", f"Not done, for want of the right to mount a file system: {', '.join(self.skipped)}."]
        return "\n".join(lines)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own on the folder, small enough to be filled; yields whether this machine allows it."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    mounted = (
        shutil.which("mount") is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def chaos(
    folder: Path, *, seed: int, jobs: int, counts: dict[Kind, int], settings: dict[str, str], workers: int, gap: float
) -> Account:
    """Run the service under `jobs` users while the faults happen.

    Args:
        folder: Where the logs are left.
        seed: Of who comes when and what is struck when.
        jobs: How many jobs are submitted.
        counts: How often each fault happens.
        settings: Variables of the service's processes.
        workers: How many workers there are.
        gap: Seconds between faults, on average.
    """
    account, rng = Account(seed=seed), random.Random(seed)
    disk = folder / "disk"
    disk.mkdir()
    with small_disk(disk) as mounted:
        if not mounted and "disk full" in counts:
            account.skipped.append("disk full")
            counts = {kind: count for kind, count in counts.items() if kind != "disk full"}
        stage = Stage(disk, workers=workers, seed=seed, settings=settings)
        try:
            _run(stage, account, rng, jobs, counts, gap)
        finally:
            stage.close()
            for log in disk.glob("*.log"):
                shutil.copy(log, folder)
        account.left_over = stage.left_over()
    return account


def _run(stage: Stage, account: Account, rng: random.Random, jobs: int, counts: dict[Kind, int], gap: float) -> None:
    eventually(stage.ready, 120, "the service is ready")
    with receiver() as told:
        crowd = Crowd(stage, rng, told)
        crowd.start()
        try:
            _under_fire(stage, account, crowd, counts, jobs, gap)
        finally:
            crowd.stop()


def _under_fire(stage: Stage, account: Account, crowd: Crowd, counts: dict[Kind, int], jobs: int, gap: float) -> None:
    rng = crowd.rng
    references = [crowd.submit(recipe) for recipe in RECIPES]
    eventually(lambda: not crowd.open_jobs(), 180, "the undisturbed jobs ended")
    right = {promise.recipe: crowd.digests(promise) for promise in references}

    began = time.monotonic()
    striker = Striker(stage, rng, crowd.open_jobs)
    faults = schedule(counts, rng)
    users = crowd.come(jobs, 0.9 * gap * len(faults))
    for kind in faults:
        time.sleep(rng.uniform(0.4, 1.6) * gap)
        striker.strike(kind)
    for user in users:
        user.join()
    with_patience(lambda: not crowd.open_jobs(), 240)
    striker.wait()
    account.seconds = time.monotonic() - began
    account.strikes = striker.strikes
    _settle(stage, account, crowd, right)


def with_patience(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until it holds; if it never does, the account shows it."""
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.2)


def _settle(stage: Stage, account: Account, crowd: Crowd, right: dict[str, dict[str, str]]) -> None:
    with_patience(lambda: not crowd.unsettled_uploads() and not crowd.not_told(), 60)
    crowd.look_again()
    promises = crowd.promises.values()
    account.accepted, account.retries, account.injected = len(crowd.promises), crowd.retries, stage.proxy.injected
    listed = crowd.listed()
    for promise in promises:
        if promise.outcome is None:
            account.lost.append(promise.job)
            continue
        state = promise.outcome["state"]
        account.states[state] = account.states.get(state, 0) + 1
        account.attempts += len(promise.outcome.get("attempts", ()))
        if promise.changed or len(set(stage.proxy.written.get(promise.job, ()))) > 1:
            account.ended_twice.append(promise.job)
        if state == "failed":
            account.failed.append(f"{promise.job}: {promise.outcome.get('problem')}")
        if promise.cancelled and state != "cancelled":
            account.cancelled_but_not.append(promise.job)
        if state == "succeeded" and crowd.digests(promise) != right[promise.recipe]:
            account.different.append(promise.job)
        if promise.job not in listed:
            account.not_listed.append(promise.job)
    account.unsettled_uploads = crowd.unsettled_uploads()
    account.not_told, account.webhooks = crowd.not_told(), len(crowd.receiver.got)
