"""Weight files: Caffe's own, bytes laid by hand, protobuf's and HDF5's own readers as oracles, damage of every kind."""

import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops import net as nets
from ops import weights
from ops.layers.registry import Layer
from ops.proto import binary
from ops.proto.caffe_pb2 import BlobProto, LayerParameter, NetParameter, V1LayerParameter
from ops.weights import load, read, write

GOLDEN = Path(__file__).parents[1] / "golden"
MESSAGES = GOLDEN / "messages"
FEAT_H5 = GOLDEN / "weights" / "feat.caffemodel.h5"
CURRENT = [MESSAGES / "feat.caffemodel", MESSAGES / "snap_adam_iter_10.caffemodel"]
OLD = [MESSAGES / "v0.caffemodel", MESSAGES / "v1.caffemodel"]


def network(*layers, spec=None, shared=()):
    """A net of (name, shape, shape, ...) layers that hold 0, 1, 2, ... in all; with `spec`, of its layers."""
    spec = spec or NetParameter(name="n", layer=[LayerParameter(name=name, type="T") for name, *_ in layers])
    modules, first = [], 0
    for one, (_, *shapes) in zip(spec.layer, layers, strict=True):
        module = Layer(one, [(1,)], "TRAIN")
        for j, shape in enumerate(shapes):
            module.add_blob(shape)
            count = int(np.prod(shape))
            module.blobs[j].data = torch.arange(first, first + count, dtype=torch.float32).reshape(shape)
            first += count
        modules.append(module)
    return SimpleNamespace(spec=spec, layers=modules, shared=set(shared))


def share(net, owner, blob):
    """Let blob (layer, index) be `owner`'s, as the net does it."""
    (i, j), (k, m) = blob, owner
    net.layers[i].views[j] = tuple(net.layers[i].blobs[j].shape)
    setattr(net.layers[i], f"blob{j}", net.layers[k].blobs[m])
    net.shared.add(blob)


def like(file):
    """An empty net for the layers of a current .caffemodel, by protobuf's own reader; the message itself too."""
    message = NetParameter.FromString(file.read_bytes())
    spec = NetParameter.FromString(file.read_bytes())
    for layer in spec.layer:
        layer.ClearField("blobs")
    layers = [(layer.name, *(tuple(blob.shape.dim) for blob in layer.blobs)) for layer in message.layer]
    return zeros(network(*layers, spec=spec)), message


def zeros(net):
    for layer in net.layers:
        for blob in layer.blobs:
            blob.data.zero_()
    return net


def numbers(net):
    return {layer.spec.name: [blob.detach().tolist() for blob in layer.blobs] for layer in net.layers}


def saved(tmp_path, message):
    """A NetParameter by protobuf's own writer, or bytes, in a file."""
    file = tmp_path / "x.caffemodel"
    file.write_bytes(message if isinstance(message, bytes) else message.SerializeToString())
    return file


def one_layer(blob, name="ip"):
    return NetParameter(layer=[LayerParameter(name=name, type="InnerProduct", blobs=[blob])])


def blob(shape, values):
    return BlobProto(shape={"dim": shape}, data=values)


