"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
STAGES = ("waiting", "decoding", "forward")


class Metrics:
    """Counters of one front; they begin anew when it does."""

    def __init__(self, name: str) -> None:
        self.registry = CollectorRegistry()
        more = {"registry": self.registry}
        self.requests = Counter("cortado_requests", "Answers by route and status.", ["route", "status"], **more)
        self.seconds = Histogram(
            "cortado_request_seconds", "From the request to the answer.", ["route"], buckets=SECONDS, **more
        )
        self.pictures = Counter("cortado_pictures", "Pictures by how they ended.", ["end"], **more)
        self.batch = Histogram("cortado_batch_size", "Of a picture: those of its forward.", buckets=SIZES, **more)
        stage = Histogram(
            "cortado_stage_seconds", "Of a picture: waiting, decoding, forward.", ["stage"], buckets=SECONDS, **more
        )
        self.stages = {name: stage.labels(name) for name in STAGES}
        self.waiting = Gauge("cortado_waiting_pictures", "Pictures in the queue.", **more)
        self.retried = Gauge("cortado_retried_pictures", "Pictures that were sent again after a loss.", **more)
        self.ready = Gauge("cortado_ready", "1 where the model answers.", **more)
        Gauge("cortado_server", "The server's name.", ["name"], **more).labels(name).set(1)

    def answered(self, route: str, status: int, seconds: float) -> None:
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def called(self, answers: Sequence[dict[str, Any]]) -> None:
        """The answers of one call of the model."""
        bad = sum("error" in answer for answer in answers)
        self.pictures.labels("bad").inc(bad)
        self.pictures.labels("good").inc(len(answers) - bad)
        for answer in answers:
            self.batch.observe(answer["batch"])
            for name, stage in self.stages.items():
                stage.observe(answer[name])

    def now(self, *, waiting: int, retried: int, ready: bool) -> None:
        """How things stand."""
        self.waiting.set(waiting)
        self.retried.set(retried)
        self.ready.set(ready)

    def text(self) -> bytes:
        return generate_latest(self.registry)
