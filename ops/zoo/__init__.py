"""The zoo: reference nets by name, a folder each with train_val, deploy and solver prototxt and a README; and the
published weights that are known by their SHA-1.
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from pathlib import Path

from ops.names import hint, nearest, quoted, unknown

HERE = Path(__file__).parent
SUFFIX = ".prototxt"


@dataclass(frozen=True)
class Known:
    """A published weights file: the zoo's net that it fits (None: no net here), what it is, its SHA-1 in hex."""

    net: str | None
    what: str
    sha1: str


PUBLISHED = (
    Known(
        "caffenet", "CaffeNet (bvlc_reference_caffenet), iteration 310,000", "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46"
    ),
    Known("alexnet", "AlexNet (bvlc_alexnet), iteration 360,000", "9116a64c0fbe4459d18f4bb6b56d647b63920377"),
    Known("googlenet", "GoogLeNet (bvlc_googlenet), quick solver", "405fc5acd08a3bb12de8ee5e23a96bec22f08204"),
    Known("flickr_style", "Flickr style (finetune_flickr_style)", "b61b5cef7d771b53b0c488e78d35ccadc073e9cf"),
    Known("vgg16", "VGG-16 (VGG_ILSVRC_16_layers)", "9363e1f6d65f7dba68c4f27a1e62105cdf6c4e24"),
    Known("resnet50", "ResNet-50 of its authors", "b7c79ccc21ad0479cddc0dd78b1d20c4d722908d"),
    Known(None, "R-CNN (bvlc_reference_rcnn_ilsvrc13)", "bdd8abb885819cba5e2fe1eb36235f2319477e64"),
    Known(None, "VGG-19 (VGG_ILSVRC_19_layers)", "239785e7862442717d831f682bb824055e51e9ba"),
    Known(None, "ResNet-101 of its authors", "1dbf5f493926bb9b6b3363b12d5133c0f8b78904"),
    Known(None, "ResNet-152 of its authors", "251edb93604ac8268c7fd2227a0f15144310e1aa"),
)


def names() -> list[str]:
    """The zoo's nets."""
    return sorted(folder.parent.name for folder in HERE.glob(f"*/deploy{SUFFIX}"))


def find(name: str, file: str = "deploy.prototxt") -> Path:
    """A file of a net; case, '-' and '_' in the name do not count, nor does the ending of a prototxt.

    ValueError with the nearest name where there is no such net or file.
    """
    folder = _folder(name)
    if folder is None:
        raise ValueError(unknown("net of the zoo", name, names()))
    files = {path.name: path for path in folder.iterdir()}
    for wanted in (file, file + SUFFIX):
        if wanted in files:
            return files[wanted]
    raise ValueError(f"{folder.name}: {unknown('file of the zoo', file, files)}")


def resolve(path_or_name: str | Path, file: str = "deploy.prototxt") -> Path:
    """The file that a user means: a path that exists, or a net of the zoo as 'caffenet' or 'caffenet/train_val'.

    `file` is the one that a bare name stands for. FileNotFoundError where it is neither, ValueError where it is both a
    folder and a net, or a net without that file.
    """
    path = Path(path_or_name)
    name, *rest = path.parts or ("",)
    folder = _folder(name)
    if path.is_dir() and folder is not None and not rest:
        ours = f"{folder.name}/{Path(file).stem}"
        raise ValueError(f"{path} is a folder here and a net of the zoo; write {path / file}, or {ours} for the zoo's")
    if path.exists():
        return path
    if folder is not None and len(rest) <= 1:
        return find(name, *rest or (file,))
    near = hint(name, names()) if not rest or nearest(name, names()) else ""
    raise FileNotFoundError(errno.ENOENT, f"there is no file {quoted(str(path))}, and no such net in the zoo{near}")


def identify(path: str | Path) -> Known | None:
    """The published weights that a file is, to the byte; None for any other."""
    with Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha1").hexdigest()
    return next((known for known in PUBLISHED if known.sha1 == found), None)


def _folder(name: str) -> Path | None:
    """A net's folder, however its name is written."""
    return next((HERE / known for known in names() if _plain(known) == _plain(name)), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