def refusal(work, *arguments, **named):
    """The one line that a ValueError says."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        work(*arguments, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def outcome(work, path):
    """What `work` gives, or the line that its ValueError says."""
    try:
        return work(path)
    except ValueError as error:
        return str(error)


def listed(path):
    """The layers of a file, every number read."""
    with read(path) as file:
        for one in (one for layer in file.layers for one in layer.blobs.values() if not one.problem):
            assert one.values().size == one.count
        return file.layers


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CURRENT, ids=lambda file: file.name)
def test_caffes_files_hold_what_protobuf_reads(file):
    message = NetParameter.FromString(file.read_bytes())
    with read(file) as ours:
        assert [(layer.name, layer.type) for layer in ours.layers] == [(one.name, one.type) for one in message.layer]
        for layer, theirs in zip(ours.layers, message.layer, strict=True):
            assert list(layer.blobs) == list(range(len(theirs.blobs)))
            for j, wanted in enumerate(theirs.blobs):
                values = layer.blobs[j].values()
                assert values.shape == tuple(wanted.shape.dim)
                assert values.ravel().tolist() == list(wanted.data)


@pytest.mark.parametrize(
    ("file", "conv", "fc"),
    [
        (OLD[0], ("conv1", "conv"), ("fc2", "innerproduct")),
        (OLD[1], ("conv1", "CONVOLUTION"), ("fc2", "INNER_PRODUCT")),
    ],
    ids=["V0", "V1"],
)
def test_old_nets(file, conv, fc):
    message = NetParameter.FromString(file.read_bytes())
    theirs = [list(one.data) for layer in message.layers for one in [*layer.layer.blobs, *layer.blobs]]
    with read(file) as ours:
        with_blobs = [layer for layer in ours.layers if layer.blobs]
        assert [(layer.name, layer.type) for layer in with_blobs] == [conv, fc]
        assert [one.values().ravel().tolist() for layer in with_blobs for one in layer.blobs.values()] == theirs
        assert [one.shape for one in with_blobs[0].blobs.values()] == [(6, 3, 3, 3), (1, 1, 1, 6)]


@pytest.mark.parametrize("file", OLD, ids=["V0", "V1"])
def test_old_shapes_align_at_the_end(file):
    inputs = 96 if file is OLD[0] else 54
    net = network(("conv1", (6, 3, 3, 3), (6,)), ("fc2", (5, inputs), (5,)))
    assert load(net, file).copied == ("conv1", "fc2")
    theirs = [
        one for layer in NetParameter.FromString(file.read_bytes()).layers for one in layer.layer.blobs or layer.blobs
    ]
    ours = [one for layer in net.layers for one in layer.blobs]
    assert [one.flatten().tolist() for one in ours] == [list(one.data) for one in theirs]


def test_caffes_hdf5_file_holds_what_its_caffemodel_holds():
    def everything(path):
        with read(path) as file:
            return {one.name: {j: b.values().tolist() for j, b in one.blobs.items()} for one in file.layers}

    assert everything(FEAT_H5) == everything(MESSAGES / "feat.caffemodel")


def test_the_format_is_told_by_content(tmp_path):
    (tmp_path / "a.caffemodel").write_bytes(FEAT_H5.read_bytes())
    (tmp_path / "b.h5").write_bytes((MESSAGES / "feat.caffemodel").read_bytes())
    for name, hdf5 in [("a.caffemodel", True), ("b.h5", False)]:
        with read(tmp_path / name) as file:
            assert file.hdf5 is hdf5
            assert {one.name for one in file.layers if one.blobs} == {"conv1", "fc"}


def test_doubles(tmp_path):
    file = saved(tmp_path, one_layer(BlobProto(shape={"dim": [2]}, double_data=[1 / 3, 2])))
    with read(file) as ours:
        assert ours.layers[0].blobs[0].values().tolist() == [1 / 3, 2]
    net = network(("ip", (2,)))
    load(net, file)
    assert net.layers[0].blobs[0].tolist() == [struct.unpack("f", struct.pack("f", 1 / 3))[0], 2]


def test_doubles_win_over_floats_as_in_caffe(tmp_path):
    with read(saved(tmp_path, one_layer(BlobProto(shape={"dim": [1]}, data=[1], double_data=[2])))) as ours:
        assert ours.layers[0].blobs[0].values().tolist() == [2]


def test_a_blob_without_shape_is_one_number(tmp_path):
    file = saved(tmp_path, one_layer(BlobProto(data=[0.25])))
    net = network(("ip", ()))
    load(net, file)
    assert net.layers[0].blobs[0].item() == 0.25


def field(number, wire, content):
    head = bytes([number << 3 | wire])
    return head + (bytes([len(content)]) + content if wire == 2 else content)


def in_a_net(blob_bytes):
    """A .caffemodel of layer 'ip' whose blob is these bytes."""
    layer = field(1, 2, b"ip") + b"\x3a" + weights._varint(len(blob_bytes)) + blob_bytes
    return b"\xa2\x06" + weights._varint(len(layer)) + layer


def scattered(values, cuts, width):
    """A blob's numbers as legal protobuf in any mixture of packed runs and single fields."""
    number, wire, code = (5, 5, "f") if width == 4 else (8, 1, "d")
    out, rest = b"", list(values)
    for cut in [*cuts, len(rest)]:
        run, rest = rest[:cut], rest[cut:]
        singles = b"".join(field(number, wire, struct.pack("<" + code, value)) for value in run)
        out += singles if cut % 2 else field(number, 2, struct.pack(f"<{len(run)}{code}", *run))
    return out


@settings(max_examples=60)
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=14),
    st.lists(st.integers(0, 6), max_size=5),
    st.sampled_from([4, 8]),
)
def test_numbers_in_any_legal_form(tmp_path_factory, values, cuts, width):
    body = scattered(values, cuts, width) + field(7, 2, field(1, 2, bytes([len(values)])))
    file = saved(tmp_path_factory.mktemp("w"), in_a_net(body))
    message = NetParameter.FromString(file.read_bytes()).layer[0].blobs[0]
    assert list(message.data if width == 4 else message.double_data) == values
    with read(file) as ours:
        source = ours.layers[0].blobs[0]
        assert source.values().tolist() == values
        for start in range(len(values)):
            part = np.empty(len(values) - start, source.dtype)
            source.read(part, start)
            assert part.tolist() == values[start:]


def test_a_million_unpacked_numbers_are_read_in_no_time(tmp_path):
    values = np.random.default_rng(0).normal(size=1_000_000).astype("<f4")
    records = np.zeros((len(values), 5), np.uint8)
    records[:, 0] = 5 << 3 | 5
    records[:, 1:] = values.view(np.uint8).reshape(-1, 4)
    file = saved(tmp_path, in_a_net(records.tobytes() + BlobProto(shape={"dim": [1000, 1000]}).SerializeToString()))
    net = network(("ip", (1000, 1000)))
    start = time.perf_counter()
    load(net, file)
    assert time.perf_counter() - start < 1
    assert np.array_equal(net.layers[0].blobs[0].detach().numpy().ravel(), values)


def test_unpacked_dims(tmp_path):
    body = field(5, 2, struct.pack("<2f", 3, 4)) + field(7, 2, b"\x08\x01\x08\x02")
    with read(saved(tmp_path, in_a_net(body))) as ours:
        assert ours.layers[0].blobs[0].values().tolist() == [[3, 4]]


