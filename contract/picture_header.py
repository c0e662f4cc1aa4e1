"""What can be said of an encoded picture before a pixel of it is decoded: its format, its size, whether it is refused.

A format is known by its first bytes, never by a declared type. The size of WebP is read here, because opening such a
picture already allocates its canvas.
"""

import struct
from dataclasses import dataclass

MOST_PIECES = 65_536
"""The most chunks, segments, strips or tiles in a file. Each takes Pillow microseconds of Python, however few bytes it
has: 64 MiB of empty ones would take a minute, and of tiles of one pixel ten and 20 GiB. Real files have thousands at
most.
"""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
FORMATS = ("PNG", "JPEG", "WebP", "TIFF", "BMP", "GIF")
_SUPPORTED = "send PNG, JPEG, WebP, TIFF, BMP or GIF"
_FTYP_HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_FTYP_AVIF = (b"avif", b"avis")


class PictureError(Exception):
    """An encoded picture that is refused; the message is one sentence for the person who sent it."""


class EmptyPictureError(PictureError):
    """No bytes at all."""


class NotAPictureError(PictureError):
    """The bytes do not begin as any known picture: text, or noise."""


class UnsupportedPictureError(PictureError):
    """A picture or document in a format that is not read; the message says which, and what to send instead."""


class CorruptPictureError(PictureError):
    """The bytes begin as a picture of a known format and cannot be decoded to its end."""


class TooManyBytesError(PictureError):
    """Longer, encoded, than the limits allow."""


class PictureTooLargeError(PictureError):
    """More pixels or frames than the limits allow."""


class PictureTooSmallError(PictureError):
    """A side shorter than the limits allow."""


class PictureTooNarrowError(PictureError):
    """A side that is too many times the other."""


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """What is accepted; every limit but `frames` is checked before decoding.

    bytes: encoded size. pixels: width times height. smallest_side: in pixels. aspect: the longer side over the shorter.
    frames: of an animation or a paged file (counting them costs time in proportion).
    """

    bytes: int = 64 * 1024 * 1024
    pixels: int = 50_000_000
    smallest_side: int = 4
    aspect: float = 100.0
    frames: int = 10_000

    def check_bytes(self, size: int) -> None:
        """Raise if an encoded picture of `size` bytes is not accepted."""
        if size > self.bytes:
            raise TooManyBytesError(f"the picture has {size:,} bytes, the limit is {self.bytes:,}")

    def check_size(self, width: int, height: int) -> None:
        """Raise if a picture of `width` x `height` pixels is not accepted."""
        shorter, longer = (width, height) if width < height else (height, width)
        if shorter < self.smallest_side:
            raise PictureTooSmallError(
                f"the picture is {width} x {height} pixels, each side needs at least {self.smallest_side}"
            )
        if width * height > self.pixels:
            raise PictureTooLargeError(
                f"the picture is {width} x {height} = {width * height:,} pixels, the limit is {self.pixels:,}"
            )
        if longer > self.aspect * shorter:
            raise PictureTooNarrowError(
                f"the picture is {width} x {height} pixels, the longer side may be {self.aspect:g} times the shorter"
            )


def sniff(data: bytes) -> str:
    """The format of `data` by its first bytes, one of FORMATS; or one of the errors above."""
    if data.startswith(PNG_SIGNATURE):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"BM") and len(data) >= 18 and data[15:18] == b"\0\0\0":
        return "BMP"
    if not data:
        raise EmptyPictureError(f"the picture is empty: {_SUPPORTED}")
    raise _refusal(data)


def too_many_pieces(name: str, pieces: str) -> CorruptPictureError:
    """What to raise past MOST_PIECES."""
    return CorruptPictureError(f"the {name} file is crumbled into more than {MOST_PIECES:,} {pieces}")


def _refusal(data: bytes) -> PictureError:
    head = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    brand = data[8:12] if data[4:8] == b"ftyp" else b""
    if brand in _FTYP_HEIC:
        advice = "HEIC is not read: send JPEG (an iPhone takes it with Settings > Camera > Formats > Most Compatible)"
    elif brand in _FTYP_AVIF:
        advice = f"AVIF is not read: {_SUPPORTED}"
    elif data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        advice = f"JPEG XL is not read: {_SUPPORTED}"
    elif data.startswith((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")):
        advice = f"JPEG 2000 is not read: {_SUPPORTED}"
    elif data.startswith(b"%PDF"):
        advice = f"this is a PDF document: render the page and {_SUPPORTED}"
    elif b"<svg" in head:
        advice = f"SVG is a drawing without pixels: render it and {_SUPPORTED}"
    elif data.startswith(b"8BPS"):
        advice = f"Photoshop documents are not read: {_SUPPORTED}"
    elif data.startswith(b"\0\0\1\0"):
        advice = f"icons are not read: {_SUPPORTED}"
    elif _is_text(data[:512]):
        return NotAPictureError(f"the bytes are text, not a picture: {_SUPPORTED}")
    else:
        return NotAPictureError(f"the bytes are not a picture of a known format: {_SUPPORTED}")
    return UnsupportedPictureError(advice)


def _is_text(head: bytes) -> bool:
    try:
        text = head[:500].decode("utf-8", errors="strict" if len(head) < 500 else "ignore")
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n" for character in text)


def webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas of a WebP file (RFC 9649, section 2), without touching a decoder.

    Raises:
        CorruptPictureError: it has none.
    """
    chunk, body = data[12:16], data[20:30]
    if len(body) == 10:
        if chunk == b"VP8X":
            return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
        if chunk == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
            width, height = struct.unpack("<HH", body[6:10])
            return width & 0x3FFF, height & 0x3FFF
        if chunk == b"VP8L" and body[0] == 0x2F:
            bits = int.from_bytes(body[1:5], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    raise CorruptPictureError("the WebP header is cut short or damaged")
