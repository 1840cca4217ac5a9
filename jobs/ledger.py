"""The record of each item in the bucket, and the rules by which it changes.

Exactly-once effect rests on three things: only the holder of the lease acts on an item, artifacts lie under the
attempt's own key, and the outcome is written once, under a lock, after a look that there is none.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs import layout
from jobs.bucket import Bucket
from jobs.clock import Clock, Down
from jobs.errors import AttemptsExhausted, Unavailable
from jobs.ids import Kind, kind_of
from jobs.index import Index
from jobs.metrics import problem_kind
from jobs.recall import Recall
from jobs.records import Attempt, now
from jobs.settings import Settings
from jobs.states import Event, State, after, first
from jobs.tenants import owner
from jobs.usage import charge

_GIVEN_BACK = "released"
_ENDED = "ended"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One item as the bucket has it."""

    id: str
    request: dict[str, Any]
    outcome: dict[str, Any] | None
    cancelled: bool = False
    attempts: tuple[Attempt, ...] = ()

    @property
    def kind(self) -> Kind:
        """What it is."""
        return kind_of(self.id)

    @property
    def counted(self) -> int:
        """Attempts that count against the cap: those that were not given back."""
        return sum(attempt.released is None for attempt in self.attempts)

    def state(self, leased: bool | None) -> State:
        """Return the state.

        Args:
            leased: Whether somebody holds the lease; None if Redis cannot say.
        """
        if self.outcome is not None:
            state: State = self.outcome["state"]
            return state
        working = bool(self.attempts) and not self.attempts[-1].closed and leased is not False
        return after(self.kind, first(self.kind), "start") if working else first(self.kind)


