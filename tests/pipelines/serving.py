"""A real server for tests: a small golden net on Ray Serve, asked over HTTP."""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import requests

from ops import net as nets
from pipelines.serve import Serve
from tests.ports import free_port

NAMES = ["n1 apple", "n2 pear", "n3 car", "n4 bus", "n5 dog", "n6 cat"]
TREE = "n1 fruit\nn2 fruit\nn3 vehicle\nn4 vehicle\nn5 animal\nn6 animal\nfruit thing\nvehicle thing\nanimal thing\n"
SOFTMAX = 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }'
INPUT = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } } }'
FLAGS: dict[str, Any] = {"mean_file": "104,117,123", "images_dim": "40,48", "input_scale": 0.01}
PATIENCE = 150.0  # seconds; the machine may be busy
RAW = {"content-type": "application/octet-stream"}


def files_of(golden: Path, folder: Path) -> dict[str, Any]:
    """Caffe's golden net with an Input in place of its data and a softmax on top, as options of a job."""
    text = (golden / "files" / "feat.prototxt").read_text().splitlines()
    (folder / "deploy.prototxt").write_text("\n".join([INPUT, *text[2:], SOFTMAX]))
    (folder / "names.txt").write_text("\n".join(NAMES))
    (folder / "tree.txt").write_text(TREE)
    weights = folder / "feat.caffemodel"
    weights.write_bytes((golden / "files" / "feat.caffemodel").read_bytes())
    model = {"model": folder / "deploy.prototxt", "weights": str(weights), "labels": folder / "names.txt"}
    return {**model, "hierarchy": folder / "tree.txt", **FLAGS}


def scores_of(options: dict[str, Any], picture: bytes) -> np.ndarray:
    """(6,) by the net itself, with pycaffe's preprocessing by hand."""
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR).astype(np.float32) / 255
    crop = (cv2.resize(pixels, (48, 40)) * 255)[4:36, 8:40].transpose(2, 0, 1)
    planes = (crop - np.float32([104, 117, 123]).reshape(3, 1, 1)) * np.float32(0.01)
    net = nets.load(options["model"], weights=options["weights"], inputs={"data": (1, 3, 32, 32)})
    return net(data=np.ascontiguousarray(planes[None], np.float32))["prob"].detach().numpy()[0]


def png(height: int = 20, width: int = 30) -> bytes:
    """A grey picture."""
    return cv2.imencode(".png", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


def turned(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG with an EXIF orientation."""
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


@dataclass
class Server:
    """One that answers."""

    url: str
    name: str
    options: dict[str, Any]

    def post(self, path: str, data: Any = None, **more: Any) -> requests.Response:
        more.setdefault("headers", RAW if data is not None else None)
        return requests.post(self.url + path, data=data, timeout=PATIENCE, **more)

    def get(self, path: str, **more: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=PATIENCE, **more)

    def until_ready(self, patience: float = PATIENCE) -> float:
        """Seconds until /readyz says so."""
        began = time.monotonic()
        while time.monotonic() - began < patience:
            with contextlib.suppress(requests.RequestException):
                if requests.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return time.monotonic() - began
            time.sleep(0.1)
        raise AssertionError(f"{self.url} was not ready within {patience} s")


def replica_pid(name: str) -> int:
    """The process of a model's only replica."""
    import ray

    named = [one for one in ray.util.list_named_actors(all_namespaces=True) if f"::cortado.{name}." in one["name"]]
    (replica,) = [one for one in named if one["name"].startswith("SERVE_REPLICA")]
    actor = ray.get_actor(replica["name"], namespace=replica["namespace"])
    return int(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=PATIENCE))


def front_pid(name: str) -> int:
    """The process of a server's front; one that answers HTTP again may not yet be known to Ray as alive."""
    import ray

    from cluster import deploy

    until = time.monotonic() + PATIENCE
    while True:
        try:
            return int(ray.get(deploy.find_front(name).state.remote(), timeout=PATIENCE)["pid"])
        except ray.exceptions.RayActorError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def second_front(server: Server, name: str, **options: Any) -> Iterator[Server]:
    """Another front to a server's model, with limits and a token of its own; gone afterwards."""
    import ray

    from cluster import deploy
    from pipelines.stages import serving_front

    given = serving_front.FrontOptions(name, "127.0.0.1", free_port(), name, **options)
    try:
        serving_front.take(serving_front.start(given), deploy.newest(server.name), patience=PATIENCE)
        found = Server(f"http://127.0.0.1:{given.port}", name, {})
        found.until_ready()
        yield found
    finally:
        front = deploy.find_front(name)
        if front is not None:
            ray.kill(front, no_restart=True)


@contextlib.contextmanager
def serving(golden: Path, folder: Path, name: str, **more: Any) -> Iterator[Server]:
    """A server on the Ray of this process, gone afterwards."""
    options = {**files_of(golden, folder), "name": name, "port": free_port(), **more}
    result = Serve(**options).run()
    try:
        server = Server(result["server"], name, options)
        server.until_ready()
        yield server
    finally:
        Serve(name=name, stop=True).run()
