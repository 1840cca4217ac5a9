"""Families and samples as Prometheus reads them; imported by the first scrape: the library costs the start too much."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder

from jobs.clock import Down
from jobs.errors import Unavailable
from jobs.metrics import METRICS, Series
from jobs.metrics import Metric as Counted
from jobs.service import Service


def exposition(service: Service, version: str, accept: str) -> tuple[bytes, str]:
    """Scrape the service; return the text and its media type, as the ``Accept`` header wants it."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(service, version))
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


class _Collector:
    """One scrape."""

    def __init__(self, service: Service, version: str) -> None:
        self._service, self._version = service, version

    def describe(self) -> list[Metric]:
        """Nothing ahead of time: asking would be a scrape of its own."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every family. Without Redis: only what is known without it."""
        build = GaugeMetricFamily("pruning_build_info", "Which version answers.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        up = GaugeMetricFamily("pruning_part_up", "Whether a part answers.", labels=["part"])
        try:
            self._service.bucket.check()
            up.add_metric(["bucket"], 1)
        except Unavailable:
            up.add_metric(["bucket"], 0)
        try:
            self._service.clock.metrics.flush()
            moving = [*self._gauges(), *self._counted()]
            up.add_metric(["redis"], 1)
        except Down:
            moving = []
            up.add_metric(["redis"], 0)
        yield up
        yield from moving

    def _gauges(self) -> Iterator[Metric]:
        by_queue = {
            "pruning_queue_length": "Items that wait for a worker.",
            "pruning_queue_oldest_seconds": "Age of the item that has waited longest; 0: none waits.",
            "pruning_running": "Items that a worker holds.",
            "pruning_workers": "Living workers that serve the queue.",
            "pruning_worker_disk_free_bytes": "Room in the work directory of the worker that has least.",
        }
        gauges = {name: GaugeMetricFamily(name, text, labels=["queue"]) for name, text in by_queue.items()}
        for load in self._service.load():
            oldest = 0.0 if load.oldest_at is None else max(0.0, time.time() - load.oldest_at)
            values = [load.waiting, oldest, load.running, load.workers]
            for name, value in zip(by_queue, values, strict=False):
                gauges[name].add_metric([load.queue], value)
            if load.disk_free_bytes is not None:
                gauges["pruning_worker_disk_free_bytes"].add_metric([load.queue], load.disk_free_bytes)
        yield from gauges.values()
        pending = GaugeMetricFamily("pruning_webhook_deliveries_pending", "Messages that are still to be delivered.")
        pending.add_metric([], self._service.outbox.agenda.pending())
        yield pending

    def _counted(self) -> Iterator[Metric]:
        for name, series in self._service.clock.metrics.read().items():
            yield _family(METRICS[name], series)


def _family(metric: Counted, found: dict[tuple[str, ...], Series]) -> Metric:
    if not metric.buckets:
        counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, series in found.items():
            counter.add_metric(labels, series.value)
        return counter
    histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, series in found.items():
        histogram.add_metric(labels, _cumulative(metric.buckets, series.buckets), series.value)
    return histogram


def _cumulative(bounds: tuple[float, ...], counted: dict[str, float]) -> list[tuple[str, float]]:
    """Return cumulative buckets; what was counted under a bound that is no more goes to the next larger one."""
    return [
        *((repr(bound), sum(n for le, n in counted.items() if float(le) <= bound)) for bound in bounds),
        ("+Inf", sum(counted.values())),
    ]
