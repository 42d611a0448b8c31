"""Convert, on real Ray: Caffe's records, the same bytes however it is run, and clear words for bad input."""

import csv
import json
import os
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from ops.records import binaryproto, datum
from ops.records.lmdb import Reader
from pipelines.__main__ import main
from pipelines.convert import Convert
from pipelines.stages.dataset import open_dataset
from tests.odd_images import write_odd_images
from tests.ops.test_image import IMREAD_LACKS

SIZE = {"resize_height": 32, "resize_width": 40}


@pytest.fixture
def photos(golden):
    return golden / "files"


def convert(photos, out, **options):
    options = {"image_list": str(photos / "list.txt"), "root": f"{photos / 'photos'}/", **options}
    return Convert(out=out, **options).run()


def contents(folder: Path):
    with Reader(folder) as reader:
        return [(key, bytes(value)) for key, value in reader.records()]


def joined(folder: Path):
    """The records of all shards in order."""
    return [pair for shard in open_dataset(folder).shards for pair in contents(shard)]


def manifest(folder: Path):
    return json.loads((folder / "manifest.json").read_text())


def errors(folder: Path):
    with (folder / "errors.csv").open(newline="") as file:
        return list(csv.DictReader(file))


CAFFES = {
    "raw_lmdb": {"resize_height": 48, "resize_width": 64},
    "gray_lmdb": {"resize_height": 32, "resize_width": 32, "gray": True},
    "encoded_lmdb": {"resize_height": 48, "resize_width": 48, "encode_type": "jpg"},
    "passthrough_lmdb": {"encoded": True},
}


@pytest.mark.ray
@pytest.mark.parametrize("name", CAFFES)
def test_records_are_caffes_byte_for_byte(ray_session, photos, tmp_path, name):
    """Keys, order and Datums. Re-encoded JPEG (encoded_lmdb) comes out equal too with the pinned OpenCV; where another
    build's encoder differs, the keys must be the same and the decoded pixels within 2 grey levels on average."""
    convert(photos, tmp_path / "out", **CAFFES[name])
    ours, caffes = contents(tmp_path / "out"), contents(photos / name)
    assert [key for key, _ in ours] == [key for key, _ in caffes]
    if name != "encoded_lmdb":
        assert ours == caffes
    for (_, mine), (_, theirs) in zip(ours, caffes, strict=True):
        if mine != theirs:
            pictures = [cv2.imdecode(np.frombuffer(datum.parse(one).data, np.uint8), 1) for one in (mine, theirs)]
            assert np.abs(pictures[0].astype(int) - pictures[1]).mean() < 2


@pytest.mark.ray
def test_the_mean_of_the_same_pass_is_caffes_file(ray_session, photos, tmp_path):
    convert(photos, tmp_path / "out", mean_out=tmp_path / "m", shards="4", **CAFFES["raw_lmdb"])
    assert (tmp_path / "m").read_bytes() == (photos / "mean.binaryproto").read_bytes()


@pytest.mark.ray
def test_one_shard_is_a_plain_folder_and_several_join_to_the_same_records(ray_session, photos, tmp_path):
    one = convert(photos, tmp_path / "one", shuffle=True, seed=3, **SIZE)
    four = convert(photos, tmp_path / "four", shuffle=True, seed=3, shards="4", **SIZE)
    assert (one["shards"], four["shards"]) == (1, 4)
    assert {"data.mdb", "manifest.json", "errors.csv"} <= set(os.listdir(tmp_path / "one"))
    assert sorted(os.listdir(tmp_path / "four"))[-4:] == [f"part-0000{i}.lmdb" for i in range(4)]
    assert joined(tmp_path / "four") == contents(tmp_path / "one")
    assert [key for key, _ in contents(tmp_path / "one")] != [key for key, _ in contents(photos / "raw_lmdb")]


@pytest.mark.ray
def test_a_mean_of_several_sizes_stops_the_job_before_it_is_wrong(ray_session, photos, tmp_path):
    for more in ({}, {"encoded": True}, {"shards": "30"}):
        with pytest.raises(ValueError, match=r"records of one size are needed, but .* is 3x"):
            convert(photos, tmp_path / "out", mean_out=tmp_path / "m", overwrite=True, **more)
    assert not (tmp_path / "m").exists()


