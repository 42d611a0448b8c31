"""The tools of Caffe, in build/tools, build/examples, tools/extra and python: what each is here."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

LEVELDB = "LevelDB is read here, never written: leave it out for LMDB"


@dataclass
class Given:
    """What was typed behind a tool's name; `notes`: what to say before it runs."""

    flags: dict[str, str] = field(default_factory=dict)  # switches are "true" or "false"
    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def option(self, flag: str) -> list[str]:
        """As our command has it: --resize-height=256, or --gray; nothing where it is not given, or empty, or off."""
        value = self.flags.get(flag, "")
        named = f"--{flag.replace('_', '-')}"
        return [] if value in ("", "false") else [named] if value == "true" else [f"{named}={value}"]


class Tool(NamedTuple):
    """A tool that is a command here: the words behind it, then those that may lack; flags -> do they take a value."""

    command: str
    words: tuple[str, ...]
    lines: Callable[[Given], list[list[str]]]
    more: tuple[str, ...] = ()
    flags: dict[str, bool] = {}


# -- data --------------------------------------------------------------------------------------------------------------


def backend(given: str) -> list[str]:
    """--backend of convert for a word or flag of Caffe's; ValueError for LevelDB."""
    if given == "leveldb":
        raise ValueError(f"leveldb: {LEVELDB}")
    return [f"--backend={given}"] if given else []


def convert_imageset(given: Given) -> list[list[str]]:
    root, listed, database = given.words
    options = [option for flag in IMAGESET if flag != "backend" for option in given.option(flag)]
    options += backend(given.flags.get("backend", ""))
    return [["convert", f"--root={root}", f"--list={listed}", f"--out={database}", "--shards=1", *options]]


def compute_image_mean(given: Given) -> list[list[str]]:
    """Without a file to write Caffe only prints; here there is always a file."""
    out = given.words[1] if len(given.words) > 1 else ""
    if not out:
        out = "mean.binaryproto"
        if os.path.exists(out):
            raise ValueError(f"no OUTPUT_FILE given, and {out} stands here already; give one")
        given.notes.append(f"note: no OUTPUT_FILE given: the mean goes to {out}")
    if "backend" in given.flags:
        given.notes.append("note: -backend is passed over: what holds the records is seen from its files")
    return [["mean", given.words[0], f"--out={out}"]]


def convert_mnist_data(given: Given) -> list[list[str]]:
    """Images whose labels are found by their name, which must be the file that was given."""
    images, labels, database = given.words
    folder, name = os.path.split(images)
    expected = os.path.join(folder, name.replace("images", "labels").replace("idx3", "idx1"))
    if expected == images or os.path.normpath(labels) != os.path.normpath(expected):
        told = f"the labels of {images} are looked for beside it, as train-labels-idx1-ubyte"
        raise ValueError(f"{labels}: {told}; give the files such names")
    options = backend(given.flags.get("backend", ""))
    return [["convert", f"--list={images}", f"--out={database}", "--shards=1", *options]]


def convert_cifar_data(given: Given) -> list[list[str]]:
    """Two data sets, of the five batches to train with and of the one to test with."""
    folder, out, kind = given.words
    options = ["--shards=1", *backend(kind)]
    sets = {"train": "data_batch_{1..5}.bin", "test": "test_batch.bin"}
    return [
        ["convert", f"--list={os.path.join(folder, files)}", f"--out={out}/cifar10_{name}_{kind}", *options]
        for name, files in sets.items()
    ]


# -- nets --------------------------------------------------------------------------------------------------------------


def upgrade(form: str) -> Callable[[Given], list[list[str]]]:
    """As Caffe's tools, what stands at NEW is replaced."""
    return lambda given: [["upgrade", *given.words, f"--{form}", "--overwrite"]]


def extract_features(given: Given) -> list[list[str]]:
    """The net's own data layer feeds it; a pass and a database for each blob."""
    weights, net, blobs, databases, batches, kind, *where = given.words
    named, out = blobs.split(","), databases.split(",")
    if len(named) != len(out):
        raise ValueError(f"{blobs} and {databases}: expected a database for each blob")
    if not batches.isdecimal() or not int(batches):
        raise ValueError(f"{batches}: expected a number of batches")
    if where and where[0] not in ("CPU", "GPU"):
        raise ValueError(f"{where[0]}: expected CPU or GPU")
    gpu = where[1].removeprefix("DEVICE_ID=") if len(where) > 1 else "0"
    if kind != "lmdb":
        backend(kind)
        raise ValueError(f"{kind}: expected lmdb")
    options = ["--format=lmdb", "--shards=1", f"--gpu={gpu if where[:1] == ['GPU'] else 'none'}"]
    if (batch := batch_of(net)) is not None:
        options += [f"--limit={int(batches) * batch}", "--repeat"]
    return [
        ["extract", f"--model={net}", f"--weights={weights}", f"--blobs={blob}", f"--out={database}", *options]
        for blob, database in zip(named, out, strict=True)
    ]


