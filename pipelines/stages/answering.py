"""Scores of a net over pictures, in this process: what `cortado classify` answers with. `extract` is for large sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ops.hierarchy import Hierarchy
from ops.inputs import listing
from ops.inputs.recognize import Found, find
from ops.proto.caffe_pb2 import NetParameter
from ops.records.image_list import ImageList
from pipelines.stages.feature_model import Model
from pipelines.stages.feature_setup import Prepared, Source
from pipelines.stages.featuring import Extractor
from pipelines.stages.paths import root_of
from pipelines.stages.scoring import device_of

SHOWN = 60  # pictures on a sheet at the most


@dataclass
class Answer:
    """One picture: the classes with the highest scores, best first, and the names with the highest value."""

    image: str
    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    hedged: list[tuple[str, float]] = field(default_factory=list)
    bad: str = ""


def images_of(words: Sequence[str], *, root: str = "") -> Source:
    """The pictures that are named: files one by one, or one folder, list, table, ..."""
    if len(words) == 1 and not is_picture(words[0]):
        found = find(words[0])
        listed = listing.open_listing(words[0])
        return Source(words[0], listed, found, len(listed), listed.digest(), root_of(root, listed, words[0]))
    for word in words:
        if os.path.isdir(word):
            raise ValueError(f"{word}: a folder among {len(words)} arguments; give one folder, or picture files")
    listed = ImageList.of(words, np.zeros(len(words), np.int32))
    return Source(words[0], listed, Found("list", []), len(words), listed.digest())


def is_picture(word: str) -> bool:
    """Whether a word names a picture file, not something that lists pictures; a file that is not there counts."""
    from ops.inputs.magic import EXTENSIONS, starts_as_image

    if os.path.isdir(word):
        return False
    if not os.path.isfile(word):
        return word.rpartition(".")[2].lower() in EXTENSIONS
    with open(word, "rb") as file:
        return starts_as_image(file.read(16))


def score_blob(model: Model, wanted: str | None) -> tuple[str, bool]:
    """The blob with the scores, and whether a softmax is still to be taken.

    That which is asked for; else the net's last Softmax; else what goes into its SoftmaxWithLoss; else its only output.
    """
    if wanted is not None:
        return wanted, False
    layers = model.spec.layer
    made = [layer.top[0] for layer in layers if layer.type == "Softmax"]
    if made:
        return made[-1], False
    losses = [layer.bottom[0] for layer in layers if layer.type == "SoftmaxWithLoss"]
    if losses:
        return losses[-1], True
    outputs = open_ends(model.spec)
    if len(outputs) != 1:
        raise ValueError(f"{model.name}: has no Softmax, and the outputs {', '.join(outputs)}: name one with --blob")
    return outputs[0], False


def open_ends(spec: NetParameter) -> list[str]:
    """Blobs that no layer takes."""
    taken = {blob for layer in spec.layer for blob in layer.bottom}
    return sorted({blob for layer in spec.layer for blob in layer.top} - taken, key=str.encode)


def check_names(names: Sequence[str], classes: int, where: str) -> None:
    if names and len(names) != classes:
        raise ValueError(f"{where}: {len(names):,} names for {classes:,} classes")


def answers(
    prepared: Prepared,
    *,
    softmax: bool,
    top: int,
    hierarchy: Hierarchy | None,
    gpu: str | None,
    tell: Callable[[int], None],
) -> list[Answer]:
    """The best `top` classes of every picture, bad ones among them, in order."""
    device = device_of(gpu)
    if device.type == "cuda":
        prepared.net.to(device)
    out: list[Answer] = []
    threads = torch.get_num_threads()
    with Extractor(prepared.setup, prepared.net, threads=threads, device=device) as extractor:
        for part in range(len(prepared.setup.cuts) - 1):
            for rows, notes in extractor.rows(part):
                scores = rows.blobs[prepared.blobs[0]].reshape(len(rows), -1).astype(np.float32)
                good = iter(best(scores, softmax, top, hierarchy, rows.names))
                start = len(out)
                for place, note in enumerate(notes, start):
                    if note.bad is None:
                        out.append(next(good))
                    else:
                        name = os.fsdecode(extractor.source.reader.names(place, place + 1)[0])
                        out.append(Answer(name, bad=note.bad))
                tell(len(out))
    return out


def best(
    scores: NDArray[np.float32], softmax: bool, top: int, hierarchy: Hierarchy | None, names: Sequence[str]
) -> list[Answer]:
    """Answers of a batch; of equal scores the first class comes first."""
    if softmax:
        shifted = np.exp(scores - scores.max(1, keepdims=True))
        scores = shifted / shifted.sum(1, keepdims=True)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    found = [Answer(name, order[i].tolist(), scores[i, order[i]].tolist()) for i, name in enumerate(names)]
    if hierarchy is not None:
        values = hierarchy.values(scores)
        for i, answer in enumerate(found):
            places = np.argsort(-values[i], kind="stable")[:top]
            answer.hedged = [(hierarchy.names[place], float(values[i, place])) for place in places]
    return found


def sheet(found: Sequence[Answer], root: str, names: Sequence[str], file: Path, title: str) -> int:
    """Draw the first pictures with their answers; how many there are on it."""
    from ops import image
    from ops.contact_sheet import contact_sheet, thumbnail
    from ops.inputs.fetch import Fetcher

    fetcher, pictures, captions = Fetcher(), [], []
    for answer in [one for one in found if not one.bad][:SHOWN]:
        source = fetcher.fetch(os.fsencode(root) + os.fsencode(answer.image))
        pixels = image.decode(source, all_formats=True) if isinstance(source, bytes) else source
        pictures.append(thumbnail(pixels))
        best_one = named(answer.labels[0], names)
        second = answer.hedged[0][0] if answer.hedged else os.path.basename(answer.image)
        captions.append(f"{answer.scores[0]:.2f} {best_one}\n{second}")
    if not pictures:
        raise ValueError(f"--sheet {file}: no picture could be read")
    drawn = contact_sheet(pictures, captions, title=title)
    file.absolute().parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(image.encode(drawn, file.suffix))
    return len(pictures)


def named(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) and names[label] else str(label)
