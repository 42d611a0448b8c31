"""Image files of every odd flavour, written by Pillow, OpenCV or by hand; the same bytes on every run.

`write_odd_images(folder)` writes them all and returns their paths by name. The groups say what is expected of each:
CAFFE_READS (OpenCV 4.6's imread gives pixels), NEWER (only newer OpenCV reads them), BAD (nobody should), HUGE (small
files whose header announces 60,000 x 60,000 pixels).
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

HEIGHT, WIDTH = 45, 70  # of every picture here unless its name says otherwise
SIDE = 60_000  # announced by the files in HUGE
END = b"\xff\xd9"  # JPEG end-of-image marker


def picture(height: int = HEIGHT, width: int = WIDTH, channels: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    """A smooth coloured picture with some grain, another in each channel; one channel has no axis of its own."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (7 + 3 * c) + c) + np.cos(y / (5 + 2 * c)) for c in range(channels)]
    grain = np.random.default_rng(7).normal(0, 0.08, (height, width, channels))
    unit = np.clip((np.stack(waves, -1) + 2) / 4 + grain, 0, 1)
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    return np.squeeze((unit * top).astype(dtype), -1) if channels == 1 else (unit * top).astype(dtype)


def pillow(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    """The picture (RGB unless another is given) as Pillow writes it."""
    file = io.BytesIO()
    (image or Image.fromarray(picture())).save(file, kind, **options)
    return file.getvalue()


def opencv(extension: str, image: np.ndarray) -> bytes:
    """The picture as OpenCV writes it."""
    return cv2.imencode(extension, image)[1].tobytes()


def exif(orientation: int, thumbnail: bytes = b"") -> bytes:
    """An APP1 payload that holds an orientation (1 to 8) and, where given, a JPEG thumbnail."""
    tags = [(0x0112, 3, 1, struct.pack("<HH", orientation, 0))]
    first = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHI", *tag[:3]) + tag[3] for tag in tags)
    second_at = 8 + len(first) + 4
    if not thumbnail:
        return b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + struct.pack("<I", 0)
    data_at = second_at + 2 + 12 * 2 + 4
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, data_at, 0x0202, 4, 1, len(thumbnail), 0)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + struct.pack("<I", second_at) + second + thumbnail


def with_app1(jpeg: bytes, payload: bytes) -> bytes:
    """A JPEG with one more APP1 segment in front."""
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def chunk(name: bytes, data: bytes) -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge_jpeg(side: int = SIDE) -> bytes:
    """A whole small JPEG whose frame header says side x side."""
    small = bytearray(pillow("JPEG"))
    at = small.index(b"\xff\xc0")
    small[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(small)


def huge_png(side: int = SIDE) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def huge_bmp(side: int = SIDE) -> bytes:
    return (
        b"BM"
        + struct.pack("<IHHI", 1054, 0, 0, 54)
        + struct.pack("<IiiHH6I", 40, side, side, 1, 24, *[0] * 6)
        + bytes(1000)
    )


def huge_gif(side: int = SIDE) -> bytes:
    small = bytearray(pillow("GIF"))
    small[6:10] = struct.pack("<HH", side, side)
    return bytes(small)


def huge_tiff(side: int = SIDE) -> bytes:
    tags = [
        (256, 4, side),
        (257, 4, side),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 200),
        (278, 4, side),
        (279, 4, 99),
    ]
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(4)).ljust(400, b"\0")


