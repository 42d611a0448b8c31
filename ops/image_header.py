"""What an image file says of itself in its first bytes: its kind and its size, without decoding anything.

Every kind that OpenCV can decode is known here, so that no decoder ever meets a file whose size has not been looked at.
Sizes are (height, width) as stored, before an EXIF orientation turns the picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from struct import error as StructError  # noqa: N812
from struct import unpack_from

Size = tuple[int, int]

MANY = 100_000  # segments that a header may have at most: a file made of nothing else must not keep us
END_OF_IMAGE = 0xD9
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # not a stuffed zero, a restart or a fill byte
FAR = 1 << 16  # bytes in which the header of a text-like or boxed format has to stand
PORTABLE_FIELD = re.compile(rb"(?:\s|#[^\n\r]*[\n\r])*(\d+)")
LAST = frozenset({0xDA, END_OF_IMAGE})  # start of scan, end of image
ANIMATION = frozenset({b"acTL", b"fcTL", b"fdAT"})  # chunks of an animated PNG
# SOF0..SOF15, the frame headers, without DHT (C4), JPG (C8) and DAC (CC)
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# a stuffed zero, TEM and the restart markers: no length stands behind them
ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})


def size(encoded: bytes) -> Size | None:
    """(height, width) as the header announces them; None where there is no header that is understood."""
    try:
        if encoded[:3] == b"\xff\xd8\xff":
            return jpeg_size(encoded)
        name = kind(encoded)
        return SIZES[name](encoded) if name in SIZES else None
    except (IndexError, ValueError, OverflowError, StructError):  # the file ends inside its header
        return None


def jpeg_size(encoded: bytes) -> Size | None:
    """From the frame header; the walk from marker to marker is libjpeg's: stray bytes between segments are skipped."""
    at = 2
    for _ in range(MANY):
        if encoded[at] != 0xFF:
            at = encoded.index(0xFF, at)
        marker = encoded[at + 1]
        if marker in FRAMES:
            return (encoded[at + 5] << 8) | encoded[at + 6], (encoded[at + 7] << 8) | encoded[at + 8]
        if marker in LAST:
            return None  # no decoder goes on from here
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in ALONE:
            at += 2
        else:
            at += 2 + max((encoded[at + 2] << 8) | encoded[at + 3], 2)
    return None


def png_size(encoded: bytes) -> Size | None:
    """From IHDR, which has to come first."""
    width, height = unpack_from(">II", encoded, 16)
    return (height, width) if encoded[12:16] == b"IHDR" else None


def gif_size(encoded: bytes) -> Size:
    width, height = unpack_from("<HH", encoded, 6)
    return height, width


def bmp_size(encoded: bytes) -> Size:
    """From the information header: 16 bits a side in OS/2's 12-byte form, else 32, the height negative from the top."""
    if unpack_from("<I", encoded, 14)[0] == 12:
        width, height = unpack_from("<HH", encoded, 18)
    else:
        width, height = unpack_from("<ii", encoded, 18)
    return abs(height), abs(width)


