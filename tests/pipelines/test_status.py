"""`cortado status`, on a laptop and on a cluster."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


def test_on_a_machine_where_nothing_runs(run_cli, tmp_path):
    done = run_cli("status", "--path", tmp_path, "--set", "cpus=2", "--json")
    assert done.code == 0, done.stderr
    assert done.stderr == "no running cluster is configured: a local Ray was started for this check\n"
    found = json.loads(done.stdout)
    assert found["started_here"] is True
    assert (found["cpus"], len(found["nodes"]), found["problems"]) == (2, 1, [])
    assert found["versions_here"] == found["nodes"][0]["versions"]
    assert found["versions_here"]["opencv"] not in ("", "not installed")
    look = {"sees": True, "writes": True, "reason": ""}
    assert found["paths"] == [{"path": str(tmp_path), "here": look, "nodes": {found["nodes"][0]["id"]: look}}]
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_not_there_is_a_problem_and_exit_code_1(run_cli):
    done = run_cli("status", "--path", "nowhere", "--set", "cpus=1", "--json")
    assert done.code == 1, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert found["problems"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_nodes_of_a_cluster_and_what_they_see(cluster_of, run_cli, tmp_path):
    (tmp_path / "data").mkdir()
    with cluster_of(2, cpus=1) as outside:
        setting = f"address={outside.address}"
        told = run_cli(
            "status",
            "--set",
            setting,
            "--path",
            tmp_path / "data",
            "--path",
            "/proc/sys",
            "--path",
            "nowhere",
            COLUMNS="200",
        )
        assert told.code == 1, told.stderr
        found = run_cli("status", "--set", setting, "--path", tmp_path / "data", "--json")
        assert outside.process.poll() is None
    assert told.stderr == ""
    lines = told.stdout.splitlines()
    assert "a running cluster" in lines[0]
    assert sum("(head)" in line for line in lines) == 1
    assert sum(line.endswith("as here") for line in lines) == 2
    assert next(line for line in lines if str(tmp_path / "data") in line).count("reads, writes") == 3
    assert next(line for line in lines if "/proc/sys" in line).count("reads only") == 3
    assert f"problem: {tmp_path / 'nowhere'}: not there for this process" in lines
    result = json.loads(found.stdout)
    assert (result["started_here"], result["same_versions"], len(result["nodes"])) == (False, True, 2)
    assert result["problems"] == []


def test_a_cluster_that_is_not_there_is_one_line(run_cli):
    done = run_cli("status", RAY_ADDRESS="127.0.0.1:1")
    assert done.code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("cortado: error: no Ray cluster at 127.0.0.1:1: connection refused; check `address`")
    assert done.stderr.count("\n") == 1


def test_a_wrong_key_is_one_line(run_cli, tmp_path):
    (tmp_path / "ray_config.yaml").write_text("data:\n  wokers: 4\n")
    done = run_cli("status")
    assert done.code == 1
    assert done.stderr == "cortado: error: ray_config.yaml:2: unknown key 'data.wokers'; did you mean 'data.workers'?\n"


def test_folders_named_like_our_packages_do_no_harm_to_the_command(tmp_path):
    """`cortado` runs where there is a folder `ops`, with Python in it or not; the workers do not look there either."""
    for name in ("ops", "cluster", "pipelines"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported from the current folder')")
    command = [str(Path(sys.executable).with_name("cortado")), "status", "--set", "cpus=1", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["problems"] == []
