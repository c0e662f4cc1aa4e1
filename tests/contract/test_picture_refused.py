"""What is refused, why, and at what cost: nothing hostile is decoded, and nothing damaged passes for a picture."""

import ctypes
import resource
import struct
import time
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from contract.picture import open_picture, read_header
from contract.picture_frames import gif_frames, tiff_frames
from contract.picture_header import (
    MOST_PIECES,
    CorruptPictureError,
    EmptyPictureError,
    NotAPictureError,
    PictureError,
    PictureLimits,
    PictureTooLargeError,
    PictureTooNarrowError,
    PictureTooSmallError,
    TooManyBytesError,
    UnsupportedPictureError,
    webp_size,
)
from tests.contract.pictures import encode, glyph, noise
from tests.contract.pictures import png_chunk as chunk

FORMATS = ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"]


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def resized(name: str, width: int, height: int) -> bytes:
    """A small picture whose header claims another size."""
    data = bytearray(encode(noise(16, 16, 3), name))
    if name == "PNG":
        return png(width, height, chunk(b"IDAT", zlib.compress(b"\0" * 17 * 16)))
    if name == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
        position = data.index(b"\x2c\0\0\0\0\x10\0\x10\0")
        data[position + 5 : position + 9] = struct.pack("<HH", width, height)
    elif name == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif name == "WEBP":
        data = bytearray(encode(noise(16, 16, 4), name, lossless=True, icc_profile=b"x"))
        assert data[12:16] == b"VP8X"
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    elif name == "JPEG":
        position = data.index(b"\xff\xc0")
        data[position + 5 : position + 9] = struct.pack(">HH", height, width)
    elif name == "TIFF":
        (directory,) = struct.unpack_from("<I", data, 4)
        for entry in range(struct.unpack_from("<H", data, directory)[0]):
            at = directory + 2 + 12 * entry
            tag, kind = struct.unpack_from("<HH", data, at)
            if tag in (256, 257):
                struct.pack_into("<HHII", data, at, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


def test_no_bytes() -> None:
    with pytest.raises(EmptyPictureError):
        open_picture(b"")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0heicmif1", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\n  <SVG></SVG>", "SVG"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\1\0\1\0", "icon"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
    ],
)
def test_another_format_is_named_with_the_way_out(data: bytes, said: str) -> None:
    with pytest.raises(UnsupportedPictureError, match=rf"{said}.*(send|Compatible)"):
        open_picture(data)


@pytest.mark.parametrize(
    "data", [b"hello", "für dich".encode(), b"<html>", b"{}", b"GIF", b"\x89PNG", b"BM", b"RIFF____WAVE"]
)
def test_text_and_other_bytes_are_no_picture(data: bytes) -> None:
    with pytest.raises(NotAPictureError, match="send PNG"):
        open_picture(data)


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_no_picture(seed: int) -> None:
    with pytest.raises(NotAPictureError):
        open_picture(noise(1000, seed=seed).tobytes())


@pytest.mark.parametrize("name", FORMATS)
def test_text_under_the_signature_of_a_picture(name: str) -> None:
    with pytest.raises(CorruptPictureError):
        open_picture(encode(noise(16, 16, 3), name)[:18] + b"this is not a picture at all, whatever it says" * 3)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("grey", [True, False])
