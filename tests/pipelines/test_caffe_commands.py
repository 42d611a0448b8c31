"""Caffe's command lines, typed as its users type them, are ours: every row of docs/caffe.md, every form of a flag."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from pipelines.__main__ import main, parse
from pipelines.caffe_names import VERBS, understood
from pipelines.caffe_tools import TOOLS

PAGE = Path(__file__).resolve().parents[2] / "docs/caffe.md"
# -- the table ---------------------------------------------------------------------------------------------------------


def typed_rows():
    """(as typed, what runs) of docs/caffe.md, without the program's path."""
    table = PAGE.read_text().partition("| as typed |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `\S*/([^`]+)` \| (?:two of )?`cortado ([^`]+)`", table, re.MULTILINE)
    assert len(rows) == len(table.strip().splitlines()) - 2
    return rows


@pytest.mark.parametrize(("typed", "ours"), typed_rows())
def test_each_row_of_the_page_is_true(typed, ours):
    lines = understood(shlex.split(typed.removeprefix("caffe "))).lines
    command, *expected = shlex.split(ours.removesuffix(" ..."))
    assert lines[0][0] == command
    if ours.endswith(" ..."):
        assert len(lines) == 2
        expected += ["--shards", "1", "--backend", "lmdb"]
    assert parse(command, lines[0][1:]) == parse(command, expected)


def test_the_page_names_every_tool_and_verb():
    page = PAGE.read_text()
    assert not [name for name in [*TOOLS, *VERBS] if not re.search(rf"(?<![\w-]){re.escape(name)}", page)]


GFLAGS = [
    "-solver s.prototxt -gpu all",
    "--solver s.prototxt --gpu all",
    "-solver=s.prototxt -gpu=all",
    "--solver=s.prototxt --gpu=all --snapshot= -weights ''",
    "-logtostderr -solver s.prototxt -v 1 --log_dir=/tmp -gpu all -nolog_prefix",
]


@pytest.mark.parametrize("flags", GFLAGS)
def test_all_forms_of_gflags_mean_the_same(flags):
    expected = parse("train", ["--solver", "s.prototxt", "--gpu", "all"])
    for words in (["train", *shlex.split(flags)], [*shlex.split(flags), "train"]):
        (line,) = understood(words).lines
        assert line[0] == "train"
        assert parse("train", line[1:]) == expected


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("-gray -noshuffle", ["--gray"]),
        ("-gray=true --shuffle=false", ["--gray"]),
        ("--shuffle=1 -gray=F -encode_type=", ["--shuffle"]),
        ("--resize_height=0 --resize_width=0", []),
    ],
)
@pytest.mark.parametrize("behind", [False, True])
def test_switches_are_read_as_gflags_reads_them(flags, options, behind):
    words = ["r/", "l.txt", "db"]
    (line,) = understood(
        ["convert_imageset", *([*words, *flags.split()] if behind else [*flags.split(), *words])]
    ).lines
    ours = ["--root", "r/", "--list", "l.txt", "--out", "db", "--shards", "1", *options]
    assert parse("convert", line[1:]) == parse("convert", ours)


# -- what has no meaning here ------------------------------------------------------------------------------------------


def notes(line):
    return " ".join(understood(shlex.split(line)).notes)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train -solver s -logtostderr", "-logtostderr is passed over"),
        ("train -solver s --log_dir=/tmp", "--log_dir=/tmp is passed over"),
        ("convert_imageset -stderrthreshold 0 r/ l db", "-stderrthreshold is passed over"),
        ("test -model m -weights w -sighup_effect stop", "-sighup_effect is passed over: it says nothing to test"),
        ("time -model m -gpu 1,0", "time uses one GPU, as Caffe: the first of 1,0"),
        ("time -model m -gpu all", "the first of all"),
        ("compute_image_mean -backend lmdb db out", "-backend is passed over"),
        ("compute_image_mean nowhere_db", "the mean goes to mean.binaryproto"),
        ("draw_net.py --display_lrm net out.svg", "--display_lrm is passed over"),
        ("draw_net.py net out.svg", "the net of phase TEST is drawn"),
    ],
)
def test_what_is_passed_over_is_told(tmp_path, monkeypatch, line, told):
    monkeypatch.chdir(tmp_path)
    assert told in notes(line)