# -- what is not loaded as zeros -------------------------------------------------------------------------------------


def test_raw_data_of_a_fork_is_refused(tmp_path):
    body = field(7, 2, field(1, 2, b"\x02")) + field(10, 0, b"\x02") + field(12, 2, struct.pack("<2e", 1, 2))
    file = saved(tmp_path, in_a_net(body))
    said = refusal(load, network(("ip", (2,))), file)
    assert said.startswith(f"{file}: layer 'ip' blob 0: its values are in field 10, which Caffe's own format lacks")
    assert "save it as float32" in said


def test_unknown_fields_beside_full_data_do_no_harm(tmp_path):
    file = saved(tmp_path, in_a_net(blob([2], [1, 2]).SerializeToString() + field(12, 2, b"abc")))
    net = network(("ip", (2,)))
    load(net, file)
    assert net.layers[0].blobs[0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (blob([2, 3], [1, 2]), "its shape 2 x 3 wants 6 values, the file has 2"),
        (blob([2, 3], []), "its shape 2 x 3 wants 6 values, the file has 0"),
        (blob([2, 3], range(7)), "its shape 2 x 3 wants 6 values, the file has 7"),
        (blob([2, 3], [1] * 6), None),
    ],
)
def test_a_count_that_is_not_the_shapes_is_refused(tmp_path, wrong, said):
    file, net = saved(tmp_path, one_layer(wrong)), network(("ip", (2, 3)))
    if said:
        assert refusal(load, net, file) == f"{file}: layer 'ip' blob 0: {said}"
        with read(file) as ours:
            assert refusal(ours.layers[0].blobs[0].values) == said
    else:
        load(net, file)


@pytest.mark.parametrize("dims", [[-2, 3], [0, 3], [2**62, 2**62]])
def test_impossible_shapes_need_no_memory(tmp_path, dims):
    file = saved(tmp_path, one_layer(blob(dims, [1, 2, 3])))
    with read(file) as ours:
        refusal(ours.layers[0].blobs[0].values)


def test_what_a_layer_that_the_net_lacks_holds_is_nobodys_business(tmp_path):
    message = one_layer(blob([2], [1, 2]))
    message.layer.add(name="odd", blobs=[BlobProto(shape={"dim": [5]})])
    assert load(network(("ip", (2,))), saved(tmp_path, message)).ignored == ("odd",)


# -- files that are something else, or damaged -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no .caffemodel: it is empty"),
        (b'name: "x"\nlayer { name: "a" }\n', "a text file, not weights; a net's definition holds none"),
        (MESSAGES / "snap_adam_iter_10.solverstate", "not weights, but a solver state; the weights are in"),
        (MESSAGES / "mean.binaryproto", "not weights, but a single blob, as a mean image"),
        (GOLDEN / "files/photos/hat_0.jpg", "an image, not weights"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "an image, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(50), "a file of torch.save"),
        (b"\x1f\x8b" + bytes(50), "packed with gzip"),
        (b"\xff" * 50, "no .caffemodel: byte 0 starts no number"),
        (bytes(50), "damaged, or no protobuf message: no field starts at byte 0"),
        (NetParameter(name="x").SerializeToString(), "no .caffemodel: it holds no layers"),
        (b"\xa2\x06\x15\x82\x03\x02ab", "no .caffemodel: cut short: 8 bytes, but its field at byte 0 ends at byte"),
        (b"\xa2\x06\x04\x3a\x7fab", "no .caffemodel: "),
        (in_a_net(field(5, 2, b"abc")), "3 bytes of 4-byte numbers"),
        (in_a_net(field(5, 0, b"\x01")), "a blob's field 5 is no 'data'"),
        (in_a_net(field(7, 2, field(1, 2, b"\x01" * 33))), "more than 32 axes"),
        (in_a_net(field(3, 4, b"")), "no field starts at"),
        (
            NetParameter(layers=[V1LayerParameter(name="a")], layer=[LayerParameter(name="b")]).SerializeToString(),
            "holds layers of the old format ('layers') and of the new ('layer'), not one",
        ),
    ],
)  # fmt: skip
def test_a_file_that_is_no_caffemodel_is_named(tmp_path, content, said):
    file = saved(tmp_path, content if isinstance(content, bytes) else content.read_bytes())
    told = refusal(read, file)
    assert told.startswith(f"{file}: ")
    assert said in told


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.caffemodel")
    assert refusal(read, tmp_path) == f"{tmp_path}: not a file"


def test_a_file_over_2_gib_is_refused_unread(tmp_path):
    with (tmp_path / "x").open("wb") as file:
        file.truncate(2**31)
    assert "2,147,483,648 bytes, more than the 2,147,483,647" in refusal(read, tmp_path / "x")


@pytest.mark.parametrize("small", [b"\xa2\x06\x00", b"\x78\x00", b"\x0a\x00", b"\xa2\x06\x02\x3a\x00"])
def test_endless_small_fields_end(tmp_path, monkeypatch, small):
    monkeypatch.setattr("ops.proto.wire.MOST_FIELDS", 10_000)
    assert "more than 10,000 fields" in refusal(read, saved(tmp_path, small * 12_000))


