"""A served net over HTTP: its answers are those of `classify`, in every form, and what is wrong is told in words."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import importlib
import io
import json
import re
import socket
import struct
import threading
import time
from collections import Counter

import cv2
import numpy as np
import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pyarrow import ipc
from ray.serve.schema import DeploymentSchema

from pipelines.classify import Classify
from pipelines.serve import Serve
from pipelines.stages.serving_body import Limits
from tests.pipelines.serving import NAMES, PATIENCE, RAW, png, scores_of, second_front, serving, turned

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
STRICT = Limits(body=100_000, images=3, pixels=1_000_000, waiting=2, numbers=800, json_numbers=700)
TOKEN = {"authorization": "Bearer open-sesame"}


@pytest.fixture(scope="module")
def server(ray_session, golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    (folder / "samples").mkdir()
    cv2.imwrite(str(folder / "samples" / "grey.png"), np.full((8, 8, 3), 90, np.uint8))
    with serving(golden, folder, "answers", samples=folder / "samples") as found:
        yield found


@pytest.fixture(scope="module")
def strict(server):
    """A second front to the same model, with small limits and a token."""
    with second_front(server, "strict", limits=STRICT, token="open-sesame") as found:
        yield found


@pytest.fixture(scope="module")
def hat(golden):
    return (golden / "files" / "photos" / "hat_1.jpg").read_bytes()


# -- answers -----------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_classify_in_every_format_and_orientation(server, golden, tmp_path):
    photo = cv2.imread(str(golden / "files" / "photos" / "hat_1.jpg"))
    jpeg = cv2.imencode(".jpg", photo)[1].tobytes()
    files = {f"turned{n}.jpg": turned(jpeg, n) for n in range(1, 9)}
    files |= {f"a.{kind}": cv2.imencode(f".{kind}", photo)[1].tobytes() for kind in ("png", "bmp", "webp", "tiff")}
    files["grey.png"] = cv2.imencode(".png", cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY))[1].tobytes()
    files["cut.jpg"] = jpeg[: len(jpeg) * 2 // 3]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    more = {name: server.options[name] for name in ("model", "weights", "labels", "hierarchy")}
    flags = {name: server.options[name] for name in ("mean_file", "images_dim", "input_scale")}
    expected = Classify(images=tuple(str(tmp_path / name) for name in files), top=6, **more, **flags).run()["answers"]
    parts = [("image", (name, content)) for name, content in files.items()]
    found = server.post("/v1/classify?top=6", files=parts).json()["images"]
    assert [one["image"] for one in found] == list(files)
    for ours, theirs in zip(found, expected, strict=True):
        assert [one["name"] for one in ours["top"]] == [one["name"] for one in theirs["top"]]
        scores = [[one["score"] for one in answer["top"]] for answer in (ours, theirs)]
        np.testing.assert_allclose(*scores, atol=1e-5)
        assert [one["name"] for one in ours["accurate"]] == [one["name"] for one in theirs["accurate"]]
    assert "warning" in found[-1]
    assert len({tuple(one["score"] for one in answer["top"]) for answer in found}) > 5  # not all the same


def test_raw_multipart_and_json_get_the_nets_own_scores(server, hat):
    expected = scores_of(server.options, hat)
    text = base64.b64encode(hat).decode()
    answers = [
        server.post("/v1/classify?top=6", hat),
        server.post("/v1/classify?top=6", files={"image": ("hat.jpg", hat)}),
        server.post("/v1/classify?top=6", json={"images": [text]}),
        server.post("/v1/classify?top=6", iter([hat[:1000], hat[1000:]])),  # in chunks, without a length
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        top = answer.json()["images"][0]["top"]
        assert [one["label"] for one in top] == np.argsort(-expected).tolist()
        np.testing.assert_allclose([one["score"] for one in top], np.sort(expected)[::-1], atol=1e-5)
        assert [one["name"] for one in top] == [NAMES[one["label"]] for one in top]
    told = answers[0].json()
    assert set(told["ms"]) == {"waiting", "decoding", "forward", "all"}
    assert 0 < told["ms"]["decoding"] <= told["ms"]["all"]


def test_large_pictures_and_long_answers_are_like_others(server):
    photo = np.random.default_rng(3).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    photo[:450] //= 4
    bmp, small = (cv2.imencode(".bmp", one)[1].tobytes() for one in (photo, photo[:60, :60]))
    expected = [scores_of(server.options, one) for one in (bmp, small)]
    for files in ([bmp] * 5, [small] * 60):  # 12 MB; 60,000 classes asked for
        answer = server.post("/v1/classify?top=1000", files=[("image", ("a.bmp", one)) for one in files])
        assert answer.status_code == 200, answer.text
        for one in answer.json()["images"]:
            found = [score["score"] for score in sorted(one["top"], key=lambda score: score["label"])]
            np.testing.assert_allclose(found, expected[files[0] is small], atol=1e-5)


def test_answers_stay_right_under_load_and_in_batches(server, golden):
    photos = [file.read_bytes() for file in sorted((golden / "files" / "photos").glob("*.jpg"))[:8]]
    expected = [scores_of(server.options, photo) for photo in photos]
    wrong, batches = [], Counter()

    def client(first):
        session = requests.Session()
        for place in range(first, first + 24):
            which = place % len(photos)
            answer = session.post(
                f"{server.url}/v1/classify?top=6", data=photos[which], headers=RAW, timeout=PATIENCE
            ).json()
            found = {one["label"]: one["score"] for one in answer["images"][0]["top"]}
            if max(abs(found[label] - score) for label, score in enumerate(expected[which].tolist())) > 1e-5:
                wrong.append(which)
            batches[answer["batch"]] += 1

    threads = [threading.Thread(target=client, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert batches.total() == 12 * 24
    assert max(batches) > 1


def test_features_are_the_nets_blobs_as_json_and_as_npy(server, hat):
    told = server.post("/v1/features?blobs=fc,conv1", hat).json()["images"][0]["blobs"]
    assert np.shape(told["conv1"]) == (4, 14, 14)
    exp = np.exp(np.array(told["fc"]) - np.max(told["fc"]))
    np.testing.assert_allclose(exp / exp.sum(), scores_of(server.options, hat), atol=1e-5)
    two = {"files": [("image", ("a", hat)), ("image", ("b", hat))]}
    rows = np.load(io.BytesIO(server.post("/v1/features?blobs=fc&format=npy", **two).content), allow_pickle=False)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [told["fc"]] * 2, atol=1e-5)


def test_features_as_arrow_are_a_table_with_a_row_a_picture(server, hat):
    told = server.post("/v1/features?blobs=fc,conv1", hat).json()["images"][0]["blobs"]
    parts = [("image", ("a.jpg", hat)), ("image", ("no.txt", b"hello")), ("image", ("b.jpg", hat))]
    for more in ({"path": "&format=arrow"}, {"headers": {"accept": "application/vnd.apache.arrow.stream, */*;q=0.1"}}):
        path = f"/v1/features?blobs=fc,conv1,fc{more.pop('path', '')}"
        answer = server.post(path, files=parts, **more)
        assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
        table = ipc.open_stream(answer.content).read_all()
        assert table.column_names == ["image", "error", "fc", "conv1"]
        assert table["image"].to_pylist() == ["a.jpg", "no.txt", "b.jpg"]
        assert [bool(one) for one in table["error"].to_pylist()] == [False, True, False]
        fc, conv = table["fc"].combine_chunks(), table["conv1"].combine_chunks()
        assert (str(fc.type), str(conv.type)) == tuple(f"fixed_size_list<item: float not null>[{n}]" for n in (6, 784))
        assert fc.is_valid().to_pylist() == [True, False, True]
        np.testing.assert_allclose(np.stack([row for row in fc.to_pylist() if row]), [told["fc"]] * 2, atol=1e-5)
        shape = json.loads(table.schema.field("conv1").metadata[b"shape"])
        np.testing.assert_allclose(np.reshape(conv[0].as_py(), shape), told["conv1"], atol=1e-5)
        assert json.loads(table.schema.metadata[b"cortado"])["weights_digest"]
    npy = server.post("/v1/features?blobs=fc", hat, headers={**RAW, "accept": "application/x-npy"})
    np.testing.assert_allclose(np.load(io.BytesIO(npy.content)), [told["fc"]], atol=1e-5)


def test_answers_of_too_many_numbers_are_refused_before_they_are_computed(strict):
    headers = {**RAW, **TOKEN}
    assert strict.post("/v1/features?blobs=fc", png(), headers=headers).status_code == 200
    for form, most in (("json", 700), ("arrow", 800), ("npy", 800)):
        answer = strict.post(f"/v1/features?blobs=conv1&format={form}", png(), headers=headers)
        assert answer.status_code == (200 if most >= 784 else 413)
    answer = strict.post("/v1/features?blobs=conv1,fc", png(), headers=headers)
    assert answer.json()["error"].startswith("the answer would have 1 x 790 numbers, at most 700 as JSON are sent")


def test_a_bad_picture_among_good_ones_is_told_in_its_place(server, hat):
    parts = [("image", ("hat.jpg", hat)), ("image", ("no.txt", b"hello")), ("image", ("cut.png", png()[:40]))]
    answer = server.post("/v1/classify", files=parts)
    assert answer.status_code == 200
    good, text, cut = answer.json()["images"]
    assert len(good["top"]) == 5
    assert text == {"image": "no.txt", "error": "not an image (5 bytes, starting with b'hello')"}
    assert "damaged or cut short" in cut["error"]
    assert server.post("/v1/features?blobs=fc&format=npy", files=parts).status_code == 400


def test_the_model_says_what_it_is_and_nothing_of_paths(server):
    told = server.get("/v1/model")
    model = told.json()
    assert (model["net"], model["weights"], model["classes"]) == ("deploy.prototxt", ["feat.caffemodel"], 6)
    assert model["names"] == NAMES
    assert model["input"] == {"blob": "data", "shape": [3, 32, 32]}
    assert model["transform"]["mean"] == [104, 117, 123]
    assert re.fullmatch("[0-9a-f]{32}", model["weights_digest"])
    assert str(server.options["model"].parent) not in told.text


def test_health_metrics_and_docs(server, hat):
    server.post("/v1/classify", hat)
    server.get("/no/such/path")
    assert server.get("/healthz").json()["ready"]
    families = {one.name: one for one in text_string_to_metric_families(server.get("/metrics").text)}
    counts = {tuple(one.labels.values()): one.value for one in families["cortado_requests"].samples}
    assert counts["/v1/classify", "200"] >= 1
    assert counts["other", "404"] >= 1
    paths = server.get("/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/classify", "/v1/features", "/v1/model", "/healthz", "/readyz", "/metrics"}
    for path in ("/", "/docs", "/page/page.css", "/page/page.js", "/page/docs.js"):
        answer = server.get(path)
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]


def test_samples_are_those_of_the_folder(server):
    assert [one["name"] for one in server.get("/v1/samples").json()] == ["grey.png"]
    sample = server.get("/v1/samples/grey.png").content
    assert server.post("/v1/classify", sample).status_code == 200
    for name in ("..%2fdeploy.prototxt", "deploy.prototxt", "%2e%2e"):
        assert server.get(f"/v1/samples/{name}").status_code == 404


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/v1/classify", b"", 400, "the body is empty"),
        ("/v1/classify", b"hello", 415, "#0: not an image (5 bytes"),
        ("/v1/classify", png()[:60], 400, "#0: a PNG file that cannot be decoded"),
        ("/v1/classify?top=0", b"x", 422, "top: input should be greater than or equal to 1"),
        ("/v1/classify?top=many", b"x", 422, "top: input should be a valid integer"),
        ("/v1/features", b"x", 422, "blobs: field required"),
        ("/v1/features?blobs=pro", b"x", 422, "blobs: the net has no blob 'pro'; did you mean 'prob'?"),
        ("/v1/features?blobs=fc,prob&format=npy", b"x", 422, "blobs: name one blob for format=npy"),
        ("/v1/nothing", b"x", 404, "no such path"),
        ("/v1/model", b"x", 405, "this path wants another method"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(server, path, body, status, told):
    answer = server.post(path, body)
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status
    assert told in answer.json()["error"]


def test_a_long_body_is_refused_by_its_announced_length(strict):
    connection = http.client.HTTPConnection(strict.url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/v1/classify")
    for name, value in {**RAW, **TOKEN, "content-length": "200000"}.items():
        connection.putheader(name, value)
    connection.endheaders()  # and not one byte of it is sent
    answer = connection.getresponse()
    assert answer.status == 413
    assert b"the body has 200,000 bytes, at most 100,000 are taken" in answer.read()
    connection.close()


def test_a_long_body_without_a_length_is_refused_while_it_comes(strict):
    answer = strict.post("/v1/classify", iter([bytes(50_000)] * 3), headers=TOKEN)
    assert answer.status_code == 413
    assert answer.json()["error"] == "the body has more than 100,000 bytes"


def test_too_many_pixels_are_refused_before_they_are_decoded(strict):
    bomb = bytearray(png())
    bomb[16:24] = struct.pack(">II", 60_000, 50_000)
    answer = strict.post("/v1/classify", bytes(bomb), headers={**RAW, **TOKEN})
    assert answer.status_code == 413
    assert "announces 60,000 x 50,000 pixels, at most 1,000,000 are decoded" in answer.json()["error"]


def test_too_many_pictures_are_refused(strict):
    answer = strict.post("/v1/classify", files=[("image", (f"{n}", png())) for n in range(4)], headers=TOKEN)
    assert answer.status_code == 413
    assert answer.json()["error"] == "more than 3 pictures in one request"


def test_a_full_queue_is_503_with_the_time_to_come_back(strict):
    answer = strict.post("/v1/classify", files=[("image", (f"{n}", png())) for n in range(3)], headers=TOKEN)
    assert answer.status_code == 503
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert "too many pictures are waiting" in answer.json()["error"]


def test_a_slow_sender_is_given_up(server):
    limits = dataclasses.replace(STRICT, body_seconds=1.0)
    with second_front(server, "hasty", limits=limits) as hasty:
        began = time.monotonic()
        with socket.create_connection(hasty.url.removeprefix("http://").split(":"), timeout=60) as slow:
            slow.sendall(b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            answer = slow.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"not complete after 1 s" in answer
    assert time.monotonic() - began > 0.9


def test_a_head_without_end_is_given_up(server, hat):
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=60) as endless:
        answer = b""
        try:
            endless.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            for _ in range(2000):
                endless.sendall(b"a: " + b"b" * 1000 + b"\r\n")
            answer = endless.makefile("rb").read()
        except OSError:
            pass  # closed while we were sending
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert server.post("/v1/classify", hat).status_code == 200


def test_a_token_is_wanted_for_answers_but_not_for_health(strict):
    for headers in ({}, {"authorization": "Bearer open"}, {"authorization": "Basic open-sesame"}):
        answer = strict.post("/v1/classify", png(), headers={**RAW, **headers})
        assert answer.status_code == 401
        assert "Authorization: Bearer TOKEN" in answer.json()["error"]
        assert strict.get("/metrics", headers=headers).status_code == 401
    assert strict.get("/readyz").status_code == 200
    assert strict.post("/v1/classify", png(), headers={**RAW, **TOKEN}).status_code == 200


def test_other_names_of_this_machine_are_not_answered(server):
    assert server.get("/v1/model", headers={"host": "evil.example"}).status_code == 421
    assert server.get("/v1/model", headers={"host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"name": "a b"}, "--name a b: expected letters, digits"),
        ({"status": True, "stop": True}, "--status and --stop: give one of them"),
        ({"port": 0}, "--port 0: expected 1 to 65535"),
        ({"max_body": 0}, "--max-body 0: expected more than 0"),
        ({"name": "nobody", "stop": True}, "no server 'nobody' runs on this machine"),
        ({"model": "deploy", "weights": "w"}, "nothing says how pictures become its numbers: give --run DIR"),
        ({"model": "deploy", "weights": "w", "raw_scale": 1.0, "labels": "short"}, "2 names for 6 classes"),
    ],
)
def test_a_server_that_cannot_be_is_told_in_one_line(server, tmp_path, options, told):
    (tmp_path / "short.txt").write_text("a\nb\n")
    files = {"model": server.options["model"], "weights": server.options["weights"], "labels": tmp_path / "short.txt"}
    with pytest.raises(ValueError, match=re.escape(told)):
        Serve(**{name: files.get(name, value) for name, value in options.items()}).run()


def test_a_port_that_is_taken_is_told_before_anything_is_started(server):
    options = {**server.options, "name": "other"}
    with pytest.raises(OSError, match=r"127\.0\.0\.1:\d+: Address already in use; --port N takes another"):
        Serve(**options).run()


def test_status_lists_the_servers(server):
    until, found = time.monotonic() + PATIENCE, {}
    while not found.get("ready"):  # a server that is busy for five seconds is told as one that does not answer
        assert time.monotonic() < until, found
        found = {one["name"]: one for one in Serve(status=True).run()["servers"]}["answers"]
    assert found["answers"]
    assert found["url"] == server.url
    assert found["net"] == "deploy.prototxt"


def test_rays_own_prometheus_endpoint_has_the_counters_too(server, hat):
    import ray

    server.post("/v1/classify", hat)
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until, found = time.monotonic() + PATIENCE, {}
    while not {"ray_cortado_requests_total", "ray_cortado_request_seconds_count"} <= set(found):
        assert time.monotonic() < until, found
        time.sleep(0.5)
        with contextlib.suppress(requests.RequestException):
            for family in text_string_to_metric_families(requests.get(url, timeout=30).text):
                for one in family.samples:
                    if (one.labels.get("server"), one.labels.get("route")) == ("answers", "/v1/classify"):
                        found[one.name] = one.value
    assert found["ray_cortado_requests_total"] >= 1
    assert found["ray_cortado_request_seconds_count"] >= 1


# -- for Ray Serve's own `serve deploy` --------------------------------------------------------------------------------


def test_a_built_file_has_the_replicas_and_batches_of_the_configuration(server, tmp_path):
    file = tmp_path / "serve.yaml"
    settings = ("serve.replicas={min: 1, max: 3}", "serve.batch_size=5", "serve.batch_wait_seconds=0.02")
    Serve(**{**server.options, "name": "built"}, build=file, set=settings).run()
    (application,) = yaml.safe_load(file.read_text())["applications"]
    assert (application["args"]["batch_size"], application["args"]["batch_wait"]) == (5, 0.02)
    model, ingress = application["deployments"]
    assert "num_replicas" not in model
    assert (model["autoscaling_config"]["min_replicas"], model["autoscaling_config"]["max_replicas"]) == (1, 3)
    assert ingress["num_replicas"] == 1
    from pipelines.stages.serving_app import check_keys

    with pytest.raises(
        ValueError, match=r"^autoscaling_config\.max_replica: Ray Serve knows no such key; did you mean"
    ):
        check_keys({"autoscaling_config": {"max_replica": 3}}, DeploymentSchema, "")


def test_a_built_file_is_an_application_of_ray_serve(server, tmp_path):
    from ray import serve

    from pipelines.stages.serving_app import build

    file = tmp_path / "serve.yaml"
    Serve(**{**server.options, "name": "built"}, build=file).run()
    (application,) = yaml.safe_load(file.read_text())["applications"]
    module, _, function = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), function) is build
    with pytest.raises(ValueError, match=r"args: no option 'weight'; did you mean 'weights'\?"):
        build({"weight": "x"})
    try:
        handle = serve.run(build(application["args"]), name="built", route_prefix=None)
        until = time.monotonic() + PATIENCE
        while not (facts := handle.known.remote().result(timeout_s=PATIENCE)):
            assert time.monotonic() < until
            time.sleep(0.1)
        assert facts["names"] == NAMES
    finally:
        serve.delete("built", _blocking=False)
