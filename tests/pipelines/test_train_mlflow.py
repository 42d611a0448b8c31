"""`cortado train --mlflow`: what MLflow's own client reads of a training, and a store that gets lost."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from itertools import count

import pytest

from ops.training import tracking
from pipelines import worker
from pipelines.__main__ import main
from pipelines.stages.run_folder import read_json
from pipelines.stages.setup import Place, Training
from pipelines.worker import train
from tests.pipelines.trainings import LAST, NET, Case, data_files, rows, solver

mlflow = pytest.importorskip("mlflow")

TESTED = solver("test_iter: 3 test_interval: 5 snapshot: 5")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*tracking.DEFAULTS, "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # what a training sets is gone after the test
    data_files(tmp_path)
    return tmp_path


def begin(folder, *words: str, code: int = 0) -> None:
    assert main(["train", "--solver", "solver.prototxt", "--run", "runs/a", "--local", *words]) == code


def test_mlflow_has_the_settings_the_curves_and_the_files(folder):
    Case(NET, TESTED).write(folder)
    begin(folder, "--mlflow", "mlruns", "--label-smoothing", "0.1")
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("cortado")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.run_name, found.info.status) == ("a", "FINISHED")
    params = found.data.params
    expected = {"solver.base_lr": "0.05", "solver.max_iter": str(LAST), "solver.lr_policy": "fixed", "net": "tiny"}
    expected |= {
        "batch": "8",
        "records": "48",
        "workers": "1",
        "option.label_smoothing": "0.1",
        "solver.test_iter": "3",
    }
    assert {name: params.get(name) for name in expected} == expected
    told = client.get_metric_history(found.info.run_id, "train/loss")
    written = rows(folder / "runs/a")
    assert [one.step for one in told] == list(range(LAST)) == [int(row[0]) for row in written]
    assert [one.value for one in told] == pytest.approx([float(row[1]) for row in written], rel=1e-6)
    tests = client.get_metric_history(found.info.run_id, "test/loss")
    assert [one.step for one in tests] == [0, 5, 10]
    kept = {one.path: one.file_size for one in client.list_artifacts(found.info.run_id)}
    assert {"solver.prototxt", "deploy.prototxt", "model.json", "metrics.csv", "test.csv", "train.log"} <= set(kept)
    weights = f"solver_iter_{LAST}.caffemodel"
    assert kept[weights] == (folder / "runs/a" / weights).stat().st_size


def test_a_run_that_goes_on_is_the_same_run_there(folder):
    Case(NET, TESTED).write(folder, max_iter=5)
    begin(folder, "--mlflow", "mlruns")
    Case(NET, TESTED).write(folder)
    begin(folder, "--mlflow", "mlruns", "--resume")
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("cortado").experiment_id])
    assert found.info.run_id == read_json(folder / "runs/a/run.json")["mlflow"]
    told = client.get_metric_history(found.info.run_id, "train/loss")
    assert [one.step for one in told] == list(range(LAST))


def lose(store):
    """Take a folder away while somebody writes there, and put a file in its place."""
    for number in count():
        store.rename(f"{store}-{number}")
        with contextlib.suppress(IsADirectoryError):  # made anew meanwhile
            store.write_text("something else")
            return


def test_a_store_that_is_lost_costs_one_warning_and_no_training(folder, monkeypatch):
    monkeypatch.setattr(tracking, "TELL_EVERY", 0.01)
    monkeypatch.setattr(tracking, "AGAIN", 0.01)
    monkeypatch.setattr(worker, "SETTLE_SECONDS", 0.0)  # it reports each iteration
    path, said = Case(NET, TESTED).write(folder), []

    def see(told):
        said.extend(told.get("lines", []))
        if told.get("iteration") == 3 and "loss" in told:
            lose(folder / "mlruns")

    result = train(Training(solver=str(path), run="runs/a", mlflow="mlruns"), Place(signals=False, report=see))
    assert (result["iterations"], len(rows(folder / "runs/a"))) == (LAST, LAST)
    warnings = [line for line in said if "MLflow" in line]
    assert len(warnings) == 1
    assert "cannot be told" in warnings[0]
    assert warnings[0] in (folder / "runs/a/train.log").read_text()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--mlflow", "env"), 1, "--mlflow env: MLFLOW_TRACKING_URI is not set"),
        (("--mlflow", "http://127.0.0.1:9"), 1, "--mlflow http://127.0.0.1:9: "),
        (("--mlflow", "http://me:word@host"), 1, "--mlflow: the URI is written down: MLFLOW_TRACKING_USERNAME"),
        (("--mlflow", "solver.prototxt"), 1, "--mlflow solver.prototxt: "),
        (("--mlflow", "mlruns", "--overfit", "2"), 2, "--mlflow is for trainings"),
    ],
)
def test_a_place_that_cannot_be_is_told_on_one_line(folder, capsys, monkeypatch, words, code, told):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    Case(NET, TESTED).write(folder)
    begin(folder, *words, code=code)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"cortado: error: {told}")


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if "site-packages" not in one])
    with pytest.raises(
        ValueError, match=r"^--mlflow mlruns: MLflow is not installed: pip install 'cortado\[mlflow\]'$"
    ):
        tracking.place_of("mlruns")


def test_mlflow_is_imported_only_when_it_is_asked_for(folder):
    Case(NET).write(folder)
    words = ["train", "--solver", "solver.prototxt", "--run", "runs/a", "--local"]
    code = f"import sys; from pipelines.__main__ import main; main({words}); print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
