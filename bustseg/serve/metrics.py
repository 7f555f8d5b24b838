"""Metrics for Prometheus, under ``/metrics``."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The server's metrics, with a separate registry, so that several servers can run in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "bustseg_requests", "Requests by path and status", ("path", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "bustseg_request_seconds", "Time to answer", ("path",), buckets=_SECONDS, registry=self.registry
        )
        self.images = Counter("bustseg_images", "Images processed by the network", registry=self.registry)
        self.flagged = Counter("bustseg_flagged", "Images that a person should look at", registry=self.registry)
        self.batch = Histogram(
            "bustseg_batch_images", "Images of a batch", buckets=(1, 2, 4, 8, 16, 32), registry=self.registry
        )
        self.network = Histogram(
            "bustseg_network_seconds", "Time of a batch in the network", buckets=_SECONDS, registry=self.registry
        )
        self.waiting = Gauge("bustseg_waiting", "Images that wait for the network", registry=self.registry)
        self.working = Gauge("bustseg_working", "Requests in progress", registry=self.registry)
        self.saved = Counter("bustseg_corrections", "Corrections saved", ("verdict",), registry=self.registry)

    def batched(self, size: int, seconds: float) -> None:
        """Count a batch."""
        self.images.inc(size)
        self.batch.observe(size)
        self.network.observe(seconds)

    def refused(self, status: int) -> None:
        """Count a refused request."""
        self.requests.labels("refused", status).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self.registry)


class Measured:
    """ASGI middleware that counts requests; unknown paths share one label, since clients could invent any number."""

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def sender(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sender)
        finally:
            path = getattr(scope.get("route"), "path", "unknown")
            self.metrics.requests.labels(path, status or 499).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
