"""How many pictures a GIF or TIFF file holds, counted in its skeleton with a bound on the work; and of how many pieces
the first one of a TIFF file is, and of how large ones.

Pillow's own count decodes the tags of every page and compares each with all before it, which a hostile file makes
quadratic; only the first picture is ever decoded here, so the skeleton is enough.
"""

import struct

from PIL.TiffImagePlugin import TiffImageFile

from contract.picture_header import MOST_PIECES, CorruptPictureError, PictureTooLargeError, too_many_pieces

_TIFF_OFFSETS = (273, 324)  # the tags with the places of the strips and of the tiles
_TIFF_TILE = (322, 323)  # its width and length
_TIFF_INTEGERS = (3, 4)
_TIFF_BYTES = (1, 2, 6, 7)  # types whose values are bytes
_MOST_NUMBERS = 4 * MOST_PIECES  # of a tag, which Pillow makes objects of; a transfer function has 3 * 65,536
_MOST_TILE_PIXELS = 1 << 22  # of a tile that is larger than its picture: libtiff decodes all of it
_GIF_BLOCKS_PER_FRAME = 64  # besides the blocks that are full, which the file's size bounds


def gif_frames(data: bytes, limit: int) -> int:
    """Number of image descriptors in a GIF file (GIF89a, section 20); PictureTooLargeError above `limit`."""
    frames = 0
    short_blocks = limit * _GIF_BLOCKS_PER_FRAME
    try:
        position = 13 + _colour_table_bytes(data[10])
        while position < len(data):
            introducer = data[position]
            if introducer == 0x2C:
                frames += 1
                if frames > limit:
                    raise _too_many(limit)
                position += 11 + _colour_table_bytes(data[position + 9])
            elif introducer == 0x21:
                position += 2
            else:  # the trailer, or garbage after the last frame
                break
            while length := data[position]:
                position += 1 + length
                if length < 255:
                    short_blocks -= 1
                    if short_blocks < 0:
                        raise _too_many(limit)
            position += 1
    except IndexError:  # cut short: the frames seen so far count, the decoder says whether the first one is whole
        pass
    return max(frames, 1)


def _colour_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def tiff_frames(data: bytes, limit: int) -> int:
    """Number of image file directories in a TIFF or BigTIFF file; PictureTooLargeError above `limit`.

    CorruptPictureError where the first one has too many strips or tiles.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    count, tag, link = (struct.Struct(order + fields) for fields in (("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")))
    seen: set[int] = set()
    try:
        (offset,) = link.unpack_from(data, 8 if big else 4)
        while offset and offset not in seen:
            seen.add(offset)
            if len(seen) > limit:
                raise _too_many(limit)
            (entries,) = count.unpack_from(data, offset)
            if len(seen) == 1:
                _check_pieces(data, offset + count.size, entries, tag)
            (offset,) = link.unpack_from(data, offset + count.size + tag.size * entries)
    except struct.error as error:
        if not seen:
            raise CorruptPictureError("the TIFF header is cut short or damaged") from error
    return max(len(seen), 1)


def _check_pieces(data: bytes, position: int, entries: int, entry: struct.Struct) -> None:
    """Of the directory whose entries begin at `position`."""
    if entries > MOST_PIECES:
        raise too_many_pieces("TIFF", "tags")
    for number in range(entries):
        tag, kind, values, _ = entry.unpack_from(data, position + number * entry.size)
        if tag in _TIFF_OFFSETS and values > MOST_PIECES:
            raise too_many_pieces("TIFF", "strips or tiles")
        if kind not in _TIFF_BYTES and values > _MOST_NUMBERS:
            raise CorruptPictureError(f"a tag of the TIFF file has more than {_MOST_NUMBERS:,} numbers")
        if tag in _TIFF_TILE and (kind not in _TIFF_INTEGERS or values != 1):
            raise CorruptPictureError("the TIFF file does not say the size of its tiles as one whole number")


def check_tile(image: TiffImageFile, pixels: int) -> None:
    """Raise CorruptPictureError if a tile is far larger than the picture of so many `pixels`."""
    width, length = (image.tag_v2.get(tag, 1) for tag in _TIFF_TILE)
    if width * length > max(pixels, _MOST_TILE_PIXELS):
        raise CorruptPictureError(f"a tile of the TIFF file, {width} x {length}, is far larger than its picture")


def _too_many(limit: int) -> PictureTooLargeError:
    return PictureTooLargeError(f"the file holds more than {limit:,} pictures")
