"""Counts and times of a server, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from ggpy.protocol.generation import Finished

if TYPE_CHECKING:
    from ggpy.server.models import Models

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, models: Models) -> None:
        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("ggpy_requests", "Requests answered.", ("path", "status"), registry=registry)
        self._seconds = Histogram(
            "ggpy_request_seconds", "Time from a request to its answer's end.", ("path",), registry=registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self._first_token = Histogram(
            "ggpy_first_token_seconds", "Time from a request's admission to its first token.", ("model",),
            registry=registry, buckets=_SECONDS,
        )  # fmt: skip
        self._prompt = Counter("ggpy_prompt_tokens", "Tokens of prompts.", ("model",), registry=registry)
        self._cached = Counter(
            "ggpy_cached_tokens", "Tokens of prompts that the cache held.", ("model",), registry=registry
        )
        self._generated = Counter("ggpy_generated_tokens", "Tokens generated.", ("model",), registry=registry)
        registry.register(_Gauges(models))

    def request(self, path: str, status: int, seconds: float) -> None:
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def answer(self, model: str, end: Finished) -> None:
        self._prompt.labels(model).inc(end.usage.prompt_tokens)
        self._cached.labels(model).inc(end.usage.cached_tokens or 0)
        self._generated.labels(model).inc(end.usage.completion_tokens)
        self._first_token.labels(model).observe(end.timing.first_token_s)

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Gauges:
    """Values that can be looked at when they are asked for."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("ggpy_requests_running", "Requests that have a slot.", labels=["model"])
        waiting = GaugeMetricFamily("ggpy_requests_waiting", "Requests that wait for a slot.", labels=["model"])
        cells = GaugeMetricFamily("ggpy_cache_usage_ratio", "Share of the context's cells in use.", labels=["model"])
        for name, model in self._models.loaded.items():
            engine = model.llm.engine
            running.add_metric([name], len(engine.scheduler.running))
            waiting.add_metric([name], len(engine.scheduler.waiting))
            used = sum(len(slot.tokens) for slot in engine.slots)
            there = model.llm.runtime.kv_cells or len(engine.slots) * model.llm.n_ctx
            cells.add_metric([name], used / there)
        yield from (running, waiting, cells)
