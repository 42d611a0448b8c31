"""What a server counts, through Ray's own metrics too: its node's Prometheus endpoint has them, as ray_cortado_..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.util import metrics

from pipelines.stages.serving_metrics import SECONDS, SIZES, STAGES, Metrics


class RayMetrics(Metrics):
    """Requests one by one; what pictures took once a call of the model, because a value costs a histogram 16 us."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        served = {"server": name}
        self.told = metrics.Counter("cortado_requests", "Answers by route and status.", ("server", "route", "status"))
        self.took = self.histogram("request_seconds", "From the request to the answer.", SECONDS, "route")
        self.calls = self.histogram("call_pictures", "Pictures of one call.", SIZES)
        self.parts = self.histogram("call_seconds", "Of a call: waiting, decoding, forward.", SECONDS, "stage")
        self.lost = metrics.Gauge("cortado_retried_pictures", "Sent again after a loss.", ("server",))
        self.queue = metrics.Gauge("cortado_waiting_pictures", "Pictures in the queue.", ("server",))
        for one in (self.told, self.took, self.calls, self.parts, self.lost, self.queue):
            one.set_default_tags(served)

    def histogram(self, name: str, told: str, bounds: Sequence[float], *tags: str) -> Any:
        return metrics.Histogram(f"cortado_{name}", told, boundaries=list(bounds), tag_keys=("server", *tags))

    def answered(self, route: str, status: int, seconds: float) -> None:
        super().answered(route, status, seconds)
        self.told.inc(1, {"route": route, "status": str(status)})
        self.took.observe(seconds, {"route": route})

    def called(self, answers: Sequence[dict[str, Any]]) -> None:
        super().called(answers)
        self.calls.observe(len(answers))
        for stage in STAGES:
            self.parts.observe(max(one[stage] for one in answers), {"stage": stage})

    def now(self, *, waiting: int, retried: int, ready: bool) -> None:
        super().now(waiting=waiting, retried=retried, ready=ready)
        self.queue.set(waiting)
        self.lost.set(retried)
