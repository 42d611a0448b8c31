"""Why a prototxt does not parse, said for a person: where, which message and field, what was found, what was expected.

The parser is protobuf's own; it knows the place but seldom the field. So the text up to that place is walked again with
the message types at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.text_format import ParseError

from ops.names import hint, nearest, quoted

# The parser's own tokens, and what it skips.
TOKEN = re.compile(
    r"""\s+ | \#[^\n]* | (?P<token>
        [A-Za-z_][0-9A-Za-z_+-]* | (?:[0-9+-] | \.[0-9])[0-9A-Za-z_.+-]*
        | "[^"\n\\]*(?:\\[^\n][^"\n\\]*)*\\?"? | '[^'\n\\]*(?:\\[^\n][^'\n\\]*)*\\?'? | . )""",
    re.VERBOSE | re.DOTALL,
)
ESCAPE = re.compile(
    r"""\\(?:[abfnrtv\\'"]|[0-3][0-7]{0,2}|[4-7][0-7]?(?![0-7])|x[0-9A-Fa-f]{1,2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8})|(\\.?)"""
)
NOT_UTF8 = re.compile("[\udc80-\udcff]")  # what "surrogateescape" makes of a byte that is not UTF-8
LONGEST_RUN = 10_000  # backslashes; protobuf's parser takes quadratic time over them
ROOTS = ("NetParameter", "SolverParameter")  # the messages that are whole prototxt files
WANTED = {
    FieldDescriptor.CPPTYPE_INT32: "a whole number (int32)",
    FieldDescriptor.CPPTYPE_INT64: "a whole number (int64)",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number of 0 or more (uint32)",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number of 0 or more (uint64)",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_STRING: "a string in quotes",
}


class Token(NamedTuple):
    """One word of the text; line and column count from 1, a tab is one column."""

    text: str
    line: int
    column: int


class Problem(NamedTuple):
    """What is wrong, and where; line and column count from 1."""

    line: int
    column: int
    what: str


@dataclass
class Frame:
    """A message that is open at some place of the text."""

    type: Descriptor
    seen: dict[str, int]  # field name -> line where it stands first
    field: FieldDescriptor | None = None  # that the message is the value of; None for the outermost
    brace: Token | None = None


@dataclass
class Place:
    """What is known at a token: the open messages, the latest field, and the token before."""

    stack: list[Frame]
    found: Token
    before: Token | None = None
    name: Token | None = None
    field: FieldDescriptor | None = None

    @property
    def owner(self) -> str:
        """The innermost open message's name."""
        return self.stack[-1].type.name

    @property
    def label(self) -> str:
        """The latest field with its message's name, as SolverParameter.base_lr."""
        type = self.field.containing_type if self.field else None
        return f"{type.name}.{self.field.name}" if self.field and type else self.owner

    @property
    def shown(self) -> str:
        """The token in quotes, on one line."""
        return quoted(self.found.text) if self.found.text else "the end of the file"


def tokens(text: str) -> Iterator[Token]:
    """The words of a text without spaces and comments; at last an empty one where the text ends."""
    line, start_of_line = 1, 0
    for match in TOKEN.finditer(text):
        if match["token"] is not None:
            yield Token(match["token"], line, match.start() - start_of_line + 1)
        elif newlines := match[0].count("\n"):
            line += newlines
            start_of_line = match.start() + match[0].rindex("\n") + 1
    yield Token("", line, len(text) - start_of_line + 1)


def misspelt(text: str) -> Problem | None:
    """A byte that is not UTF-8 (one in a comment is nobody's business), or a backslash that starts no escape."""
    if "\\" not in text and not NOT_UTF8.search(text):
        return None
    for token in tokens(text):
        if stray := NOT_UTF8.search(token.text):
            what = f"byte 0x{ord(stray[0]) - 0xDC00:02x} is not UTF-8; save the file as UTF-8"
            return Problem(token.line, token.column + stray.start(), what)
        if "\\" * LONGEST_RUN in token.text:
            return Problem(token.line, token.column, f"a string with more than {LONGEST_RUN:,} backslashes in a row")
        for escape in ESCAPE.finditer(token.text) if token.text[:1] in {'"', "'"} else ():
            if escape[1] is not None and escape.end() < len(token.text):
                what = f"{escape[1]} in a string is no escape; write \\\\ for a backslash"
                return Problem(token.line, token.column + escape.start(), " ".join(what.split()))
    return None


def walk(text: str, root: Descriptor, line: int, column: int) -> Place:
    """Follow the text, which is right so far, to the token at `line`:`column`."""
    place = Place([Frame(root, {})], Token("", 1, 1))
    words = tokens(text)
    word = next(words)
    while word.text and (word.line, word.column) < (line, column):
        following = next(words)
        step(place, word, following)
        place.before, word = word, following
    place.found = word
    return place


def step(place: Place, word: Token, following: Token) -> None:
    """Take `word` in: a field's name, a brace, or something in between."""
    if following.text in {":", "{", "<", "["} and word.text.isidentifier():
        place.name, place.field = word, place.stack[-1].type.fields_by_name.get(word.text)
        place.stack[-1].seen.setdefault(word.text, word.line)
    elif word.text in {"{", "<"} and place.field is not None and place.field.message_type is not None:
        place.stack.append(Frame(place.field.message_type, {}, place.field, word))
    elif word.text in {"}", ">"} and len(place.stack) > 1:
        place.field = place.stack.pop().field


def unset(message: Any) -> str | None:
    """The first required field that nobody gave, as layer[3].clip_param.min."""
    return None if message.IsInitialized() else str(message.FindInitializationErrors()[0])


def explain(text: str, message_class: type[Message], error: ParseError) -> Problem:
    """What protobuf's parser objected to in `text`, which should hold such a message."""
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    said = str(error).removeprefix(f"{line}:{column} : ")
    source = text.split("\n")[line - 1] if line <= text.count("\n") + 1 else ""
    said = said.removeprefix(f"'{source}': ").removeprefix("'': ")
    place = walk(text, cast(Descriptor, message_class.DESCRIPTOR), line, column)
    at, what = objection(said, place)
    return Problem(at.line, at.column, " ".join(what.split()))


def objection(said: str, place: Place) -> tuple[Token, str]:
    """Where and what, from the parser's message and the place."""
    if said.endswith(" fields.") and "should not have multiple" in said:
        return repeated(place)
    if re.search(r"has no field named .*\.$|Expected identifier.*\.$", said, re.DOTALL):
        return place.found, nameless(place)
    if match := re.fullmatch(r'Expected "(.)"\.', said):
        return missing(match[1], place)
    if said.startswith("Couldn't parse string"):
        return place.before or place.found, f"{place.label}: the string's bytes are not UTF-8"
    if said.startswith("String missing ending quote"):
        return place.found, f"{place.label}: the string that starts here has no closing quote on its line"
    if place.field is None or place.field.message_type is not None:
        return place.found, f"{place.owner}: {said} (found {place.shown})"
    return place.found, misfit(said, place, place.field)


def repeated(place: Place) -> tuple[Token, str]:
    """A field given twice; the place is its second value."""
    at = place.name or place.found
    # The walk stopped before the brace of a second message, or at the value of a second scalar.
    first = place.stack[-1].seen.get(at.text, at.line)
    return at, f"{place.owner}: {quoted(at.text)} may only be given once; it stands on line {first} too"


def nameless(place: Place) -> str:
    """A token that is no field's name."""
    name, type = place.found.text, place.stack[-1].type
    if name == "}" and len(place.stack) == 1:
        return "this '}' closes nothing; is a '{' missing, or one '}' too many?"
    if not re.match(r"[A-Za-z_]", name):
        return f"expected a field name of {place.owner}, found {place.shown}"
    said = f"{place.owner} has no field named {quoted(name)}"
    for inner, outer in zip(place.stack[:0:-1], place.stack[-2::-1], strict=True):
        if name in outer.type.fields_by_name and inner.field and inner.brace:
            return f"{said}; is a '}}' missing before it? {inner.field.name} on line {inner.brace.line} is still open"
    return said + elsewhere(name, type, outermost=len(place.stack) == 1)


def elsewhere(name: str, type: Descriptor, *, outermost: bool) -> str:
    """Where the field might be: inside one of this message's own messages, under another name, in another file."""
    inside = [f.name for f in type.fields if f.message_type is not None and name in f.message_type.fields_by_name]
    roots = [type.file.message_types_by_name[root] for root in ROOTS if root in type.file.message_types_by_name]
    others = [root.name for root in roots if name in root.fields_by_name]
    if outermost and others and not nearest(name, type.fields_by_name):
        return f"; {others[0]} has one: is this the right file?"
    if 0 < len(inside) <= 4:
        return (
            f"; did you mean it inside {' or '.join([', '.join(inside[:-1]), inside[-1]] if inside[1:] else inside)}?"
        )
    return hint(name, type.fields_by_name)


def missing(expected: str, place: Place) -> tuple[Token, str]:
    """A sign that should stand where another token does."""
    if expected in "}>":
        frame = place.stack[-1]
        inside = frame.field.name if frame.field else "the message"
        return (
            frame.brace or place.found,
            f"{inside}: this '{frame.brace.text if frame.brace else expected}' is never closed",
        )
    if expected == ":":
        name = place.before.text if place.before else ""
        if name in place.stack[-1].type.fields_by_name:
            return place.found, f"{place.owner}.{name}: expected ':' and a value, found {place.shown}"
    if expected == "{":
        return place.found, f"{place.label} wants a message in braces {{ ... }}, found {place.shown}"
    if expected == ",":
        return place.found, f"{place.label}: expected ',' or ']' in the list, found {place.shown}"
    return place.found, f"{place.owner}: expected '{expected}', found {place.shown}"


def misfit(said: str, place: Place, field: FieldDescriptor) -> str:
    """A value of the wrong kind for `field`."""
    if field.enum_type is not None:
        return f"{place.label} has no value named {place.shown}{hint(place.found.text, field.enum_type.values_by_name)}"
    wanted = WANTED[field.cpp_type]
    if "out of range" in said.lower():
        return f"{place.label} wants {wanted}; {place.shown} is out of its range"
    if place.found.text[:1] in {'"', "'"} and field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return f"{place.label}: the string {place.shown} holds an escape that stands for no character"
    return f"{place.label} wants {wanted}, found {place.shown}"
