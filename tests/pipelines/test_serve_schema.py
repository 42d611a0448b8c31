"""/openapi.json tells the truth: schemathesis asks what it allows, and compares what comes with what it says."""

from __future__ import annotations

import contextlib
import copy

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import CHECKS

from tests.pipelines.serving import PATIENCE, png, serving

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]
# bytes that the schema allows are seldom a picture: 400 or 415 is the right answer to those
UNKNOWABLE = ("positive_data_acceptance",)
EXAMPLES = 15


@schemathesis.serializer("image/*")
def picture(context, value):
    return bytes(value) if isinstance(value, bytes | bytearray) else str(value).encode()


@pytest.fixture(scope="module")
def server(ray_session, golden, tmp_path_factory):
    with serving(golden, tmp_path_factory.mktemp("schema"), "schema") as found:
        yield found


@pytest.fixture(scope="module")
def description(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


MODES = list(schemathesis.GenerationMode)  # what it allows, and what it does not


def test_every_answer_is_as_described(description):
    excluded = [check for name in UNKNOWABLE for check in CHECKS.get_by_names([name])]
    chance = settings(derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    asked = set()
    for found in description.get_all_operations():
        operation = found.ok()
        for mode in MODES:

            @settings(chance, max_examples=EXAMPLES)
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                case.call_and_validate(excluded_checks=excluded, timeout=PATIENCE)

            with contextlib.suppress(Unsatisfiable):  # there is nothing that it does not allow
                ask()
        asked.add(operation.path)
    assert asked == set(description.raw_schema["paths"])


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/classify", {"top": 3}),
        ("/v1/features", {"blobs": "fc,conv1"}),
        ("/v1/features", {"blobs": "fc", "format": "npy"}),
        ("/v1/features", {"blobs": "fc,conv1", "format": "arrow"}),
        ("/v1/maps", {"blob": "conv1"}),
    ],
)
def test_the_answer_to_a_picture_is_as_described(description, path, query):
    case = description[path]["POST"].Case(body=png(), media_type="image/*", query=query)
    assert case.call_and_validate(timeout=PATIENCE).status_code == 200


def test_what_is_not_as_described_is_found(server, description):
    raw = copy.deepcopy(description.raw_schema)
    answer = raw["paths"]["/v1/classify"]["post"]["responses"]["200"]
    answer["content"]["application/json"]["schema"] = {"type": "array"}
    other = schemathesis.openapi.from_dict(raw)
    other.config.update(base_url=server.url)
    with pytest.raises(BaseExceptionGroup, match="violates schema"):
        other["/v1/classify"]["POST"].Case(body=png(), media_type="image/*").call_and_validate(timeout=PATIENCE)
