"""Encoded pictures of every colour mode and format become the pixels that a person sees, or a clear refusal."""

import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from contract.picture import open_picture, read_header
from contract.picture_header import PictureLimits
from contract.picture_pixels import to_pixels
from tests.contract.pictures import encode, glyph, noise, png_chunk

FORMATS = {"PNG": "PNG", "JPEG": "JPEG", "WEBP": "WebP", "TIFF": "TIFF", "BMP": "BMP", "GIF": "GIF"}
LOSSLESS = {"PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}, "BMP": {}}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_and_named(name: str) -> None:
    picture = open_picture(encode(glyph(), name))
    assert (picture.format, picture.width, picture.height, picture.frames) == (FORMATS[name], 28, 28, 1)
    assert not picture.orientation_applied
    grey = picture.pixels if picture.pixels.ndim == 2 else picture.pixels.mean(axis=2)
    assert np.abs(grey.astype(float) - glyph()).mean() < 6  # JPEG is not exact


@pytest.mark.parametrize("name", LOSSLESS)
def test_colour_is_exact_where_the_format_is(name: str) -> None:
    pixels = noise(13, 17, 3)
    np.testing.assert_array_equal(open_picture(encode(pixels, name, **LOSSLESS[name])).pixels, pixels)


def test_one_bit() -> None:
    for name in ("PNG", "TIFF", "BMP"):
        data = encode(Image.fromarray(glyph()).convert("1"), name)
        np.testing.assert_array_equal(open_picture(data).pixels, glyph())


def test_sixteen_bits_keep_their_range() -> None:
    deep = (np.arange(28 * 28, dtype=np.uint16) * 83).reshape(28, 28)
    for name in ("PNG", "TIFF"):
        pixels = open_picture(encode(deep, name)).pixels
        assert pixels.dtype == np.uint8
        assert np.abs(pixels - deep / 257.0).max() <= 0.51


def tiff(samples: npt.NDArray[Any], *tags: tuple[int, int], bits: int = 0) -> bytes:
    """A file of samples of one channel that is not compressed; of 12 bits, where `bits` says so."""
    height, width = samples.shape
    data = samples.tobytes()
    if bits == 12:
        data = b"".join((int(a) << 12 | int(b)).to_bytes(3) for a, b in samples.reshape(-1, 2))
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    entries = {256: width, 257: height, 258: bits or 8 * samples.itemsize, 259: 1, 262: 1, 273: 8, 278: height}
    entries |= {279: len(data), 339: kind} | dict(tags)
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, entries[tag]) for tag in sorted(entries))
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(entries)) + directory + bytes(4)
    )


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
@pytest.mark.parametrize(("top", "brightest"), [(4095, 255), (4096, 16), (65535, 255)])
def test_twelve_bits_in_sixteen_are_as_bright_as_sixteen(name: str, top: int, brightest: int) -> None:
    samples = (glyph().astype(np.uint32) * top // 255).astype(np.uint16)
    picture = read_header(encode(samples, name)).decode(keep_original=True)
    assert picture.pixels.max() == brightest and picture.original is not None
    np.testing.assert_array_equal(picture.original.samples, samples)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_tiff_whose_zero_is_white_is_no_negative(kind: type) -> None:
    most = 1 if kind is np.float32 else np.iinfo(kind).max
    samples = (glyph() / 255 * most).astype(kind)
    picture = read_header(tiff(most - samples, (262, 0))).decode(keep_original=True)
    np.testing.assert_array_equal(picture.pixels, glyph())
    assert picture.original is not None
    np.testing.assert_array_equal(picture.original.samples, samples if kind is np.uint16 else glyph())


@pytest.mark.parametrize("orientation", [1, 6])
def test_twelve_bits_keep_their_range_turned_or_not(orientation: int) -> None:
    data = tiff(glyph().astype(np.uint32) * 4095 // 255, (274, orientation), bits=12)
    for apply_exif in (True, False):
        picture = read_header(data).decode(apply_exif=apply_exif, keep_original=True)
        assert picture.original is not None
        assert (picture.pixels.max(), picture.original.samples.max()) == (255, 65535)
        turned = np.rot90(glyph(), -1) if apply_exif and orientation == 6 else glyph()
        np.testing.assert_array_equal(picture.pixels, turned)


def test_thirty_two_bits_without_a_sign() -> None:
    samples = glyph().astype(np.uint32) * (0xFFFFFFFF // 255)
    np.testing.assert_array_equal(open_picture(tiff(samples)).pixels, glyph())


@pytest.mark.parametrize("side", [28, 700])
@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_samples_with_a_sign(kind: type, side: int) -> None:
    """Below zero is darker than zero: the range that is used is stretched; without negatives it stands for itself."""
    facts = np.iinfo(kind)
    picture = read_header(tiff(np.where(glyph(side) == 255, facts.max, facts.min).astype(kind)))
    kept = picture.decode(keep_original=True)
    np.testing.assert_array_equal(kept.pixels, glyph(side))
    assert kept.original is not None and kept.original.samples is kept.pixels
    positive = tiff(np.where(glyph(side) == 255, 127, 0).astype(kind))
    np.testing.assert_array_equal(open_picture(positive).pixels, np.minimum(glyph(side), 127))


def test_a_picture_of_no_file_has_signed_integers() -> None:
    """As Pillow has them."""
    samples = np.where(glyph() == 255, 7, -7).astype(np.int32)
    np.testing.assert_array_equal(to_pixels(Image.fromarray(samples)), glyph())


@pytest.mark.parametrize("top", [1.0, 255.0, 65535.0, 4e9])
def test_floating_point_tiff_is_taken_at_the_range_it_shows(top: float) -> None:
    values = (glyph() / 255 * top).astype(np.float32)
    np.testing.assert_array_equal(open_picture(encode(values, "TIFF")).pixels, glyph())


def test_values_that_are_not_finite_become_black() -> None:
    values = (glyph() / 255).astype(np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf
    np.testing.assert_array_equal(open_picture(encode(values, "TIFF")).pixels, glyph())


def test_cmyk() -> None:
    colours = np.zeros((20, 20, 3), np.uint8)
    colours[:, 10:] = (255, 0, 0)
    for name, tolerance in (("JPEG", 6), ("TIFF", 0)):
        pixels = open_picture(encode(Image.fromarray(colours).convert("CMYK"), name, quality=100)).pixels
        assert pixels.shape == (20, 20, 3)
        assert np.abs(pixels[:, :8].astype(int) - colours[:, :8]).max() <= tolerance
        assert np.abs(pixels[:, 12:].astype(int) - colours[:, 12:]).max() <= tolerance


def test_lab() -> None:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.new("RGB", (9, 9), (200, 60, 40)), *profiles, outputMode="LAB")
    pixels = open_picture(encode(lab, "TIFF")).pixels
    assert np.abs(pixels.astype(int) - (200, 60, 40)).max() < 12


def ink_over_nothing(ink: int) -> Image.Image:
    """A glyph of brightness `ink`, transparent elsewhere; the hidden colour is the ink's own."""
    return Image.merge("LA", (Image.new("L", (28, 28), ink), Image.fromarray(glyph())))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (60, 255), (255, 0), (200, 0)])
def test_transparent_ink_comes_on_the_paper_that_shows_it(mode: str, ink: int, paper: int) -> None:
    pixels = open_picture(encode(ink_over_nothing(ink).convert(mode))).pixels
    assert (pixels[glyph() == 255] == ink).all()
    assert (pixels[glyph() == 0] == paper).all()


@pytest.mark.parametrize(("ink", "paper"), [(0, 255), (255, 0), (30, 225)])
def test_holes_in_a_page_are_filled_with_its_own_paper(ink: int, paper: int) -> None:
    page = np.full((40, 40), paper, np.uint8)
    page[6:34, 6:34][glyph() == 255] = ink
    alpha = np.full((40, 40), 255, np.uint8)
    alpha[:3, :3] = alpha[-3:, -3:] = 0
    picture = Image.merge("LA", (Image.fromarray(page), Image.fromarray(alpha)))
    np.testing.assert_array_equal(open_picture(encode(picture)).pixels, np.stack([page] * 3, axis=2))


def test_wholly_transparent_is_a_blank_page() -> None:
    assert (open_picture(encode(Image.new("RGBA", (9, 9), (10, 20, 30, 0)))).pixels == 255).all()


@pytest.mark.parametrize("name", ["PNG", "GIF"])
def test_palette_with_a_transparent_colour(name: str) -> None:
    picture = Image.new("P", (28, 28))
    picture.putpalette([0, 200, 0, 20, 20, 20])
    picture.paste(1, mask=Image.fromarray(glyph()))
    pixels = open_picture(encode(picture, name, transparency=0)).pixels
    assert (pixels[glyph() == 255] == 20).all()
    assert (pixels[glyph() == 0] == 255).all()


def test_palette_without_transparency_keeps_its_colours() -> None:
    picture = Image.new("P", (28, 28))
    picture.putpalette([0, 200, 0, 20, 20, 20])
    assert (open_picture(encode(picture)).pixels == (0, 200, 0)).all()


def test_grey_png_with_a_transparent_shade() -> None:
    data = encode(Image.fromarray(255 - glyph()), transparency=255)
    pixels = open_picture(data).pixels
    assert (pixels[glyph() == 255] == 0).all()
    assert (pixels[glyph() == 0] == 255).all()


@pytest.mark.parametrize("side", [28, 700])
def test_grey_png_of_16_bits_with_a_transparent_shade(side: int) -> None:
    deep = np.where(glyph(side) == 255, np.uint16(1000), np.uint16(60_000))
    for shade, paper in ((60_000, 255), (60_001, 233)):
        data = encode(deep, "PNG")
        data = data[:33] + png_chunk(b"tRNS", struct.pack(">H", shade)) + data[33:]
        picture = read_header(data).decode(keep_original=True)
        assert (picture.pixels[glyph(side) == 255] == 4).all()
        assert (picture.pixels[glyph(side) == 0] == paper).all()
        assert picture.original is not None
        kept = np.dstack([np.where(deep == 1000, 4, 233), glyph(side)]) if shade == 60_000 else deep
        np.testing.assert_array_equal(picture.original.samples, kept)


TURNS = {  # stored pixels from upright ones, for each EXIF orientation
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: a.T[::-1],
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: a.T[:, ::-1],
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_or_left(name: str, orientation: int) -> None:
    upright = glyph(56)[:42]
    stored = np.ascontiguousarray(TURNS[orientation](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, name, exif=exif, **{"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(name, {}))
    for apply_exif, expected in ((True, upright), (False, stored)):
        picture = open_picture(data, apply_exif=apply_exif)
        assert (picture.height, picture.width) == expected.shape
        assert picture.orientation_applied == (apply_exif and orientation != 1)
        grey = picture.pixels if picture.pixels.ndim == 2 else picture.pixels[..., 0]
        assert np.abs(grey.astype(int) - expected).mean() < 4


def tags(**values: Any) -> Image.Exif:
    exif = Image.Exif()
    names = {"across": 0x011A, "down": 0x011B, "unit": 0x0128, "orientation": 0x0112, "maker": 0x010F}
    for name, value in values.items():
        exif[names[name]] = value
    return exif


@pytest.mark.parametrize(
    ("name", "options", "dpi"),
    [
        ("TIFF", {}, None),
        ("TIFF", {"dpi": (200, 100)}, (200, 100)),
        ("TIFF", {"tiffinfo": {282: 118.0, 283: 59.0, 296: 3}}, (299.72, 149.86)),
        ("TIFF", {"tiffinfo": {282: 4.0, 283: 3.0, 296: 1}}, None),
        ("TIFF", {"tiffinfo": {274: 6}, "dpi": (200, 100)}, (100, 200)),
        ("JPEG", {}, None),
        ("JPEG", {"dpi": (200, 100)}, (200, 100)),
        ("JPEG", {"exif": tags(maker="x")}, None),
        ("JPEG", {"exif": tags(across=0.0)}, None),
        ("JPEG", {"exif": tags(across=150.0, down=75.0, unit=2)}, (150, 75)),
        ("JPEG", {"exif": tags(across=150.0)}, (150, 150)),
        *(("JPEG", {"exif": tags(orientation=turn), "dpi": (200, 100)}, (200, 100)) for turn in (1, 2, 3, 4)),
        *(("JPEG", {"exif": tags(orientation=turn), "dpi": (200, 100)}, (100, 200)) for turn in (5, 6, 7, 8)),
        ("PNG", {"exif": tags(orientation=6), "dpi": (200, 100)}, (100, 200)),
        ("BMP", {"dpi": (200, 100)}, (200, 100)),
    ],
)
def test_the_resolution_is_what_the_file_says_as_the_picture_is_seen(
    name: str, options: dict[str, Any], dpi: tuple[float, float] | None
) -> None:
    original = read_header(encode(noise(8, 12, 3), name, **options)).decode(keep_original=True).original
    assert original is not None and original.dpi == (dpi and pytest.approx(dpi, abs=0.02))


@pytest.mark.parametrize("name", ["JPEG", "TIFF"])
def test_a_picture_left_as_it_is_stored_keeps_its_resolution_so(name: str) -> None:
    file = encode(noise(8, 12, 3), name, exif=tags(orientation=6), dpi=(200, 100))
    original = read_header(file).decode(apply_exif=False, keep_original=True).original
    assert original is not None and original.dpi == (200, 100)


def test_orientation_in_a_text_of_a_png() -> None:
    """XMP, which is not compressed."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    assert open_picture(encode(glyph(), pnginfo=text)).orientation_applied


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0garbage" * 9, b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 99]
)
@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_and_colour_profiles_are_no_obstacle(name: str, exif: bytes) -> None:
    options = {"lossless": True} if name == "WEBP" else {"quality": 100} if name == "JPEG" else {}
    picture = open_picture(encode(glyph(), name, exif=exif, icc_profile=b"not a profile" * 5, **options))
    grey = picture.pixels if picture.pixels.ndim == 2 else picture.pixels[..., 0]
    assert np.abs(grey.astype(int) - glyph()).mean() < 4
    assert not picture.orientation_applied


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_picture_is_taken_and_all_are_counted(name: str) -> None:
    frames = [Image.fromarray(np.full((20, 24), level, np.uint8)).convert("RGB") for level in (250, 120, 10)]
    data = encode(frames[0], name, save_all=True, append_images=frames[1:])
    picture = open_picture(data)
    assert picture.frames == 3
    assert np.abs(picture.pixels.astype(int) - 250).max() <= 2


def test_a_header_tells_size_and_cost_before_decoding() -> None:
    shapes: list[tuple[tuple[int, ...], int]] = [((300, 200), 3), ((300, 200, 3), 10), ((300, 200, 4), 10)]
    for shape, cost in shapes:
        for name in ("PNG", "TIFF"):
            header = read_header(encode(noise(*shape), name))
            assert (header.height, header.width) == shape[:2]
            assert header.decoded_bytes == cost * 300 * 200


_MEASURE = """
import os, sys
from pathlib import Path
from contract.manifest import InputSpec, Preprocessing
from contract.picture import read_header
from contract.preprocess import prepare

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))

def work(name):
    header = read_header(Path(name).read_bytes())
    pixels = header.decode().pixels
    prepare(pixels, InputSpec(channels=1, height=8, width=8), Preprocessing(polarity="light", fit="box"))
    return header

for small, large in zip(sys.argv[1::2], sys.argv[2::2]):
    if os.fork() == 0:  # nothing that another picture has left behind
        work(small)  # what is imported and allocated once
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        header = work(large)
        print(memory("VmHWM") - before, header.decoded_bytes, flush=True)
        os._exit(0)
    os.wait()
"""
_KINDS = [
    *(("PNG", mode) for mode in ("L", "RGB", "RGBA", "LA", "P", "I;16")),
    *[("JPEG", "CMYK"), ("TIFF", "F"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("WEBP", "RGBA")],
]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read as Linux tells it")
def test_the_cost_told_by_the_header_is_what_is_really_held(tmp_path: Path) -> None:
    def write(name: str, mode: str, side: int) -> str:
        grey = np.full((side, side), 240, np.uint8)
        grey[side // 4 : side // 2, side // 3 : side // 2] = 20
        picture = (
            Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
        )
        if "A" in mode:
            alpha = np.full((side, side), 255, np.uint8)
            alpha[-side // 5 :] = 0
            picture.putalpha(Image.fromarray(alpha))
        path = tmp_path / f"{name}-{mode}-{side}"
        options = {"WEBP": {"lossless": True, "method": 0}, "JPEG": {"progressive": True, "subsampling": 0}}
        picture.save(path, name, **options.get(name, {}))
        return str(path)

    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", _MEASURE, *(write(*kind, side) for kind in _KINDS for side in (50, 2500))]
    done = subprocess.run(
        command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, check=True, text=True
    )
    measured = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(measured) == len(_KINDS), done.stderr
    for kind, (held, told) in zip(_KINDS, measured, strict=True):
        assert held <= told + 8 * 2**20, kind  # strips, and what the allocator rounds up


def test_no_setting_of_the_process_is_touched() -> None:
    before = (Image.MAX_IMAGE_PIXELS, Image.preinit is None)
    open_picture(encode(noise(30, 30, 3), "JPEG"), limits=PictureLimits(pixels=900))
    assert (Image.MAX_IMAGE_PIXELS, Image.preinit is None) == before
