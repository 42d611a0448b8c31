"""As many replicas as the load asks for, on a real Ray Serve."""

from __future__ import annotations

import threading
import time

import cv2
import pytest
import requests

from tests.pipelines.serving import PATIENCE, RAW, scores_of, serving

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
SET = ("serve.replicas={min: 1, max: 2}", "serve.scale_up_seconds=0", "serve.batch_size=1")


def deployed(app: str):
    """What Ray Serve says of the model's deployment."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeInstanceDetails

    return ServeInstanceDetails(**_get_global_client().get_serve_details()).applications[app].deployments["model"]


def test_a_load_that_is_too_much_for_one_replica_starts_another(ray_session, golden, tmp_path):
    from cluster import deploy

    photo = cv2.imread(str(golden / "files" / "photos" / "hat_1.jpg"))
    large = cv2.imencode(".jpg", cv2.resize(photo, None, fx=3, fy=3))[1].tobytes()  # work for the replica, not for us
    over, failed, wrong, done = threading.Event(), [], [], []

    def ask(url, expected):
        session = requests.Session()
        while not over.is_set():
            told = session.post(f"{url}/v1/classify?top=6", large, headers=RAW, timeout=PATIENCE)
            if told.status_code != 200:
                failed.append(told.text)
                return
            found = {one["label"]: one["score"] for one in told.json()["images"][0]["top"]}
            wrong.extend(label for label, score in found.items() if abs(score - expected[label]) > 1e-5)
            done.append(time.monotonic())

    with serving(golden, tmp_path, "scaled", set=SET) as server:
        app = deploy.newest("scaled")
        told = deployed(app).deployment_config.autoscaling_config
        assert (told["min_replicas"], told["max_replicas"], told["upscale_delay_s"]) == (1, 2, 0)
        assert deploy.running_of(app) == 1
        expected = scores_of(server.options, large)
        clients = [threading.Thread(target=ask, args=(server.url, expected)) for _ in range(6)]
        for client in clients:
            client.start()
        try:
            until = time.monotonic() + PATIENCE
            while deploy.running_of(app) < 2:
                assert time.monotonic() < until, f"{len(done)} answers, {failed[:3]}"
                time.sleep(0.2)
            more = len(done) + 50
            while len(done) < more:  # both answer now
                assert time.monotonic() < until + PATIENCE
                time.sleep(0.05)
        finally:
            over.set()
            for client in clients:
                client.join()
    assert not failed
    assert not wrong
