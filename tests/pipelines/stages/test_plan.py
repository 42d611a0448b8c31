"""The plan: every line once, in the order that list, seed and shard count say, read back as written."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.records.image_list import ImageList
from pipelines.stages import plan as plans
from pipelines.stages.plan import Plan, balanced, order_of, read_facts, row_type, shard_count


def planned(folder, listed, *, shards=1, shuffle=False, seed=0, copies=1, count=None):
    order = order_of(len(listed), shuffle=shuffle, seed=seed)
    made = Plan(folder / "plan", count or len(listed), shards, listed.digest(), {}, row_type(listed.labels))
    made.write(listed, order, copies)
    return made


def some(count):
    return ImageList.of([f"folder/{i} a.jpg" for i in range(count)], np.arange(count, dtype=np.int32) % 7)


@given(st.integers(1, 300), st.integers(1, 20), st.booleans())
def test_shards_cut_the_list_evenly_and_lose_no_line(tmp_path_factory, count, shards, shuffle):
    listed, shards = some(count), min(shards, count)
    made = planned(tmp_path_factory.mktemp("plan"), listed, shards=shards, shuffle=shuffle)
    sizes = np.diff(made.cuts)
    assert sizes.min() >= count // shards
    assert sizes.max() - sizes.min() <= 1
    lines = [line for a, b in zip(made.cuts, made.cuts[1:], strict=False) for line in made.lines(a, b)]
    assert [line.position for line in lines] == list(range(count))
    assert sorted(line.number for line in lines) == list(range(1, count + 1))
    assert all(line.path == listed.path(line.number - 1) for line in lines)
    assert all(line.label == listed.labels[line.number - 1] for line in lines)
    assert shuffle or [line.number for line in lines] == list(range(1, count + 1))


def test_blocks_leave_no_seam(tmp_path, monkeypatch):
    monkeypatch.setattr(plans, "BLOCK", 10)
    made = planned(tmp_path, some(95), shuffle=True, seed=4)
    lines = made.lines(0, 95)
    monkeypatch.undo()
    assert planned(tmp_path / "b", some(95), shuffle=True, seed=4).lines(0, 95) == lines


def test_vector_labels_and_bad_lines_travel_along(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg 1 0.5\nb.jpg x y\nc.jpg 2 3\n")
    lines = planned(tmp_path, ImageList.read(tmp_path / "list.txt", "vector:2")).lines(0, 3)
    assert lines[0].label.tolist() == [1, 0.5]
    assert lines[0].label.dtype == np.float32
    assert [line.bad is None for line in lines] == [True, False, True]
    assert "expected a path and 2 numbers" in lines[1].bad


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (4096, 1), (4097, 2), (10_000_000, 2442)])
def test_auto_shards_follow_from_the_list_alone(count, shards):
    assert shard_count("auto", count) == shards
    assert shard_count("3", 2) == 2


def test_a_plan_knows_what_another_run_did_differently(tmp_path):
    listed = some(10)
    made = Plan(tmp_path / "plan", 10, 2, listed.digest(), {"gray": False, "crop": 0}, row_type(listed.labels))
    made.write(listed, order_of(10, shuffle=False, seed=0), 1)
    earlier = read_facts(tmp_path / "plan")
    assert made.differences(earlier) == []
    assert made.differences({**earlier, "options": {"gray": True, "crop": 0}}) == ["--gray was True, is False"]
    assert made.differences({**earlier, "list": "x"}) == ["the image list's content differs"]
    assert made.differences({**earlier, "shards": 3}) == ["10 lines in 3 shards were 10 in 2"]
    assert read_facts(tmp_path / "none") is None


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 3))
def test_balancing_gives_every_class_as_many_records_as_the_largest_has(labels, copies):
    listed = ImageList.of(["x"] * len(labels), np.array(labels, np.int32))
    versions = balanced(listed, len(labels), order_of(len(labels), shuffle=True, seed=1), copies=copies)
    by_place = listed.labels[order_of(len(labels), shuffle=True, seed=1)(np.arange(len(labels)))]
    wanted = copies * max(labels.count(label) for label in set(labels))
    for label in set(labels):
        mine = versions[by_place == label]
        assert mine.sum() == wanted
        assert mine.max() - mine.min() <= 1