def test_a_file_cut_anywhere_is_refused_or_whole(name: str, grey: bool) -> None:
    pixels = noise(24, 24) if grey else noise(24, 24, 3)
    data = encode(pixels, name)
    whole = open_picture(data).pixels
    for length in range(1, len(data), max(1, len(data) // 97)):
        try:
            picture = open_picture(data[:length])
        except PictureError as error:
            assert str(error)
        else:
            np.testing.assert_array_equal(picture.pixels, whole)
    with pytest.raises(CorruptPictureError):
        open_picture(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow remarks on and reads all the same
@pytest.mark.parametrize("name", FORMATS)
def test_damaged_bytes_end_in_a_picture_or_a_refusal(name: str) -> None:
    data = encode(noise(24, 24, 3), name)
    generator = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for position in generator.integers(0, len(data), 3):
            damaged[position] = generator.integers(0, 256)
        try:
            open_picture(bytes(damaged), limits=PictureLimits(pixels=100_000))
        except PictureError as error:
            assert str(error)
            refused += 1
    assert refused > 5


def test_a_flipped_bit_in_the_pixels_of_a_png_is_noticed() -> None:
    """Pillow checks neither the chunk's checksum nor the stream's."""
    for data in (encode(noise(28, 28)), encode(noise(28, 28), exif=b"Exif\0\0"), encode(noise(300, 300, 3))):
        start = data.index(b"IDAT") + 4
        for position in (start + 100, start + 400):
            damaged = bytearray(data)
            damaged[position] ^= 1
            with pytest.raises(CorruptPictureError):
                open_picture(bytes(damaged))


@pytest.mark.parametrize("name", FORMATS)
def test_a_bomb_is_refused_by_its_header(name: str) -> None:
    data = resized(name, 16000, 16000)
    start = time.monotonic()
    tracemalloc.start()
    with pytest.raises(PictureTooLargeError, match=r"16000 x 16000|exceeds limit"):
        read_header(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    ("kind", "options"), [(b"VP8 ", {}), (b"VP8L", {"lossless": True}), (b"VP8X", {"icc_profile": b"x"})]
)
def test_the_size_of_every_kind_of_webp_is_read_without_its_decoder(kind: bytes, options: dict[str, object]) -> None:
    data = encode(noise(37, 51, 3), "WEBP", **options)
    assert data[12:16] == kind
    assert webp_size(data) == (51, 37)


@pytest.mark.parametrize(("kind", "head"), [(b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")])
def test_bombs_beside_the_pixels_are_not_inflated(kind: bytes, head: bytes) -> None:
    """Neither those that Pillow refuses, nor those of 1 MiB, which take it 5 ms each and of which 64 KiB hold sixty."""
    for size in (50_000_000, 1 << 20):
        bombs = chunk(kind, head + zlib.compress(bytes(size), 9)) * 20
        pixels = chunk(b"IDAT", zlib.compress(b"\0" * 17 * 16))
        for data in (png(16, 16, bombs, pixels), png(16, 16, pixels, bombs)):
            tracemalloc.start()
            header = read_header(data)
            original = header.decode(keep_original=True).original
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 2_000_000 and header.profile_bytes == 0
            assert original is not None and original.icc_profile is None


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_a_picture_of_a_batch_that_waits_or_is_done_holds_no_more_than_its_file() -> None:
    """WebP's decoder has canvases of 8 bytes a pixel, which 40 bytes of a file ask for."""
    data = encode(Image.new("RGB", (2500, 2500), (9, 99, 29)), "WEBP", lossless=True, quality=0, method=0)
    before = resident_bytes()
    done = read_header(data)
    done.decode()
    end = time.monotonic() + 5
    while resident_bytes() - before >= 25_000_000:  # on a busy machine the kernel's count may lag behind
        assert time.monotonic() < end
        with suppress(AttributeError):  # what the allocator keeps for later nobody holds; only glibc can be asked
            ctypes.CDLL(None).malloc_trim(0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 17 * 16))
    texts = b"".join(chunk(b"zTXt", b"%d\0\0" % key + zlib.compress(b"\0" * 1_000_000, 9)) for key in range(8))
    for data in (png(16, 16, texts, pixels), png(16, 16, pixels, texts)):
        tracemalloc.start()
        held = read_header(data)
        held.decode()
        now = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert now < 1_000_000


def test_more_pixels_in_the_stream_than_the_header_says_do_no_harm() -> None:
    data = png(16, 16, chunk(b"IDAT", zlib.compress(b"\0" * 50_000_000, 9)))
    tracemalloc.start()
    picture = open_picture(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert picture.pixels.shape == (16, 16)
    assert peak < 1_000_000


@pytest.mark.parametrize("name", FORMATS)
def test_limits_on_the_size(name: str) -> None:
    limits = PictureLimits(pixels=3000, smallest_side=4, aspect=10)
    for width, height, error in (
        (3, 100, PictureTooSmallError),
        (100, 3, PictureTooSmallError),
        (1, 1, PictureTooSmallError),
        (60, 51, PictureTooLargeError),
        (60, 5, PictureTooNarrowError),
        (5, 60, PictureTooNarrowError),
    ):
        with pytest.raises(error, match=rf"{width} x {height}"):
            read_header(encode(noise(height, width, 3), name), limits=limits)
    for width, height in ((60, 50), (50, 5), (4, 4)):
        assert open_picture(encode(noise(height, width, 3), name), limits=limits).width == width


@pytest.mark.parametrize(("width", "height"), [(1, 100_000), (100_000, 1)])
def test_a_line_of_pixels(width: int, height: int) -> None:
    with pytest.raises(PictureTooSmallError):
        open_picture(encode(np.zeros((height, width), np.uint8)))


def test_limit_on_the_bytes() -> None:
    data = encode(glyph())
    open_picture(data, limits=PictureLimits(bytes=len(data)))
    with pytest.raises(TooManyBytesError):
        open_picture(data, limits=PictureLimits(bytes=len(data) - 1))


def gif(frames: int, blocks: int = 1) -> bytes:
    frame = b"\x2c\0\0\0\0\x08\0\x08\0\0\x02" + b"\x02\x4c\x01" * blocks + b"\0"
    return b"GIF89a\x08\0\x08\0\x80\0\0\0\0\0\xff\xff\xff" + frame * frames + b";"


def test_animations_of_thousands_of_frames_are_counted_fast() -> None:
    frames = [Image.new("L", (8, 8), level) for level in range(7)]
    for data in (encode(frames[0], "GIF", save_all=True, append_images=frames[1:]), gif(7)):
        assert gif_frames(data, 100) == 7
    start = time.monotonic()
    assert gif_frames(gif(10_000), 10_000) == 10_000
    assert time.monotonic() - start < 1
    with pytest.raises(PictureTooLargeError):
        read_header(gif(10_001))
    with pytest.raises(PictureTooLargeError):  # crumbs of one byte would make counting slow
        read_header(gif(1, blocks=2_000_000))


def tiff(pages: int) -> bytes:
    data = bytearray(encode(glyph(), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, directory)
    body = bytes(data[directory : directory + 2 + 12 * entries])
    data[4:8] = struct.pack("<I", len(data))
    for page in range(pages):
        data += body + struct.pack("<I", len(data) + len(body) + 4 if page < pages - 1 else 0)
    return bytes(data)


def test_pages_are_counted_fast_and_loops_end() -> None:
    assert open_picture(tiff(5)).frames == 5
    start = time.monotonic()
    assert tiff_frames(tiff(9_000), 10_000) == 9_000
    assert time.monotonic() - start < 1
    with pytest.raises(PictureTooLargeError):
        read_header(tiff(10_001))
    data = bytearray(tiff(3))
    data[-4:] = data[4:8]
    assert tiff_frames(bytes(data), 10_000) == 3


def crumbled_jpeg(filling: bytes) -> bytes:
    data = encode(glyph(), "JPEG")
    return data[:2] + filling * (2 * MOST_PIECES // len(filling)) + data[2:]


def crumbled_png(kind: bytes) -> bytes:
    return png(16, 16, chunk(b"IDAT", zlib.compress(b"\0" * 17 * 16)), *[chunk(kind, b"")] * MOST_PIECES)


def crumbled_tiff(tag: int, big: bool = False) -> bytes:
    """Only what its directory says of the strips or tiles, which alone is looked at."""
    if big:
        return b"MM\0+\0\x08\0\0" + struct.pack(">QQHHQQ", 16, 1, tag, 16, MOST_PIECES + 1, 0)
    return b"II*\0" + struct.pack("<IHHHII", 8, 1, tag, 1, MOST_PIECES + 1, 0)


@pytest.mark.parametrize(
    "data",
    [
        *[
            crumbled_jpeg(filling)
            for filling in (b"\xff", b"\xff\xe1\0\2", b"\xff\xfe\0\2", b"\xff\xe1\0\2" + b"-" * 60)
        ],
        *[crumbled_png(kind) for kind in (b"prVt", b"IDAT", b"tEXt")],
        *[crumbled_tiff(273), crumbled_tiff(324), crumbled_tiff(273, big=True)],
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, MOST_PIECES + 1),
    ],
    ids=["fill", "exif", "comments", "junk", "private", "pixels", "text", "strips", "tiles", "bigtiff", "tags"],
)
def test_a_file_of_crumbs_is_refused_soon(data: bytes) -> None:
    start = time.process_time()
    with pytest.raises(CorruptPictureError, match="crumbled into more than 65,536"):
        read_header(data)
    assert time.process_time() - start < 1


def repeated(data: bytes, start: bytes, end: bytes, times: int) -> bytes:
    """A JPEG whose last segment from `start` on, up to the next `end`, is there so many times more."""
    first = data.rindex(start)
    return data[:first] + data[first : data.index(end, first)] * times + data[first:]


def test_a_jpeg_has_a_bounded_number_of_scans_and_of_exif_segments() -> None:
    """Each scan takes libjpeg milliseconds a megapixel, and every segment a copy of those before it."""
    scans = encode(glyph(), "JPEG", progressive=True)
    exif = encode(glyph(), "JPEG", exif=b"Exif\0\0")
    for data, start, end, most in ((scans, b"\xff\xda", b"\xff\xd9", 80), (exif, b"\xff\xe1", b"\xff\xdb", 15)):
        assert open_picture(repeated(data, start, end, most)).width == 28
        for hidden in (b"", b"\xff\xd9"):  # an end before the beginning is none
            with pytest.raises(CorruptPictureError, match="more than"):
                read_header(data[:2] + hidden + repeated(data, start, end, most + 30)[2:])
    assert open_picture(scans + scans * 30).width == 28  # what comes after the picture does not count
    preview = repeated(scans, b"\xff\xda", b"\xff\xd9", 120)
    assert open_picture(encode(glyph(), "JPEG", exif=b"Exif\0\0" + preview)).width == 28


def directory(*entries: tuple[int, int, int, int]) -> bytes:
    """A TIFF of 16 x 16 pixels, its data the first bytes of the file, with more tags: (tag, type, count, value)."""
    size = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 4, 1, 8), (259, 4, 1, 8), (262, 4, 1, 1)]
    tags = b"".join(struct.pack("<HHII", *entry) for entry in sorted([*size, *entries]))
    pixels = zlib.compress(bytes(1 << 20))
    tags += struct.pack("<HHIIHHII", 324, 4, 1, 8, 325, 4, 1, len(pixels))
    head = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return head + pixels + struct.pack("<H", len(tags) // 12) + tags + bytes(4)


def test_a_tile_of_a_tiff_is_not_far_larger_than_its_picture() -> None:
    """libtiff holds and decodes all of it."""
    assert open_picture(directory((322, 4, 1, 1024), (323, 4, 1, 1024))).width == 16
    for tile in ([(322, 4, 1, 2049), (323, 4, 1, 2048)], [(322, 2, 1, 64), (323, 4, 1, 64)], [(322, 4, 2, 8)]):
        with pytest.raises(CorruptPictureError, match="tile"):
            read_header(directory(*tile))


def test_a_tag_of_a_tiff_has_a_bounded_number_of_values() -> None:
    """A fraction of 8 bytes becomes an object of 100, in 2 us."""
    start = time.process_time()
    with pytest.raises(CorruptPictureError, match="more than 262,144 numbers"):
        read_header(directory((282, 5, 300_000, 8)) + bytes(8 * 300_000))
    assert time.process_time() - start < 0.2
    assert read_header(directory((322, 4, 1, 64), (323, 4, 1, 64), (37724, 7, 500_000, 8)) + bytes(500_000)).width == 16


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the tags that Pillow leaves out
def test_tags_of_a_tiff_or_of_exif_data_that_share_their_bytes_are_not_held_each() -> None:
    """Pillow has a bound on them since version 13, which is why no older one will do."""
    long = directory((322, 4, 1, 64), (323, 4, 1, 64), *[(tag, 7, 100_000, 8) for tag in range(40_000, 40_400)])
    long += bytes(100_000)
    for data in (long, encode(noise(20, 20), exif=long)):
        tracemalloc.start()
        assert open_picture(data).frames == 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 5_000_000


def test_of_very_long_exif_data_the_orientation_is_not_looked_for() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for more, applied in ((1000, True), (1 << 20, False)):
        data = encode(noise(20, 20), exif=exif.tobytes() + bytes(more))
        assert open_picture(data).orientation_applied is applied


def test_many_pieces_are_no_crumbs() -> None:
    """Far more than any encoder makes."""
    jpeg = encode(glyph(), "JPEG")
    segments = (b"\xff\xe1\0\4ab" + b"\xff" * 3) * 5000
    assert open_picture(jpeg[:2] + segments + jpeg[2:]).width == 28
    pixels = zlib.compress(np.zeros((16, 17), np.uint8).tobytes())
    assert open_picture(png(16, 16, chunk(b"IDAT", pixels), *[chunk(b"prVt", b"ab")] * 5000)).width == 16
    rows = Image.fromarray(noise(2000, 40))
    np.testing.assert_array_equal(open_picture(encode(rows, "TIFF", tiffinfo={278: 1})).pixels, np.asarray(rows))


def test_a_png_may_not_claim_endless_frames() -> None:
    data = png(16, 16, chunk(b"acTL", struct.pack(">II", 2**30, 0)), chunk(b"IDAT", zlib.compress(b"\0" * 17 * 16)))
    with pytest.raises(PictureTooLargeError):
        read_header(data)


def test_ordinary_text_in_a_png_is_no_obstacle() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 5000, zip=True)
    np.testing.assert_array_equal(open_picture(encode(glyph(), pnginfo=text)).pixels, glyph())
