"""ray_config.yaml: which file, what it may say, and errors that name the line."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.config import NAME, SHIPPED, Config, find, keys, load

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def error(folder):
    """The message for a ray_config.yaml of this text and these --set."""

    def told(text: str, *overrides: str) -> str:
        (folder / NAME).write_text(text)
        with pytest.raises(ValueError, match=r".") as raised:
            load(None, overrides)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return told


# -- the file that ships -----------------------------------------------------------------------------------------------


def test_the_file_at_the_top_is_the_one_that_ships():
    assert (ROOT / NAME).read_text() == SHIPPED.read_text()


def test_it_says_the_defaults():
    assert load(ROOT / NAME).model_dump() == Config().model_dump()


def test_it_names_every_key():
    def named(tree, above=""):
        for name, value in tree.items():
            yield above + name
            yield from named(value, f"{above}{name}.") if isinstance(value, dict) else ()

    free = [key for key in keys() if key.startswith("runtime_env.")]
    assert list(named(yaml.safe_load(SHIPPED.read_text()))) == [key for key in keys() if key not in free]
    assert all(key.rpartition(".")[2] in SHIPPED.read_text() for key in free)


def test_the_names_of_runtime_environments_are_rays():
    from ray.runtime_env import RuntimeEnv

    assert {key.split(".")[1] for key in keys() if key.startswith("runtime_env.")} <= RuntimeEnv.known_fields


# -- which file --------------------------------------------------------------------------------------------------------


def test_the_first_file_that_there_is_counts(folder, monkeypatch):
    assert load().source == str(SHIPPED)
    (folder / "named.yaml").write_text("data: {workers: 3}")
    monkeypatch.setenv("CORTADO_CONFIG", str(folder / "named.yaml"))
    assert load().data.workers == 3
    (folder / NAME).write_text("data: {workers: 2}")
    assert load().data.workers == 2
    assert load().source == NAME
    (folder / "given.yaml").write_text("data: {workers: 1}")
    assert load("given.yaml").data.workers == 1
    assert find("given.yaml").name == load("given.yaml").source == "given.yaml"


def test_a_file_that_is_not_there_says_who_asked_for_it(folder, monkeypatch):
    with pytest.raises(OSError, match=r"^--config mine\.yaml: No such file or directory$"):
        load("mine.yaml")
    with pytest.raises(OSError, match=r"^--config \.: Is a directory$"):
        load(".")
    monkeypatch.setenv("CORTADO_CONFIG", "mine.yaml")
    with pytest.raises(OSError, match=r"^CORTADO_CONFIG=mine\.yaml: No such file"):
        load()


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "data:\ntrain:\n", "address:\nmemory: null\n", "{}", "\ufeff"])
def test_a_file_that_says_nothing_means_the_defaults(folder, text):
    (folder / NAME).write_text(text, encoding="utf-8")
    assert load().model_dump() == Config().model_dump()


def test_bytes_that_are_not_text_are_an_error(folder):
    (folder / NAME).write_bytes(b"address: \xff\xfe")
    with pytest.raises(ValueError, match=r"^ray_config\.yaml: not UTF-8 text \(byte 9\)$"):
        load()


# -- what is wrong, and where ------------------------------------------------------------------------------------------

WRONG = {
    "# one\ndata:\n  wokers: 4\n": ":3: unknown key 'data.wokers'; did you mean 'data.workers'?",
    "workers: 4": ":1: unknown key 'workers'; did you mean 'data.workers'?",
    "adress: local": ":1: unknown key 'adress'; did you mean 'address'?",
    "data:\n  fuse: true\n  colour: red\n": ":3: unknown key 'data.colour'; known: data.workers,",
    "runtime_env:\n  working_dir: .": ":2: unknown key 'runtime_env.working_dir': folders are never sent",
    "runtime_env: {pips: [x]}": ":1: unknown key 'runtime_env.pips'; did you mean 'runtime_env.pip'?",
    "data:\n  workers: many": ":2: data.workers: expected a whole number from 1, or auto, found 'many'",
    "data:\n  workers: 0": ":2: data.workers: expected a whole number from 1, or auto, found 0",
    "data:\n  workers: 2.0": ":2: data.workers: expected a whole number from 1, or auto, found 2.0",
    "cpus: true": ":1: cpus: expected a whole number from 1, or auto, found true",
    "cpus: '4'": ":1: cpus: expected a whole number from 1, or auto, found '4'",
    "data: 5": ":1: data: expected a mapping of keys, found 5",
    "data: [1]": ":1: data: expected a mapping of keys, found a list",
    "dashboard: maybe": ":1: dashboard: expected true or false, found 'maybe'",
    "train: {gpu: 1}": ":1: train.gpu: expected true or false, or auto, found 1",
    "data: {where: elsewhere}": ":1: data.where: expected worker or cluster, found 'elsewhere'",
    "train: {batch: each}": ":1: train.batch: expected whole or per_worker, found 'each'",
    "train: {workers: {min: 4, max: 2}}": ":1: train.workers: expected a whole number from 1, {min: A, max: B} with",
    "train: {workers: {least: 4}}": ":1: train.workers: expected a whole number from 1, {min: A, max: B}",
    "train: {recovery_seconds: .nan}": ":1: train.recovery_seconds: expected a number of seconds from 0, found nan",
    "serve: {port: 70000}": ":1: serve.port: expected a whole number from 1 to 65535, found 70000",
    "serve: {replicas: auto}": ":1: serve.replicas: expected a whole number from 1, or {min: A, max: B} with",
    "serve: {replicas: {min: 2, max: 1}}": ":1: serve.replicas: expected a whole number from 1, or {min: A, max: B}",
    "serve: {replicas: {min: 1, most: 2}}": ":1: serve.replicas: expected a whole number from 1, or {min: A, max: B}",
    "serve: {replicas: 0}": ":1: serve.replicas: expected a whole number from 1, or {min: A, max: B} with",
    "serve: {batch_size: 0}": ":1: serve.batch_size: expected a whole number from 1, found 0",
    "serve: {batch_wait_seconds: -1}": ":1: serve.batch_wait_seconds: expected a number of seconds from 0, found -1",
    "serve: {scale_up_seconds: soon}": ":1: serve.scale_up_seconds: expected a number of seconds from 0, found 'soon'",
    "serve: {host: 5}": ":1: serve.host: expected a word, found 5",
    "memory: lots": ":1: memory: expected a size as 512MB or 8GB, or auto, found 'lots'",
    "memory: 1.2.3GB": ":1: memory: expected a size",
    "memory: -1": ":1: memory: expected a size",
    "object_store_memory: 1MB": ":1: object_store_memory: expected a size of at least 80MB as",
    "address: here": ":1: address: expected local, auto or host:port, found 'here'",
    "address: host:99999": ":1: address: expected local, auto or host:port",
    "address: ray://host:10001": ":1: address: 'ray://host:10001' is a Ray Client address; run on the cluster",
    "runtime_env: {env_vars: {A: 1.5}}": ":1: runtime_env.env_vars: expected text for A (quote it), found 1.5",
    "runtime_env: {pip: 4}": ":1: runtime_env.pip: expected another kind of value, found 4",
    "cpus: 1\ngpus: 0\ncpus: 2": ":3: 'cpus' stands twice, first on line 1",
    "data:\n  workers: 1\n  workers: 1": ":3: 'data.workers' stands twice, first on line 2",
    "data:\n\tworkers: 1": ":2: not valid YAML: a tab; indent with spaces",
    "cpus: [1\n": ":2: not valid YAML:",
    "cpus: 1\n---\ncpus: 2": ":2: not valid YAML:",
    "cpus: \x01": ":1: not valid YAML: character #x01",
    "cpus: !!python/object:os.system x": ":1: not valid YAML: could not determine a constructor",
    "- one": ":1: expected keys and values, found a list",
    "hello": ":1: expected keys and values, found 'hello'",
    "1: 2": ":1: keys are words, found 1",
    "[a]: 2": ":1: keys are words, found a list",
    "extra: &a {again: *a}": ":1: unknown key 'extra'",
}


@pytest.mark.parametrize("text", WRONG)
def test_an_error_is_one_line_with_the_place(error, text):
    assert error(text).startswith(NAME + WRONG[text])


def test_several_errors_are_counted(error):
    assert error("cpus: x\ngpus: y\ndata: {workers: z}").endswith("found 'x' (and 2 more)")


def test_keys_of_a_merged_mapping_are_found_too(folder):
    (folder / NAME).write_text("data: &both\n  workers: 2\ntrain:\n  <<: *both\n  batch: per_worker\n")
    config = load()
    assert (config.data.workers, config.train.workers, config.train.batch) == (2, 2, "per_worker")


@given(st.text(max_size=60))
def test_any_text_is_settings_or_one_line(text):
    from cluster import yaml_lines

    told = ""
    try:
        tree, _ = yaml_lines.parse(text, "x.yaml")
    except ValueError as error:
        tree, told = {}, str(error)
    assert isinstance(tree, dict)
    assert not told or (told.startswith("x.yaml:") and len(told.splitlines()) == 1)


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "count"),
    [
        ("8GB", 8 * 10**9),
        ("512MB", 512 * 10**6),
        ("1.5 gb", 1_500_000_000),
        ("2GiB", 2**31),
        ("100M", 10**8),
        (10**9, 10**9),
    ],
)
def test_sizes_have_units(written, count):
    assert Config(memory=written).memory == count


# -- --set -------------------------------------------------------------------------------------------------------------


def test_set_changes_any_key(folder):
    (folder / NAME).write_text("cpus: 2\ndata:\n  workers: 3\n  fuse: false\nruntime_env:\n  env_vars: {A: 1}\n")
    changes = [
        "data.workers=4",
        "memory=8GB",
        "train.batch=per_worker",
        "runtime_env.env_vars.B=x",
        "cpus=",
        "serve={port: 1}",
    ]
    config = load(None, changes)
    assert (config.data.workers, config.data.fuse, config.memory, config.cpus) == (4, False, 8 * 10**9, "auto")
    assert config.runtime_env.given() == {"env_vars": {"A": "1", "B": "x"}}
    assert (config.train.batch, config.serve.port) == ("per_worker", 1)
    assert load(None, ["address=10.0.0.1:6379"]).address == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.wokers=4", "--set data.wokers=4: unknown key 'data.wokers'; did you mean 'data.workers'?"),
        ("dta.workers=4", "--set dta.workers=4: unknown key 'dta'; did you mean 'data'?"),
        ("data.workers=0", "--set data.workers=0: data.workers: expected a whole number from 1, or auto, found 0"),
        ("data={wokers: 4}", "--set data={wokers: 4}: unknown key 'data.wokers'; did you mean"),
        ("cpus.more=1", "--set cpus.more=1: cpus: expected a whole number from 1, or auto, found a mapping"),
        ("data.workers", "--set data.workers: expected KEY=VALUE, as --set data.workers=4"),
        ("=4", "--set =4: expected KEY=VALUE"),
        ("cpus=[", "--set cpus=[: not valid YAML:"),
    ],
)
def test_an_error_in_set_names_it_and_not_the_file(error, override, told):
    assert error("data:\n  workers: 3\n", override).startswith(told)


def test_a_configuration_does_not_change():
    with pytest.raises(ValidationError):
        Config().cpus = 3
