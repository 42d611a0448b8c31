"""Datum bytes are protobuf's, and Caffe's."""

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.proto import caffe_pb2
from ops.records import datum
from ops.records.lmdb import Reader

labels = st.integers(-(2**31), 2**31 - 1)
sides = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))


@given(sides, labels, st.randoms(use_true_random=False))
def test_raw_is_what_protobuf_writes(shape, label, random):
    image = np.frombuffer(random.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    height, width, channels = shape
    expected = caffe_pb2.Datum(channels=channels, height=height, width=width, label=label, encoded=False)
    expected.data = image.transpose(2, 0, 1).tobytes()
    assert datum.raw(image, label).tobytes() == expected.SerializeToString()
    assert np.array_equal(datum.parse(datum.raw(image, label)).pixels(), image.transpose(2, 0, 1))


@given(labels, st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=12))
def test_floats_are_what_protobuf_writes(label, values):
    array = np.array(values, np.float32).reshape(1, 1, -1)
    expected = caffe_pb2.Datum(channels=1, height=1, width=array.size, label=label, float_data=values, encoded=False)
    assert datum.floats(array, label) == expected.SerializeToString()
    assert np.array_equal(datum.parse(datum.floats(array, label)).pixels(), array)


@given(st.binary(max_size=300), labels)
def test_encoded_is_what_protobuf_writes(data, label):
    expected = caffe_pb2.Datum(data=data, label=label, encoded=True)
    assert datum.encoded(data, label) == expected.SerializeToString()


@given(
    st.builds(
        caffe_pb2.Datum,
        channels=st.integers(0, 5),
        height=labels,
        label=labels,
        data=st.binary(max_size=40),
        float_data=st.lists(st.floats(width=32, allow_nan=False), max_size=5),
        encoded=st.booleans(),
    )
)
def test_whatever_protobuf_writes_is_parsed(message):
    parsed = datum.parse(message.SerializeToString())
    assert (parsed.channels, parsed.height, parsed.label) == (message.channels, message.height, message.label)
    assert (bytes(parsed.data), parsed.encoded) == (message.data, message.encoded)
    assert list(parsed.float_data if parsed.float_data is not None else []) == list(message.float_data)


def test_unknown_fields_and_packed_floats_are_read_as_protobuf_reads_them():
    packed = b"\x32\x08" + np.array([1, 2], "<f4").tobytes()
    unknown = b"\x78\x05" + b"\x7a\x02ab" + b"\x7d1234" + b"\x7912345678"
    parsed = datum.parse(unknown + packed + b"\x35" + np.float32(3).tobytes() + b"\x28\x07")
    assert (parsed.label, parsed.float_data.tolist()) == (7, [1, 2, 3])


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_any_bytes_parse_or_are_refused(data):
    with contextlib.suppress(ValueError):
        datum.parse(data).pixels()


@pytest.mark.parametrize("name", ["raw_lmdb", "gray_lmdb", "encoded_lmdb", "passthrough_lmdb"])
def test_caffes_own_records_are_read_and_written_again_byte_for_byte(golden, name):
    with Reader(golden / "files" / name) as reader:
        for _, value in reader.records():
            record, message = datum.parse(value), caffe_pb2.Datum.FromString(bytes(value))
            assert record.shape == (message.channels, message.height, message.width)
            if record.encoded:
                assert datum.encoded(bytes(record.data), record.label) == bytes(value)
            else:
                assert datum.raw(record.pixels().transpose(1, 2, 0), record.label).tobytes() == bytes(value)
