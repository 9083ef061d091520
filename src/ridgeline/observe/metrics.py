"""Prometheus metrics under vLLM's names, so that dashboards, KEDA and gateways made for it work unchanged.

What vLLM has no name for is under `ridgeline:`. Labels hold the model's name and fixed words only, never a client's
text, so the number of series is bounded. Source of the names: vLLM's metrics documentation.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ridgeline.engine.client import EngineClient, EngineStatistics
from ridgeline.request.output import RequestTiming

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
_GAP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)


_GAUGES = (
    ("vllm:num_requests_running", "Requests that are in steps", "num_running"),
    ("vllm:num_requests_waiting", "Requests that wait", "num_waiting"),
    ("ridgeline:roofline_share", "Time at the chip's measured peaks over time taken", "roofline_share"),
    ("ridgeline:seconds_since_last_step", "How long the running step has taken", "seconds_since_last_step"),
)
_COUNTERS = (
    ("vllm:prompt_tokens", "Prompt tokens taken in", "num_prompt_tokens"),
    ("vllm:generation_tokens", "Tokens made", "num_generated_tokens"),
    ("vllm:num_preemptions", "Requests that lost their pages for a while", "num_preemptions"),
    ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache", "num_prompt_tokens"),
    ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", "num_cached_tokens"),
    ("vllm:spec_decode_num_draft_tokens", "Guesses at next tokens that steps ran", "num_drafted_tokens"),
    ("vllm:spec_decode_num_accepted_tokens", "Guesses that stood", "num_accepted_tokens"),
    ("ridgeline:steps", "Steps run", "num_steps"),
    ("ridgeline:step_seconds_measured", "Time in steps", "measured_step_seconds"),
    ("ridgeline:step_seconds_at_roofline", "What the steps would take at the chip's peaks", "roofline_step_seconds"),
    ("ridgeline:step_seconds_predicted", "Time in steps as predicted", "predicted_step_seconds"),
    ("ridgeline:cancelled", "Requests cancelled", "num_cancelled"),
)


class _EngineCollector(Collector):
    """The engine's own counters, read when the page is asked for."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self.statistics = EngineStatistics(state="starting")
        self.page_slots = 0
        self.num_restarts = 0
        self.finished: dict[str, int] = {}

    def collect(self) -> Iterable[Metric]:
        now = self.statistics
        for name, text, attribute in _GAUGES:
            yield self._family(GaugeMetricFamily, name, text, getattr(now, attribute))
        used_share = (now.num_pages - now.num_free_pages) / max(now.num_pages, 1)
        yield self._family(GaugeMetricFamily, "vllm:kv_cache_usage_perc", "Share of pages held, 0 to 1", used_share)
        for name, text, attribute in _COUNTERS:
            yield self._family(CounterMetricFamily, name, text, getattr(now, attribute))
        restarts = float(self.num_restarts)
        yield self._family(CounterMetricFamily, "ridgeline:engine_restarts", "Times the engine was restarted", restarts)
        finished = CounterMetricFamily(
            "vllm:request_success", "Finished samples", labels=["model_name", "finished_reason"]
        )
        for reason, count in sorted(self.finished.items()):
            finished.add_metric([self._model_name, reason], count)
        yield finished
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "Shape of the page cache", labels=["model_name", "block_size", "num_gpu_blocks"]
        )
        info.add_metric([self._model_name, str(self.page_slots), str(now.num_pages)], 1)
        yield info

    def _family(
        self, kind: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, text: str, value: float
    ) -> Metric:
        family = kind(name, text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family


class ServerMetrics:
    """Records what became of requests and makes the page; one for each server."""

    def __init__(self, model_name: str, engine: EngineClient) -> None:
        self._engine = engine
        self._registry = CollectorRegistry()
        self._collector = _EngineCollector(model_name)
        self._registry.register(self._collector)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            family = Histogram(name, text, ["model_name"], registry=self._registry, buckets=buckets)
            return family.labels(model_name)

        self._end_to_end = histogram("vllm:e2e_request_latency_seconds", "From arrival to the last token", _SECONDS)
        self._first = histogram("vllm:time_to_first_token_seconds", "From arrival to the first token", _SECONDS)
        self._gap = histogram("vllm:inter_token_latency_seconds", "Between two tokens of a sample", _GAP_SECONDS)
        self._queue = histogram("vllm:request_queue_time_seconds", "From arrival to the first step", _SECONDS)
        self._prefill = histogram("vllm:request_prefill_time_seconds", "Reading the prompt", _SECONDS)
        self._decode = histogram("vllm:request_decode_time_seconds", "Making tokens", _SECONDS)
        self._prompt = histogram("vllm:request_prompt_tokens", "Prompt tokens of a request", _TOKENS)
        self._output = histogram("vllm:request_generation_tokens", "Tokens made for a request", _TOKENS)

    def finished(
        self,
        *,
        reason: str,
        num_prompt_tokens: int,
        num_output_tokens: int,
        seconds: float,
        timing: RequestTiming | None,
    ) -> None:
        """See RequestRecorder."""
        finished = self._collector.finished
        finished[reason] = finished.get(reason, 0) + 1
        self._end_to_end.observe(seconds)
        self._prompt.observe(num_prompt_tokens)
        self._output.observe(num_output_tokens)
        if timing is not None:
            self._queue.observe(timing.queue_seconds)
            self._prefill.observe(timing.prefill_seconds)
            self._decode.observe(timing.decode_seconds)
            if timing.time_to_first_token_seconds is not None:
                self._first.observe(timing.time_to_first_token_seconds)

    def token_gap(self, seconds: float) -> None:
        """See RequestRecorder."""
        self._gap.observe(seconds)

    async def page(self) -> bytes:
        """The page in Prometheus' text format."""
        self._collector.statistics = await self._engine.statistics()
        self._collector.num_restarts = getattr(self._engine, "num_restarts", 0)
        if self._collector.statistics.num_pages:
            self._collector.page_slots = self._engine.model.page_slots
        return generate_latest(self._registry)
