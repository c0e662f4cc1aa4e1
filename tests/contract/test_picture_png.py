"""The short way for plain PNG files against Pillow's own reader: the same pixels, the same refusals."""

import random
import struct
import zlib
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from contract.picture import EncodedPicture, read_header
from contract.picture_header import CorruptPictureError, PictureError, PictureLimits
from contract.picture_png import PlainPng, check_png_data, png_header, write_plain_png
from tests.contract.pictures import encode, noise
from tests.contract.pictures import png_chunk as chunk

ANY_SIZE = PictureLimits(smallest_side=1, aspect=1000)
CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
# What a PNG file may hold beside its pixels: of no effect here, of another length, or with a bearing on the picture.
ANCILLARY = [
    (b"gAMA", struct.pack(">I", 45455)),
    (b"cHRM", bytes(range(32))),
    (b"sRGB", b"\0"),
    (b"tIME", b"\x07\xea\1\2\3\4\5"),
    (b"gAMA", b"ab"),
    (b"tEXt", b"Software\0none"),
    (b"pHYs", struct.pack(">IIB", 3000, 3000, 1)),
    (b"bKGD", b"\0\1"),
    (b"tRNS", b"\0\5"),
    (b"sBIT", b"\5"),
]


def ihdr(width: int, height: int, depth: int, colour: int, *, interlacing: int = 0) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlacing)
    )


def ancillary(chance: random.Random) -> bytes:
    made = chunk(*chance.choice(ANCILLARY))
    return made[:-1] + bytes([made[-1] ^ 1]) if chance.random() < 0.1 else made


def rows(chance: random.Random, width: int, height: int, channels: int) -> bytes:
    """Filtered rows, some of them too few, too many, or of a filter that there is not."""
    generator = np.random.default_rng(chance.randrange(1 << 32))
    samples = generator.integers(0, 256 if chance.random() < 0.7 else 2, (height, width, channels), np.uint8)
    if channels in (2, 4) and chance.random() < 0.5:
        samples[..., -1] = 255
    filters = generator.integers(0, 5, height) if chance.random() < 0.6 else np.zeros(height, np.uint8)
    if chance.random() < 0.05:
        filters[chance.randrange(height)] = 5
    lines = np.concatenate([filters[:, None].astype(np.uint8), samples.reshape(height, -1)], axis=1).tobytes()
    kind = chance.random()
    return lines[: chance.randrange(len(lines))] if kind < 0.1 else lines + bytes(300) if kind < 0.2 else lines


def compressed(chance: random.Random, lines: bytes) -> bytes:
    """A zlib stream, some of them cut, damaged or followed by something."""
    packer = zlib.compressobj(
        chance.choice([0, 1, 6, 9]), 8, chance.choice([9, 12, 15]), 9, chance.choice([0, 2, 3, 4])
    )
    stream = bytearray(packer.compress(lines) + packer.flush())
    kind = chance.random()
    if kind < 0.08:
        return bytes(stream[: chance.randrange(len(stream))])
    if kind < 0.16:
        return bytes(stream) + b"and more of it"
    if kind < 0.26:
        stream[chance.randrange(len(stream))] ^= 1 << chance.randrange(8)
    return bytes(stream)


def made(seed: int) -> bytes:
    """A file that is whole and plain, or that has something odd about it."""
    chance = random.Random(seed)
    colour = chance.choice(list(CHANNELS))
    width, height = chance.randint(1, 30), chance.randint(1, 30)
    stream = compressed(chance, rows(chance, width, height, CHANNELS[colour]))
    data = ihdr(width, height, 8, colour)
    data += b"".join(ancillary(chance) for _ in range(chance.choice([0, 0, 0, 1, 2])))
    cuts = sorted(chance.randint(0, len(stream)) for _ in range(chance.choice([0, 0, 1, 4])))
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        data += ancillary(chance) if start and chance.random() < 0.05 else b""
        data += chunk(b"IDAT", stream[start:stop])
    data += ancillary(chance) if chance.random() < 0.15 else b""
    data += chunk(b"IEND", b"") + (b"more" if chance.random() < 0.1 else b"")
    return data[: chance.randint(30, len(data))] if chance.random() < 0.05 else data