def huge_webp(side: int = 16_383) -> bytes:
    """A plain WebP holds 14 bits a side: its largest picture has 268 million pixels."""
    bits = (side - 1) | (side - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + bytes(100)
    body = b"WEBPVP8L" + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def huge_webp_extended(side: int = SIDE) -> bytes:
    """The extended form announces a canvas of up to 24 bits a side."""
    canvas = struct.pack("<I", side - 1)[:3] * 2
    data = b"\x2f" + struct.pack("<I", 99 | 99 << 14) + bytes(100)
    body = (
        b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + canvas + b"VP8L" + struct.pack("<I", len(data)) + data + b"\0"
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def huge_jp2(side: int = SIDE) -> bytes:
    """A JPEG 2000 codestream's first marker segment (SIZ) and nothing behind it."""
    siz = struct.pack(">HIIIIIIIIH", 0, side, side, 0, 0, side, side, 0, 0, 3) + b"\x07\x01\x01" * 3
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(siz) + 2) + siz + b"\xff\x52" + bytes(100)


def animation() -> list[Image.Image]:
    """Two frames that differ."""
    return [Image.fromarray(picture()), Image.fromarray(255 - picture())]


def jpegs() -> dict[str, bytes]:
    """Whole JPEG files."""
    rgb = Image.fromarray(picture())
    plain = pillow("JPEG", quality=90)
    files = {
        "plain.jpg": plain,
        "grey.jpg": pillow("JPEG", rgb.convert("L")),
        "cmyk.jpg": pillow("JPEG", Image.fromarray(picture(channels=4), "CMYK")),
        "rgb_inside.jpg": pillow("JPEG", keep_rgb=True),
        "progressive.jpg": pillow("JPEG", quality=90, progressive=True),
        "full_chroma.jpg": pillow("JPEG", subsampling=0),
        "half_chroma.jpg": pillow("JPEG", subsampling=1),
        "restarts.jpg": pillow("JPEG", restart_marker_blocks=2),
        "one_pixel.jpg": pillow("JPEG", Image.fromarray(picture(1, 1))),
        "thin.jpg": pillow("JPEG", Image.fromarray(picture(1, 300))),
        "trailing_garbage.jpg": plain + b"<html>not a part of the picture</html>" * 9,
        "trailing_zeros.jpg": plain + bytes(5000),
        "two_in_one.jpg": plain + pillow("JPEG", Image.fromarray(255 - picture())),
        "thumbnail.jpg": with_app1(plain, exif(1, pillow("JPEG", rgb.resize((16, 10))))),
        "exif_broken.jpg": with_app1(plain, exif(6)[:11] + b"\xff" * 40),
        "exif_orientation_99.jpg": with_app1(plain, exif(99)),
    }
    return files | {f"orientation_{n}.jpg": with_app1(plain, exif(n)) for n in range(1, 9)}


def broken_jpegs() -> dict[str, bytes]:
    """JPEG files that lost something: imread still gives pixels for them."""
    plain, progressive = pillow("JPEG", quality=90), pillow("JPEG", quality=90, progressive=True)
    return {
        "truncated.jpg": plain[: len(plain) * 2 // 3],
        "truncated_progressive.jpg": progressive[: len(progressive) // 2],
        "truncated_thumbnail.jpg": with_app1(plain, exif(1, plain))[: -len(plain) // 3],
        "no_end.jpg": plain[:-2],
    }


def pngs() -> dict[str, bytes]:
    rgb, grey = Image.fromarray(picture()), Image.fromarray(picture(channels=1))
    palette = rgb.quantize(17)
    plain = pillow("PNG")
    return {
        "plain.png": plain,
        "grey.png": pillow("PNG", grey),
        "alpha.png": pillow("PNG", Image.fromarray(picture(channels=4))),
        "grey_alpha.png": pillow("PNG", Image.merge("LA", (grey, grey.rotate(180)))),
        "palette.png": pillow("PNG", palette),
        "palette_transparent.png": pillow("PNG", palette, transparency=3),
        "grey_transparent.png": pillow("PNG", grey, transparency=100),
        "one_bit.png": pillow("PNG", rgb.convert("1")),
        "sixteen_bit.png": opencv(".png", picture(dtype=np.uint16)),
        "sixteen_bit_grey.png": opencv(".png", picture(channels=1, dtype=np.uint16)),
        "sixteen_bit_alpha.png": opencv(".png", picture(channels=4, dtype=np.uint16)),
        "interlaced.png": interlaced_png(),
        "orientation_6.png": plain[:33] + chunk(b"eXIf", exif(6)[6:]) + plain[33:],
        "gamma.png": plain[:33] + chunk(b"gAMA", struct.pack(">I", 100_000)) + plain[33:],
        "trailing_garbage.png": plain + b"garbage" * 50,
        "animated.png": pillow("PNG", animation()[0], save_all=True, append_images=animation()[1:]),
    }


def interlaced_png() -> bytes:
    """Adam7: seven small pictures in one stream, each row with filter byte 0."""
    pixels = picture()
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")


def tiffs() -> dict[str, bytes]:
    rgb = Image.fromarray(picture())
    return {
        "plain.tif": pillow("TIFF"),
        "lzw.tif": pillow("TIFF", compression="tiff_lzw"),
        "deflate.tif": pillow("TIFF", compression="tiff_adobe_deflate"),
        "jpeg_inside.tif": pillow("TIFF", compression="jpeg"),
        "grey.tif": pillow("TIFF", rgb.convert("L")),
        "one_bit.tif": pillow("TIFF", rgb.convert("1")),
        "palette.tif": pillow("TIFF", rgb.quantize(17)),
        "alpha.tif": pillow("TIFF", Image.fromarray(picture(channels=4))),
        "sixteen_bit.tif": opencv(".tif", picture(dtype=np.uint16)),
        "sixteen_bit_grey.tif": opencv(".tif", picture(channels=1, dtype=np.uint16)),
        "big_endian.tif": pillow("TIFF", big_tiff=False, tiffinfo={274: 1}),
        "orientation_6.tif": pillow("TIFF", tiffinfo={274: 6}),
        "two_pages.tif": pillow("TIFF", animation()[0], save_all=True, append_images=animation()[1:]),
    }


def others() -> dict[str, bytes]:
    """BMP, WebP, JPEG 2000, the portable maps, Sun raster, Radiance and what else OpenCV 4.6 reads."""
    rgb, grey = Image.fromarray(picture()), Image.fromarray(picture(channels=1))
    bgr = picture()
    return {
        "plain.bmp": pillow("BMP"),
        "palette.bmp": pillow("BMP", rgb.quantize(17)),
        "one_bit.bmp": pillow("BMP", rgb.convert("1")),
        "alpha.bmp": pillow("BMP", Image.fromarray(picture(channels=4))),
        "upside_down.bmp": upside_down(pillow("BMP")),
        "plain.dib": pillow("BMP"),
        "plain.webp": pillow("WEBP"),
        "lossless.webp": pillow("WEBP", lossless=True),
        "alpha.webp": pillow("WEBP", Image.fromarray(picture(channels=4)), lossless=True, exact=True),
        "orientation_6.webp": pillow("WEBP", exif=exif(6)),
        "plain.jp2": pillow("JPEG2000"),
        "grey.jp2": pillow("JPEG2000", grey),
        "codestream.j2k": pillow("JPEG2000", no_jp2=True),
        "plain.ppm": pillow("PPM"),
        "plain.pgm": pillow("PPM", grey),
        "plain.pbm": pillow("PPM", rgb.convert("1")),
        "sixteen_bit.ppm": opencv(".ppm", picture(dtype=np.uint16)),
        "text.ppm": b"P3\n# a comment\n2 1\n255\n1 2 3 250 251 252\n",
        "plain.pam": opencv(".pam", bgr),
        "plain.ras": opencv(".ras", bgr),
        "plain.sr": opencv(".sr", bgr),
        "plain.hdr": opencv(".hdr", picture(dtype=np.float32)),
        "plain.pic": opencv(".pic", picture(dtype=np.float32)),
        "plain.pfm": opencv(".pfm", picture(dtype=np.float32)),
    }


def upside_down(bmp: bytes) -> bytes:
    """A BMP whose negative height says that its first row is the top one."""
    return bmp[:22] + struct.pack("<i", -HEIGHT) + bmp[26:]


def newer() -> dict[str, bytes]:
    """Formats that came into OpenCV after 4.6."""
    frames = animation()
    return {
        "plain.gif": pillow("GIF"),
        "animated.gif": pillow("GIF", frames[0], save_all=True, append_images=frames[1:]),
        "animated.webp": pillow("WEBP", frames[0], save_all=True, append_images=frames[1:]),
        "plain.avif": pillow("AVIF"),
    }


def bad() -> dict[str, bytes]:
    """Files that hold no picture, or none that can be read."""
    plain, png = pillow("JPEG"), pillow("PNG")
    progressive = pillow("JPEG", quality=90, progressive=True)
    return {
        "empty.jpg": b"",
        "one_byte.jpg": b"\xff",
        "zeros.jpg": bytes(3000),
        "text.jpg": b"a line of text that somebody named .jpg\n" * 20,
        "page.jpg": b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>gone</body></html>\n",
        "json.jpg": b'{"error": "quota exceeded"}',
        "header_only.jpg": plain[: plain.index(b"\xff\xda")],
        "truncated_in_a_table.jpg": progressive[: progressive.rindex(b"\xff\xc4") + 12],
        "truncated.png": png[: len(png) * 2 // 3],
        "truncated_animation.png": pngs()["animated.png"][: len(png) * 3 // 2],
        "start_only.jpg": plain[:2],
        "signature_only.png": png[:8],
        "picture.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "picture.pdf": pillow("PDF"),
        "picture.ico": pillow("ICO"),
        "picture.jxl": bytes.fromhex("0000000c4a584c200d0a870a") + bytes(60),
        "codestream.jxl": bytes.fromhex("ff0a") + bytes(60),
        "picture.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200),
        "no_pixels.png": b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0))
        + chunk(b"IEND", b""),
    }


def huge() -> dict[str, bytes]:
    """Files of at most a few kB that announce a gigantic picture."""
    return {
        "huge.jpg": huge_jpeg(),
        "huge.png": huge_png(),
        "huge.bmp": huge_bmp(),
        "huge.gif": huge_gif(),
        "huge.tif": huge_tiff(),
        "huge.webp": huge_webp(),
        "huge_extended.webp": huge_webp_extended(),
        "huge.j2k": huge_jp2(),
        "huge.ppm": b"P6\n60000 60000\n255\n" + bytes(1000),
        "huge.pam": b"P7\nWIDTH 60000\nHEIGHT 60000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" + bytes(1000),
        "huge.ras": struct.pack(">8I", 0x59A66A95, SIDE, SIDE, 24, 0, 1, 0, 0) + bytes(1000),
        "huge.hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 60000 +X 60000\n" + bytes(1000),
        "huge.pfm": b"PF\n60000 60000\n-1.0\n" + bytes(1000),
    }


CAFFE_READS = {**jpegs(), **broken_jpegs(), **pngs(), **tiffs(), **others()}
TRUNCATED = frozenset(broken_jpegs())
NEWER = newer()
BAD = bad()
HUGE = huge()


def write_odd_images(folder: Path) -> dict[str, Path]:
    """Write every file above, and one folder named folder.jpg; their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in CAFFE_READS | NEWER | BAD | HUGE}
    for name, data in (CAFFE_READS | NEWER | BAD | HUGE).items():
        paths[name].write_bytes(data)
    (folder / "folder.jpg").mkdir(exist_ok=True)
    return paths | {"folder.jpg": folder / "folder.jpg"}
