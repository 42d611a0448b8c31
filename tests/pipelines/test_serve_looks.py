"""What a served net shows of itself: table, card, filters, maps and samples, against the numbers that they are of."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests

from ops import pictures
from ops.proto.caffe_pb2 import LayerParameter, NetParameter
from ops.records import lmdb
from pipelines.serve import Serve
from pipelines.stages import serving_card, serving_samples
from pipelines.stages.feature_model import Model
from pipelines.stages.serving_api import Service, make_app
from pipelines.stages.serving_batches import Batches
from pipelines.stages.serving_body import Limits
from pipelines.stages.serving_looks import Told
from pipelines.stages.serving_metrics import Metrics
from tests.pipelines.serving import png, serving

ROUTES = ("/v1/net", "/v1/card", "/v1/filters", "/v1/samples", "/v1/samples/cat.jpg")


@pytest.fixture(scope="module")
def server(ray_session, golden, tmp_path_factory):
    with serving(golden, tmp_path_factory.mktemp("looks"), "looks") as found:
        yield found


@pytest.fixture(scope="module")
def hat(golden):
    return (golden / "files" / "photos" / "hat_1.jpg").read_bytes()


def pixels_of(answer: requests.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)


def tiles_of(picture: np.ndarray, columns: int, high: int, wide: int) -> np.ndarray:
    """(N, high, wide, 3): tiles that are framed by pictures.GAP pixels."""
    step = high + pictures.GAP, wide + pictures.GAP
    rows = picture.shape[0] // step[0]
    area = picture[pictures.GAP :, pictures.GAP :][: rows * step[0], : columns * step[1]]
    return (
        area.reshape(rows, step[0], columns, step[1], 3)[:, :high, :, :wide].swapaxes(1, 2).reshape(-1, high, wide, 3)
    )


def stretch(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.rint((values.astype(float) - low) / (high - low) * 255).astype(np.uint8)


def convolution(weights: Path) -> np.ndarray:
    """(4, 3, 5, 5): what stands in the .caffemodel."""
    saved = NetParameter.FromString(weights.read_bytes())
    (blob,) = (layer.blobs[0] for layer in saved.layer if layer.name == "conv1")
    return np.array(blob.data, np.float32).reshape(4, 3, 5, 5)


@pytest.mark.ray
def test_the_table_has_the_sizes_that_one_counts_by_hand(server):
    told = server.get("/v1/net").json()
    rows = {row["name"]: row for row in told["layers"]}
    assert list(rows) == ["data", "conv1", "pool1", "fc", "prob"]
    assert rows["conv1"]["shapes"] == [[1, 4, 14, 14]]
    assert rows["conv1"]["parameters"] == 4 * 3 * 5 * 5 + 4
    assert rows["conv1"]["multiply_adds"] == 14 * 14 * 4 * 3 * 5 * 5
    assert rows["fc"]["parameters"] == 4 * 14 * 14 * 6 + 6
    assert told["parameters"] == rows["conv1"]["parameters"] + rows["fc"]["parameters"]
    assert told["filters"] == ["conv1"]


@pytest.mark.ray
def test_filters_are_the_weights_in_colour(server):
    answer = server.get("/v1/filters")
    assert answer.headers["x-shown"] == "conv1: 4 filters of 5 x 5, in colour"
    tiles = tiles_of(pixels_of(answer), 2, 95, 95)
    weights = convolution(Path(server.options["weights"]))
    for tile, one in zip(tiles, weights, strict=True):
        np.testing.assert_array_equal(tile[9::19, 9::19], stretch(one).transpose(1, 2, 0))
    two = server.get("/v1/filters?layer=conv1&most=2")
    assert two.headers["x-shown"] == "conv1: 2 of 4 filters of 5 x 5, in colour"


@pytest.mark.ray
def test_maps_are_the_blob_that_features_gives(server, hat):
    answer = server.post("/v1/maps?blob=conv1", hat)
    assert answer.headers["x-shown"] == "conv1: 4 maps of 14 x 14"
    blob = np.load(io.BytesIO(server.post("/v1/features?blobs=conv1&format=npy", hat).content))[0]
    tiles = tiles_of(pixels_of(answer), 2, 98, 98)
    for tile, one in zip(tiles, blob, strict=True):
        np.testing.assert_allclose(tile[3::7, 3::7, 0], stretch(one), atol=1)
    numbers = server.post("/v1/maps?blob=fc", files={"image": ("hat.jpg", hat)})
    assert numbers.headers["x-shown"] == "fc: 6 numbers"


@pytest.mark.ray
@pytest.mark.parametrize(
    ("path", "body", "status", "told"),
    [
        ("/v1/maps?blob=conv", b"x", 422, "blob: the net has no blob 'conv'; did you mean 'conv1'?"),
        ("/v1/maps", b"x", 422, "blob: field required"),
        ("/v1/maps?blob=fc&most=0", b"x", 422, "most: input should be greater than or equal to 1"),
        ("/v1/maps?blob=fc", b"", 400, "the body is empty"),
        ("/v1/maps?blob=fc", b"hello", 415, "#0: not an image (5 bytes"),
        ("/v1/maps?blob=fc", png()[:60], 400, "#0: a PNG file that cannot be decoded"),
        ("/v1/filters?layer=con1", None, 422, "layer: the net has no convolution 'con1'; did you mean 'conv1'?"),
        ("/v1/samples/no.jpg", None, 404, "no such path"),
        ("/v1/samples/..%2f..%2fpage.js", None, 404, "no such path"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(server, path, body, status, told):
    answer = server.get(path) if body is None else server.post(path, body)
    assert answer.status_code == status, answer.text
    assert answer.json()["status"] == status
    assert told in answer.json()["error"]


@pytest.mark.ray
def test_maps_are_of_one_picture(server, hat):
    answer = server.post("/v1/maps?blob=fc", files=[("image", ("a", hat)), ("image", ("b", hat))])
    assert answer.status_code == 413
    assert answer.json()["error"] == "2 pictures in one request: /v1/maps shows one"


@pytest.mark.ray
def test_our_own_photographs_are_offered_where_there_is_no_data(server):
    listed = server.get("/v1/samples").json()
    assert [one["name"] for one in listed] == ["astronaut.jpg", "cat.jpg", "cup.jpg", "rocket.jpg"]
    assert all(one["own"] and one["label"] is None for one in listed)
    for one in listed:
        sample = server.get(f"/v1/samples/{one['name']}")
        assert sample.headers["content-type"] == "image/jpeg"
        assert server.post("/v1/classify", sample.content).status_code == 200
    assert server.get("/v1/card").json()["trained"] is None


@pytest.mark.ray
def test_another_model_shows_its_own_filters(server, tmp_path):
    before = pixels_of(server.get("/v1/filters"))
    saved = NetParameter.FromString(Path(server.options["weights"]).read_bytes())
    blob = next(layer for layer in saved.layer if layer.name == "conv1").blobs[0]
    blob.data[:] = [-value for value in blob.data]
    (tmp_path / "other.caffemodel").write_bytes(saved.SerializeToString())
    Serve(**{**server.options, "weights": str(tmp_path / "other.caffemodel"), "port": None}).run()
    after = tiles_of(pixels_of(server.get("/v1/filters")), 2, 95, 95)
    np.testing.assert_allclose(after, 255 - tiles_of(before, 2, 95, 95).astype(int), atol=1)


# -- without a server --------------------------------------------------------------------------------------------------


def service_of(call, *, lost: tuple[type[BaseException], ...] = (), **more) -> Service:
    batches = Batches(call, size=1, most_waiting=9, most_bytes=9_000, lost=lost)
    return Service("x", batches, Limits(), Metrics("x"), **more)


async def never(*_):
    raise AssertionError


def asked(app, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], dict]:
    """Status, headers and JSON of a GET, without a server."""
    heads = [(name.encode(), value.encode()) for name, value in {"host": "localhost", **headers}.items()]
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode()}
    scope |= {"query_string": b"", "headers": heads, "client": None, "server": None, "root_path": "", "scheme": "http"}
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered, json.loads(b"".join(one.get("body", b"") for one in sent))


@pytest.mark.parametrize("path", ROUTES)
def test_the_door_guards_what_the_net_shows(path):
    app = make_app(service_of(never, token="open-sesame"))
    assert asked(app, path, {})[0] == 401
    status, headers, told = asked(app, path, {"authorization": "Bearer open-sesame"})
    assert (status, told) == (503, {"error": "the model is being loaded", "status": 503})
    assert headers["retry-after"] == "2"
    assert asked(app, path, {"host": "evil.example"})[0] == 421


def test_a_model_that_is_lost_is_asked_again_and_what_it_told_is_kept():
    calls = []

    async def call(key, pictures, top):
        calls.append(key)
        if len(calls) == 1:
            raise ConnectionError
        return [{"told": len(calls)}]

    told = Told(service_of(call, lost=(ConnectionError,), model={"net": "a"}))

    async def asks():
        first = [await told.ask("table"), await told.ask("table"), await told.ask("card")]
        told.service.model = {"net": "b"}
        return [*first, await told.ask("table")]

    assert asyncio.run(asks()) == [2, 2, 3, 4]
    assert calls[0] == ("looks", "table")


# -- samples and card of a run -----------------------------------------------------------------------------------------


DATA = 'layer {{ name: "data" type: "{kind}" top: "data" top: "label" {param} }}\n'


def run_of(folder: Path, layer: str, **facts) -> Model:
    """A run's folder with a test net of one layer."""
    folder.mkdir(exist_ok=True)
    (folder / "test.prototxt").write_text(layer)
    (folder / "train.prototxt").write_text(layer)
    found = {"test_net": "test.prototxt", "beside": str(folder), "shape": [3, 32, 32], **facts}
    weights = [folder / "snapshot_iter_20.caffemodel"]
    layer_ = LayerParameter(name="data", type="Input")
    return Model(folder / "deploy.prototxt", NetParameter(), weights, layer_, [], run=folder, facts=found)


