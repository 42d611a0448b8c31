"""Starting Ray, joining a cluster, and leaving it as it was."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from cluster.config import Config
from cluster.connect import chosen, connected

PRELUDE = """
import json, os, sys
import cluster, ops, pipelines
from cluster import config
from cluster.connect import connected
PACKAGES = (ops, pipelines, cluster)
"""


def python(code: str, folder: Path, *arguments: str, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Run `code` after the prelude in a new process, in `folder`; `env` adds to the environment, None takes away."""
    text = PRELUDE + textwrap.dedent(code)
    file = folder.parent / f"{folder.name}.script.py"
    file.write_text(text)
    command = [sys.executable, str(file), *arguments]
    settings = {name: value for name, value in {**os.environ, **env}.items() if value is not None}
    return subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, timeout=240, check=False)


# -- which one ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "environment", "where"),
    [
        (None, None, "local"),
        (None, "host:6379", "host:6379"),
        (None, "auto", "auto"),
        (None, "local", "local"),
        (None, "", "local"),
        ("auto", None, "auto"),
        ("auto", "host:6379", "host:6379"),
        ("local", "host:6379", "local"),
        ("mine:1", "host:6379", "mine:1"),
    ],
)
def test_the_file_comes_before_ray_address(monkeypatch, address, environment, where):
    if environment is not None:
        monkeypatch.setenv("RAY_ADDRESS", environment)
    assert chosen(Config(address=address)) == where


