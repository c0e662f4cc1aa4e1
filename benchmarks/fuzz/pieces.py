"""Damage to bytes, and to files as the pieces that their format is made of.

A format splits a file into pieces and joins them again, its lengths and checksums set right: so damage inside a piece
reaches the decoder behind them. Everything is drawn from the `Random` that is given.
"""

import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import NamedTuple

_EDGES = (0, 1, 2, 3, 4, 7, 8, 9, 16, 31, 32, 127, 128, 255, 256, 4095, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31)
_MOST_BYTES = 200_000  # damage that copies makes no file longer than this much longer


class Format(NamedTuple):
    split: Callable[[bytes], list[bytes]]
    join: Callable[[list[bytes]], bytes]


def integer(random: Random, size: int) -> bytes:
    """An integer of `size` bytes, of either order, that programs count wrong at: an edge or its neighbour."""
    value = random.choice(_EDGES) + random.choice((-1, 0, 0, 1))
    return (value % 2 ** (8 * size)).to_bytes(size, random.choice(("little", "big")))


def scramble(random: Random, data: bytes) -> bytes:
    """One to six changes anywhere."""
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3, 6))):
        at = random.randrange(len(changed) + 1)
        end = min(len(changed), at + random.choice((1, 2, 4, 8, 64, 1024)))
        match random.randrange(8):
            case 0 if at < len(changed):
                changed[at] ^= 1 << random.randrange(8)
            case 1:
                number = integer(random, random.choice((1, 2, 4)))
                changed[at : at + len(number)] = number
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = random.randbytes(end - at)
            case 4 if len(changed) < len(data) + _MOST_BYTES:
                changed[at:at] = changed[at:end] * random.choice((1, 2, 100))
            case 5:
                changed[at:end] = bytes(end - at)
            case 6:
                changed[at:end] = random.randbytes(end - at)
            case 7 if random.random() < 0.3:
                del changed[at:]
    return bytes(changed)


def rearrange(random: Random, pieces: list[bytes], others: list[bytes]) -> list[bytes]:
    """One to four changes to the list: pieces changed, left out, repeated, swapped, or taken from `others`."""
    pieces = list(pieces)
    for _ in range(random.choice((1, 1, 2, 4))):
        if not pieces:
            break
        at = random.randrange(len(pieces))
        piece = pieces[at]
        match random.randrange(8):
            case 0:
                del pieces[at]
            case 1:
                pieces[at:at] = [piece] * random.choice((1, 2, 50))
            case 2:
                other = random.randrange(len(pieces))
                pieces[at], pieces[other] = pieces[other], piece
            case 3 if others:
                pieces.insert(at, random.choice(others))
            case 4 | 5 if len(piece) <= 8:
                pieces[at] = integer(random, len(piece)) if piece else b"\0"
            case 4 | 5:
                place = random.randrange(len(piece) - 4)
                number = integer(random, random.choice((1, 2, 4)))
                pieces[at] = piece[:place] + number + piece[place + len(number) :]
            case _:
                pieces[at] = scramble(random, piece)
    return pieces


def damage(random: Random, form: Format, data: bytes, other: bytes) -> bytes:
    """A file of the format, damaged in its pieces (mostly) or anywhere; `other` is one to take pieces from."""
    if random.random() < 0.7:
        data = form.join(rearrange(random, form.split(data), form.split(other)))
    return scramble(random, data) if random.random() < 0.4 else data


def _split_png(data: bytes) -> list[bytes]:
    """Kind and data of each chunk; the pixels' not compressed."""
    pieces, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, content = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        pieces.append(kind + (zlib.decompress(content) if kind == b"IDAT" else content))
        at += 12 + size
    return pieces


def _join_png(pieces: list[bytes]) -> bytes:
    chunks = [b"\x89PNG\r\n\x1a\n"]
    for piece in pieces:
        kind, content = piece[:4], piece[4:]
        if kind in (b"IDAT", b"fdAT"):
            content = zlib.compress(content, 1)
        chunks.append(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content)))
    return b"".join(chunks)


