"""Metrics for Prometheus. Their labels are routes, methods and statuses, never parts of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from emollama.inference.requests import Answer

if TYPE_CHECKING:
    from emollama.inference.engine import Engine

CONTENT_TYPE = CONTENT_TYPE_LATEST
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # upper limits of the buckets


class Metrics:
    """The metrics of one server.

    Args:
        engine: returns the engine, or None while it is loaded.
    """

    def __init__(self, engine: Callable[[], Engine | None]) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_EngineCollector(engine))
        keys = ("route", "method", "status")
        self._requests = Counter("emollama_http_requests", "HTTP requests.", keys, registry=self._registry)
        self._seconds = Histogram(
            "emollama_http_request_seconds",
            "Time to the end of the response.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._phases = Histogram(
            "emollama_answer_seconds", "Time of each phase of an answer.", ("phase",), buckets=SECONDS, registry=self._registry
        )
        self._tokens = Counter("emollama_tokens", "Tokens of prompts and answers.", ("kind",), registry=self._registry)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def answer(self, answer: Answer) -> None:
        """Count an answer."""
        for phase in ("queue", "features", "generation"):
            self._phases.labels(phase).observe(getattr(answer.timings, phase))
        self._tokens.labels("prompt").inc(answer.prompt_tokens)
        self._tokens.labels("completion").inc(answer.completion_tokens)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format (:data:`CONTENT_TYPE`)."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    """Reads the statistics of the engine when the metrics are requested."""

    def __init__(self, engine: Callable[[], Engine | None]) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the engine."""
        engine = self._engine()
        yield GaugeMetricFamily("emollama_ready", "Whether the model is loaded.", value=float(engine is not None))
        if engine is None:
            return
        statistics = engine.statistics
        waiting = statistics.accepted - statistics.generating
        yield GaugeMetricFamily("emollama_waiting_requests", "Requests in the queue.", value=waiting)
        yield GaugeMetricFamily("emollama_generating_requests", "Requests that are being answered.", value=statistics.generating)
        ended = CounterMetricFamily("emollama_engine_requests", "Requests that the engine is done with.", labels=("outcome",))
        for outcome in ("answered", "failed", "cancelled", "rejected"):
            ended.add_metric((outcome,), getattr(statistics, outcome))
        yield ended