def batch_of(net: str) -> int | None:
    """The batch_size of a net's first data layer for TEST; None where there is no such net: the command tells why."""
    from ops.net import read
    from ops.phases import select, state_of

    try:
        name, spec = read(net)
        layers = select(spec, state_of(spec, "TEST"), name).layer
    except (OSError, ValueError):
        return None
    params = ("data_param", "image_data_param", "hdf5_data_param", "window_data_param")
    sizes = (getattr(layer, param).batch_size for layer in layers for param in params if layer.HasField(param))
    return next(sizes, None)


def draw_net(given: Given) -> list[list[str]]:
    phase = given.flags.get("phase", "ALL")
    if phase == "ALL":
        given.notes.append("note: the net of phase TEST is drawn; --phase TRAIN draws the other")
    given.notes += [f"note: --{flag} is passed over" for flag in ("rankdir", "display_lrm") if flag in given.flags]
    options = [] if phase == "ALL" else [f"--phase={phase}"]
    return [["show", given.words[0], f"--draw={given.words[1]}", *options]]


# -- logs --------------------------------------------------------------------------------------------------------------


def plot_training_log(given: Given) -> list[list[str]]:
    """Chart types 0 to 7, in the script's order: each quantity against iterations, then against seconds."""
    kind, picture, *logs = given.words
    if not (kind.isdecimal() and int(kind) < 2 * len(CHARTS)):
        raise ValueError(f"{kind}: expected a chart type from 0 to {2 * len(CHARTS) - 1}")
    along = "seconds" if int(kind) % 2 else "iterations"
    return [["plot", *logs, f"--y={CHARTS[int(kind) // 2]}", f"--x={along}", f"--out={picture}"]]


CHARTS = ("accuracy", "loss", "lr", "loss")  # test accuracy, test loss, learning rate, train loss
IMAGESET = {"gray": False, "shuffle": False, "check_size": False, "encoded": False}
IMAGESET |= {"backend": True, "encode_type": True, "resize_height": True, "resize_width": True}
BACKEND = {"backend": True}
OLD_NEW = ("OLD", "NEW")
DRAWING = {"rankdir": True, "phase": True, "display_lrm": False}
FEATURES = ("WEIGHTS", "NET", "BLOB[,BLOB]", "DB[,DB]", "NUM_BATCHES", "lmdb")

# name without its ending -> the command; or what to do instead
TOOLS: dict[str, Tool | str] = {
    "convert_imageset": Tool("convert", ("ROOTFOLDER/", "LISTFILE", "DB_NAME"), convert_imageset, flags=IMAGESET),
    "compute_image_mean": Tool("mean", ("DB",), compute_image_mean, more=("OUTPUT_FILE",), flags=BACKEND),
    "convert_mnist_data": Tool("convert", ("IMAGES", "LABELS", "DB"), convert_mnist_data, flags=BACKEND),
    "convert_cifar_data": Tool("convert", ("FOLDER", "OUT", "lmdb"), convert_cifar_data),
    "upgrade_net_proto_text": Tool("upgrade", OLD_NEW, upgrade("text")),
    "upgrade_net_proto_binary": Tool("upgrade", OLD_NEW, upgrade("binary")),
    "upgrade_solver_proto_text": Tool("upgrade", OLD_NEW, upgrade("text")),
    "extract_features": Tool("extract", FEATURES, extract_features, more=("CPU|GPU", "DEVICE_ID")),
    "plot_training_log": Tool("plot", ("TYPE", "PICTURE.png", "LOG"), plot_training_log, more=("LOG", "...")),
    "draw_net": Tool("show", ("NET", "PICTURE"), draw_net, flags=DRAWING),
    "summarize": Tool("show", ("NET",), lambda given: [["show", *given.words]]),
    "parse_log": "`cortado plot LOG` draws a log; a run has its tables, metrics.csv and test.csv, and its train.log "
    "suits Caffe's own parser",
    "extract_seconds": "a run's metrics.csv has the seconds of each iteration; `cortado plot LOG --x seconds` draws "
    "them",
    "resize_and_crop_images": "use `cortado convert --resize-mode short-side --resize-width 256 --crop 256`, which "
    "makes records of the resized pictures at once",
    "convert_mnist_siamese_data": "pairs are not made here; an image list converted with --labels vector:N, or "
    "HDF5Data, can hold them",
    "train_net": "Caffe gave it up too: `cortado train --solver SOLVER [--snapshot STATE]`",
    "finetune_net": "Caffe gave it up too: `cortado train --solver SOLVER --weights WEIGHTS`",
    "test_net": "Caffe gave it up too: `cortado test --model NET --weights WEIGHTS --iterations N`",
    "net_speed_benchmark": "Caffe gave it up too: `cortado time NET`",
    "classify.py": "use `cortado classify IMAGES --model NET --weights WEIGHTS --oversample --out ANSWERS.csv`; every "
    "score: `cortado extract --blobs prob`",
    "detect": "windows of pictures are not scored here; WindowData layers train and test on them",
    "download_model_binary": "weights are not fetched here; `cortado check WEIGHTS` tells which published ones a file "
    "holds",
}
