"""Hypothesis strategies: arbitrary messages of any type, made from the type's descriptor, and damaged bytes."""

from hypothesis import strategies as st

SCALARS = {
    "TYPE_INT32": st.integers(-(2**31), 2**31 - 1),
    "TYPE_INT64": st.integers(-(2**63), 2**63 - 1),
    "TYPE_UINT32": st.integers(0, 2**32 - 1),
    "TYPE_FLOAT": st.floats(width=32, allow_nan=False) | st.just(float("nan")),
    "TYPE_DOUBLE": st.floats(allow_nan=False) | st.just(float("nan")),
    "TYPE_BOOL": st.booleans(),
    "TYPE_STRING": st.text(max_size=12),
    "TYPE_BYTES": st.binary(max_size=12),
}
TYPES = ("DOUBLE", "FLOAT", "INT64", "INT32", "BOOL", "STRING", "MESSAGE", "BYTES", "UINT32", "ENUM")


def type_name(field):
    """TYPE_FLOAT and its like, for a field's number of it."""
    return next(f"TYPE_{name}" for name in TYPES if getattr(field, f"TYPE_{name}") == field.type)


def value_of(field):
    """One value of a field that holds no message."""
    if field.enum_type is not None:
        return st.sampled_from(sorted(field.enum_type.values_by_number))
    return SCALARS[type_name(field)]


@st.composite
def messages(draw, message_class):
    """A message with a few of its fields, and of theirs, set to anything they may hold."""
    message = message_class()
    fill(draw, message)
    return message


def fill(draw, message):
    fields = list(message.DESCRIPTOR.fields)
    chosen = draw(st.lists(st.sampled_from(fields), max_size=5, unique_by=lambda field: field.number))
    chosen += [field for field in fields if field.is_required and field not in chosen]
    for field in chosen:
        if field.message_type is None and field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(value_of(field), min_size=1, max_size=3)))
        elif field.message_type is None:
            setattr(message, field.name, draw(value_of(field)))
        elif field.is_repeated:
            for _ in range(draw(st.integers(1, 2))):
                fill(draw, getattr(message, field.name).add())
        else:
            getattr(message, field.name).SetInParent()
            fill(draw, getattr(message, field.name))


@st.composite
def damaged(draw, originals):
    """One of the byte strings with a few bytes changed, cut out, doubled or put in."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(data)))
        until = min(len(data), at + draw(st.integers(0, 40)))
        change = draw(st.sampled_from(["change", "cut", "double", "end"]))
        if change == "change":
            data[at:until] = draw(st.binary(max_size=8))
        elif change == "cut":
            del data[at:until]
        elif change == "double":
            data[at:at] = data[at:until]
        else:
            del data[until:]
    return bytes(data)


def refusal(call, *arguments, **named):
    """What a call's ValueError says; an empty string where it succeeds."""
    try:
        call(*arguments, **named)
    except ValueError as error:
        return str(error)
    return ""