@pytest.mark.parametrize("file", [*CURRENT, *OLD], ids=lambda file: file.name)
def test_a_cut_file_is_refused_or_lacks_its_last_layers(tmp_path, file):
    data = file.read_bytes()
    with read(file) as whole:
        names = [layer.name for layer in whole.layers]
    for length in range(1, len(data), max(1, len(data) // 150)):
        cut = saved(tmp_path, data[:length])
        found = outcome(lambda path: [layer.name for layer in listed(path)], cut)
        assert found.startswith(f"{cut}: ") if isinstance(found, str) else found == names[: len(found)]


def mutated(data, rng):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 10])):
        at = rng.randrange(len(data))
        match rng.randrange(6):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at : at + rng.choice([1, 4, 100])]
            case 3:
                data[at:at] = rng.randbytes(rng.choice([1, 4, 9]))
            case 4:
                data[at : at + 8] = rng.choice([b"\xff", b"\0", b"\x7f"]) * 8
            case 5:
                data[at:] = b""
        data = data or bytearray(b"x")
    return bytes(data)


@pytest.mark.parametrize("file", [*CURRENT, *OLD, FEAT_H5], ids=lambda file: file.name)
def test_mutated_files_are_read_or_refused_in_one_line(tmp_path, file):
    data, rng, path = file.read_bytes(), random.Random(7), tmp_path / "x"
    net = network(*((layer.name, *(one.shape for one in layer.blobs.values())) for layer in listed(file)))
    load(net, file)
    refused = 0
    for _ in range(70):
        path.write_bytes(mutated(data, rng))
        before = repr(numbers(net))
        start = time.perf_counter()
        found = outcome(lambda path: load(net, path), path), outcome(listed, path)
        assert time.perf_counter() - start < 2
        for said in (one for one in found if isinstance(one, str)):
            assert said.startswith(f"{path}: ")
            assert "\n" not in said
        if isinstance(found[0], str):
            refused += 1
            assert repr(numbers(net)) == before or "cannot be read" in found[0]
    assert refused > 20


# -- HDF5 files that are not weights ---------------------------------------------------------------------------------


def hdf5(tmp_path, lay):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        lay(file)
    return tmp_path / "x.h5"


def data_set(name, value):
    return lambda file: file.create_dataset(name, data=value)


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (data_set("data", np.zeros(3)), "an HDF5 file of records ('data' is a dataset), not weights"),
        (data_set("history/0", np.zeros(3)), "a solver state, not weights"),
        (data_set("model_weights/a", np.zeros(3)), "without a group 'data', not weights; it holds 'model_weights'"),
        (data_set("data/ip/weight", np.zeros(3)), "'ip/weight' is no blob"),
        (data_set("data/0", np.zeros(3)), "is no blob"),
        (lambda file: file.create_group("data").__setitem__("a", h5py.ExternalLink("/etc/passwd", "x")), "is a link"),
        (lambda file: file.create_group("data").__setitem__("a", h5py.SoftLink("/b")), "is a link"),
        (lambda file: file.create_group("data/a").__setitem__("b", file["data"]), "stands in two places"),
        (lambda file: file.create_group("data" + "/a" * 70), "64 groups deep"),
    ],
)  # fmt: skip
def test_hdf5_without_weights(tmp_path, lay, said):
    assert said in refusal(read, hdf5(tmp_path, lay))


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (data_set("data/ip/0", "words"), "not numbers"),
        (data_set("data/ip/0", h5py.Empty("f4")), "not numbers"),
        (data_set("data/ip/0", np.zeros((0, 3), "f4")), "size below 1"),
        (lambda file: file.create_dataset("data/ip/0", (2, 3), "f4"), "wants 24 bytes, the file has fewer"),
        (lambda file: file.create_dataset("data/ip/0", (1 << 40,), "f4", chunks=(1 << 20,)), "the file has fewer"),
        (
            lambda file: file.create_dataset("data/ip/0", (6,), "f4", external=[("/dev/zero", 0, 24)]),
            "its values are in another file",
        ),
    ],
)
def test_hdf5_datasets_without_numbers_are_not_loaded_as_zeros(tmp_path, lay, said):
    with read(hdf5(tmp_path, lay)) as ours:
        assert said in refusal(ours.layers[0].blobs[0].values)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", "i4"])
def test_hdf5_numbers_of_every_type(tmp_path, kind):
    net = network(("ip", (2, 3)))
    load(net, hdf5(tmp_path, data_set("data/ip/0", np.arange(6).reshape(2, 3).astype(kind) + 10)))
    assert net.layers[0].blobs[0].flatten().tolist() == [10, 11, 12, 13, 14, 15]


def test_compressed_hdf5(tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 30)).astype("f4")
    file = hdf5(
        tmp_path, lambda file: file.create_dataset("data/ip/0", data=values, chunks=(5, 30), compression="gzip")
    )
    net = network(("ip", (20, 30)))
    load(net, file)
    assert np.array_equal(net.layers[0].blobs[0].detach().numpy(), values)


# -- copying into a net ----------------------------------------------------------------------------------------------

FORMATS = {"BINARYPROTO": "w.caffemodel", "HDF5": "w.h5"}
each_format = pytest.mark.parametrize("name", FORMATS.values(), ids=FORMATS)


