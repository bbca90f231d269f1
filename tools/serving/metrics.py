"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

ROUTES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/models",
    "/health",
    "/metrics",
    "/openapi.json",
    "/api",
    "/",
)
PREFIXES = ("/v1/models/", "/v1/responses/", "/pictures/", "/page/")
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
BATCH = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)


class ServerMetrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files
        self.requests = Counter("uni_x_requests", "Requests that were answered", ["route", "code"], registry=registry)
        self.seconds = Histogram(
            "uni_x_request_seconds",
            "From a request to the end of its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram(
            "uni_x_batch_results", "Results that the model made together", ["task"], buckets=BATCH, registry=registry
        )
        self.picture_seconds = Histogram(
            "uni_x_picture_seconds",
            "Time of the model for a picture: a batch's, over its pictures",
            ["task"],
            buckets=SECONDS,
            registry=registry,
        )
        self.token_seconds = Histogram(
            "uni_x_token_seconds",
            "Time of the model for a token of a text: a batch's, over its tokens",
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        self.pictures = Counter("uni_x_pictures", "Pictures that were made", ["task"], registry=registry)
        self.tokens = Counter("uni_x_text_tokens", "Tokens of texts that were written", registry=registry)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Gauge whose value is looked up on each scrape."""
        Gauge(name, what, registry=self.registry).set_function(value)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a finished request; `status` 0: the client had left."""
        route = route_of(path)
        self.requests.labels(route, str(status or "left")).inc()
        self.seconds.labels(route).observe(seconds)

    def batch(self, task: str, results: int, tokens: int, seconds: float) -> None:
        """Count a batch of `results` results with `tokens` tokens in all."""
        self.batches.labels(task).observe(results)
        if task == "text":
            self.tokens.inc(tokens)
            if tokens:
                self.token_seconds.observe(seconds / tokens)
        elif task in ("draw", "edit"):
            self.pictures.labels(task).inc(results)
            self.picture_seconds.labels(task).observe(seconds / results)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)


def route_of(path: str) -> str:
    """Route label of a path: bounded by the server's routes, whatever clients request."""
    if path in ROUTES:
        return path
    return next((f"{prefix}..." for prefix in PREFIXES if path.startswith(prefix)), "other")
