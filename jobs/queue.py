"""The queue: Celery on Redis. A message is only a hint that an item may have work to do; losing one loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Literal, cast

from celery import Celery
from kombu import Exchange
from kombu import Queue as KombuQueue
from kombu.exceptions import OperationalError

from jobs.clock import Clock, Down
from jobs.ids import UPLOAD_KINDS, Kind, kind_of
from jobs.settings import Settings

QueueName = Literal["jobs", "inspections"]
QUEUES: tuple[QueueName, ...] = ("jobs", "inspections")
RUN_JOB = "pruning.run_job"
RUN_INSPECTION = "pruning.run_inspection"

_KEY_PREFIX = "pruning:celery:"
#: Work that was begun goes before new work: whoever waits for it has waited longest. Kombu looks at 0 first.
_BEGUN, _NEW = 0, 5
#: As kombu names the list of a queue's messages of one priority.
_LISTS = {_BEGUN: "", _NEW: f"\x06\x16{_NEW}"}
_ROUTE: dict[Kind, tuple[QueueName, str]] = {
    "job": ("jobs", RUN_JOB),
    **dict.fromkeys(UPLOAD_KINDS, ("inspections", RUN_INSPECTION)),
}


def queue_of(kind: Kind) -> QueueName:
    """Return the queue that items of this kind wait in."""
    return _ROUTE[kind][0]


def celery_app(settings: Settings) -> Celery:
    """Return the Celery app that api and worker share. Its settings are the first line only; leases do the rest."""
    hard_limit = settings.job_wall_seconds + settings.inspection_wall_seconds + 600
    app = Celery("pruning", set_as_current=False)
    app.conf.update(
        broker_url=settings.redis_url,
        result_backend=None,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        # Each with its own exchange and key: a queue without takes the default's, and gets its messages too.
        task_queues=[KombuQueue(name, Exchange(name), routing_key=name) for name in QUEUES],
        task_default_queue="jobs",
        task_create_missing_queues=False,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        task_time_limit=hard_limit,
        worker_prefetch_multiplier=1,
        # Each task has a sandboxed process of its own; its supervisor, the pool child, holds nothing of it. A fresh
        # child for each would cost one to five seconds: billiard sleeps when a child ends, and looks every five.
        worker_max_tasks_per_child=100,
        # A job outlives an outage of Redis: its lease, not the broker's connection, says whether it may go on.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_soft_shutdown_timeout=settings.shutdown_seconds,
        worker_send_task_events=False,
        broker_connection_retry=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=settings.redis_timeout,
        broker_transport_options={
            "visibility_timeout": int(2 * hard_limit),
            "priority_steps": sorted(_LISTS),
            "global_keyprefix": _KEY_PREFIX,
            "socket_connect_timeout": settings.redis_timeout,
            "socket_keepalive": True,
        },
    )
    return app


class Queue:
    """The sending side. Never waits long: a Redis that is down shows as `Down`."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._clock = clock
        self._app = celery_app(settings)
        # Producers give up at once, unlike workers; the reconciler sends again.
        self._app.conf.broker_transport_options = {
            **self._app.conf.broker_transport_options,
            "socket_timeout": settings.redis_timeout,
            "max_retries": 0,
        }

    def enqueue(self, item: str, *, begun: bool = False) -> bool:
        """Send a hint that the item has work to do, unless one was sent a moment ago.

        Args:
            item: The item.
            begun: Whether an attempt at it was made already; then it goes before new ones.

        Returns:
            Whether a message was sent.

        Raises:
            Down: Redis does not answer.
        """
        if not self._clock.hint(item):
            return False
        queue, task = _ROUTE[kind_of(item)]
        try:
            self._app.send_task(
                task,
                args=[item],
                queue=queue,
                headers={"item": item},
                priority=_BEGUN if begun else _NEW,
                retry=False,
            )
        except (OperationalError, OSError) as error:
            with suppress(Down):
                self._clock.unhint(item)
            raise Down(f"the message could not be sent: {type(error).__name__}") from error
        return True

    def length(self, queue: QueueName) -> int:
        """Return how many messages wait."""
        with self._clock.redis.pipeline(transaction=False) as pipe:
            for suffix in _LISTS.values():
                pipe.llen(_KEY_PREFIX + queue + suffix)
            return sum(pipe.execute())

    def waiting(self, queue: QueueName, limit: int = 2000) -> set[str]:
        """Return the items that the next ``limit`` messages are about."""
        # Kombu pushes on the left and pops on the right.
        with self._clock.redis.pipeline(transaction=False) as pipe:
            for suffix in _LISTS.values():
                pipe.lrange(_KEY_PREFIX + queue + suffix, -limit, -1)
            lists = cast(list[list[str]], pipe.execute())
        return {item for messages in lists for item in _items(messages)}

    def close(self) -> None:
        """Close the connections."""
        self._app.close()


def _items(messages: Iterable[str]) -> Iterable[str]:
    for message in messages:
        document: dict[str, Any] = json.loads(message)
        item = document.get("headers", {}).get("item")
        if isinstance(item, str):
            yield item
