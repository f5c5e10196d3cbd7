"""Files that are no images."""

import io
import struct
import zlib

import numpy
from PIL import Image

NOISE = numpy.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=numpy.uint8)


def encoded(kind: str, image=None, **options) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(NOISE)).save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(*chunks: bytes) -> bytes:
    """A good image with more chunks behind its header."""
    good = encoded("PNG")
    return good[:33] + b"".join(chunks) + good[33:]


def png_header(width: int, height: int) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def flipped(name: bytes, offset: int) -> bytes:
    """A PNG with one bit of one chunk flipped: its checksum no longer fits."""
    data = bytearray(encoded("PNG"))
    data[data.index(name) + offset] ^= 1
    return bytes(data)


BAD = {
    "empty file": ("bad.png", b"", "empty file"),
    "HTML as JPEG": ("bad.jpg", b"<html>not found</html>", "not an image, despite its name"),
    "text as PNG": ("bad.png", b"some text", "not an image, despite its name"),
    "zip as PNG": ("bad.png", b"PK\x03\x04" + bytes(60), "not an image, despite its name"),
    "PostScript as PNG": (
        "bad.png",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "not an image, despite its name",
    ),
    "SVG": ("bad.svg", b"<svg/>", "vector graphics, not pixels: export it as PNG"),
    "EPS": ("bad.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n", "vector graphics, not pixels: export it as PNG"),
    "zip": ("bad.zip", b"PK\x03\x04", "not an image"),
    "truncated JPEG": ("bad.jpg", encoded("JPEG")[:3000], "truncated"),
    "truncated PNG": ("bad.png", encoded("PNG")[:9000], "truncated"),
    "truncated GIF": ("bad.gif", b"GIF89a", "not an image"),
    "bad CRC of the header": ("bad.png", flipped(b"IHDR", 17), "not an image, despite its name"),
    "bad CRC of the pixels": ("bad.png", flipped(b"IDAT", 20), "broken data stream"),
    "bomb of pixels": ("bad.png", png_header(30_000, 30_000), "more pixels than the limit of 89,478,485"),
    "bomb just over": ("bad.png", png_header(10_000, 9_000), "10000 x 9000 pixels is more than the limit"),
    "bomb of text": (
        "bad.png",
        png_with(chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**8), 9))),
        "too large",
    ),
    "bomb of a profile": (
        "bad.png",
        png_with(chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(10**8), 9))),
        "too large",
    ),
    "1 x 1": (
        "bad.png",
        encoded("PNG", Image.new("RGB", (1, 1))),
        "1 x 1 pixels is too small: each side must be at least 16",
    ),
    "1 x 60000": ("bad.png", encoded("PNG", Image.new("RGB", (1, 60_000))), "1 x 60000 pixels is too narrow"),
    "float TIFF": ("bad.tif", encoded("TIFF", Image.new("F", (64, 64), 0.5)), "floating-point numbers"),
    "32-bit TIFF": ("bad.tif", encoded("TIFF", Image.new("I", (64, 64), 10**6)), "32-bit numbers"),
    "stray text": ("notes.txt", b"buy milk", "no image named notes"),
    "stray JSON": ("notes.json", b"{}", "no image named notes"),
    "caption of cut UTF-16": ("good.txt", b"\xff\xfe\x00", "its caption good.txt is not UTF-8 text"),
    "caption of bytes": ("good.txt", b"\x81\x8d\x01", "its caption good.txt is not UTF-8 text, nor UTF-16"),
    "caption of 10 MB": ("good.txt", b"a" * 10**7, "its caption good.txt is longer than 65,536 bytes"),
    "caption with NUL": ("good.txt", b"a\0b", "holds a NUL character"),
    "caption of broken JSON": ("good.json", b"{", "its caption good.json is not JSON"),
    "caption of deep JSON": ("good.json", b"[" * 60_000, "its caption good.json is not JSON"),
    "caption of other JSON": ("good.json", b'{"title": "x"}', 'with "caption", "text" or "tags"'),
    "caption of a number": ("good.json", b'{"caption": 5}', "is a number, not text"),
    "tags of numbers": ("good.json", b'{"caption": "a", "tags": [1]}', "is a list, not text"),
    "JPEG XL": ("bad.jxl", b"\xff\x0a", "JPEG XL, which is not supported: convert it to PNG or JPEG"),
    "JPEG XL as PNG": ("bad.png", b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL, which is not supported"),
    "raw photo": ("bad.CR2", b"II*\0", "a raw photo: export it as JPEG or PNG"),
}