def webp_size(encoded: bytes) -> Size | None:
    """Lossy (14 bits a side), lossless (14 bits less one) or extended (24 bits less one)."""
    form = encoded[12:16]
    if form == b"VP8 ":
        width, height = unpack_from("<HH", encoded, 26)
        return height & 0x3FFF, width & 0x3FFF
    if form == b"VP8L":
        (bits,) = unpack_from("<I", encoded, 21)
        return ((bits >> 14) & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if form == b"VP8X":
        low, high, top = unpack_from("<HHH", encoded, 24)
        return ((high >> 8) | (top << 8)) + 1, (low | (high & 0xFF) << 16) + 1
    return None


def tiff_size(encoded: bytes) -> Size | None:
    """From the first directory; BigTIFF has wider counts and offsets."""
    order = "<" if encoded[:2] == b"II" else ">"
    big = encoded[2:4] in (b"+\0", b"\0+")
    (first,) = unpack_from(order + ("Q" if big else "I"), encoded, 8 if big else 4)
    (entries,) = unpack_from(order + ("Q" if big else "H"), encoded, first)
    found: dict[int, int] = {}
    for entry in range(min(entries, 4096)):
        at = first + (8 if big else 2) + entry * (20 if big else 12)
        tag, form = unpack_from(order + "HH", encoded, at)
        if tag in (256, 257):  # ImageWidth, ImageLength: a byte, short, long or long8
            letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(form, "I")
            side = unpack_from(order + letter, encoded, at + (12 if big else 8))[0]
            found[tag] = max(side, found.get(tag, 0))
    return (found[257], found[256]) if len(found) == 2 else None


def codestream_size(encoded: bytes) -> Size | None:
    """JPEG 2000: from SIZ, the codestream's first segment: the reference grid less its offset."""
    corners = [unpack_from(">IIII", encoded, siz.end() + 4) for siz in re.finditer(rb"\xff\x4f\xff\x51", encoded)]
    return largest([(max(bottom - top, 0), max(right - left, 0)) for right, bottom, left, top in corners])


def avif_size(encoded: bytes) -> Size | None:
    """From the items' sizes ("ispe" boxes): where the picture is a grid of tiles, one of them is the whole."""
    sides = [unpack_from(">II", encoded, box.end() + 4) for box in re.finditer(rb"ispe", encoded[:FAR])]
    return largest([(height, width) for width, height in sides])


def largest(sizes: list[Size]) -> Size | None:
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def portable_size(encoded: bytes) -> Size | None:
    """PBM, PGM and PPM: two numbers behind the magic, comments between them."""
    width = PORTABLE_FIELD.match(encoded, 2, FAR)
    height = PORTABLE_FIELD.match(encoded, width.end(), FAR) if width else None
    return (number(height[1]), number(width[1])) if width and height else None


def pam_size(encoded: bytes) -> Size | None:
    """Lines of a name and a number up to ENDHDR."""
    header = encoded[:FAR].partition(b"ENDHDR")[0]
    heights, widths = (re.findall(rb"\b%s\s+(\d+)" % name, header) for name in (b"HEIGHT", b"WIDTH"))
    return (max(map(number, heights)), max(map(number, widths))) if heights and widths else None


def pfm_size(encoded: bytes) -> Size | None:
    sides = re.match(rb"P[Ff]\s+(\d+)\s+(\d+)\s", encoded[:FAR])
    return (number(sides[2]), number(sides[1])) if sides else None


def radiance_size(encoded: bytes) -> Size | None:
    """From the resolution line, which follows the first empty line."""
    sides = re.match(rb"-Y\s+(\d+)\s+\+X\s+(\d+)", encoded[:FAR].partition(b"\n\n")[2])
    return (number(sides[1]), number(sides[2])) if sides else None


def number(digits: bytes) -> int:
    return int(digits) if len(digits) <= 18 else 10**18  # more digits than any decoder's integer has


def sun_size(encoded: bytes) -> Size:
    width, height = unpack_from(">II", encoded, 4)
    return height, width


SIZES: dict[str | None, Callable[[bytes], Size | None]] = {
    "jpeg": jpeg_size,
    "png": png_size,
    "gif": gif_size,
    "bmp": bmp_size,
    "webp": webp_size,
    "tiff": tiff_size,
    "jp2": codestream_size,
    "j2k": codestream_size,
    "avif": avif_size,
    "pnm": portable_size,
    "pam": pam_size,
    "pfm": pfm_size,
    "hdr": radiance_size,
    "ras": sun_size,
}

# first bytes -> kind; those of WebP, AVIF and HEIC stand behind a length (see `kind`)
SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jp2"),
    (b"\xff\x4f\xff\x51", "j2k"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "jxl"),
    (b"\xff\x0a", "jxl"),
    (b"#?RADIANCE", "hdr"),
    (b"#?RGBE", "hdr"),
    (b"\x59\xa6\x6a\x95", "ras"),
    (b"\x76\x2f\x31\x01", "exr"),
    (b"\0\0\1\0", "ico"),
    (b"8BPS", "psd"),
    (b"%PDF-", "pdf"),
)
BRANDS = {b"avif": "avif", b"avis": "avif", b"heic": "heic", b"heix": "heic", b"mif1": "heic"}
PORTABLE = re.compile(rb"P(?:([1-6])|(7)|[Ff])\s")


def kind(encoded: bytes) -> str | None:
    """The kind of an image file by its first bytes ("jpeg", "png", ...); None for anything else."""
    for signature, name in SIGNATURES:
        if encoded.startswith(signature):
            return name
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "webp"
    if encoded[4:8] == b"ftyp":
        return BRANDS.get(encoded[8:12])
    if portable := PORTABLE.match(encoded):
        return "pnm" if portable[1] else "pam" if portable[2] else "pfm"
    return None


def still_png(encoded: bytes) -> bytes | None:
    """A PNG up to IEND, without the chunks that make it an animation; None where a chunk runs out of the file.

    imread refuses a PNG that does not reach IEND; to ask first spares a decoder that trusts a damaged length (2 GB of
    zeros). An animation's first picture is what decoders that know no animation see, as OpenCV 4.6.
    """
    at, moving = 8, []
    for _ in range(MANY):
        if at + 12 > len(encoded):
            return None
        length, name = unpack_from(">I4s", encoded, at)
        if name in ANIMATION:
            moving.append((at, at + 12 + length))
        at += 12 + length
        if name == b"IEND":
            break
    if at > len(encoded) or name != b"IEND":
        return None
    if not moving:
        return encoded
    starts, ends = [0, *(end for _, end in moving)], [*(start for start, _ in moving), at]
    return b"".join(encoded[start:end] for start, end in zip(starts, ends, strict=True))


def animated(encoded: bytes) -> bool:
    """Does a WebP announce more than one picture? Its extended header has a bit for that."""
    return encoded[12:16] == b"VP8X" and len(encoded) > 20 and bool(encoded[20] & 2)


def has_exif(encoded: bytes) -> bool:
    """Is there an EXIF block near the start of this JPEG, so that its picture may be turned on its side?"""
    return encoded.find(b"Exif\0\0", 2, 1 << 16) > 0


def ends(encoded: bytes) -> bool:
    """Does a JPEG hold its end-of-image marker where a decoder looks for it, outside segments and scans' bytes?"""
    at = 2
    for _ in range(MANY):
        found = MARKER.search(encoded, at)
        if not found or encoded[found.end() - 1] == END_OF_IMAGE:
            return found is not None
        at = found.end()
        if encoded[at - 1] not in ALONE and len(encoded) >= at + 2:
            at += max((encoded[at] << 8) | encoded[at + 1], 2)
    return encoded.rfind(b"\xff\xd9", at) >= 0
