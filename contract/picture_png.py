"""PNG files: what is said of one before a pixel is decoded, and the short way to the pixels of plain ones and back.

Pillow's own reader takes every kind of PNG, and for a small picture its Python costs more than the pixels do. A plain
file (grey or RGB of 8 bits, with transparency or without, not interlaced, and no chunk that bears on what is made of
it) goes straight to the same decoder in C: one decoder, one truth. Whatever is odd about a file makes it not plain,
and Pillow's reader decides.
"""

import struct
import zlib
from io import BytesIO
from typing import NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image, _imaging

from contract.picture_header import MOST_PIECES, PNG_SIGNATURE, CorruptPictureError, too_many_pieces
from contract.picture_pixels import Pixels, to_pixels

_IHDR = struct.Struct(">IIBBBBB")
_MODES = {0: "L", 2: "RGB", 4: "LA", 6: "RGBA"}  # by the colour type
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # the colour type by the number of channels
# What Pillow reads and nothing here asks for, with the length that is right.
_WITHOUT_EFFECT = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"tIME": 7}
_COMPRESSED = (b"zTXt", b"iTXt", b"iCCP")
MOST_PROFILE = 1 << 20
"""Bytes of a colour profile: readers of PNG take no larger one, Pillow's among them."""
_MOST_INFLATED = 16  # times a profile's compressed length: real ones take three, and zlib could make a thousand
# zlib's compressor with the least memory: a quarter of a MiB takes longer to get than a small picture to write.
_STORED = 0, zlib.DEFLATED, 10, 1


class PngHeader(NamedTuple):
    """The IHDR chunk (PNG, third edition, section 11.2.1)."""

    width: int
    height: int
    depth: int
    colour: int
    compression: int
    filtering: int
    interlacing: int

    @property
    def plain_mode(self) -> str:
        """Pillow's mode of a plain file; empty where the header says that it is none."""
        odd = self.depth != 8 or self.compression or self.filtering or self.interlacing
        return "" if odd else _MODES.get(self.colour, "")


class PlainPng(NamedTuple):
    """The compressed pixels of a plain file, a piece a chunk. mode: Pillow's."""

    mode: str
    pieces: list[memoryview]

    def decode(self, width: int, height: int) -> tuple[Pixels, Pixels]:
        """The pixels (see `picture_pixels.to_pixels`), and the samples as they are in the file: uint8, both read-only.

        Raises:
            ValueError: the data ends early, or is none.
        """
        samples = self._decompress(width, height)
        return samples if self.mode in ("L", "RGB") else to_pixels(Image.fromarray(samples)), samples

    def _decompress(self, width: int, height: int) -> Pixels:
        """As `ImageFile.load` and `np.asarray` do it."""
        image = _imaging.new(self.mode, (width, height))
        decoder = _imaging.zip_decoder(self.mode, self.mode, 0)
        decoder.setimage(image, (0, 0, width, height))
        rest: bytes | memoryview = b""
        for piece in self.pieces:
            rest = b"".join((rest, piece)) if rest else piece
            used, error = decoder.decode(rest)
            if used < 0:  # it wants no more
                break
            rest = rest[used:]
        else:
            raise ValueError("the pixels end early")
        if error:
            raise ValueError("the pixels cannot be decompressed")
        encoder = _imaging.raw_encoder(self.mode, self.mode)
        encoder.setimage(image, (0, 0, width, height))
        _, _, samples = encoder.encode(width * height * len(self.mode))
        shape = (height, width) if self.mode == "L" else (height, width, len(self.mode))
        return np.frombuffer(samples, np.uint8).reshape(shape)


class OddPng(NamedTuple):
    """A file for Pillow's reader, without its compressed texts, in which no orientation is looked for, and its colour
    profiles: Pillow would inflate each of them, which takes 5 ms from 1 KiB to 1 MiB.

    pieces: of the file. packed_profile: compressed; empty where there is none.
    """

    pieces: list[bytes | memoryview]
    packed_profile: memoryview

    def file(self) -> BytesIO:
        """What Pillow is to read."""
        return BytesIO(b"".join(self.pieces))

    def profile(self) -> bytes | None:
        """The colour profile, if it is whole and not too long."""
        reader, most = zlib.decompressobj(), min(_MOST_INFLATED * len(self.packed_profile), MOST_PROFILE)
        try:
            data = reader.decompress(self.packed_profile, most + 1)
        except zlib.error:
            return None
        return data if reader.eof and len(data) <= most else None


def png_header(data: bytes) -> PngHeader:
    """The header of a PNG file; CorruptPictureError where it is damaged."""
    if data[8:16] != b"\0\0\0\x0dIHDR" or len(data) < 33 or crc32(data[12:29]) != int.from_bytes(data[29:33]):
        raise CorruptPictureError("the PNG header is cut short or damaged")
    return PngHeader._make(_IHDR.unpack_from(data, 16))


def check_png_data(data: bytes, header: PngHeader) -> PlainPng | OddPng:
    """Raise CorruptPictureError if a chunk of pixels is cut short or fails its checksum, or if there are too many
    chunks: Pillow does not look.

    The answer is the pixels of a plain file, and of any other what Pillow's reader is to see.
    """
    view = memoryview(data)
    pieces: list[memoryview] = []
    seen: list[bytes | memoryview] = []
    profile = view[:0]
    mode, position, after, start = header.plain_mode, 33, False, 0
    for _ in range(MOST_PIECES):
        if position + 8 > len(data):
            raise CorruptPictureError("the PNG file is cut short: it has no end")
        end = position + 8 + int.from_bytes(data[position : position + 4])
        kind = data[position + 4 : position + 8]
        if kind == b"IEND":
            if mode and pieces:
                return PlainPng(mode, pieces)
            return OddPng([*seen, view[start:]] if start else [data], profile)
        holds = crc32(view[position + 4 : end]) == int.from_bytes(data[end : end + 4])
        if kind == b"IDAT":
            if not holds:
                raise CorruptPictureError(
                    "the PNG file is cut short or damaged: a checksum of its pixels does not hold"
                )
            if after:  # not one after the other
                mode = ""
            if end > position + 8:
                pieces.append(view[position + 8 : end])
        else:
            after = bool(pieces)
            if kind in _COMPRESSED:
                named = data.find(b"\0", position + 8, end) + 1
                if kind != b"iTXt" or data[named : named + 1] != b"\0":  # which may be as it is
                    seen.append(view[start:position])
                    start = end + 4
                if kind == b"iCCP" and not pieces:  # one after the pixels is none
                    profile = view[named + 1 : end]
            if not holds or _WITHOUT_EFFECT.get(kind) != end - position - 8:
                mode = ""
        position = end + 4
    raise too_many_pieces("PNG", "chunks")


def write_plain_png(samples: Pixels) -> bytes:
    """A plain file of uint8 [H,W] or [H,W,C], C from 1 to 4, not compressed: to compress a picture of 28 x 28 pixels
    saves a third of a KiB, and takes ten times as long as all the rest.
    """
    height, width = samples.shape[:2]
    rows = np.zeros((height, 1 + samples.size // height), np.uint8)  # each begins with its filter: none
    rows[:, 1:] = samples.reshape(height, -1)
    compress = zlib.compressobj(*_STORED)
    pixels = compress.compress(rows.tobytes()) + compress.flush()
    header = _IHDR.pack(width, height, 8, _COLOURS[samples.shape[2] if samples.ndim == 3 else 1], 0, 0, 0)
    return PNG_SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return b"%b%b%b%b" % (len(data).to_bytes(4), kind, data, crc32(data, crc32(kind)).to_bytes(4))
