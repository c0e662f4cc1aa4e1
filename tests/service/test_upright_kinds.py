"""In what kind an upright picture comes back: its own, with the options asked for, in the type accepted."""

import json
import zlib
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageCms

from contract.geometry import Canvas, rotation
from contract.picture import read_header
from service import upright
from service.queries import UprightOptions
from tests.contract.pictures import png_chunk
from tests.service.tiny_pose import pointer
from tests.service.uprights import PAPER, ask, difference, encode, refused, turned, upright_of

# The picture's own kind


def kinds() -> dict[str, tuple[bytes, str, str]]:
    """By name: a file, format and mode of the upright picture."""
    grey, colour = turned(40, mode="L", ink=20, paper=240), turned(40)
    rgba = colour.copy()
    rgba.putalpha(grey.point(lambda value: 255 - value))
    grey_alpha = Image.merge("LA", [grey, grey.point(lambda value: 255 - value)])
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        "grey": (encode(grey), "PNG", "L"),
        "colour": (encode(colour), "PNG", "RGB"),
        "rgba": (encode(rgba), "PNG", "RGBA"),
        "grey with alpha": (encode(grey_alpha), "PNG", "LA"),
        "16 bits": (encode(deep), "PNG", "I;16"),
        "16 bits tiff": (encode(deep, "TIFF"), "PNG", "I;16"),
        "palette": (encode(colour.quantize(16)), "PNG", "RGB"),
        "gif": (encode(colour.quantize(16), "GIF"), "PNG", "RGB"),
        "one bit": (encode(grey.convert("1")), "PNG", "L"),
        "cmyk": (encode(colour.convert("CMYK"), "JPEG", quality=95), "JPEG", "RGB"),
        "jpeg": (encode(colour, "JPEG", quality=95), "JPEG", "RGB"),
        "grey jpeg": (encode(grey, "JPEG", quality=95), "JPEG", "L"),
        "webp": (encode(colour, "WEBP", lossless=True), "PNG", "RGB"),
        "bmp": (encode(colour, "BMP"), "PNG", "RGB"),
    }


@pytest.mark.parametrize("name", list(kinds()))
def test_a_picture_comes_back_in_its_own_kind(pose_client: httpx.Client, name: str) -> None:
    file, format_, mode = kinds()[name]
    answer = ask(pose_client, file)
    assert difference(answer["transform"]["rotation_degrees"], 40) < 2
    picture = upright_of(answer)
    assert (picture.format, picture.mode) == (format_, mode)
    luma = np.asarray(picture.convert("L") if mode != "I;16" else picture, float)
    assert luma.max() > (50_000 if mode == "I;16" else 200) and np.ptp(luma) > (30_000 if mode == "I;16" else 100)


def test_sixteen_bits_keep_their_fine_values(pose_client: httpx.Client) -> None:
    ramp = np.linspace(60_000, 60_200, 240)[None, :] * np.ones((240, 1))
    mask = np.asarray(pointer(15)) > 128
    picture = Image.fromarray(np.where(mask, 3000, ramp).astype(np.uint16))
    assert len(np.unique(np.asarray(upright_of(ask(pose_client, picture))))) > 150


def test_what_is_under_a_hole_does_not_show_at_its_edge(pose_client: httpx.Client) -> None:
    """Transparent pixels are bright red here; the wedge is blue to its edge."""
    mask = pointer(33)
    colours = np.zeros((240, 240, 4), np.uint8)
    colours[...] = (255, 0, 0, 0)
    colours[np.asarray(mask) > 128] = (0, 0, 255, 255)
    upright = np.asarray(upright_of(ask(pose_client, Image.fromarray(colours))))
    visible = upright[..., 3] > 20
    assert upright[visible][:, 0].max() <= 8 and visible.sum() > 5000


def test_profile_and_resolution_are_kept(pose_client: httpx.Client) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("PNG", "JPEG"):
        picture = upright_of(ask(pose_client, encode(turned(12), kind, icc_profile=profile, dpi=(300, 300))))
        assert picture.info["icc_profile"] == profile
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.5)


def test_a_profile_of_another_colour_space_is_left_out(pose_client: httpx.Client) -> None:
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = b"CMYK"
    file = encode(turned(12).convert("CMYK"), "JPEG", icc_profile=bytes(profile))
    assert "icc_profile" not in upright_of(ask(pose_client, file)).info