@each_format
def test_layers_are_matched_by_name(tmp_path, name):
    write(network(("a", (2, 3), (3,)), ("r",), ("old", (4,)), ("b", (5,))), tmp_path / name)
    net = network(("b", (5,)), ("new", (7,)), ("r",), ("a", (2, 3), (3,)))
    report = load(net, tmp_path / name)
    assert set(report.copied) == {"a", "b"}
    assert (report.ignored, report.kept, report.warnings) == (("old",), ("new",), ())
    assert numbers(net) == {"b": [[13, 14, 15, 16, 17]], "new": [list(range(5, 12))], "r": [],
                            "a": [[[0, 1, 2], [3, 4, 5]], [6, 7, 8]]}  # fmt: skip


@each_format
def test_a_shape_that_differs_is_refused_and_nothing_copied(tmp_path, name):
    write(network(("a", (3,)), ("fc8", (205, 4))), tmp_path / name)
    net = zeros(network(("a", (3,)), ("fc8", (100, 4))))
    assert refusal(load, net, tmp_path / name) == (
        f"{tmp_path / name}: layer 'fc8' blob 0 is 100 x 4, the file has 205 x 4: rename the layer to train it afresh"
    )
    assert numbers(net)["a"] == [[0, 0, 0]]


def test_one_of_several_misfits_is_told_with_their_number(tmp_path):
    write(network(("a", (3,)), ("b", (4,)), ("c", (5,))), tmp_path / "w.caffemodel")
    said = refusal(load, network(("a", (4,)), ("b", (5,)), ("c", (6,))), tmp_path / "w.caffemodel")
    assert "layer 'a' blob 0 is 4, the file has 3" in said
    assert said.endswith("(and 2 more blobs or layers do not fit)")


@each_format
@pytest.mark.parametrize("shapes", [[(3,)], [(3,), (2,), (1,)], []])
def test_blob_counts_must_be_equal(tmp_path, name, shapes):
    write(network(("z", (1,)), ("a", *shapes)), tmp_path / name)
    said = refusal(load, network(("z", (1,)), ("a", (3,), (2,))), tmp_path / name)
    assert f"layer 'a' has 2 blobs, the file has {len(shapes)}: rename the layer" in said


def test_new_shapes_do_not_align(tmp_path):
    file = saved(tmp_path, one_layer(blob([1, 1, 1, 6], range(6))))
    assert "blob 0 is 6, the file has 1 x 1 x 1 x 6" in refusal(load, network(("ip", (6,))), file)


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ((1, 1, 1, 6), (6,), True),
        ((1, 1, 2, 3), (2, 3), True),
        ((1, 4, 2, 3), (4, 2, 3), True),
        ((1, 1, 1, 1), (), True),
        ((6, 1, 1, 1), (6,), False),
        ((2, 3, 1, 1), (2, 3), False),
        ((1, 1, 2, 3), (1, 1, 1, 2, 3), False),
    ],
)
def test_old_shapes_align_with_leading_ones_only(tmp_path, old, new, same):
    names = dict(zip(("num", "channels", "height", "width"), old, strict=True))
    file = saved(tmp_path, one_layer(BlobProto(data=range(int(np.prod(old))), **names)))
    net = network(("ip", new))
    if same:
        load(net, file)
        assert net.layers[0].blobs[0].flatten().tolist() == list(range(int(np.prod(old))))
    else:
        assert "the file has" in refusal(load, net, file)


@each_format
def test_weights_of_another_net_list_both_sides(tmp_path, name):
    write(network(*((f"conv{i}", (2,)) for i in range(8)), ("relu",)), tmp_path / name)
    said = refusal(load, network(("fc1", (2,)), ("relu",)), tmp_path / name)
    assert said == (
        f"{tmp_path / name}: nothing in it fits: it has weights for 'conv0', 'conv1', 'conv2', 'conv3', 'conv4' and 3 "
        "more, the net wants 'fc1'"
    )


def test_a_net_without_blobs_wants_nothing():
    report = load(network(("relu",)), MESSAGES / "feat.caffemodel")
    assert report.copied == ()
    assert report.ignored == ("data", "conv1", "conv1_conv1_0_split", "pool1", "fc")


def test_of_two_layers_of_one_name_the_first_gets_the_weights(tmp_path):
    net = zeros(network(("a", (3,)), ("a", (3,))))
    report = load(net, saved(tmp_path, one_layer(blob([3], [1, 2, 3]), "a")))
    assert [layer.blobs[0].tolist() for layer in net.layers] == [[1, 2, 3], [0, 0, 0]]
    assert (report.copied, report.kept) == (("a",), ("a",))


@each_format
def test_later_files_override(tmp_path, name):
    write(network(("a", (2,)), ("b", (2,))), tmp_path / "first.caffemodel")
    write(network(("x", (10,)), ("b", (2,)), ("c", (2,))), tmp_path / name)
    net = network(("a", (2,)), ("b", (2,)), ("c", (2,)))
    report = load(net, [tmp_path / "first.caffemodel", tmp_path / name])
    assert (report.copied, report.ignored, report.kept) == (("a", "b", "c"), ("x",), ())
    assert numbers(net) == {"a": [[0, 1]], "b": [[10, 11]], "c": [[12, 13]]}


