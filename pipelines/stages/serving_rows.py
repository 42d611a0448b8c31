"""Blobs of pictures as an answer: JSON, one of them as a .npy file, or all of them as a stream of Apache Arrow."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ops.names import hint
from pipelines.stages.serving_body import Limits, Picture, RefusedError

Form = Literal["json", "npy", "arrow"]
KINDS: dict[Form, str] = {
    "json": "application/json",
    "npy": "application/x-npy",
    "arrow": "application/vnd.apache.arrow.stream",
}
PIECE = 4096  # numbers that become text in one go: other threads have their turn in between


def form_of(asked: Form | None, accept: str) -> Form:
    """What the query asks for, else the first kind of ours that an Accept header names, else JSON."""
    named = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    forms = {kind: form for form, kind in KINDS.items()}
    return asked or next((forms[kind] for kind in named if kind in forms), "json")


def blobs_named(asked: str, model: dict[str, Any], form: Form) -> list[str]:
    """The blobs of a query, each once; RefusedError where they cannot be had."""
    names = list(dict.fromkeys(name.strip() for name in asked.split(",") if name.strip()))
    if not names or (form == "npy" and len(names) != 1):
        raise RefusedError(422, "blobs: " + ("name one blob for format=npy" if names else "name at least one"))
    for name in names:
        if model and name not in model["blobs"]:
            raise RefusedError(422, f"blobs: the net has no blob '{name[:100]}'{hint(name, model['blobs'])}")
    return names


def check_size(names: Sequence[str], model: dict[str, Any], form: Form, pictures: int, limits: Limits) -> int:
    """How many numbers the answer has; RefusedError where they are too many, before anything is computed."""
    each = sum(math.prod(model["blobs"][name]) for name in names) if model else 0
    most = limits.json_numbers if form == "json" else limits.numbers
    if pictures * each > most:
        told = (
            f"the answer would have {pictures:,} x {each:,} numbers, at most {most:,} {'as JSON ' * (form == 'json')}"
        )
        other = "ask for format=arrow, or" if form == "json" else "ask for"
        raise RefusedError(413, f"{told}are sent: {other} fewer pictures or a smaller blob at once")
    return pictures * each


def as_json(whole: dict[str, Any], pictures: Sequence[Picture], answers: Sequence[dict[str, Any]]) -> bytes:
    """{"images": [{"image": name, "blobs": {name: nested lists}} or with an error], and `whole`."""
    rows = []
    for one, answer in zip(pictures, answers, strict=True):
        if "error" in answer:
            rows.append(json.dumps({"image": one.name, "error": answer["error"]}))
        else:
            blobs = ", ".join(f"{json.dumps(name)}: {listed(values)}" for name, values in answer["blobs"].items())
            rows.append(f'{{"image": {json.dumps(one.name)}, "blobs": {{{blobs}}}}}')
    return f'{json.dumps(whole)[:-1]}, "images": [{", ".join(rows)}]}}'.encode()


def listed(values: NDArray[np.float32]) -> str:
    """An array as nested lists; null for what is no number."""
    if values.ndim > 1 and values.size > PIECE:
        return f"[{', '.join(map(listed, values))}]"
    if not np.isfinite(values).all():
        return json.dumps(np.where(np.isfinite(values), values, None).tolist())
    return json.dumps(values.tolist())


def as_npy(pictures: Sequence[Picture], answers: Sequence[dict[str, Any]]) -> bytes:
    """A row a picture; RefusedError where one is bad, because a row cannot say so."""
    for one, answer in zip(pictures, answers, strict=True):
        if "error" in answer:
            raise RefusedError(400, f"{one.name}: {answer['error']}")
    file = io.BytesIO()
    np.save(file, np.stack([values for answer in answers for values in answer["blobs"].values()]), allow_pickle=False)
    return file.getvalue()


def as_arrow(whole: dict[str, Any], pictures: Sequence[Picture], answers: Sequence[dict[str, Any]]) -> bytes:
    """Columns image, error, and of each blob a list of fixed length, null for a bad picture.

    A blob's own shape stands in its field's metadata, `whole` in the schema's.
    """
    import pyarrow as pa
    from pyarrow import ipc

    bad = np.array(["error" in answer for answer in answers])
    first = next(answer["blobs"] for answer in answers if "error" not in answer)
    columns: list[Any] = [pa.array([one.name for one in pictures]), pa.array([one.get("error") for one in answers])]
    columns[1] = columns[1].cast(pa.string())
    fields = [pa.field("image", pa.string(), nullable=False), pa.field("error", pa.string())]
    for name, shape in ((name, values.shape) for name, values in first.items()):
        size = math.prod(shape)
        rows = np.zeros((len(answers), size), np.float32)
        for place in np.flatnonzero(~bad):
            rows[place] = answers[place]["blobs"][name].reshape(-1)
        kind = pa.list_(pa.field("item", pa.float32(), nullable=False), size)
        columns.append(pa.FixedSizeListArray.from_arrays(rows.reshape(-1), type=kind, mask=pa.array(bad)))
        fields.append(pa.field(name, kind, metadata={"shape": json.dumps(list(shape))}))
    schema = pa.schema(fields, metadata={"cortado": json.dumps(whole)})
    file = io.BytesIO()
    with ipc.new_stream(file, schema) as stream:
        stream.write_batch(pa.record_batch(columns, schema=schema))
    return file.getvalue()