@pytest.mark.ray
def test_odd_lines_and_duplicates_are_listed_and_used(ray_session, photos, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("dress_0.jpg 1\nhat_0.jpg x\ndress_0.jpg 1\n")
    result = convert(photos, tmp_path / "out", image_list=str(listed), **SIZE)
    assert (result["records"], result["bad"], result["warned"]) == (3, 0, 2)
    assert [(row["line"], row["reason"]) for row in errors(tmp_path / "out")] == [
        ("2", "warning: label 'x', read as label 0"),
        ("3", "warning: the path of an earlier line"),
    ]


@pytest.mark.ray
def test_a_start_that_failed_does_not_hold_the_folder(ray_session, photos, tmp_path):
    with pytest.raises(ValueError, match="images are bad"):
        convert(photos, tmp_path / "out", root=f"{tmp_path}/", **SIZE)
    assert convert(photos, tmp_path / "out", gray=True, **SIZE)["records"] == 30


EVERYTHING = {"augment": "rotate=5,noise=3", "copies": 2, "crop": 24, "crop_at": "random", "crops": 5, "mirror": "both"}


@pytest.mark.ray
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="raw", marks=pytest.mark.soak),
        pytest.param(EVERYTHING, id="everything"),
        pytest.param({"mean": "104,117,123", "mirror": "random"}, id="mean", marks=pytest.mark.soak),
        pytest.param({"encode_type": "jpg"}, id="encoded"),
        pytest.param({"backend": "hdf5"}, id="hdf5"),
    ],
)
def test_bytes_do_not_depend_on_workers_or_on_fusing(ray_session, photos, tmp_path, options):
    ways = {"one": "data.workers=1", "two": "data.workers=2", "apart": "data.fuse=false"}
    seen = []
    for name, setting in ways.items():
        more = {"set": (setting,), "mean_out": tmp_path / f"{name}.mean"} if "encode_type" not in options else {}
        more.setdefault("set", (setting,))
        convert(photos, tmp_path / name, shards="3", shuffle=True, **SIZE, **options, **more)
        seen.append(manifest(tmp_path / name))
    assert seen[0] == seen[1] == seen[2]
    if "encode_type" not in options:
        assert len({(tmp_path / f"{name}.mean").read_bytes() for name in ways}) == 1
    shard = seen[0]["shards"][1]["name"]
    files = [tmp_path / name / shard for name in ways]
    files = [file / "data.mdb" if file.is_dir() else file for file in files]
    assert len({file.read_bytes() for file in files}) == 1


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_bytes_on_one_node_and_on_two(cluster_of, run_cli, photos, tmp_path):
    for nodes in (1, 2):
        with cluster_of(nodes) as outside:
            command = ["convert", "--list", photos / "list.txt", "--root", f"{photos / 'photos'}/", "--shards", 4]
            command += ["--resize-height", 32, "--resize-width", 40, "--out", tmp_path / str(nodes)]
            done = run_cli(*command, "--set", f"address={outside.address}")
            assert done.code == 0, done.stderr
    assert manifest(tmp_path / "1") == manifest(tmp_path / "2")


@pytest.mark.ray
def test_hdf5_shards_are_what_an_hdf5data_layer_reads(ray_session, photos, tmp_path):
    rows = [line.split() for line in (photos / "list.txt").read_text().splitlines()]
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("".join(f"{path} {label} 0.5 -1e-3\n" for path, label in rows))
    result = convert(
        photos, tmp_path / "out", image_list=str(vectors), labels="vector:3", backend="hdf5", shards="2", **SIZE
    )
    assert result["records"] == 30
    files = [Path(line) for line in (tmp_path / "out" / "list.txt").read_text().split()]
    data, label = [], []
    for file in files:
        with h5py.File(file) as opened:
            data.append(opened["data"][:])
            label.append(opened["label"][:])
    data, label = np.concatenate(data), np.concatenate(label)
    assert data.dtype == label.dtype == np.float32
    first = cv2.resize(cv2.imread(str(photos / "photos" / rows[0][0])), (40, 32)).transpose(2, 0, 1)
    assert np.array_equal(data[0], first)
    assert np.array_equal(label, np.float32([[float(row[1]), 0.5, -1e-3] for row in rows]))


@pytest.mark.ray
def test_records_are_the_sum_of_the_copies(ray_session, photos, tmp_path):
    result = convert(photos, tmp_path / "out", **SIZE, **EVERYTHING)
    assert (result["listed"], result["used"], result["records"]) == (30, 30, 30 * 2 * 5 * 2)
    keys = [key for key, _ in contents(tmp_path / "out")]
    assert keys[:3] == [b"00000000_dress_0.jpg", b"00000000_dress_0.jpg#001", b"00000000_dress_0.jpg#002"]
    assert keys == sorted(keys)


@pytest.mark.ray
def test_balance_brings_every_class_up_to_the_largest(ray_session, photos, tmp_path):
    lines = (photos / "list.txt").read_text().splitlines()[:9]
    uneven = tmp_path / "uneven.txt"
    labels = [0] * 6 + [1] * 2 + [2]
    uneven.write_text("".join(f"{line.split()[0]} {label}\n" for line, label in zip(lines, labels, strict=True)))
    convert(photos, tmp_path / "out", image_list=str(uneven), balance=True, augment="rotate=5", **SIZE)
    labels = [datum.parse(value).label for _, value in contents(tmp_path / "out")]
    assert [labels.count(label) for label in range(3)] == [6, 6, 6]
    assert len(set(contents(tmp_path / "out"))) == 18