def test_nothing_is_copied_where_a_later_file_does_not_fit(tmp_path):
    write(network(("a", (2,))), tmp_path / "good.caffemodel")
    write(network(("a", (3,))), tmp_path / "bad.caffemodel")
    net = zeros(network(("a", (2,))))
    said = refusal(load, net, [tmp_path / "good.caffemodel", tmp_path / "bad.caffemodel"])
    assert said.startswith(f"{tmp_path / 'bad.caffemodel'}: layer 'a' blob 0 is 2, the file has 3")
    assert numbers(net) == {"a": [[0, 0]]}


def test_strict_wants_weights_for_every_layer(tmp_path):
    write(network(("a", (2,))), tmp_path / "w.caffemodel")
    net = network(("a", (2,)), ("b", (2,)))
    assert load(net, tmp_path / "w.caffemodel").kept == ("b",)
    assert refusal(load, net, tmp_path / "w.caffemodel", strict=True).endswith("no weights for 'b'")


@each_format
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_warned_of(tmp_path, name, value):
    source = network(("a", (2, 3), (3,)), ("b", (4,)))
    source.layers[0].blobs[1].data[2] = value
    write(source, tmp_path / name)
    report = load(network(("a", (2, 3), (3,)), ("b", (4,))), tmp_path / name)
    assert report.warnings == (f"{tmp_path / name}: layer 'a' blob 1 holds NaN or infinite values",)


def test_numbers_whose_sum_overflows_are_fine(tmp_path):
    file = saved(tmp_path, one_layer(blob([4], [3e38] * 4)))
    assert load(network(("ip", (4,))), file).warnings == ()


def test_a_double_beyond_float32_is_warned_of(tmp_path):
    file = saved(tmp_path, one_layer(BlobProto(shape={"dim": [1]}, double_data=[1e300])))
    assert len(load(network(("ip", (1,))), file).warnings) == 1


@each_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_targets_of_any_layout_and_type(tmp_path, monkeypatch, name, dtype, step):
    source = network(("a", (5, 4, 3, 2), (6,), ()))
    write(source, tmp_path / name)
    net = zeros(network(("a", (5, 4, 3, 2), (6,), ())))
    net.layers[0].blob0.data = net.layers[0].blob0.data.to(dtype).contiguous(memory_format=torch.channels_last)
    net.layers[0].blob1.data = torch.zeros(12, dtype=dtype)[::2]
    monkeypatch.setattr("ops.weight_files.STEP", step)
    load(net, tmp_path / name)
    for ours, wanted in zip(net.layers[0].blobs, source.layers[0].blobs, strict=True):
        assert torch.equal(ours, wanted.to(ours.dtype))
    assert net.layers[0].blob0.is_contiguous(memory_format=torch.channels_last)


def test_parameters_stay_leaves(tmp_path):
    net = network(("a", (2,)))
    write(net, tmp_path / "w.caffemodel")
    load(net, tmp_path / "w.caffemodel")
    assert net.layers[0].blob0.is_leaf
    assert net.layers[0].blob0.requires_grad


# -- shared blobs ----------------------------------------------------------------------------------------------------


def sharing():
    """`b` has `a`'s first blob, under another shape of as many elements."""
    net = network(("a", (2, 3), (2,)), ("b", (6,), (1,)))
    share(net, (0, 0), (1, 0))
    return net


def test_a_caffemodel_holds_shared_blobs_in_each_layers_shape(tmp_path):
    write(sharing(), tmp_path / "w.caffemodel")
    message = binary.read(tmp_path / "w.caffemodel", NetParameter)
    assert [[list(one.shape.dim) for one in layer.blobs] for layer in message.layer] == [[[2, 3], [2]], [[6], [1]]]
    assert list(message.layer[1].blobs[0].data) == list(message.layer[0].blobs[0].data) == [0, 1, 2, 3, 4, 5]


def test_hdf5_holds_shared_blobs_at_their_owner(tmp_path):
    write(sharing(), tmp_path / "w.h5")
    with h5py.File(tmp_path / "w.h5") as file:
        assert {name: list(group) for name, group in file["data"].items()} == {"a": ["0", "1"], "b": ["1"]}


@each_format
def test_shared_blobs_are_loaded(tmp_path, name):
    write(sharing(), tmp_path / name)
    net = zeros(sharing())
    assert load(net, tmp_path / name) == weights.Report(copied=("a", "b"))
    assert numbers(net) == numbers(sharing())
    assert net.layers[1].blob0 is net.layers[0].blob0


def test_a_blob_may_be_missing_in_hdf5_only_where_it_is_shared(tmp_path):
    write(sharing(), tmp_path / "w.h5")
    apart = network(("a", (2, 3), (2,)), ("b", (6,), (1,)))
    assert "layer 'b' has 2 blobs, the file has 1" in refusal(load, apart, tmp_path / "w.h5")


def test_a_layer_whose_blobs_are_all_anothers_keeps_no_filler(tmp_path):
    net = network(("a", (2,)), ("b", (2,)))
    share(net, (0, 0), (1, 0))
    assert load(net, saved(tmp_path, one_layer(blob([2], [1, 2]), "a"))).kept == ()


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", CURRENT, ids=lambda file: file.name)
def test_caffes_files_are_written_to_the_byte(tmp_path, file):
    net, message = like(file)
    load(net, file)
    write(net, tmp_path / "ours.caffemodel")
    assert (tmp_path / "ours.caffemodel").read_bytes() == file.read_bytes()
    assert binary.read(tmp_path / "ours.caffemodel", NetParameter) == message