def test_a_ray_address_that_cannot_be_one_is_named(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://host:10001")
    with pytest.raises(ValueError, match=r"^RAY_ADDRESS=ray://host:10001: 'ray://host:10001' is a Ray Client address"):
        chosen(Config())


# -- a Ray of our own --------------------------------------------------------------------------------------------------


@pytest.mark.ray
def test_inside_a_process_that_has_ray_that_one_is_used_and_stays(ray_session):
    import ray

    with connected(Config(cpus=1)) as connection:
        assert connection.address == ray_session.address
        assert not connection.owned
        assert connection.cpus == 4
    assert ray.is_initialized()
    assert ray_session.owned
    assert ray_session.nodes == 1


@pytest.mark.ray
def test_a_local_ray_is_quiet_and_gone_at_the_end(tmp_path):
    (tmp_path / "queue.py").write_text("raise RuntimeError('a file of the user was imported')")
    for package in ("ops", "cluster", "pipelines"):  # as namespaces, and in a place that only Ray would put on the path
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise RuntimeError('a folder of the user was imported')")
    code = """
    before = dict(os.environ)
    with connected(config.load(None, ["cpus=1"]), packages=PACKAGES) as connection:
        import ray
        def where():
            import ops, pipelines.job
            return ops.__file__, os.getcwd(), sys.path[0]
        remote = ray.get(ray.remote(where).remote())
        def fail(batch): os._exit(1) if not os.path.exists("died") and not os.mknod("died") else None; return batch
        class Count:
            def __init__(self, step): self.step = step
            def __call__(self, batch): return batch
        pool = ray.data.ActorPoolStrategy(size=1)
        rows = ray.data.range(10).map_batches(Count, fn_constructor_args=(1,), compute=pool).map_batches(fail)
        count = len(list(rows.iter_rows()))
    assert not ray.is_initialized()
    new = {name for name in os.environ if os.environ[name] != before.get(name)}
    print(json.dumps({"owned": connection.owned, "cpus": connection.cpus, "remote": remote, "count": count,
                      "auth": "RAY_AUTH_MODE" in new, "here": ops.__file__}))
    """
    done = python(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)  # nothing else on stdout
    assert found["owned"] is True
    assert (found["cpus"], found["count"], found["auth"]) == (1, 10, False)
    assert found["remote"][0] == found["here"]
    assert (tmp_path / "died").exists()


INTERRUPTED = """
print("starting", flush=True)
try:
    with connected(config.load(None, ["cpus=1"])):
        print("ready", flush=True)
        import time; time.sleep(60)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def processes(folder: str) -> list[int]:
    """Ray processes whose session lies in `folder`."""
    found = []
    for process in psutil.process_iter():
        try:
            if folder in " ".join(process.cmdline()):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(("after", "seconds"), [("starting", 0.5), ("ready", 0.5)])
def test_ctrl_c_leaves_nothing_behind(tmp_path, after, seconds):
    with tempfile.TemporaryDirectory(
        prefix="ray", dir="/tmp", ignore_cleanup_errors=True
    ) as session:  # socket paths are short
        file = tmp_path / "script.py"
        file.write_text(PRELUDE + INTERRUPTED)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        env = {**os.environ, "RAY_TMPDIR": session}
        with subprocess.Popen([sys.executable, str(file)], cwd=tmp_path, env=env, **pipes) as process:
            while process.stdout.readline().strip() != after:
                pass
            for _ in range(1200):  # on a busy machine Ray's first process takes its time
                if processes(session):
                    break
                time.sleep(0.1)
            time.sleep(seconds)
            assert processes(session)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            out, err = process.communicate(timeout=120)
        assert out.split()[-1] == "stopped"
        assert "Traceback" not in err
        for _ in range(300):
            if not processes(session):
                break
            time.sleep(0.1)
        assert not processes(session)


# -- somebody else's cluster -------------------------------------------------------------------------------------------

GUEST = """
with connected(config.load(None, sys.argv[1:]), packages=PACKAGES) as connection:
    import ray
    def where():
        import ops, pipelines.job
        return ops.__file__
    remote = ray.get(ray.remote(where).remote())
print(json.dumps({"address": connection.address, "owned": connection.owned, "nodes": connection.nodes,
                  "cpus": connection.cpus, "remote": remote}))
"""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_guest_brings_its_code_and_leaves_the_cluster_running(cluster_of, tmp_path):
    with cluster_of(2, cpus=1) as outside:
        for arguments, env in ((["cpus=7"], {"RAY_ADDRESS": outside.address}), ([f"address={outside.address}"], {})):
            done = python(GUEST, tmp_path, *arguments, **env)
            assert done.returncode == 0, done.stderr
            assert done.stderr == ""
            found = json.loads(done.stdout)
            assert (found["owned"], found["nodes"], found["cpus"]) == (False, 2, 2)
            assert found["address"] == outside.address
            assert "py_modules_files" in found["remote"]  # sent, although it is installed there too
        outside.kill_node()
        found, deadline = {"nodes": 2}, time.monotonic() + 120
        while found["nodes"] > 1 and time.monotonic() < deadline:  # until the cluster has noticed
            done = python(GUEST, tmp_path, f"address={outside.address}")
            found = json.loads(done.stdout) if done.returncode == 0 else found
        assert (found["nodes"], found["cpus"]) == (1, 1)
        assert outside.process.poll() is None


@pytest.mark.ray
@pytest.mark.slow
def test_ray_of_another_version_is_named(cluster_of, tmp_path):
    import ray

    code = """
    import ray
    ray.__version__ = "0.1.2"
    try:
        with connected(config.load(None, sys.argv[1:])):
            pass
    except ConnectionError as error:
        print(error)
    """
    with cluster_of(1) as outside:
        done = python(code, tmp_path, f"address={outside.address}")
    here = f"Python {sys.version.split()[0]}"
    told = f"runs Ray {ray.__version__} on {here}, this is Ray 0.1.2 on {here}: they must be the same"
    assert done.stdout.strip() == f"the cluster at {outside.address} {told}"


@pytest.mark.ray
@pytest.mark.slow
def test_a_clusters_token_is_shown_to_nobody_else(cluster_of, tmp_path):
    """A cluster that wants a token: asked for in one line, and used when it was given for this run."""
    secret = "0" * 32
    code = """
    try:
        with connected(config.load(None, sys.argv[1:])) as connection:
            print("joined", connection.nodes)
    except ConnectionError as error:
        print(error)
    """
    strict = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secret}
    with cluster_of(1, env=strict) as outside:
        place = [f"address={outside.address}"]
        refused = python(code, tmp_path, *place, HOME=str(tmp_path), RAY_AUTH_MODE=None)
        joined = python(code, tmp_path, *place, RAY_AUTH_TOKEN=secret, RAY_AUTH_MODE=None)
    assert refused.stdout.strip().startswith(f"the cluster at {outside.address} wants Ray's token: set RAY_AUTH_MODE")
    assert refused.stderr == ""
    assert joined.stdout.strip() == "joined 1"
    assert secret not in joined.stdout + joined.stderr
