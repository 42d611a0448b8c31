"""The output folder: whatever moment a driver dies at, the next one ends with the same data set."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ops.recipe import Recipe
from ops.records.image_list import ImageList
from pipelines.stages import output as outputs
from pipelines.stages.dataset import open_dataset
from pipelines.stages.output import Output, read_manifest, summary
from pipelines.stages.plan import Plan, order_of, row_type
from pipelines.stages.shards import BuildShard, Shard


class Died(BaseException):
    """The driver, at a moment of the test's choosing."""


@pytest.fixture
def recipe(golden):
    return Recipe(root=str(golden / "files" / "photos") + "/", resize=("exact", 8, 8), want_pixels=True)


def make(folder, golden, recipe, *, shards=3):
    """What a driver does, without Ray."""
    listed = ImageList.read(golden / "files" / "list.txt")
    plan = Plan(folder / ".run" / "plan", len(listed), shards, listed.digest(), {}, row_type(listed.labels))
    out = Output(folder, plan, recipe.backend, wants_sum=True)
    with out.held():
        state = out.take_up(overwrite=False)
        if state == "complete":
            return state, read_manifest(folder)
        if state == "new":
            plan.write(listed, order_of(len(listed), shuffle=False, seed=0), 1)
        builder = BuildShard(str(out.run), plan, recipe, 1, False)
        for shard in range(shards):
            if shard not in out.finished:
                out.accept(builder.build(shard, plan.cuts[shard], plan.cuts[shard + 1]))
        mean = out.sums().mean()
        return state, out.commit({"mean": float(mean.sum())})


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("backend", ["lmdb", "hdf5"])
def test_a_driver_may_die_at_any_rename(golden, recipe, tmp_path, monkeypatch, shards, backend):
    recipe = Recipe(root=recipe.root, resize=recipe.resize, want_pixels=True, backend=backend)
    _, expected = make(tmp_path / "reference", golden, recipe, shards=shards)
    real, left = Path.replace, 0

    def replace(self, target):
        nonlocal left
        if left == 0:
            raise Died
        left -= 1
        return real(self, target)

    died = 0
    for moment in range(100):
        folder = tmp_path / str(moment)
        monkeypatch.setattr(Path, "replace", replace)
        left = moment
        try:
            make(folder, golden, recipe, shards=shards)
        except Died:
            died += 1
            assert read_manifest(folder) is None
        else:
            break
        finally:
            monkeypatch.setattr(Path, "replace", real)
        _, again = make(folder, golden, recipe, shards=shards)
        assert again == {**expected}
        assert open_dataset(folder).count == 30
        assert make(folder, golden, recipe, shards=shards)[0] == "complete"
    assert died >= 3 * shards


def test_a_second_attempt_at_a_shard_is_dropped(golden, recipe, tmp_path):
    listed = ImageList.read(golden / "files" / "list.txt")
    plan = Plan(tmp_path / ".run" / "plan", len(listed), 1, listed.digest(), {}, row_type(listed.labels))
    out = Output(tmp_path, plan, "lmdb")
    plan.write(listed, order_of(len(listed), shuffle=False, seed=0), 1)
    builder = BuildShard(str(out.run), plan, recipe, 1, False)
    first, second = builder.build(0, 0, 30), builder.build(0, 0, 30)
    out.accept(first)
    out.accept(second)
    assert out.finished[0].attempt == first.attempt
    assert os.listdir(tmp_path / ".run" / "attempts") == []
    assert first.checksum == second.checksum


def test_attempts_that_were_whole_when_the_driver_died_count(golden, recipe, tmp_path):
    """Not those that are half written, or a second attempt, or have a bad line: its picture may be mended now."""
    listed = ImageList.read(golden / "files" / "list.txt")
    plan = Plan(tmp_path / ".run" / "plan", len(listed), 4, listed.digest(), {}, row_type(listed.labels))
    first = Output(tmp_path, plan, "lmdb")
    with first.held():
        plan.write(listed, order_of(len(listed), shuffle=False, seed=0), 1)
        builder = BuildShard(str(first.run), plan, recipe, 1, False)
        made = [builder.build(shard, plan.cuts[shard], plan.cuts[shard + 1]) for shard in (0, 0, 1, 2, 3)]
    first.accept(made[2])
    told = first.run / "attempts" / made[3].attempt / "made.json"
    told.rename(told.with_name("made.json.new"))
    bad = first.run / "attempts" / made[4].attempt / "made.json"
    bad.write_text(json.dumps({**json.loads(bad.read_text()), "bad": [[25, "a.jpg", "no picture"]]}))
    again = Output(tmp_path, plan, "lmdb")
    with again.held():
        assert again.take_up(overwrite=False) == "resumed"
    assert sorted(again.finished) == [0, 1]
    assert again.finished[0].checksum == made[0].checksum
    assert not (again.run / "attempts").exists()


def test_listed_is_used_and_bad_and_records_are_the_sum_of_copies():
    made = [
        Shard(0, lines=5, count=8, shape=[1, 2, 2], bad=[(1, "a", "why")]),
        Shard(1, lines=4, count=8, shape=[1, 2, 2]),
    ]
    told = summary(made)
    assert (told["listed"], told["used"], told["bad"], told["records"]) == (9, 8, 1, 16)
    assert told["shape"] == [1, 2, 2]


def test_odd_names_reach_errors_csv_unharmed(tmp_path, recipe):
    listed = ImageList.of([b'caf\xe9, "quoted".jpg'], np.zeros(1, np.int32))
    plan = Plan(tmp_path / ".run" / "plan", 1, 1, listed.digest(), {}, row_type(listed.labels))
    out = Output(tmp_path, plan, "lmdb")
    plan.write(listed, order_of(1, shuffle=False, seed=0), 1)
    out.accept(BuildShard(str(out.run), plan, recipe, 1, False).build(0, 0, 1))
    out.list_errors()
    text = (tmp_path / "errors.csv").read_bytes()
    assert text == b'line,path,reason\n1,"caf\xe9, ""quoted"".jpg",No such file or directory\n'


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cortado": 99}', "not json", '{"cortado": 1}'])
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: not a manifest"):
        read_manifest(tmp_path)


def test_what_is_written_appears_whole(tmp_path):
    outputs.write_json(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["a.json"]