def _split_jpeg(data: bytes) -> list[bytes]:
    """Marker and content of each segment, without its length; a scan with its header as it is."""
    pieces, at = [], 0
    while at + 2 <= len(data):
        marker = data[at : at + 2]
        if marker in (b"\xff\xd8", b"\xff\xd9"):
            pieces.append(marker)
            at += 2
            continue
        (size,) = struct.unpack_from(">H", data, at + 2)
        if marker != b"\xff\xda":
            pieces.append(marker + data[at + 4 : at + 2 + size])
            at += 2 + size
            continue
        end = at + 2 + size
        while end + 1 < len(data) and (data[end] != 0xFF or data[end + 1] == 0 or 0xD0 <= data[end + 1] <= 0xD7):
            end += 1
        pieces.append(data[at:end])
        at = end
    return pieces


def _join_jpeg(pieces: list[bytes]) -> bytes:
    whole = (b"\xff\xd8", b"\xff\xd9", b"\xff\xda")
    return b"".join(
        piece if piece[:2] in whole else piece[:2] + struct.pack(">H", min(65535, len(piece))) + piece[2:]
        for piece in pieces
    )


def _split_webp(data: bytes) -> list[bytes]:
    pieces, at = [], 12
    while at + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        pieces.append(data[at : at + 4] + data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return pieces


def _join_webp(pieces: list[bytes]) -> bytes:
    chunks = b"".join(
        piece[:4] + struct.pack("<I", len(piece[4:])) + piece[4:] + b"\0" * (len(piece) % 2) for piece in pieces
    )
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WEBP" + chunks


def _split_gif(data: bytes) -> list[bytes]:
    """The header's fields, the palette, and every block."""
    pieces = _cut(data, (6, 2, 2, 1, 1, 1))
    at = 13
    if data[10] & 0x80:
        pieces.append(data[at : at + 3 * 2 ** ((data[10] & 7) + 1)])
        at += len(pieces[-1])
    while at < len(data) and data[at] in (0x21, 0x2C):
        start = at
        if data[at] == 0x21:
            at += 2
        else:
            pieces += _cut(data[at:], (1, 2, 2, 2, 2, 1))
            at += 10 + (3 * 2 ** ((data[at + 9] & 7) + 1) if data[at + 9] & 0x80 else 0)
            pieces.append(data[start + 10 : at + 1])
            at += 1
            start = at
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
        pieces.append(data[start:at])
    return [*pieces, data[at:]]


def _split_tiff(data: bytes) -> list[bytes]:
    """The header, and each field of the entries of its first directory apart from what lies around it; offsets stay."""
    order = "<" if data[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    after = directory + 2 + 12 * count
    pieces = [*_cut(data, (2, 2, 4)), data[8:directory], data[directory : directory + 2]]
    for entry in range(directory + 2, after, 12):
        pieces += _cut(data[entry:], (2, 2, 4, 4))
    return [*pieces, data[after:]]


def _split_bmp(data: bytes) -> list[bytes]:
    sizes = (2, 4, 4, 4, 4, 4, 4, 2, 2, 4, 4, 4, 4, 4, 4)
    return [*_cut(data, sizes), data[sum(sizes) :]]


def _cut(data: bytes, sizes: tuple[int, ...]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return pieces


FORMATS = {
    "PNG": Format(_split_png, _join_png),
    "JPEG": Format(_split_jpeg, _join_jpeg),
    "WEBP": Format(_split_webp, _join_webp),
    "TIFF": Format(_split_tiff, b"".join),
    "BMP": Format(_split_bmp, b"".join),
    "GIF": Format(_split_gif, b"".join),
}
LINES = Format(lambda data: data.splitlines(keepends=True), b"".join)