class Ledger:
    """Reads and writes items."""

    def __init__(self, settings: Settings, bucket: Bucket, clock: Clock, index: Index) -> None:
        self.settings, self.bucket, self.clock, self.index = settings, bucket, clock, index
        self.recall = Recall(bucket, clock)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read(self, item: str, *, recall: bool = False) -> Item | None:
        """Return the item, or None if there is none.

        Args:
            item: Its id.
            recall: Whether documents that never change may come from this process's memory: for those who only look.
        """
        usable = recall and self.recall.usable(item)
        request = self.recall.get_json(layout.request(item), usable=usable)
        if request is None:
            return None
        outcome, keys = self.recall.get_json(layout.outcome(item), usable=usable), set[str]()
        if outcome is None:
            keys |= set(self.bucket.list(layout.prefix(item)))
            if layout.outcome(item) in keys:  # it ended between the two looks, or nobody could write it to its end
                outcome = self.recall.get_json(layout.outcome(item), usable=usable)
        if outcome is not None:
            attempts = tuple(Attempt.model_validate(attempt) for attempt in outcome.get("attempts", ()))
            return Item(id=item, request=request, outcome=outcome, attempts=attempts)
        return Item(
            id=item,
            request=request,
            outcome=None,
            cancelled=layout.cancel(item) in keys,
            attempts=self._attempts(item, keys, usable=usable),
        )

    def cancelled(self, item: str) -> bool:
        """Return whether the user cancelled the item."""
        return self.bucket.head(layout.cancel(item)) is not None

    def _attempts(self, item: str, keys: set[str], *, usable: bool) -> tuple[Attempt, ...]:
        folder = layout.attempts(item)
        numbers = {key[len(folder) :].partition("/")[0] for key in keys if key.startswith(folder)}
        attempts = []
        for number in sorted(int(text) for text in numbers if text.isdecimal()):
            # nanio lists the file it is still writing beside the key it will have: the folder may come first.
            started = self.recall.get_json(layout.attempt(item, number, "started"), usable=usable)
            if started is None:
                continue
            document = dict(started)
            for event in (_GIVEN_BACK, _ENDED):
                if layout.attempt(item, number, event) in keys:
                    document |= self.recall.get_json(layout.attempt(item, number, event), usable=usable) or {}
            attempts.append(Attempt.model_validate(document))
        return tuple(attempts)

    # -- attempts (the caller holds the lease) ---------------------------------------------------------------------

    def resolve(self, item: str, token: str) -> Item | None:
        """Settle what needs no work: a cancelled item, or one whose attempts are used up.

        Returns:
            The item if there is work to do, else None.
        """
        found = self.read(item)
        if found is None:
            self.index.remove(item)
            self.clock.forget(item)
            return None
        if found.outcome is not None:
            self._closed(found)
            return None
        if found.cancelled:
            self.publish(found, token, "cancel")
            return None
        if found.counted >= self.settings.max_attempts:
            self.publish(found, token, "fail", problem=_exhausted(found))
            return None
        return found

    def begin(self, item: Item, token: str, worker: str) -> Attempt:
        """Record that an attempt begins; it counts from now on, even if nobody ever hears of it again."""
        number = 1 + max((attempt.number for attempt in item.attempts), default=0)
        while True:
            document = {"number": number, "worker": worker, "started_at": now(), "token": token}
            if self.bucket.write_once(layout.attempt(item.id, number, "started"), document):
                return Attempt.model_validate(document)
            number += 1  # a holder that lost its lease was quicker

    def give_back(self, item: str, attempt: Attempt, reason: str) -> None:
        """Record that the attempt was broken off through no fault of the item: it does not count."""
        self.bucket.write_once(
            layout.attempt(item, attempt.number, _GIVEN_BACK), {"released": reason, "ended_at": now()}
        )

    def lost(self, item: str, attempt: Attempt, problem: dict[str, Any]) -> None:
        """Record how an attempt ended that came to nothing; it counts."""
        self.bucket.write_once(layout.attempt(item, attempt.number, _ENDED), {"problem": problem, "ended_at": now()})

    # -- outcome ---------------------------------------------------------------------------------------------------

    def publish(
        self,
        item: Item,
        token: str,
        event: Event,
        *,
        attempt: Attempt | None = None,
        problem: dict[str, Any] | None = None,
        result: dict[str, Any] | None = None,
        artifacts: dict[str, Any] | None = None,
    ) -> bool:
        """Write the one outcome, if the lease is this token's (or nobody's) and there is no outcome yet.

        Returns:
            Whether this call wrote it. If not, somebody else has or will, and what this caller did has no effect.

        Raises:
            Down: Redis does not answer, so it cannot be known that no other worker publishes; try again.
        """
        with self.clock.lock(f"publish:{item.id}") as locked:
            if not locked or self.clock.renew(item.id, token) == "lost":
                return False
            found = self.read(item.id)
            if found is None or found.outcome is not None:
                return False
            if event == "succeed" and found.cancelled:
                event, problem, result, artifacts = "cancel", None, None, None
            attempts = found.attempts
            before = after(item.kind, first(item.kind), "start") if attempt else found.state(leased=None)
            ended_at = now()
            if item.kind == "job" and attempts:
                charge(
                    self.bucket,
                    self.settings,
                    owner(found.request),
                    item.id,
                    attempts,
                    current=attempt,
                    now=ended_at,
                )
            document = {
                "state": after(item.kind, before, event),
                "ended_at": ended_at,
                "started_at": attempts[-1].model_dump(mode="json")["started_at"] if attempts else None,
                "attempt": attempt.number if attempt else len(attempts),
                "attempts": [entry.model_dump(mode="json") for entry in attempts],
                "problem": problem,
                "result": result,
                "artifacts": artifacts,
            }
            written = self.bucket.write_once(
                layout.outcome(item.id), {name: value for name, value in document.items() if value is not None}
            )
        if written:
            self._count(item, document)
            self._closed(item)
        return written

    def _count(self, item: Item, outcome: dict[str, Any]) -> None:
        metrics, state = self.clock.metrics, outcome["state"]
        metrics.add("pruning_items_ended_total", kind=item.kind, state=state)
        if outcome["problem"] is not None:
            metrics.add("pruning_failures_total", kind=item.kind, problem=problem_kind(outcome["problem"]))
        if item.kind == "job":
            created = datetime.fromisoformat(item.request["created_at"])
            seconds = (datetime.fromisoformat(outcome["ended_at"]) - created).total_seconds()
            metrics.observe("pruning_job_seconds", seconds, state=state)
            if outcome["attempts"]:
                began = datetime.fromisoformat(outcome["attempts"][0]["started_at"])
                metrics.observe("pruning_job_wait_seconds", (began - created).total_seconds())

    def _closed(self, item: Item) -> None:
        # Only upkeep: the reconciler, or the sweeper, does it again if this does not come through.
        with suppress(Down, Unavailable):
            if item.kind == "job":
                self.bucket.delete_prefix(layout.checkpoints(item.id))
                for known in item.request.get("inputs", {}).values():
                    if known["blob"].startswith(layout.BLOBS):
                        self.bucket.delete(layout.reference(known["blob"], item.id))
                self.clock.note_ended(item.id)
            self.index.close(item.id)
            self.clock.forget(item.id)


def _exhausted(item: Item) -> dict[str, Any]:
    seen = [
        {
            "attempt": attempt.number,
            "worker": attempt.worker,
            "started_at": attempt.model_dump(mode="json")["started_at"],
            "seen": (attempt.problem or {}).get("detail", "The worker was lost: it stopped without a word."),
        }
        for attempt in item.attempts
        if attempt.released is None
    ]
    return AttemptsExhausted(
        f"All {len(seen)} attempts ended without a result; the last: {seen[-1]['seen']}",
        advice="If the process was killed, the model or data may need more memory than the worker allows.",
        attempts=seen,
    ).problem()
