"""The metrics at /metrics, in Prometheus' format."""

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
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "llmdiff_requests", "HTTP requests", ["route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "llmdiff_request_seconds",
            "Wall-clock time of HTTP requests",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.pictures = Counter(
            "llmdiff_pictures", "Pictures by what became of them", ["outcome"], registry=self.registry
        )
        self.batch_pictures = Histogram(
            "llmdiff_batch_pictures",
            "Pictures drawn in one pass",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.drawing_seconds = Histogram(
            "llmdiff_drawing_seconds",
            "Wall-clock time of one pass",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge("llmdiff_queue_waiting", "Requests that wait", registry=self.registry)
        self.queue_size = Gauge("llmdiff_queue_size", "Requests that may wait", registry=self.registry)
        self.ready = Gauge("llmdiff_ready", "1 when the models are loaded", registry=self.registry)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
