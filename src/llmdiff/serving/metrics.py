"""The metrics at /metrics, in Prometheus' format."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)


class Metrics:
    """Counters and histograms of one server, in a separate registry so that two servers do not mix.

    Fields:
        requests, request_seconds: by route (its template, never the actual path) and status.
        pictures: by outcome: drawn, abandoned (the client disconnected or timed out) or failed.
        batch_pictures: pictures per batch; drawing_seconds: wall-clock time of a batch.
        waiting: requests in the queue; ready: 1 if the models are loaded.
    """

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter("llmdiff_requests", "HTTP requests", ["route", "status"], registry=own)
        self.request_seconds = _seconds("request", "Wall-clock time of HTTP requests", own, ["route"])
        self.pictures = Counter("llmdiff_pictures", "Pictures by outcome", ["outcome"], registry=own)
        sizes = (1, 2, 4, 8, 16, 32)
        self.batch_pictures = Histogram(
            "llmdiff_batch_pictures", "Pictures per batch", buckets=sizes, registry=own
        )
        self.drawing_seconds = _seconds("drawing", "Wall-clock time of one batch", own)
        self.waiting = Gauge("llmdiff_queue_waiting", "Requests in the queue", registry=own)
        self.queue_size = Gauge("llmdiff_queue_size", "Largest number of requests in the queue", registry=own)
        self.ready = Gauge("llmdiff_ready", "1 if the models are loaded", registry=own)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)


def _seconds(name: str, help: str, registry: CollectorRegistry, labels: Sequence[str] = ()) -> Histogram:
    return Histogram(f"llmdiff_{name}_seconds", help, labels, buckets=_SECONDS, registry=registry)
