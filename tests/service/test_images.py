"""Bytes to model input: every fault becomes its own problem; arrays to pictures and back."""

from io import BytesIO
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from contract import picture_header
from contract.manifest import InputSpec, Preprocessing
from contract.picture_header import PictureLimits
from service import errors, images
from service.queries import Options
from service.schemas import InputDescription
from service.settings import Settings
from tests.contract.pictures import encode, glyph, noise

LIMITS = PictureLimits(bytes=100_000, pixels=100_000, smallest_side=4)


class Model:
    """The two fields of a manifest that matter here."""

    input = InputSpec(channels=1, height=28, width=28)
    preprocessing = Preprocessing(polarity="light", fit="mass", margin=4 / 28)


def read(data: bytes, **options: Any) -> images.ModelInput:
    return images.to_input(images.accept(data, LIMITS), Model, Options(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", errors.EmptyImage),
        (b"just text", errors.NotAnImage),
        (b"\0\0\0\x18ftypheic\0\0\0\0", errors.UnsupportedImage),
        (encode(glyph())[:20], errors.CorruptImage),
        (encode(glyph(), "JPEG")[:300], errors.CorruptImage),
        (encode(np.zeros((320, 320), np.uint8)), errors.TooManyPixels),
        (encode(noise(3, 50)), errors.ImageTooSmall),
        (encode(noise(4, 401)), errors.ImageTooNarrow),
        (encode(glyph()) + bytes(100_000), errors.BodyTooLarge),
    ],
)
def test_every_fault_has_its_problem(data: bytes, problem: type[errors.Problem]) -> None:
    with pytest.raises(problem) as caught:
        read(data)
    assert caught.value.detail and type(caught.value) is problem


def test_every_kind_of_refusal_is_translated() -> None:
    kinds = {kind for kind in vars(picture_header).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert set(images._PROBLEMS) == kinds - {picture_header.PictureError}


def test_pixels_that_end_early_are_noticed_when_decoded() -> None:
    data = encode(noise(60, 60, 3), "BMP")
    accepted = images.accept(data[: len(data) // 2], LIMITS)
    with pytest.raises(errors.CorruptImage):
        images.to_input(accepted, Model, Options())  # type: ignore[arg-type]


def test_the_models_own_size_passes_unchanged_and_is_described() -> None:
    result = read(encode(glyph()))
    np.testing.assert_array_equal(result.image[0], glyph().astype(np.float32) / 255)
    assert result.description == {
        "format": "PNG",
        "width": 28,
        "height": 28,
        "orientation_applied": False,
        "frames": 1,
        "polarity": "none",
        "box": (0, 0, 28, 28),
        "has_content": True,
    }


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_the_description_is_what_the_schema_documents(name: str) -> None:
    description = InputDescription.model_validate(read(encode(255 - glyph(280), name)).description)
    assert description.format in get_args(InputDescription.model_fields["format"].annotation)
    assert description.polarity == "dark"
    assert description.box == pytest.approx((60, 60, 200, 220), abs=2)


def test_options_reach_the_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(glyph(280)[:, :200].copy(), exif=exif)
    turned, left = read(data), read(data, exif="ignore")
    assert (turned.description["width"], turned.description["height"]) == (280, 200)
    assert (left.description["width"], left.description["height"]) == (200, 280)
    assert turned.description["orientation_applied"] and not left.description["orientation_applied"]
    assert read(data, fit="image").description["box"] == (0, 0, 280, 200)
    assert read(encode(glyph()), fit="content").description["polarity"] == "light"
    np.testing.assert_allclose(
        read(encode(255 - glyph()), polarity="dark").image, read(encode(glyph())).image, atol=1e-6
    )


def test_content_that_was_asked_for_and_is_not_there() -> None:
    blank = encode(np.full((300, 300), 255, np.uint8))
    with pytest.raises(errors.NoContent):
        read(blank, fit="content")
    assert read(blank).image.max() == 0
    description = read(blank).description
    assert description["box"] == (0, 0, 300, 300) and not description["has_content"]
    assert read(blank, fit="image").description["has_content"]  # nothing was looked for


def test_limits_come_from_the_settings() -> None:
    limits = images.limits_of(Settings(max_body_bytes=5000, max_pixels=700, min_side=9))
    assert (limits.bytes, limits.pixels, limits.smallest_side) == (5000, 700, 9)


@pytest.mark.parametrize("media_type", images.PICTURE_TYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_written_and_read_again(media_type: str, channels: int) -> None:
    smooth = np.linspace(0, 1, 28 * 28, dtype=np.float32).reshape(1, 28, 28)
    image = np.concatenate([smooth, smooth[:, ::-1], smooth.transpose(0, 2, 1)])[:channels]
    file = images.write_picture(image, media_type)
    decoded = np.asarray(Image.open(BytesIO(file)).convert("L" if channels == 1 else "RGB"), np.float32) / 255
    expected = image[0] if channels == 1 else image.transpose(1, 2, 0)
    assert np.abs(decoded - expected).max() < (0.06 if media_type == "image/jpeg" else 0.51 / 255 + 1e-6)


def test_values_outside_the_range_are_clipped() -> None:
    image = np.array([[[-1.0, 0.0], [1.0, 2.0]]], np.float32)
    decoded = np.asarray(Image.open(BytesIO(images.write_picture(image))))
    np.testing.assert_array_equal(decoded, [[0, 0], [255, 255]])