def test_a_net_from_its_text_is_written_as_caffe_wrote_it(tmp_path):
    theirs = MESSAGES / "snap_adam_iter_10.caffemodel"
    shapes = {"data": (8, 2, 8, 8), "label": (8,)}
    net = nets.load(GOLDEN / "prototxt" / "net_cls.prototxt", "TRAIN", weights=theirs, inputs=shapes)
    write(net, tmp_path / "ours.caffemodel")
    assert (tmp_path / "ours.caffemodel").read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_old_weights_in_old_nets_compute_what_caffe_did(version):
    expected = np.load(GOLDEN / "legacy" / f"{version}_expected.npz")
    files = [GOLDEN / "legacy" / f"{version}.{suffix}" for suffix in ("prototxt", "caffemodel")]
    net = nets.load(files[0], "TEST", weights=files[1])
    found = net(data=torch.from_numpy(expected["in/data"]))
    assert np.allclose(found["prob"].detach(), expected["out/prob"], atol=1e-6)


def test_caffes_hdf5_file_is_written_alike(tmp_path):
    net, _ = like(MESSAGES / "feat.caffemodel")
    load(net, FEAT_H5)
    write(net, tmp_path / "ours.h5")

    def everything(path):
        found = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, one: found.update({name: one[()] if isinstance(one, h5py.Dataset) else None}))
        return found

    ours, theirs = everything(tmp_path / "ours.h5"), everything(FEAT_H5)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert np.array_equal(ours[name], value) if value is not None else ours[name] is None
        assert value is None or ours[name].dtype == value.dtype


def test_hdf5_goes_by_the_name_or_by_order(tmp_path):
    net = network(("a", (2,)))
    for name, named, hdf5 in [
        ("x.caffemodel.h5", None, True),
        ("x.caffemodel", None, False),
        ("x.caffemodel", "HDF5", True),
        ("x.h5", "BINARYPROTO", False),
    ]:
        write(net, tmp_path / name, format=named)
        with read(tmp_path / name) as file:
            assert file.hdf5 is hdf5
    assert "unknown snapshot format 'HDF'" in refusal(write, net, tmp_path / "x", format="HDF")


def test_the_phase_is_written_and_the_definition_is_left_alone(tmp_path):
    net = network(("a", (2,)))
    write(net, tmp_path / "w.caffemodel")
    assert str(binary.read(tmp_path / "w.caffemodel", NetParameter).layer[0]).endswith("phase: TRAIN\n")
    assert not net.spec.layer[0].HasField("phase")
    assert not net.spec.layer[0].blobs


def test_blobs_in_the_definition_are_replaced(tmp_path):
    net = network(("ip", (2,)), spec=one_layer(blob([2], [7, 7])))
    write(net, tmp_path / "w.caffemodel")
    assert list(binary.read(tmp_path / "w.caffemodel", NetParameter).layer[0].blobs[0].data) == [0, 1]


@each_format
def test_a_net_that_was_built_in_part_is_written_as_built(tmp_path, name):
    net = nets.load(GOLDEN / "prototxt" / "v1_upgraded.prototxt", "TEST", blobs=["conv1"])
    write(net, tmp_path / name)
    assert {layer.name for layer in listed(tmp_path / name)} == {layer.spec.name for layer in net.layers}


def test_fields_of_a_fork_survive(tmp_path):
    spec = NetParameter(layer=[LayerParameter.FromString(field(1, 2, b"a") + b"\xd2\x0f\x02\x08\x05")])
    write(network(("a", (2,)), spec=spec), tmp_path / "w.caffemodel")
    layer = binary.read(tmp_path / "w.caffemodel", NetParameter).layer[0]
    assert layer.SerializeToString().count(b"\xd2\x0f\x02\x08\x05") == 1


@each_format
def test_float64_nets_keep_their_digits(tmp_path, name):
    net = network(("a", (3,)))
    net.layers[0].blob0.data = torch.tensor([1 / 3, 2, 3], dtype=torch.float64)
    write(net, tmp_path / name, diff=True)
    with read(tmp_path / name) as file:
        assert file.layers[0].blobs[0].values().tolist() == [1 / 3, 2, 3]
    if name.endswith("caffemodel"):
        one = binary.read(tmp_path / name, NetParameter).layer[0].blobs[0]
        assert (list(one.double_data), list(one.double_diff), list(one.data)) == ([1 / 3, 2, 3], [0, 0, 0], [])


@each_format
def test_gradients(tmp_path, name):
    net = network(("a", (2, 3), (2,)))
    net.layers[0].blob0.grad = torch.arange(6.0).view(2, 3) + 100
    write(net, tmp_path / name, diff=True)
    if name.endswith("h5"):
        with h5py.File(tmp_path / name) as file:
            diffs = [file[f"diff/a/{j}"][()].ravel().tolist() for j in range(2)]
    else:
        diffs = [list(one.diff) for one in binary.read(tmp_path / name, NetParameter).layer[0].blobs]
    assert diffs == [[100, 101, 102, 103, 104, 105], [0, 0]]
    again = zeros(network(("a", (2, 3), (2,))))
    load(again, tmp_path / name)
    assert numbers(again) == numbers(net)


