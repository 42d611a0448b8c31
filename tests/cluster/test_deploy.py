"""How many replicas a model has: what ray_config.yaml asks for, in Ray Serve's words."""

import pytest
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import DeploymentSchema

from cluster.config import Config, Serve
from cluster.connect import Connection, Machine
from cluster.deploy import MOST_CALLS, TARGET, replicas_for


def connection(cpus: int, *, owned: bool = True) -> Connection:
    return Connection("local", owned, 0.0, (Machine(cpus, 0, 8 * 10**9),))


def asking(**serve: object) -> Config:
    return Config(serve=Serve(**serve))


def test_a_number_is_a_number_and_the_cpus_are_shared_out():
    found = replicas_for(asking(replicas=2), connection(8))
    assert (found.least, found.most, found.threads) == (2, 2, 4)
    assert found.scaling() == {"num_replicas": 2}
    assert replicas_for(asking(replicas=2), connection(8, owned=False)).threads == 1  # others work there too


def test_a_range_follows_the_load():
    settings = asking(replicas={"min": 1, "max": 3}, scale_up_seconds=2, scale_down_seconds=60)
    found = replicas_for(settings, connection(8))
    assert found.threads == 2  # as many as each has when all are there
    (told,) = found.scaling().values()
    scaling = AutoscalingConfig(**told)
    assert (scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas) == (1, 1, 3)
    assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (2, 60)
    assert not set(told) - set(AutoscalingConfig.model_fields)  # which Ray Serve would not mind
    assert 1 < TARGET < 2 < MOST_CALLS  # one client alone never asks for more, two busy places do
    DeploymentSchema(name="model", **found.scaling())


def test_what_can_never_run_is_told():
    with pytest.raises(ValueError, match=r"^3 replicas of 2 CPUs cannot run at once: .* room for 2; lower serve\.repl"):
        replicas_for(asking(replicas=3, cpus_per_replica=2), connection(4))
    many = asking(replicas={"min": 1, "max": 9})
    with pytest.raises(ValueError, match=r"^9 replicas of 1 CPUs cannot run at once"):
        replicas_for(many, connection(4))
    assert replicas_for(many, connection(4, owned=False)).most == 9  # nodes may come
