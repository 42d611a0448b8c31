"""Servers of the same net that others would write, to measure beside ours: `python -m tests.benchmarks.serving_peers`.

`fastapi`: FastAPI and torch, a picture at a time in a thread of the pool. `serve`: the shortest deployment of Ray
Serve's documentation, behind Ray Serve's own proxy, with what Ray gives a replica by itself. Decoding and net are ours
in both, so that they differ only in how they serve.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool

from pipelines.serve import Serve
from pipelines.stages.serving_model import Classifier, Served, served
from tests.benchmarks.bench_serve import options_of


def answer_of(classifier: Classifier, picture: bytes) -> dict[str, Any]:
    (answer,) = classifier.answers([classifier.look(picture)], 5)
    return {"labels": answer.labels, "scores": answer.scores}


def fastapi(model: Served, port: int) -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    classifier, app = Classifier(model, device=torch.device("cpu")), FastAPI()

    @app.post("/v1/classify")
    async def classify(request: Request) -> dict[str, Any]:
        return await run_in_threadpool(answer_of, classifier, await request.body())

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def ray_serve(model: Served, port: int) -> None:
    import ray
    from ray import serve

    @serve.deployment
    class Model:
        def __init__(self) -> None:
            self.classifier = Classifier(model, device=torch.device("cpu"))

        async def __call__(self, request: Request) -> dict[str, Any]:
            return answer_of(self.classifier, await request.body())

    root = str(Path(__file__).resolve().parents[2])
    ray.init(
        address="local", include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": root}}
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config={"log_level": "ERROR"})
    serve.run(Model.bind(), route_prefix="/v1/classify")
    while True:
        time.sleep(60)


if __name__ == "__main__":
    kind, name, folder, port = sys.argv[1:]
    {"fastapi": fastapi, "serve": ray_serve}[kind](served(Serve(**options_of(name, Path(folder)))), int(port))