@pytest.mark.ray
def test_the_plan_and_explain_name_every_stage(ray_session, photos, tmp_path, capsys):
    import ray

    from cluster.scaling import Pool
    from pipelines.stages import build
    from pipelines.stages.output import Output

    job = Convert(image_list=str(photos / "list.txt"), out=tmp_path / "o", shuffle=True, **SIZE, **EVERYTHING)
    from ops.inputs.listing import open_listing

    listed = open_listing(job.image_list)
    recipe = job.recipe(listed)
    plan, _ = job.plan(listed, recipe)
    pool = Pool(workers=1, cpus_per_worker=1, memory=None)
    names = ["shuffle", "read", "decode", "resize", "augment", "crop", "mirror", "encode", "write"]
    for fuse in (True, False):
        dataset = build.dataset(Output(job.out, plan, "lmdb"), recipe, pool, [0], fuse=fuse, check_size=False)
        assert isinstance(dataset, ray.data.Dataset)
        dataset.explain()
        told = capsys.readouterr().out
        places = [told.find(name) for name in names]
        assert -1 not in places
        if fuse:
            assert "+".join(names) in told
    explained = Convert(**{**vars(job), "explain": True}).run()
    assert explained["stages"] == " > ".join(names)
    assert not job.out.exists()


# -- going on, refusing, failing -----------------------------------------------------------------------------------


@pytest.mark.ray
def test_a_second_run_skips_what_is_complete(ray_session, photos, tmp_path, capsys):
    convert(photos, tmp_path / "out", shards="2", **SIZE)
    shard = tmp_path / "out" / "part-00000.lmdb" / "data.mdb"
    before = manifest(tmp_path / "out"), shard.stat().st_mtime_ns
    again = convert(photos, tmp_path / "out", shards="2", **SIZE)
    assert again["skipped_shards"] == 2
    assert "complete already, 2 shards skipped" in capsys.readouterr().err
    assert (manifest(tmp_path / "out"), shard.stat().st_mtime_ns) == before
    convert(photos, tmp_path / "out", shards="2", mean_out=tmp_path / "late.mean", **SIZE)
    assert binaryproto.read(tmp_path / "late.mean").shape == (3, 32, 40)