SHAPES = st.lists(st.integers(1, 4), max_size=5).map(tuple)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/."), min_size=1, max_size=8)


@settings(max_examples=40)
@given(st.lists(st.tuples(NAMES, st.lists(SHAPES, max_size=3)), min_size=1, max_size=4, unique_by=lambda one: one[0]))
def test_what_is_written_is_read_back(tmp_path_factory, layers):
    layers = [(name, *shapes) for name, shapes in layers]
    net, folder = network(*layers), tmp_path_factory.mktemp("w")
    for name in FORMATS.values():
        write(net, folder / name)
        again = zeros(network(*layers))
        load(again, folder / name)
        assert numbers(again) == numbers(net)
    message = binary.read(folder / "w.caffemodel", NetParameter)
    assert message.SerializeToString(deterministic=True) == (folder / "w.caffemodel").read_bytes()
    for theirs, ours in zip(message.layer, net.layers, strict=True):
        assert [tuple(one.shape.dim) for one in theirs.blobs] == [tuple(one.shape) for one in ours.blobs]
        assert [list(one.data) for one in theirs.blobs] == [one.flatten().tolist() for one in ours.blobs]


@each_format
def test_names_with_slashes(tmp_path, name):
    layers = [("inception_3a/1x1", (2,), (3,)), ("inception_3a/3x3", (4,)), ("inception_3a", (5,)), ("x/relu",)]
    write(network(*layers), tmp_path / name)
    net = zeros(network(*layers))
    load(net, tmp_path / name)
    assert numbers(net) == numbers(network(*layers))
    with read(tmp_path / name) as file:
        assert {layer.name for layer in file.layers} == {one[0] for one in layers}


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ([("a", (2,)), ("a", (2,))], "layer 'a' is there 2 times"),
        ([("a", (2,)), ("a/0",)], "layer 'a/0' has the name of another layer's blob"),
        ([("a", (2,)), ("a/0/b", (2,))], "layer 'a/0/b' has the name of another layer's blob"),
        ([("/a", (2,))], "layer '/a' has a name that HDF5 cannot store"),
        ([("a//b", (2,))], "cannot store"),
        ([("a/.", (2,))], "cannot store"),
        ([("", (2,))], "cannot store"),
    ],
)
def test_names_that_hdf5_has_no_place_for(tmp_path, layers, said):
    told = refusal(write, network(*layers), tmp_path / "w.h5")
    assert said in told
    assert told.endswith("rename it, or write a .caffemodel")
    assert list(tmp_path.iterdir()) == []
    write(network(*layers), tmp_path / "w.caffemodel")


def test_a_caffemodel_over_2_gib_is_refused_before_it_is_begun(tmp_path):
    net = network(("a", (2,)))
    net.layers[0].blob0.data = torch.zeros(1).expand(600_000_000)
    said = refusal(write, net, tmp_path / "w.caffemodel")
    assert "bytes, more than the 2,147,483,647 that a .caffemodel may have; write HDF5" in said
    assert list(tmp_path.iterdir()) == []


@each_format
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, name, monkeypatch):
    write(network(("a", (2,))), tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "_array", full)
    with pytest.raises(
        OSError, match="No space left on device; 12 bytes" if name.endswith("h5") else "No space"
    ) as caught:
        write(network(("a", (3,))), tmp_path / name)
    assert caught.value.filename == str(tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [name]


@each_format
def test_a_disk_without_room_is_told_in_one_line(tmp_path, name):
    code = f"""
import resource
from tests.ops.test_weights import network, write
net = network(("a", (1000, 2000)))
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
try:
    write(net, "{tmp_path / name}")
except OSError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=GOLDEN.parents[1], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[Errno 27] File too large; 8,000,")
    assert done.stdout.endswith(f"bytes were to be written: '{tmp_path / name}'\n")
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_followed_and_a_device_written_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real.caffemodel")
    write(network(("a", (2,))), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.caffemodel").is_file()
    write(network(("a", (2,))), "/dev/null")


# -- speed and memory ------------------------------------------------------------------------------------------------


def test_many_megabytes_go_straight_into_the_net(tmp_path):
    """32 MB in channels_last, through a scratch of one blob; 100 MB take about 30 ms on a quiet core."""
    net = network(*((f"conv{i}", (256, 57, 3, 3), (256,)) for i in range(60)))
    write(net, tmp_path / "w.caffemodel")
    wanted = net.layers[7].blobs[0].detach().clone()
    for layer in zeros(net).layers:
        layer.blob0.data = layer.blob0.data.contiguous(memory_format=torch.channels_last)
    tracemalloc.start()
    load(net, tmp_path / "w.caffemodel")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6
    assert torch.equal(net.layers[7].blobs[0], wanted)
    start = time.perf_counter()
    load(net, tmp_path / "w.caffemodel")
    assert time.perf_counter() - start < 1


def test_a_large_blob_is_read_in_pieces(tmp_path):
    net = network(("fc", (3000, 1000)))
    write(net, tmp_path / "w.caffemodel")
    net.layers[0].blob0.data = torch.zeros(1000, 3000).t()
    tracemalloc.start()
    load(net, tmp_path / "w.caffemodel")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    assert torch.equal(net.layers[0].blobs[0].flatten(), torch.arange(3e6))
