"""`check`: each kind recognized from its content, problems told one by one, exit code 1 where there are any."""

import json
import shutil

import numpy as np
import pytest

from ops.records import binaryproto
from pipelines.__main__ import main
from pipelines.check import Check, kind_of
from pipelines.convert import Convert


def check(path, **options):
    return Check(path=path, **options).run()


def test_kinds_are_recognized_from_their_content(golden, tmp_path):
    (tmp_path / "a.prototxt").write_text('name: "net"')
    (tmp_path / "unnamed").write_text('layer { name: "a" }')
    (tmp_path / "list").write_text("a.jpg 1\nb c.jpg 2\n")
    (tmp_path / "settings.yaml").write_text("cpus: 2")
    kinds = {golden / "files" / "raw_lmdb": "dataset", golden / "files" / "mean.binaryproto": "mean"}
    kinds |= {tmp_path / "a.prototxt": "prototxt", tmp_path / "unnamed": "prototxt", tmp_path / "list": "list"}
    kinds |= {tmp_path / "settings.yaml": "config", golden / "files" / "list.txt": "list"}
    assert {path: kind_of(path) for path in kinds} == kinds


def test_caffes_folder_is_right(golden):
    result = check(golden / "files" / "raw_lmdb")
    assert (result["ok"], result["records"], result["shapes"]) == (True, 30, ["3x48x64"])


@pytest.mark.ray
def test_a_converted_folder_is_compared_with_its_manifest(ray_session, golden, tmp_path):
    files = golden / "files"
    options = {"root": f"{files / 'photos'}/", "resize_height": 9, "resize_width": 9, "shards": "3"}
    Convert(image_list=str(files / "list.txt"), out=tmp_path / "out", **options).run()
    assert check(tmp_path / "out")["checksums"] == "match the manifest"
    first, second = (tmp_path / "out" / f"part-0000{i}.lmdb" for i in (0, 1))
    shutil.rmtree(first)
    shutil.copytree(second, first)
    result = check(tmp_path / "out")
    assert not result["ok"]
    assert any("checksum" in problem for problem in result["problems"])
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["bad"] += 1
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert "30 listed but 30 used and 1 bad" in check(tmp_path / "out")["problems"][-1]
    shutil.rmtree(second)
    assert main(["check", str(tmp_path / "out")]) == 1


def test_a_list_is_looked_through_for_missing_files_and_lumps(golden, tmp_path, capsys):
    files = golden / "files"
    assert check(files / "list.txt", root=f"{files / 'photos'}/")["ok"]
    listed = tmp_path / "list.txt"
    listed.write_text("dress_0.jpg 0\ndress_0.jpg 0\nnone.jpg 1\nhat_0.jpg x\n")
    result = check(listed, root=f"{files / 'photos'}/")
    assert [problem for problem in result["problems"] if problem.endswith("none.jpg")]
    assert any("read as label 0" in warning for warning in result["warnings"])
    assert any("repeat a path" in warning for warning in result["warnings"])
    sorted_list = tmp_path / "sorted.txt"
    sorted_list.write_text("dress_0.jpg 0\ndress_1.jpg 0\nhat_0.jpg 1\n")
    assert "sorted by class" in check(sorted_list, root=f"{files / 'photos'}/")["warnings"][-1]
    assert main(["check", str(listed), "--root", f"{files / 'photos'}/", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_nets_and_solvers_are_told_apart_and_errors_have_their_place(tmp_path, capsys):
    (tmp_path / "s.prototxt").write_text('net: "n.prototxt"\nbase_lr: 0.01\nmax_iter: 10\n')
    assert check(tmp_path / "s.prototxt")["holds"] == "solver"
    (tmp_path / "n.prototxt").write_text('layer { name: "a" type: "ReLU" }')
    assert check(tmp_path / "n.prototxt")["layers"] == 1
    (tmp_path / "s.prototxt").write_text('net: "n.prototxt"\nbase_rl: 0.01\n')
    assert main(["check", str(tmp_path / "s.prototxt")]) == 1
    assert "s.prototxt:2:1: SolverParameter has no field named 'base_rl'" in capsys.readouterr().err


def test_means_and_settings(tmp_path, capsys):
    binaryproto.write(tmp_path / "m.binaryproto", np.full((3, 2, 2), 100, np.float32))
    assert check(tmp_path / "m.binaryproto")["shape"] == [3, 2, 2]
    (tmp_path / "ray_config.yaml").write_text("data:\n  wokers: 2\n")
    assert main(["check", str(tmp_path / "ray_config.yaml")]) == 1
    error = capsys.readouterr().err
    assert "ray_config.yaml:2: unknown key" in error
    assert "data.workers" in error


def test_what_is_not_there_is_one_line(tmp_path, capsys):
    assert main(["check", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err == f"cortado: error: {tmp_path / 'none'}: No such file or folder\n"


def test_weights_are_counted_and_known_ones_named(tmp_path, golden, run_cli, monkeypatch):
    import hashlib
    import json

    from ops import zoo
    from pipelines.check import Check

    file = golden / "legacy/v1.caffemodel"
    result = json.loads(run_cli("check", file, "--json").stdout)
    assert (result["kind"], result["blobs"], result["ok"]) == ("weights", 4, True)
    assert result["published"] == "not known by its SHA-1"
    known = zoo.Known("lenet", "weights of a test", hashlib.sha1(file.read_bytes()).hexdigest())
    monkeypatch.setattr(zoo, "PUBLISHED", (known,))
    assert Check(path=file).run()["published"] == "weights of a test"
    (tmp_path / "cut.caffemodel").write_bytes(file.read_bytes()[:-5])
    assert "cut short" in run_cli("check", tmp_path / "cut.caffemodel").stderr