def outcome(encoded: EncodedPicture) -> tuple[object, ...]:
    try:
        picture = encoded.decode(keep_original=True)
    except CorruptPictureError:
        return ("refused",)
    original = picture.original
    assert original is not None
    pixels = (picture.pixels.shape, picture.pixels.tobytes(), picture.frames, picture.orientation_applied)
    return *pixels, original.samples.shape, original.samples.tobytes(), original.icc_profile, original.dpi


def by_pillow(data: bytes) -> tuple[object, ...]:
    try:
        image = PngImageFile(BytesIO(data))
    except Exception:
        return ("refused",)
    return outcome(EncodedPicture("PNG", *image.size, getattr(image, "n_frames", 1), 0, image))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_short_way_and_pillows_reader_agree() -> None:
    seen: Counter[str] = Counter()
    for seed in range(2500):
        data = made(seed)
        try:
            encoded = read_header(data, limits=ANY_SIZE)
        except PictureError:
            seen["refused by its chunks"] += 1
            continue
        if not isinstance(encoded.source, PlainPng):
            seen["not plain"] += 1
            continue
        result = outcome(encoded)
        assert result == by_pillow(data), f"seed {seed}"
        seen["refused" if result == ("refused",) else f"read, {encoded.source.mode}"] += 1
    assert min(seen[kind] for kind in ("refused", "read, L", "read, LA", "read, RGB", "read, RGBA")) > 100, seen


@pytest.mark.parametrize("options", [{}, {"compress_level": 0}, {"compress_level": 9}, {"optimize": True}])
@pytest.mark.parametrize("shape", [(28, 28), (5, 300), (300, 7), (28, 28, 3), (90, 110, 3), (350, 300), (28, 28, 4)])
def test_what_pillow_writes_is_plain(shape: tuple[int, ...], options: dict[str, object]) -> None:
    """Pixels that bring out every filter, in one chunk and in several."""
    ramp = np.add.outer(np.arange(shape[0]) * 3, np.arange(shape[1]) * 2)
    smooth = np.broadcast_to(ramp.reshape(*ramp.shape, *([1] * (len(shape) - 2))), shape) % 256
    for pixels in (noise(*shape), smooth.astype(np.uint8), np.zeros(shape, np.uint8)):
        data = encode(pixels, **options)
        encoded = read_header(data)
        assert isinstance(encoded.source, PlainPng)
        assert outcome(encoded) == by_pillow(data)
        original = encoded.decode(keep_original=True).original
        assert original is not None
        np.testing.assert_array_equal(original.samples, pixels)


@pytest.mark.parametrize(("depth", "colour", "interlacing"), [(1, 0, 0), (16, 0, 0), (8, 0, 1), (16, 2, 0), (8, 2, 1)])
def test_other_depths_and_interlacing_are_not_plain(depth: int, colour: int, interlacing: int) -> None:
    data = ihdr(8, 8, depth, colour, interlacing=interlacing) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    assert not isinstance(read_header(data + chunk(b"IEND", b"")).source, PlainPng)


@pytest.mark.parametrize("options", [{"dpi": (300, 300)}, {"exif": b"Exif\0\0"}, {"icc_profile": b"x"}])
def test_what_is_kept_beside_the_pixels_is_not_plain(options: dict[str, object]) -> None:
    assert not isinstance(read_header(encode(noise(8, 8), **options)).source, PlainPng)
    palette = Image.fromarray(noise(8, 8)).convert("P")
    assert not isinstance(read_header(encode(palette)).source, PlainPng)


def test_pixels_cannot_be_written_to() -> None:
    for shape in ((8, 8), (8, 8, 3)):
        assert not read_header(encode(noise(*shape))).decode().pixels.flags.writeable


@pytest.mark.parametrize("shape", [(1, 1), (28, 28), (5, 300), (28, 28, 2), (13, 7, 3), (32, 32, 4)])
def test_what_is_written_plain_is_read_again_by_both_readers(shape: tuple[int, ...]) -> None:
    samples = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    file = write_plain_png(samples[::-1])  # the memory of which is in no order that a file has
    picture = Image.open(BytesIO(file))
    assert picture.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[shape[2] if len(shape) == 3 else 1]
    np.testing.assert_array_equal(np.asarray(picture), samples[::-1])
    plain = check_png_data(file, png_header(file))
    assert isinstance(plain, PlainPng)
    np.testing.assert_array_equal(plain.decode(shape[1], shape[0])[1], samples[::-1])
