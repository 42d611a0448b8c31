"""`prepare`: one command from class folders to checked data sets."""

import pytest

from ops.records import binaryproto
from pipelines.prepare import Prepare
from pipelines.stages.dataset import open_dataset


@pytest.fixture
def pictures(golden, tmp_path):
    """The thirty photographs in ten class folders."""
    for file in sorted((golden / "files" / "photos").iterdir()):
        folder = tmp_path / "pictures" / file.stem.rpartition("_")[0]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).symlink_to(file)
    return tmp_path / "pictures"


@pytest.mark.ray
def test_a_folder_of_pictures_becomes_a_ready_data_set(ray_session, pictures, tmp_path):
    (pictures / "hat" / "broken.jpg").write_bytes(b"no picture")
    job = Prepare(pictures=str(pictures), out=tmp_path / "data", split="train=0.7,test=0.3", size=32, max_bad="10%")
    result = job.run()
    assert result["ok"]
    assert (result["files"], len(result["classes"]), result["written"], result["skipped"]) == (31, 10, 30, 1)
    train, test = (open_dataset(tmp_path / "data" / name) for name in ("train", "test"))
    assert train.count + test.count == 30
    keys = {key[9:] for one in (train, test) for key, _, _ in one.records()}
    assert len(keys) == 30
    assert binaryproto.read(tmp_path / "data" / "mean.binaryproto").shape == (3, 32, 32)
    assert (tmp_path / "data" / "contact-sheet.png").stat().st_size > 1000
    assert (tmp_path / "data" / "train" / "classes.txt").read_text().split() == result["classes"]
    again = job.run()
    assert again["written"] == 30
    assert again["limited_by"] == "nothing was left to do"