def test_a_resolution_that_a_jpeg_cannot_tell_is_left_out(pose_client: httpx.Client) -> None:
    file = encode(turned(12), "TIFF", dpi=(70_000, 72))
    response = pose_client.post("/canonicalize", content=file, headers={"accept": "image/jpeg"})
    assert "dpi" not in Image.open(BytesIO(response.content)).info


def test_a_profile_after_the_pixels_is_none(pose_client: httpx.Client) -> None:
    file = encode(turned(12), dpi=(72, 72))
    late = png_chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(16) + b"RGB " + bytes(100)))
    assert "icc_profile" not in upright_of(ask(pose_client, file[:-12] + late + file[-12:])).info


def test_profiles_count_in_what_is_held_and_too_long_ones_are_left_out(pose_client: httpx.Client) -> None:
    def of(size: int) -> bytes:
        values = np.random.default_rng(0).bytes(size // 4)
        return encode(turned(12), icc_profile=bytes(16) + b"RGB " + values + bytes(size - 20 - len(values)))

    assert len(upright_of(ask(pose_client, of(1 << 20))).info["icc_profile"]) == 1 << 20
    longer = encode(turned(12), "TIFF", icc_profile=bytes(16) + b"RGB " + bytes(1 << 20))
    assert "icc_profile" not in upright_of(ask(pose_client, longer)).info

    two = [read_header(of(size)) for size in (300_000, 500_000)]
    bare = [picture._replace(profile_bytes=0) for picture in two]
    assert upright.kept_bytes(two) - upright.kept_bytes(bare) == 800_000
    original = two[0].decode(keep_original=True).original
    assert original is not None
    canvases = [(original, Canvas(9, 9, rotation(0)))] * 3
    without = [(original._replace(icc_profile=None), canvas) for _, canvas in canvases]
    more = upright.drawing_bytes(canvases, UprightOptions()) - upright.drawing_bytes(without, UprightOptions())
    assert more >= 3 * 2 * 300_000


# Options


def corner(answer: Any) -> Any:
    return upright_of(answer).getpixel((0, 0))


def test_what_shows_where_there_is_no_picture(pose_client: httpx.Client) -> None:
    picture = turned(45)
    assert corner(ask(pose_client, picture)) == PAPER
    assert corner(ask(pose_client, picture, "?fill=auto")) == PAPER
    assert corner(ask(pose_client, picture, "?fill=%2300ff7f")) == (0, 255, 127)
    assert corner(ask(pose_client, picture, "?fill=00FF7F")) == (0, 255, 127)
    assert corner(ask(pose_client, picture, "?fill=transparent"))[3] == 0
    assert corner(ask(pose_client, pointer(45), "?fill=ffffff")) == 255
    assert (
        corner(ask(pose_client, Image.fromarray(np.asarray(pointer(45)).astype(np.uint16) * 257), "?fill=ffffff"))
        == 65535
    )


def test_transparency_makes_a_png_of_a_jpeg(pose_client: httpx.Client) -> None:
    file = encode(turned(45), "JPEG", quality=95)
    answer = ask(pose_client, file, "?fill=transparent")
    picture = upright_of(answer)
    assert (picture.format, picture.mode) == ("PNG", "RGBA")
    middle = picture.getpixel((picture.width // 2, picture.height // 2))
    assert middle[3] == 255 and middle[2] > middle[0] + 40


def test_an_edge_against_transparency_keeps_its_colour(pose_client: httpx.Client) -> None:
    upright = np.asarray(upright_of(ask(pose_client, turned(30), "?fill=transparent"))).astype(int)
    edge = (upright[..., 3] > 60) & (upright[..., 3] < 200)
    assert edge.sum() > 100
    assert np.abs(upright[edge][:, :3] - PAPER).max() < 12


@pytest.mark.parametrize("method", ["bicubic", "bilinear", "nearest", "lanczos"])
def test_every_way_of_resampling(pose_client: httpx.Client, method: str) -> None:
    picture = upright_of(ask(pose_client, turned(20), f"?resample={method}"))
    assert np.ptp(np.asarray(picture)[..., 0]) > 150
    if method == "nearest":
        assert set(map(tuple, np.asarray(picture).reshape(-1, 3))) <= set(
            map(tuple, np.asarray(turned(20)).reshape(-1, 3))
        )


@pytest.mark.parametrize(
    ("query", "slug", "detail"),
    [
        ("?undo=everything", "invalid-parameter", "allowed are rotation, all"),
        ("?expand=maybe", "invalid-parameter", "allowed are true, false"),
        ("?fill=red", "invalid-parameter", "auto, transparent and a colour like #ffffff"),
        ("?fill=%23fff", "invalid-parameter", "a colour like"),
        ("?fill=", "invalid-parameter", "is written %23"),
        ("?resample=magic", "invalid-parameter", "allowed are bicubic, bilinear, nearest, lanczos"),
        ("?undo=all&undo=all", "invalid-parameter", "given twice"),
        ("?angle=3", "unknown-parameter", "'angle' is not known"),
        ("?model=other", "model-not-found", "not loaded"),
    ],
)
def test_wrong_options(pose_client: httpx.Client, query: str, slug: str, detail: str) -> None:
    status, kind, text = refused(pose_client, turned(0), query)
    assert (status, kind) == (404 if slug == "model-not-found" else 422, slug) and detail in text


@pytest.mark.parametrize("path", ["/transform", "/embed"])
def test_the_options_of_upright_pictures_are_unknown_elsewhere(pose_client: httpx.Client, path: str) -> None:
    response = pose_client.post(f"{path}?fill=auto", content=encode(turned(0)), headers={"content-type": "image/png"})
    assert response.status_code == 422 and response.json()["type"].endswith("unknown-parameter")


# Negotiation


@pytest.mark.parametrize(
    ("accept", "sent", "kind"),
    [
        ("image/png", "PNG", "PNG"),
        ("image/jpeg", "PNG", "JPEG"),
        ("image/webp", "PNG", "WEBP"),
        ("image/*", "JPEG", "JPEG"),
        ("image/*", "PNG", "PNG"),
        ("image/webp, image/*;q=0.5", "JPEG", "WEBP"),
        ("image/png", "JPEG", "PNG"),
    ],
)
def test_the_picture_alone(pose_client: httpx.Client, accept: str, sent: str, kind: str) -> None:
    file = encode(turned(25), sent)
    response = pose_client.post("/canonicalize", content=file, headers={"accept": accept, "content-type": "image/png"})
    picture = Image.open(BytesIO(response.content))
    assert (picture.format, response.headers["content-type"]) == (kind, Image.MIME[kind])
    answer = ask(pose_client, file)
    assert json.loads(response.headers["x-transform"]) == answer["transform"]
    assert json.loads(response.headers["x-upright-matrix"]) == answer["upright"]["matrix"]
    assert response.headers["vary"] == "Accept"
    assert picture.size == (answer["upright"]["width"], answer["upright"]["height"])


def test_a_jpeg_cannot_be_transparent(pose_client: httpx.Client) -> None:
    status, slug, detail = refused(pose_client, turned(25), "?fill=transparent", accept="image/jpeg")
    assert (status, slug) == (406, "not-acceptable") and "transparent" in detail
    opaque = turned(25).convert("RGBA")
    response = pose_client.post(
        "/canonicalize", content=encode(opaque), headers={"accept": "image/jpeg", "content-type": "image/png"}
    )
    assert Image.open(BytesIO(response.content)).mode == "RGB"


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("image/jpeg, application/json;q=0.1", "application/json"),
        ("image/jpeg, application/*;q=0.5, image/png;q=0.1", "application/json"),
        ("image/jpeg, */*;q=0.1", "image/png"),
        ("image/jpeg, image/png;q=0.2, application/json;q=0.1", "image/png"),
    ],
)
def test_what_a_jpeg_cannot_hold_is_answered_as_else_accepted(
    pose_client: httpx.Client, accept: str, kind: str
) -> None:
    headers = {"accept": accept, "content-type": "image/png"}
    response = pose_client.post("/canonicalize?fill=transparent", content=encode(turned(25)), headers=headers)
    assert (response.status_code, response.headers["content-type"]) == (200, kind)
    picture = upright_of(response.json()) if kind == "application/json" else Image.open(BytesIO(response.content))
    assert (picture.format, picture.mode) == ("PNG", "RGBA")
    opaque = pose_client.post("/canonicalize", content=encode(turned(25)), headers=headers)
    assert opaque.headers["content-type"] == "image/jpeg"


def test_several_pictures_are_json(pose_client: httpx.Client) -> None:
    files = [("images", encode(turned(5))), ("images", encode(turned(50)))]
    assert pose_client.post("/canonicalize", files=files, headers={"accept": "image/png"}).status_code == 406
    assert pose_client.post("/canonicalize", content=b"x", headers={"accept": "image/png"}).status_code == 400