def lmdb_layer(source: Path) -> str:
    return DATA.format(kind="Data", param=f'data_param {{ source: "{source}" batch_size: 10 backend: LMDB }}')


@pytest.mark.parametrize("name", ["raw_lmdb", "gray_lmdb", "encoded_lmdb"])
def test_samples_are_records_that_the_net_was_tested_with(golden, tmp_path, name):
    source = golden / "files" / name
    found = serving_samples.samples_of(run_of(tmp_path / "run", lmdb_layer(source)))
    assert 0 < len(found) <= serving_samples.MOST
    from ops.proto.caffe_pb2 import Datum

    with lmdb.Reader(source) as reader:
        records = [Datum.FromString(bytes(value)) for _, value in reader.records()]
    labels = {record.label for record in records}
    assert {one.label for one in found} == labels or len(found) == serving_samples.MOST
    for one in found:
        assert not one.own
        pixels = cv2.imdecode(np.frombuffer(one.encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        same = [record for record in records if record.label == one.label]
        assert any(close(pixels, record) for record in same)


def close(pixels: np.ndarray, record) -> bool:
    """Whether these are the record's, to what JPEG leaves of them."""
    if record.encoded:
        expected = cv2.imdecode(np.frombuffer(record.data, np.uint8), cv2.IMREAD_UNCHANGED)
    else:
        planes = np.frombuffer(record.data, np.uint8).reshape(record.channels, record.height, record.width)
        expected = planes.transpose(1, 2, 0)
    difference = np.abs(np.atleast_3d(pixels).astype(int) - np.atleast_3d(expected))
    return bool(difference.mean() < (4 if max(pixels.shape[:2]) > serving_samples.SMALL else 0.001))


def test_samples_of_a_list_are_its_files_made_smaller_where_they_are_large(golden, tmp_path):
    photo = golden / "files" / "photos" / "hat_1.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (600, 500, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "large.png"), cv2.GaussianBlur(noise, (0, 0), 3))
    shutil.copy(photo, tmp_path / "a hat.jpg")
    (tmp_path / "test.txt").write_text("a hat.jpg 4\nlarge.png 2\ngone.jpg 3\n")
    param = f'image_data_param {{ source: "test.txt" root_folder: "{tmp_path}/" batch_size: 1 }}'
    found = serving_samples.samples_of(run_of(tmp_path, DATA.format(kind="ImageData", param=param)))
    assert [one.label for one in found] == [2, 4]
    assert found[1].encoded == photo.read_bytes()
    assert cv2.imdecode(np.frombuffer(found[0].encoded, np.uint8), cv2.IMREAD_COLOR).shape == (320, 267, 3)


def test_where_the_data_is_gone_our_own_pictures_are_offered(tmp_path):
    gone = lmdb_layer(tmp_path / "gone")
    assert serving_samples.samples_of(run_of(tmp_path, gone))[0].name == "astronaut.jpg"
    digits = serving_samples.samples_of(run_of(tmp_path, gone, shape=[1, 28, 28]))
    assert all(one.own for one in digits)
    for one in digits:
        pixels = cv2.imdecode(np.frombuffer(one.encoded, np.uint8), cv2.IMREAD_UNCHANGED)
        assert pixels.shape == (28, 28)
        assert pixels.max() == 255
        assert not np.concatenate([pixels[:2], pixels[-2:]]).any()


def test_the_card_tells_solver_data_and_results_and_no_paths(golden, tmp_path):
    run = tmp_path / "mine"
    model = run_of(run, lmdb_layer(golden / "files" / "raw_lmdb"))
    (run / "solver.prototxt").write_text('train_net: "x" type: "Adam" max_iter: 40 base_lr: 0.1')
    rows = ["0,0,accuracy,0.1", "20,0,accuracy,0.75", "20,0,loss,nan", "20,1,accuracy,0.5"]
    (run / "test.csv").write_text("\n".join(["iteration,net,output,value", *rows]))
    found = serving_card.trained(model)
    with lmdb.Reader(golden / "files" / "raw_lmdb") as reader:
        count = len(reader)
    data = {"name": "raw_lmdb", "records": count, "batch": 10}
    assert found == {
        "run": "mine",
        "iteration": 20,
        "solver": "Adam",
        "max_iter": 40,
        "data": [{"phase": "train", **data}, {"phase": "test", **data}],
        "tests": {"accuracy": 0.75},
    }
    assert str(tmp_path) not in json.dumps(found)


def test_the_card_of_a_run_with_little_in_it_says_what_there_is(tmp_path):
    model = run_of(
        tmp_path / "mine", lmdb_layer(tmp_path / "gone"), best={"weights": "best.caffemodel", "iteration": 7}
    )
    model.weights[:] = [tmp_path / "mine" / "best.caffemodel"]
    found = serving_card.trained(model)
    assert (found["iteration"], found["solver"], found["tests"]) == (7, None, {})
    assert found["data"][0] == {"phase": "train", "name": "gone", "records": None, "batch": 10}