def test_notes_go_to_stderr_and_the_command_goes_on(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["upgrade_solver_proto_text", "-v", "1", "gone", "new"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "note: -v is passed over: messages go to stderr, those of a training also to train.log in its folder",
        "cortado: error: gone: No such file or folder",
    ]


STOPPED = {
    "train -solver s -iterations 5": "train takes no -iterations: max_iter in the solver says how many",
    "test -solver s": "test takes no -solver: give the net, --model, and --weights",
    "time --snapshot=x": "time takes no --snapshot=x",
    "train -flagfile f": "-flagfile: not understood here; give the flags themselves",
    "train -solver": "-solver needs a value",
    "train -solvr s": "no option --solvr; did you mean --solver?",
    "convert_imageset r/ l": "convert_imageset: expected ROOTFOLDER/ LISTFILE DB_NAME; found r/ l",
    "convert_imageset": "convert_imageset: expected ROOTFOLDER/ LISTFILE DB_NAME; found nothing",
    "convert_imageset -resize_heigt 3 r/ l db": "no flag -resize_heigt; did you mean 'resize_height'?",
    "convert_imageset -gray=perhaps r/ l db": "-gray=perhaps: expected true or false",
    "convert_imageset -backend leveldb r/ l db": "leveldb: LevelDB is read here, never written",
    "convert_imageset -resize_height 3 r/ l db": "--resize-height and --resize-width go together",
    "convert_imageset -resize_height x -resize_width 3 r/ l db": "--resize-height: expected a whole number, found 'x'",
    "convert_cifar_data in out leveldb": "leveldb: LevelDB is read here, never written",
    "convert_mnist_data a-images b-labels db": "b-labels: the labels of a-images are looked for beside it",
    "compute_image_mean": "compute_image_mean: expected DB [OUTPUT_FILE]; found nothing",
    "compute_image_mean db": "no OUTPUT_FILE given, and mean.binaryproto stands here already",
    "upgrade_net_proto_text old": "upgrade_net_proto_text: expected OLD NEW; found old",
    "extract_features w n fc7 db": "extract_features: expected WEIGHTS NET BLOB[,BLOB]",
    "extract_features w n fc7 db 10 leveldb": "leveldb: LevelDB is read here, never written",
    "extract_features w n fc6,fc7 db 10 lmdb": "fc6,fc7 and db: expected a database for each blob",
    "extract_features w n fc7 db ten lmdb": "ten: expected a number of batches",
    "extract_features w n fc7 db 10 lmdb TPU": "TPU: expected CPU or GPU",
    "plot_training_log 8 out.png a.log": "8: expected a chart type from 0 to 7",
    "parse_log.py train.log .": "parse_log: `cortado plot LOG` draws a log",
    "train_net.bin s.prototxt": "`cortado train --solver SOLVER",
    "detect.py in out": "detect: ",
    "caffe tarin": "no command named 'tarin'; did you mean 'train'?",
}


@pytest.mark.parametrize("line", STOPPED)
def test_what_stops_says_why_in_a_line(capsys, tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mean.binaryproto").write_bytes(b"")
    assert main(shlex.split(line)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert STOPPED[line] in told.err
    assert len(told.err.splitlines()) == 1


def test_a_gpu_that_is_not_there_is_told_in_both_ways(capsys):
    told = []
    for line in ("device_query -gpu 99", "status --gpu 99"):
        assert main(line.split()) == 1
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert told[0].startswith("cortado: error: --gpu 99: ")


def test_a_pass_for_each_blob_whose_features_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer = 'layer { name: "d" type: "ImageData" top: "x" image_data_param { source: "l" batch_size: BATCH } include '
    net = "".join(
        layer.replace("BATCH", size) + f"{{ phase: {phase} }} }}" for size, phase in [("7", "TRAIN"), ("4", "TEST")]
    )
    (tmp_path / "net.prototxt").write_text(net)
    words = ["extract_features", "w", "net.prototxt", "fc6,fc7", "six,seven", "10", "lmdb", "GPU", "DEVICE_ID=1"]
    given = "--model net.prototxt --weights w --format lmdb --shards 1 --gpu 1 --limit 40 --repeat"
    for line, blob in zip(understood(words).lines, ("--blobs fc6 --out six", "--blobs fc7 --out seven"), strict=True):
        assert line[0] == "extract"
        assert parse("extract", line[1:]) == parse("extract", f"{given} {blob}".split())
    (line,) = understood(["extract_features", "w", "net.prototxt", "fc7", "out", "1", "lmdb"]).lines
    assert "--gpu=none" in line


@pytest.mark.parametrize("line", ["caffe", "caffe --help", "--help"])
def test_help_is_ours(capsys, line):
    assert main(line.split()) == 0
    assert "usage: cortado COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["train -helpshort", "convert_imageset -help", "time -h"])
def test_help_of_a_tool_is_that_of_our_command(capsys, line):
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 0
    assert "Example: cortado" in " ".join(capsys.readouterr().out.replace("│", " ").split())
