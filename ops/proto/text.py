"""Messages as text, the form of .prototxt files: read with errors that say where, written as Caffe writes.

Read is what Caffe's own parser reads: comments, `field: { ... }` and `field { ... }`, either quote, adjacent strings
joined, lists as `[1, 2]`, fields parted by ',' or ';' or nothing.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import text_encoding, text_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from ops.proto.explain import explain, misspelt, unset
from ops.proto.files import CONTROL, HDF5_SIGNATURE, HEAD, kind, read_bytes, write_bytes

M = TypeVar("M", bound=Message)
LIMIT = 256 * 1024 * 1024  # bytes of a text file
SMALLEST_NORMAL = 2.0**-126  # float32; for what is smaller C++ never tries the short form
DEPTH = 100  # messages inside each other, as protobuf's binary reader


def read(path: str | Path, message_class: type[M], *, limit: int = LIMIT) -> M:
    """The message in a text file of at most `limit` bytes; an empty file is an empty message.

    ValueError "FILE:LINE:COLUMN: what is wrong" where the text is not such a message, OSError where there is no file.
    """
    data = read_bytes(path, limit)
    if complaint := _not_text(data, message_class.DESCRIPTOR.name):
        raise ValueError(f"{path}:{complaint}")
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return parse(text, message_class, name=str(path))


def parse(text: str, message_class: type[M], *, name: str = "<text>") -> M:
    """The message in a text; `name` is what errors call it."""
    message = message_class()
    problem = misspelt(text)
    if problem is None:
        try:
            text_format.Parse(text, message, max_recursion_depth=DEPTH)
        except text_format.ParseError as error:
            problem = explain(text, message_class, error)
    if problem is not None:
        raise ValueError(f"{name}:{problem.line}:{problem.column}: {problem.what}") from None
    if gap := unset(message):
        raise ValueError(f"{name}: {gap} must be given and is not")
    return message


def dump(message: Message) -> str:
    """The message as Caffe prints it: fields by number, two spaces a level, ASCII with octal escapes.

    Fields that this schema does not know are left out (Caffe prints their numbers, and cannot read that back).
    """
    lines: list[str] = []
    _print(message, "", lines)
    return "".join(lines)


def write(path: str | Path, message: Message) -> None:
    """`dump` into a file, whole or not at all."""
    write_bytes(path, dump(message).encode("ascii"))


def _not_text(data: bytes, wanted: str) -> str | None:
    """What is wrong with a file that holds no text at all."""
    wanted = f"the text of a {wanted} (a .prototxt) was expected"
    if data.startswith(HDF5_SIGNATURE):
        return f" an HDF5 file; {wanted}"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "1:1: UTF-16 text; save the file as UTF-8"
    if kind(data[:HEAD]) == "text":
        return None
    at = next(i for i, byte in enumerate(data) if byte in CONTROL)
    line, column = data.count(b"\n", 0, at) + 1, at - data.rfind(b"\n", 0, at)
    return f"{line}:{column}: byte 0x{data[at]:02x}: this is a binary file; {wanted}"


def _print(message: Message, indent: str, lines: list[str]) -> None:
    for field, value in message.ListFields():
        for one in value if field.is_repeated else [value]:
            if field.message_type is not None:
                lines.append(f"{indent}{field.name} {{\n")
                _print(one, indent + "  ", lines)
                lines.append(f"{indent}}}\n")
            else:
                lines.append(f"{indent}{field.name}: {_scalar(field, one)}\n")


def _scalar(field: FieldDescriptor, value: Any) -> str:
    """One value as C++ prints it; a string that is not UTF-8 arrives as bytes."""
    if field.enum_type is not None:
        return str(field.enum_type.values_by_number[value].name)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return f'"{text_encoding.CEscape(value, False)}"'
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true" if value else "false"
    if field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
        return _shortest(value, "f", "%.6g", "%.9g")
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        return _shortest(value, "d", "%.15g", "%.17g")
    return str(value)


def _shortest(value: float, form: str, short: str, exact: str) -> str:
    """Fewer digits where they give the same number back, else as many as always do; so C++ chooses."""
    digits = short % value
    if form == "f" and 0 < abs(value) < SMALLEST_NORMAL:
        return exact % value
    return digits if struct.unpack(form, struct.pack(form, float(digits)))[0] == value else exact % value