@pytest.mark.ray
def test_other_options_are_refused_by_name_and_overwrite_replaces(ray_session, photos, tmp_path):
    convert(photos, tmp_path / "out", shards="2", **SIZE)
    with pytest.raises(ValueError, match=r"made with other options \(--gray was False, is True\)"):
        convert(photos, tmp_path / "out", shards="2", gray=True, **SIZE)
    with pytest.raises(ValueError, match="30 lines in 2 shards were 30 in 3"):
        convert(photos, tmp_path / "out", shards="3", **SIZE)
    (tmp_path / "other.txt").write_text("dress_0.jpg 1\n")
    with pytest.raises(ValueError, match="the image list's content differs"):
        convert(photos, tmp_path / "out", image_list=str(tmp_path / "other.txt"), **SIZE)
    convert(photos, tmp_path / "out", gray=True, overwrite=True, **SIZE)
    assert manifest(tmp_path / "out")["shape"] == [1, 32, 40]
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.ray
def test_a_folder_that_is_not_ours_is_left_alone(ray_session, photos, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'notes.txt', which no conversion made"):
        convert(photos, tmp_path, **SIZE)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.ray
def test_too_many_bad_images_fail_before_anything_is_committed_and_mended_ones_are_taken(ray_session, photos, tmp_path):
    lines = (photos / "list.txt").read_text()
    listed = tmp_path / "list.txt"
    listed.write_text(lines + "late.jpg 3\n")
    pictures = tmp_path / "photos"
    pictures.mkdir()
    for file in (photos / "photos").iterdir():
        (pictures / file.name).symlink_to(file)
    options = {"image_list": str(listed), "root": f"{pictures}/", "shards": "3", **SIZE}
    options["set"] = ("data.workers=1",)  # one shard after the other: the last one has the bad line
    with pytest.raises(ValueError, match=r"1 of 31 images are bad.*late.jpg: No such file.*errors.csv"):
        convert(photos, tmp_path / "out", **options)
    assert sorted(os.listdir(tmp_path / "out")) == [".run", "errors.csv"]
    assert errors(tmp_path / "out") == [{"line": "31", "path": "late.jpg", "reason": "No such file or directory"}]
    (pictures / "late.jpg").symlink_to(photos / "photos" / "hat_0.jpg")
    result = convert(photos, tmp_path / "out", **options)
    assert (result["skipped_shards"], result["records"], result["bad"]) == (2, 31, 0)


@pytest.mark.ray
def test_bad_images_leave_gaps_in_the_numbering_as_in_caffe(ray_session, photos, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("dress_0.jpg 1\nmissing.jpg 2\nhat_0.jpg 3\n")
    result = convert(photos, tmp_path / "out", image_list=str(listed), max_bad="50%", **SIZE)
    assert [key for key, _ in contents(tmp_path / "out")] == [b"00000000_dress_0.jpg", b"00000002_hat_0.jpg"]
    assert (result["listed"], result["used"], result["bad"]) == (3, 2, 1)


@pytest.mark.ray
def test_odd_pictures_are_what_imread_makes_of_them_or_listed_with_a_reason(ray_session, tmp_path):
    files = write_odd_images(tmp_path / "odd")
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{file.relative_to(tmp_path)} {i}\n" for i, file in enumerate(files.values())))
    result = convert(tmp_path, tmp_path / "out", image_list=str(listed), root=f"{tmp_path}/", max_bad="100%")
    bad = {row["path"]: row["reason"] for row in errors(tmp_path / "out")}
    records = {key[9:].decode(): datum.parse(value).pixels() for key, value in contents(tmp_path / "out")}
    assert result["listed"] == len(files) == result["used"] + result["bad"]
    assert result["records"] == len(records) == result["used"]
    for name, file in files.items():
        path = str(file.relative_to(tmp_path))
        if path in records and name not in IMREAD_LACKS:
            assert np.array_equal(records[path].transpose(1, 2, 0), cv2.imread(str(file))), name
        elif path not in records:
            assert bad[path], name
            assert not bad[path].startswith("warning"), name
    assert result["bad"] >= 5


@pytest.mark.ray
def test_sizes_that_differ_stop_the_job_under_check_size(ray_session, photos, tmp_path):
    with pytest.raises(ValueError, match=r"--check-size: .* is 3x\d+x\d+ and .* is 3x\d+x\d+"):
        convert(photos, tmp_path / "out", check_size=True)
    assert not (tmp_path / "out" / "data.mdb").exists()
    convert(photos, tmp_path / "fine", check_size=True, **SIZE)


@pytest.mark.ray
def test_hdf5_of_several_sizes_is_refused(ray_session, photos, tmp_path):
    with pytest.raises(ValueError, match="--backend hdf5: records of one size are needed"):
        convert(photos, tmp_path / "out", backend="hdf5")


@pytest.mark.ray
def test_a_limit_takes_the_first_lines_of_the_shuffled_list(ray_session, photos, tmp_path):
    convert(photos, tmp_path / "all", shuffle=True, **SIZE)
    convert(photos, tmp_path / "ten", shuffle=True, limit=10, **SIZE)
    assert contents(tmp_path / "ten") == contents(tmp_path / "all")[:10]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--resize-height 9", "go together"),
        ("--resize-mode short-side", "takes one side"),
        ("--crops 2", "give --crop SIZE"),
        ("--crop 9 --crops 2", "would all be one"),
        ("--crop 9 --crop-at corners --crops 6", "five at the most"),
        ("--crop 10 --resize-height 9 --resize-width 9", "larger than the resized picture"),
        ("--encoded --scale 0.5", "cannot go with"),
        ("--encoded --backend hdf5", "cannot go with"),
        ("--labels float", "use --backend hdf5"),
        ("--labels vector:x", "expected caffe, int, float or vector:N"),
        ("--copies 2", "say how with --augment"),
        ("--balance --augment rotate=1 --labels float --backend hdf5", "whole-number labels"),
        ("--augment spin=3", "spin"),
        ("--shards 0", "expected a whole number"),
        ("--max-bad 150%", "expected a share"),
        ("--limit 0", "expected 1 or more"),
        ("--scale nan", "expected a number other than 0"),
        ("--seed -3", "expected 0 or more"),
        ("--rebase foo", "expected OLD=NEW"),
        ("--encode-type xyz", "encoding"),
        ("--gray --mean 1,2,3", "expected one value"),
        ("--resize-mode long-side --resize-width 20 --crop 20", "fits only squares"),
        ("--set data.wrkers=3", "data.workers"),
        ("--seed x", "--seed: expected a whole number, found 'x'"),
        ("--resize-hight 3", "did you mean --resize-height?"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(tmp_path, capsys, options, told):
    command = ["convert", "--list", "x", "--out", str(tmp_path / "out"), *options.split()]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_an_empty_list_and_a_missing_one_are_one_line_each(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    for name, told in (("empty.txt", "empty"), ("none.txt", "No such file")):
        assert main(["convert", "--list", str(tmp_path / name), "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
