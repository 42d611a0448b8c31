"""Messages in protobuf's binary form: .caffemodel, .solverstate, .binaryproto files and the values of record stores.

The form says neither its type nor its end and has no checksum: a file cut between two fields of the outermost message
reads as a shorter one, a changed number as another number. What breaks the form is noticed, and so is a message of
another type as far as its fields show it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, EncodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from ops.proto.explain import unset
from ops.proto.files import HDF5_SIGNATURE, HEAD, kind, read_bytes, write_bytes

M = TypeVar("M", bound=Message)
LIMIT = 2**31 - 1  # bytes of one message: protobuf's limit; its limit of depth is 100 messages inside each other
FILES = ("NetParameter", "SolverState", "BlobProto", "Datum")  # messages that stand alone in files and records
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
SIZED = {FieldDescriptor.CPPTYPE_FLOAT: FIXED32, FieldDescriptor.CPPTYPE_DOUBLE: FIXED64}
SIZED |= {FieldDescriptor.CPPTYPE_STRING: BYTES, FieldDescriptor.CPPTYPE_MESSAGE: BYTES}


def read(path: str | Path, message_class: type[M]) -> M:
    """The message in a binary file of at most 2 GiB; ValueError names the file and what is wrong with it."""
    return parse(read_bytes(path, LIMIT), message_class, name=str(path))


def parse(data: bytes, message_class: type[M], *, name: str = "<bytes>") -> M:
    """The message in `data`; `name` is what errors call it. No bytes are an empty message."""
    if len(data) > LIMIT:
        raise ValueError(f"{name}: {len(data):,} bytes, more than the {LIMIT:,} that a message may have")
    wanted = message_class.DESCRIPTOR.name
    try:
        message = message_class.FromString(data)
    except DecodeError:
        raise ValueError(f"{name}: not a {wanted}: {_damage(data, wanted)}") from None
    if stranger := _stranger(message):
        raise ValueError(f"{name}: not a {wanted}: {stranger}{_rather(data, wanted)}")
    if gap := unset(message):
        raise ValueError(f"{name}: {gap} must be given and is not")
    return message


def write(path: str | Path, message: Message) -> None:
    """Write the message into a file, whole or not at all."""
    try:
        data = message.SerializeToString()
    except EncodeError as error:
        raise ValueError(f"{path}: cannot be written: {' '.join(str(error).split())}") from None
    if len(data) > LIMIT:
        raise ValueError(f"{path}: {len(data):,} bytes, more than the {LIMIT:,} that a message may have; use HDF5")
    write_bytes(path, data)


def _stranger(message: Message) -> str | None:
    """Why a message that could be read is of another type; fields of a newer schema and of forks are no reason."""
    unknowns = UnknownFieldSet(message)
    if len(unknowns) and not message.ListFields():
        return "it holds none of its fields"
    for unknown in map(unknowns.__getitem__, range(len(unknowns))):
        field = message.DESCRIPTOR.fields_by_number.get(unknown.field_number)
        # An enum value that the schema does not know is unknown too, but its wire type is right.
        if field is not None and unknown.wire_type != SIZED.get(field.cpp_type, VARINT):
            return f"its field {field.number} is no '{field.name}'"
    return None


def _rather(data: bytes, wanted: str) -> str:
    """Which message the bytes could be instead, as "; it reads as a BlobProto"."""
    from ops.proto import caffe_pb2

    for name in FILES:
        message_class = getattr(caffe_pb2, name)
        try:
            if name != wanted and not _stranger(message_class.FromString(data)):
                return f"; it reads as a {name}"
        except DecodeError:
            continue
    return ""


def _damage(data: bytes, wanted: str) -> str:
    """What bytes are that are not a message."""
    if data.startswith(HDF5_SIGNATURE):
        return "an HDF5 file"
    if kind(data[:HEAD]) == "text" and (b":" in data[:HEAD] or b"{" in data[:HEAD]):
        return "a text file"
    if cut := _cut(data):
        return cut
    return f"its {len(data):,} bytes are damaged, or no protobuf message at all{_rather(data, wanted)}"


def _cut(data: bytes) -> str | None:
    """Where the outermost message breaks off, if that is what is wrong."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _varint(data, at)
        length = {VARINT: 0, FIXED64: 8, FIXED32: 4}.get(tag & 7)
        if tag & 7 == VARINT:
            _, at = _varint(data, at)
        elif tag & 7 == BYTES:
            length, at = _varint(data, at)
        if length is None or not 0 < tag >> 3 < 2**29:
            return None
        at += length
        if at > len(data):
            return f"cut short: {len(data):,} bytes, but its field at byte {start:,} ends at byte {at:,}"
    return None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends; one past the data where they run out."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            return value, len(data) + 1
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            break
    return value, at
