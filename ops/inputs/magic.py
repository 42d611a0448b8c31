"""What a file is, by its first bytes. Imports nothing heavy: every command that takes images begins here."""

from __future__ import annotations

import contextlib
import gzip
import os
import zlib
from pathlib import Path

import numpy as np

from ops.inputs.damage import told

EXTENSIONS = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "jp2", "png", "bmp", "dib", "gif", "webp", "avif", "tif", "tiff", "ppm", "pgm",
     "pbm", "pnm", "pxm", "pam", "pfm", "sr", "ras", "exr", "hdr", "pic")
)  # fmt: skip
_IMAGES = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ", b"\xffO\xffQ",
    b"\x59\xa6\x6a\x95", b"v/1\x01", b"#?RADIANCE", b"#?RGBE",
)  # fmt: skip


HDF5 = b"\x89HDF\r\n\x1a\n"
PARQUET = b"PAR1"
GZIP = b"\x1f\x8b"
IDX_TYPES = {8, 9, 11, 12, 13, 14}  # unsigned and signed bytes, 16 and 32 bits, float, double
TAR_BLOCK = 512  # bytes
CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: a label and three planes
CIFAR_LABELS = 1000  # labels that tell a batch from other files


def starts_as_image(head: bytes) -> bool:
    """Whether bytes start as a picture that OpenCV knows does."""
    if head.startswith(_IMAGES):
        return True
    if head[:4] == b"RIFF":
        return head[8:12] == b"WEBP"
    if head[4:8] == b"ftyp":
        return head[8:12] in (b"avif", b"avis", b"mif1")
    return len(head) > 2 and head[:1] == b"P" and head[1:2] in b"1234567fF" and head[2:3] in b" \t\r\n#"


def is_image(path: bytes | str | os.PathLike[str]) -> bool:
    """Whether a file starts as a picture does; a file that cannot be read does not."""
    try:
        with open(path, "rb") as file:
            return starts_as_image(file.read(16))
    except OSError:
        return False


def is_hdf5(path: Path) -> bool:
    """Whether a file starts as HDF5 does."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(len(HDF5)) == HDF5
    return False


def is_idx(head: bytes) -> bool:
    """Whether bytes start as an IDX file: two zeros, a type, 1 to 4 axes."""
    return len(head) >= 8 and head[:2] == b"\0\0" and head[2] in IDX_TYPES and 1 <= head[3] <= 4


def unpacked_head(path: Path, count: int = 20) -> bytes:
    """The first bytes of a file, unpacked where it is compressed with gzip."""
    with path.open("rb") as file:
        head = file.read(count)
        if not head.startswith(GZIP):
            return head
        file.seek(0)
        with told(path, "gzip file", zlib.error, EOFError, gzip.BadGzipFile):
            return gzip.GzipFile(fileobj=file).read(count)


def is_tar_head(block: bytes) -> bool:
    """Whether a block is the head of a tar's member: its checksum says so."""
    if len(block) < TAR_BLOCK or not block[0]:
        return False
    digits = block[148:156].strip(b" \0")
    if not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block[:148]) + 8 * 32 + sum(block[156:TAR_BLOCK])


def is_cifar(path: Path, size: int) -> bool:
    """Whether a file is whole records whose labels are all below 10: a CIFAR-10 batch has no other mark."""
    if not size or size % CIFAR_RECORD:
        return False
    return bool((np.memmap(path, np.uint8, "r")[: CIFAR_LABELS * CIFAR_RECORD : CIFAR_RECORD] < 10).all())


def is_leveldb(folder: Path) -> bool:
    """Whether CURRENT names a manifest that is there."""
    with contextlib.suppress(OSError, ValueError):
        named = (folder / "CURRENT").read_bytes()[:100].strip()
        return named.startswith(b"MANIFEST-") and (folder / os.fsdecode(named)).is_file()
    return False
