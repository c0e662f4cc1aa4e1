"""What of a JPEG file takes far more time than its bytes: scans, each of which goes over all pixels, and Exif data in
many segments.
"""

import re

from contract.picture_header import MOST_PIECES, CorruptPictureError, too_many_pieces

MOST_SCANS = 100
"""Ten bytes make an empty one, which takes libjpeg 10 ms of 50 megapixels. Encoders make 20 or so; libtiff's limit is
this one.
"""
MOST_EXIF_SEGMENTS = 16
"""The most of them, of 64 KiB each. The standard has one; Pillow copies all before for each, and decodes what they say
of the resolution.
"""

_SCAN, _EXIF = b"\xff\xda", b"Exif\0\0"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # not within a scan's data
_END = b"\xff\xd9"
_WITHOUT_LENGTH = (b"\xff\x01", b"\xff\xd8", _END)


def check_jpeg(data: bytes) -> None:
    """Raise CorruptPictureError if the first picture of a file has too many scans or segments of Exif data."""
    if data.count(_SCAN) <= MOST_SCANS and data.count(_EXIF) <= MOST_EXIF_SEGMENTS:
        return  # whatever they are: previews have scans of their own, and a film may follow the picture
    scans = exif = position = 0
    for _ in range(MOST_PIECES):
        found = _MARKER.search(data, position)
        if not found or (found[0] == _END and scans):
            return
        position = found.end()
        if found[0] in _WITHOUT_LENGTH:
            continue
        scans += found[0] == _SCAN
        exif += found[0] == b"\xff\xe1" and data.startswith(_EXIF, position + 2)
        if scans > MOST_SCANS:
            raise CorruptPictureError(f"the JPEG file has more than {MOST_SCANS} scans")
        if exif > MOST_EXIF_SEGMENTS:
            raise CorruptPictureError(f"the JPEG file has more than {MOST_EXIF_SEGMENTS} segments of Exif data")
        position += int.from_bytes(data[position : position + 2])
    raise too_many_pieces("JPEG", "segments")
