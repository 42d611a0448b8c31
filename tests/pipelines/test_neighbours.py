"""Neighbours, over features that extract made: rows, pictures of one's own, duplicates, sheets."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from pipelines.__main__ import main
from pipelines.neighbours import Neighbours
from tests.pipelines.extractions import extract_here, table


@pytest.fixture(scope="module")
def features(golden, tmp_path_factory):
    """`fc` of the photographs of a list, in three parts."""
    files, out = golden / "files", tmp_path_factory.mktemp("features") / "out"
    options = {"input": str(files / "list.txt"), "root": f"{files}/photos/", "images_dim": "48,64", "shards": "3"}
    extract_here(files, out, **options)
    return out


@pytest.fixture(scope="module")
def rows(features):
    found = table(features)
    return found["path"].to_pylist(), np.array(found["fc"].to_pylist())


def expected(rows, place):
    """Names by falling cosine to a row."""
    names, values = rows
    unit = values / np.linalg.norm(values, axis=1, keepdims=True)
    return [names[i] for i in np.argsort(-(unit @ unit[place]), kind="stable")]


def test_a_row_has_its_neighbours(features, rows, tmp_path):
    job = Neighbours(features=features, of="hat_1.jpg", top=4, sheet=tmp_path / "s.png", out=tmp_path / "n.csv")
    result = job.run()
    found = [row["path"] for row in result["neighbours"]]
    assert found == expected(rows, rows[0].index("hat_1.jpg"))[1:5]
    assert result["on_sheet"] == 5
    assert cv2.imread(str(tmp_path / "s.png")) is not None
    assert pd.read_csv(tmp_path / "n.csv")["path"].tolist() == found
    assert job.render(result) is not None


def test_a_picture_that_is_no_row_goes_through_the_net_that_made_the_table(features, rows, golden, tmp_path):
    copy = tmp_path / "mine.jpg"
    copy.write_bytes((golden / "files" / "photos" / "skirt_2.jpg").read_bytes())
    result = Neighbours(features=features, of=str(copy), top=3, sheet=tmp_path / "s.png").run()
    assert [row["path"] for row in result["neighbours"]] == expected(rows, rows[0].index("skirt_2.jpg"))[:3]
    assert result["neighbours"][0]["cosine"] == pytest.approx(1, abs=1e-5)
    assert result["on_sheet"] == 4
    beside = Neighbours(features=features, of=str(golden / "files" / "photos" / "skirt_2.jpg"), top=1).run()
    assert beside["of"] == "skirt_2.jpg"  # a file of the list is its row


def test_rows_of_records_show_their_pictures(golden, tmp_path):
    extract_here(golden / "files", tmp_path / "out", blobs="fc,conv1")
    options = {"features": tmp_path / "out", "of": "00000004_hat_1.jpg", "top": 2}
    result = Neighbours(blob="conv1", sheet=tmp_path / "s.png", **options).run()
    assert result["on_sheet"] == 3
    with pytest.raises(ValueError, match="holds the blobs fc, conv1: name one with --blob"):
        Neighbours(**options).run()


def test_pictures_that_are_nearly_the_same_are_grouped(golden, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("dress_0.jpg", "hat_1.jpg", "shoes_1.jpg"):
        whole = (golden / "files" / "photos" / name).read_bytes()
        (folder / name).write_bytes(whole)
    cv2.imwrite(str(folder / "again.jpg"), cv2.imread(str(folder / "hat_1.jpg")), [cv2.IMWRITE_JPEG_QUALITY, 60])
    extract_here(golden / "files", tmp_path / "out", blobs="conv1", input=str(folder), images_dim="48,64")
    job = Neighbours(features=tmp_path / "out", duplicates=True, threshold=0.999, sheet=tmp_path / "s.png")
    result = job.run()
    assert result["groups"] == [["again.jpg", "hat_1.jpg"]]
    assert (result["duplicates"], result["on_sheet"]) == (1, 2)
    assert job.render(result) is not None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--of", "nowhere.jpg"], "--of nowhere.jpg: no row of"),
        (["--of", ".jpg"], "--of .jpg: 30 rows end so; give the whole path"),
        ([], "give --of KEY|IMAGE, or --duplicates"),
        (["--duplicates", "--threshold", "2"], "--threshold 2.0: a cosine, expected -1 to 1"),
        (["--of", "hat_1.jpg", "--blob", "fc8"], "has no blob 'fc8'; did you mean 'fc'?"),
        (["--of", "hat_1.jpg", "--sheet", "s.txt"], "--sheet s.txt: expected a picture's name"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(features, capsys, arguments, told):
    assert main(["neighbours", str(features), *arguments]) in (1, 2)
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert told in error[0]


def test_json_is_one_object(features, capsys):
    assert main(["neighbours", str(features), "--of", "hat_1.jpg", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["neighbours"]) == 10
