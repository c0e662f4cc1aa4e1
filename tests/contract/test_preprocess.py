"""Pictures of any size, colour and light reach the model as the training data would have shown them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from contract import geometry
from contract.manifest import InputSpec, Preprocessing
from contract.picture import open_picture
from contract.preprocess import Prepared, prepare
from tests.contract.pictures import encode, glyph, noise

SPEC = InputSpec(channels=1, height=28, width=28)
MASS = Preprocessing(polarity="light", fit="mass", margin=4 / 28)
BOX = Preprocessing(polarity="light", fit="box", margin=4 / 28)
WHOLE = Preprocessing(polarity="none", fit="image")


def framed(preprocessing: Preprocessing = MASS) -> npt.NDArray[np.float32]:
    """What a large clean glyph becomes."""
    return prepare(glyph(280), SPEC, preprocessing).image


def page(
    ink: float = 25,
    paper: float = 240,
    height: int = 300,
    width: int = 300,
    side: int = 140,
    at: tuple[int, int] = (90, 60),
) -> npt.NDArray[np.float64]:
    """A glyph in a frame of `side` pixels whose top left corner is `at` = (x, y), on a page."""
    canvas = np.zeros((height, width))
    canvas[at[1] : at[1] + side, at[0] : at[0] + side] = np.asarray(
        Image.fromarray(glyph(280)).resize((side, side), Image.Resampling.BOX)
    )
    return paper + (ink - paper) * canvas / 255


def pixels(picture: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def assert_shows_the_glyph(image: npt.NDArray[np.float32], tolerance: float = 0.02) -> None:
    assert image.shape == (1, 28, 28) and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1
    # Where the centre of mass lies between two pixels, either is right.
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    assert min(np.abs(np.roll(image, shift, (1, 2)) - framed()).mean() for shift in shifts) < tolerance


def box_of(side: int, left: int, top: int) -> tuple[float, ...]:
    return left + side * 3 / 14, top + side * 3 / 14, left + side * 10 / 14, top + side * 11 / 14


# The model's own size


@pytest.mark.parametrize("fit", ["auto", "image"])
@pytest.mark.parametrize("preprocessing", [MASS, BOX, WHOLE])
def test_the_models_own_size_passes_unchanged(preprocessing: Preprocessing, fit: Any) -> None:
    picture = noise(28, 28)
    prepared = prepare(picture, SPEC, preprocessing, fit=fit)
    np.testing.assert_array_equal(prepared.image[0], picture.astype(np.float32) / np.float32(255))
    assert prepared.polarity == "none" and prepared.box == (0, 0, 28, 28) and prepared.has_content


def test_channels_are_converted() -> None:
    colour = SPEC.model_copy(update={"channels": 3})
    picture = noise(28, 28, 3)
    np.testing.assert_allclose(prepare(picture, colour, WHOLE).image, picture.transpose(2, 0, 1) / 255, atol=1e-6)
    luma = picture @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(prepare(picture, SPEC, MASS).image[0], luma, atol=0.51 / 255)
    grey = noise(28, 28)
    np.testing.assert_array_equal(prepare(grey, colour, WHOLE).image, np.stack([grey.astype(np.float32) / 255] * 3))


@pytest.mark.parametrize(("model", "stated", "turned"), [
    ("light", "dark", True), ("light", "light", False), ("dark", "light", True), ("dark", "dark", False),
    ("light", "none", False), ("none", "dark", False),
])  # fmt: skip
def test_a_stated_polarity_holds_for_the_models_own_size(model: Any, stated: Any, turned: bool) -> None:
    picture = noise(28, 28)
    prepared = prepare(picture, SPEC, Preprocessing(polarity=model, fit="mass", margin=0.1), polarity=stated)
    expected = picture.astype(np.float32) / 255
    np.testing.assert_allclose(prepared.image[0], 1 - expected if turned else expected, atol=1e-6)
    assert prepared.polarity == stated


def test_the_own_size_is_framed_where_the_trainings_pictures_were() -> None:
    """So that a folder's pictures of that size do not keep the polarity and margins which all others lose."""
    small = pixels(page(0, 255, 28, 28, side=14, at=(6, 3)))
    like_others = MASS.model_copy(update={"own_size": "framed"})
    np.testing.assert_array_equal(
        prepare(small, SPEC, like_others).image, prepare(small, SPEC, MASS, fit="content").image
    )
    assert not prepare(np.full((28, 28), 255, np.uint8), SPEC, like_others).has_content
    whole = prepare(small, SPEC, like_others, fit="image")
    np.testing.assert_allclose(whole.image[0], 1 - small / np.float32(255), atol=1e-6)
    as_they_are = WHOLE.model_copy(update={"own_size": "framed"})
    np.testing.assert_array_equal(prepare(small, SPEC, as_they_are).image[0], small / np.float32(255))


def test_content_of_few_pixels_fades_at_its_edges_as_it_does_inside() -> None:
    """An edge at the box's border is as soft as one within the box, and lies where the frame says."""
    picture = np.zeros((12, 12), np.uint8)
    picture[3:9, 2:4] = picture[3:9, 8:10] = picture[5:7, 2:10] = 255  # an H, eight pixels wide
    prepared = prepare(picture, SPEC, BOX)
    row = prepared.image[0, 9]  # above the bar between its posts
    post = int(np.argmax(row))
    outer, inner = row[:post][::-1], row[post:14]
    assert sum((outer > 0.1) & (outer < 0.9)) == sum((inner > 0.1) & (inner < 0.9)) >= 2
    across = np.flatnonzero(row > 0.5)
    ends = prepared.frame @ [[2 * across[0] / 28 - 1, 2 * (across[-1] + 1) / 28 - 1], [0, 0], [1, 1]]
    np.testing.assert_allclose(ends[0] + 0.5, [2, 10], atol=0.2)  # in pixels from the picture's corner


# Where the content goes


def test_mass_scales_the_box_and_centres_the_mass_as_mnist_does() -> None:
    image = framed(MASS)[0]
    rows, columns = np.flatnonzero(image.max(axis=1) > 0.5), np.flatnonzero(image.max(axis=0) > 0.5)
    assert rows[-1] - rows[0] + 1 == 20
    assert columns[-1] - columns[0] + 1 == pytest.approx(20 * 7 / 8, abs=1)
    for axis in (0, 1):
        centre = image.sum(axis=1 - axis) @ np.arange(28) / image.sum()
        assert centre == pytest.approx(14, abs=0.51)


def test_box_centres_the_box() -> None:
    image = framed(BOX)[0]
    rows, columns = np.flatnonzero(image.max(axis=1) > 0.5), np.flatnonzero(image.max(axis=0) > 0.5)
    assert (rows[0], rows[-1]) == (4, 23)
    assert columns[0] + columns[-1] == pytest.approx(27, abs=1)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.25])
def test_margin_is_a_share_of_the_side(margin: float) -> None:
    image = framed(Preprocessing(polarity="light", fit="box", margin=margin))[0]
    rows = np.flatnonzero(image.max(axis=1) > 0.5)
    assert len(rows) == round(28 * (1 - 2 * margin))


@pytest.mark.parametrize("size", [8, 20, 28, 64])
def test_any_model_size(size: int) -> None:
    spec = InputSpec(channels=1, height=size, width=size)
    image = prepare(pixels(page()), spec, MASS).image
    assert image.shape == (1, size, size)
    assert image.max() > 0.9


def test_a_page_in_the_training_datas_own_frame_is_not_moved() -> None:
    """Content search on a picture that already is as training has it changes next to nothing."""
    picture = framed()[0]
    again = prepare(pixels(picture * 255), SPEC, MASS, fit="content")
    assert np.abs(again.image[0] - picture).mean() < 0.01
    assert again.polarity == "light"


# Finding it


@pytest.mark.parametrize(("ink", "paper", "polarity"), [
    (0, 255, "dark"), (25, 240, "dark"), (90, 200, "dark"), (255, 0, "light"), (230, 40, "light"), (160, 90, "light"),
])  # fmt: skip
def test_polarity_and_box_are_found(ink: int, paper: int, polarity: str) -> None:
    prepared = prepare(pixels(page(ink, paper)), SPEC, MASS)
    assert prepared.polarity == polarity and prepared.has_content
    assert prepared.box == pytest.approx(box_of(140, 90, 60), abs=2)
    assert_shows_the_glyph(prepared.image)


def test_a_dark_model_gets_dark_ink_on_white() -> None:
    dark = Preprocessing(polarity="dark", fit="mass", margin=4 / 28)
    for ink, paper in ((25, 240), (240, 25)):
        image = prepare(pixels(page(ink, paper)), SPEC, dark).image
        np.testing.assert_allclose(1 - image, prepare(pixels(page(ink, paper)), SPEC, MASS).image, atol=1e-6)


@pytest.mark.parametrize(
    ("side", "at"), [(30, (5, 5)), (30, (260, 200)), (140, (150, 150)), (280, (10, 10)), (300, (0, 0))]
)
def test_any_margins(side: int, at: tuple[int, int]) -> None:
    prepared = prepare(pixels(page(side=side, at=at)), SPEC, MASS)
    assert prepared.box == pytest.approx(box_of(side, *at), abs=2)
    assert_shows_the_glyph(prepared.image, 0.05)


def test_no_margins_at_all() -> None:
    ring = Image.new("L", (140, 200))
    ImageDraw.Draw(ring).ellipse((0, 0, 139, 199), outline=255, width=30)
    reference = prepare(pixels(np.pad(np.asarray(ring), 50)), SPEC, MASS)
    for picture in (np.asarray(ring), 255 - np.asarray(ring)):
        prepared = prepare(picture, SPEC, MASS)
        assert prepared.box == pytest.approx((0, 0, 140, 200), abs=1)
        np.testing.assert_allclose(prepared.image, reference.image, atol=0.1)


def light(height: int, width: int, slope: float, vignette: float) -> npt.NDArray[np.float64]:
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    return (1 + slope * (0.8 * x + 0.6 * y)) / (1 + vignette * (x**2 + y**2)) ** 2 / (1 + slope)


@pytest.mark.parametrize("slope", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("vignette", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(("ink", "paper"), [(40, 235), (235, 50)])
def test_a_photograph_in_uneven_light(slope: float, vignette: float, ink: int, paper: int) -> None:
    grain = np.random.default_rng(0).normal(0, 5, (600, 800))
    photograph = page(ink, paper, 600, 800, 300, (330, 200)) * light(600, 800, slope, vignette) + grain
    picture = open_picture(encode(pixels(photograph), "JPEG", quality=75)).pixels
    prepared = prepare(picture, SPEC, MASS)
    assert prepared.polarity == ("dark" if ink < paper else "light")
    assert prepared.box == pytest.approx(box_of(300, 330, 200), abs=6)
    assert_shows_the_glyph(prepared.image, 0.04)


def test_a_large_photograph_in_colour() -> None:
    ink = (page(255, 0, 3000, 4000, 900, (2100, 1500)) / 255)[..., None].astype(np.float32)
    paper, pen = np.array([235, 228, 210], np.float32), np.array([40, 60, 150], np.float32)
    photograph = (paper + (pen - paper) * ink) * light(3000, 4000, 0.3, 0.1)[..., None].astype(np.float32)
    prepared = prepare(pixels(photograph), SPEC, MASS)
    assert prepared.polarity == "dark"
    assert prepared.box == pytest.approx(box_of(900, 2100, 1500), abs=8)
    assert_shows_the_glyph(prepared.image)


@pytest.mark.parametrize(
    ("pen", "paper"), [((255, 0, 0), (0, 130, 0)), ((0, 0, 255), (29, 29, 29)), ((200, 30, 30), (230, 225, 220))]
)
def test_colours_of_any_luma_are_told_apart(pen: tuple[int, int, int], paper: tuple[int, int, int]) -> None:
    ink = page(255, 0)[..., None] / 255
    prepared = prepare(pixels(np.array(paper) + (np.array(pen) - np.array(paper)) * ink), SPEC, MASS)
    assert prepared.box == pytest.approx(box_of(140, 90, 60), abs=2)
    assert_shows_the_glyph(prepared.image)


def test_specks_are_not_content() -> None:
    picture = page(height=600, width=450, side=250, at=(100, 200))
    generator = np.random.default_rng(3)
    for _ in range(20):
        x, y = generator.integers(0, 440), generator.integers(0, 180)
        picture[y : y + 4, x : x + 4] = 20
    picture[generator.random(picture.shape) < 0.001] = 0
    prepared = prepare(pixels(picture), SPEC, MASS)
    assert prepared.box == pytest.approx(box_of(250, 100, 200), abs=4)
    assert_shows_the_glyph(prepared.image)


@pytest.mark.parametrize("edges", ["top", "left", "right and bottom", "all"])
@pytest.mark.parametrize("shade", [0, 60])
def test_the_dark_edge_of_a_scan_is_not_content(edges: str, shade: int) -> None:
    picture = page(height=600, width=450, side=250, at=(100, 200))
    for name, where in {"top": np.s_[:9], "left": np.s_[:, :7], "right": np.s_[:, -8:], "bottom": np.s_[-5:]}.items():
        if name in edges or edges == "all":
            picture[where] = shade
    prepared = prepare(pixels(picture), SPEC, MASS)
    assert prepared.polarity == "dark"
    assert prepared.box == pytest.approx(box_of(250, 100, 200), abs=3)
    assert_shows_the_glyph(prepared.image)


def test_a_stroke_in_two_pieces_stays_together() -> None:
    picture = page()
    picture[120:132] = 240  # through the stem
    prepared = prepare(pixels(picture), SPEC, MASS)
    assert prepared.box == pytest.approx(box_of(140, 90, 60), abs=2)


def test_faint_ink_comes_at_full_strength() -> None:
    for ink in (200, 160, 40):
        image = prepare(pixels(page(ink, 240)), SPEC, MASS).image
        assert np.percentile(image[image > 0.1], 70) > 0.9


def test_a_stated_polarity_overrides_what_the_page_suggests() -> None:
    picture = page(240, 25)
    picture[250:280, 20:280] = 0  # a darker bar
    assert prepare(pixels(picture), SPEC, MASS).polarity == "light"
    prepared = prepare(pixels(picture), SPEC, MASS, polarity="dark")
    assert prepared.polarity == "dark"
    assert prepared.box == pytest.approx((20, 250, 280, 280), abs=2)


# Nothing to find


@pytest.mark.parametrize("level", [0, 7, 128, 255])
@pytest.mark.parametrize("shape", [(28, 28), (300, 300), (4, 4), (4, 400), (900, 5), (300, 200, 3)])
@pytest.mark.parametrize("preprocessing", [MASS, BOX, WHOLE])
def test_a_blank_picture_comes_through(level: int, shape: tuple[int, ...], preprocessing: Preprocessing) -> None:
    prepared = prepare(np.full(shape, level, np.uint8), SPEC, preprocessing, fit="content")
    assert not prepared.has_content
    assert prepared.box == (0, 0, shape[1], shape[0])
    assert np.isfinite(prepared.image).all()
    assert np.ptp(prepared.image) == 0


def test_grain_and_shade_alone_are_blank() -> None:
    generator = np.random.default_rng(0)
    empty = 220 * light(600, 800, 0.4, 0.2) + generator.normal(0, 6, (600, 800))
    assert not prepare(pixels(empty), SPEC, MASS).has_content


def anything(generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A picture of any shape from 4 to 600 pixels a side: noise, dots, a slope, checks, or a rectangle."""
    height, width = (int(side) for side in np.exp(generator.uniform(np.log(4), np.log(600), 2)))
    colours = generator.integers(0, 256, 2)
    kind = generator.integers(0, 5)
    plane = np.full((height, width), colours[0])
    if kind == 0:
        plane = generator.integers(0, 256, (height, width))
    elif kind == 1:
        plane[generator.random((height, width)) < generator.random() ** 4] = colours[1]
    elif kind == 2:
        plane = np.linspace(colours[0], colours[1], height * width).reshape(height, width).astype(int)
    elif kind == 3:
        plane = colours[np.indices((height, width)).sum(axis=0) // generator.integers(1, 30) % 2]
    else:
        top, left = generator.integers(0, height), generator.integers(0, width)
        plane[top : generator.integers(top, height) + 1, left : generator.integers(left, width) + 1] = colours[1]
    if generator.random() < 0.3:
        plane = np.stack([plane, plane, np.roll(plane, 3)], axis=2)
    return plane.astype(np.uint8)


@pytest.mark.parametrize("seed", range(10))
def test_no_picture_breaks_it(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(30):
        picture = anything(generator)
        side, channels = int(generator.choice([8, 28, 64])), int(generator.choice([1, 3]))
        spec = InputSpec.model_validate({"channels": channels, "height": side, "width": side})
        preprocessing = Preprocessing.model_validate({
            "polarity": generator.choice(["light", "dark", "none"]),
            "fit": generator.choice(["mass", "box", "circle", "image"]),
            "margin": generator.choice([0.0, 0.1, 0.4, 0.499]),
        })  # fmt: skip
        polarity, fit = (
            generator.choice(["auto", "light", "dark", "none"]),
            generator.choice(["auto", "content", "image"]),
        )
        prepared = prepare(picture, spec, preprocessing, polarity=polarity, fit=fit)
        assert prepared.image.shape == (channels, side, side) and prepared.image.dtype == np.float32
        assert prepared.image.min() >= 0 and prepared.image.max() <= 1
        left, top, right, bottom = prepared.box
        assert 0 <= left < right <= picture.shape[1] and 0 <= top < bottom <= picture.shape[0]
        assert np.isfinite(geometry.inverse(prepared.frame)).all()


# The whole picture


def test_the_whole_picture_is_resized_and_padded_to_a_square() -> None:
    colour = SPEC.model_copy(update={"channels": 3})
    picture = np.zeros((100, 200, 3), np.uint8)
    picture[:, :100], picture[:, 100:] = (200, 10, 10), (10, 10, 200)
    prepared = prepare(picture, colour, WHOLE)
    assert prepared.box == (0, 0, 200, 100) and prepared.polarity == "none"
    np.testing.assert_allclose(
        prepared.image[:, 14, :13], np.array([[200], [10], [10]]) / 255 * np.ones((1, 13)), atol=0.01
    )
    np.testing.assert_allclose(
        prepared.image[:, 14, 15:], np.array([[10], [10], [200]]) / 255 * np.ones((1, 13)), atol=0.01
    )
    np.testing.assert_allclose(prepared.image[:, 0], prepared.image[:, 27], atol=0.01)


def test_the_whole_picture_is_antialiased() -> None:
    checks = np.indices((560, 560)).sum(axis=0) % 2 * 255
    image = prepare(pixels(checks), SPEC, WHOLE).image
    assert np.abs(image - 0.5).max() < 0.02


def test_fit_image_keeps_the_margins_and_turns_the_polarity() -> None:
    prepared = prepare(pixels(page(0, 255, side=300, at=(0, 0))), SPEC, MASS, fit="image")
    assert prepared.polarity == "dark" and prepared.box == (0, 0, 300, 300)
    assert np.abs(prepared.image[0] - glyph(28) / 255).mean() < 0.01
    kept = prepare(pixels(page(0, 255, side=300, at=(0, 0))), SPEC, MASS, fit="image", polarity="none")
    np.testing.assert_allclose(kept.image, 1 - prepared.image, atol=1e-6)


def test_content_for_a_model_without_polarity_keeps_its_colours() -> None:
    colour = SPEC.model_copy(update={"channels": 3})
    canvas = page(255, 0)[..., None] / 255
    picture = pixels(np.array([20, 120, 30]) * (1 - canvas) + np.array([220, 200, 30]) * canvas)
    prepared = prepare(picture, colour, WHOLE, fit="content")
    assert prepared.box == pytest.approx(box_of(140, 90, 60), abs=2)
    np.testing.assert_allclose(prepared.image[:, 25, 5], np.array([220, 200, 30]) / 255, atol=0.02)
    np.testing.assert_allclose(prepared.image[:, 5, 20], np.array([20, 120, 30]) / 255, atol=0.02)


# For a pose: what is shown turns with the content

CIRCLE = Preprocessing(polarity="light", fit="circle", margin=0.1)
COLOURED = Preprocessing(polarity="none", fit="circle", margin=0.1)


def drawing(degrees: float, size: float = 1.0, at: tuple[float, float] = (0.0, 0.0)) -> Image.Image:
    """A dark blue arrow on warm paper, 900 x 700, turned counter-clockwise; `at` from the middle, in pixels."""
    shape = np.array([(-180, 40), (60, 40), (60, 110), (200, 0), (60, -60), (-180, -40)]) * size
    turn = geometry.rotation(degrees)[:, :2]
    points = shape @ turn.T + np.array([450, 350]) + at
    page = Image.new("RGB", (3600, 2800), (235, 225, 205))
    ImageDraw.Draw(page).polygon([(4 * x, 4 * y) for x, y in points], fill=(30, 40, 120))
    return page.reduce(4)


def seen(degrees: float, preprocessing: Preprocessing = CIRCLE, **drawn: Any) -> Prepared:
    channels = 3 if preprocessing.polarity == "none" else 1
    spec = InputSpec(channels=channels, height=40, width=40)  # type: ignore[arg-type]
    return prepare(np.asarray(drawing(degrees, **drawn)), spec, preprocessing)


@pytest.mark.parametrize("preprocessing", [CIRCLE, COLOURED, CIRCLE.model_copy(update={"polarity": "dark"})])
@pytest.mark.parametrize("degrees", [90, -17.3, 45, 133])
def test_the_circle_turns_with_the_content(degrees: float, preprocessing: Preprocessing) -> None:
    upright, turned = seen(0, preprocessing).image, seen(degrees, preprocessing).image
    back = [Image.fromarray(plane).rotate(-degrees, Image.Resampling.BICUBIC) for plane in turned]
    y, x = np.indices((40, 40)) - 19.5
    inside = np.hypot(x, y) < 19
    assert np.abs(np.stack(back) - upright)[:, inside].mean() < 0.015
    assert np.ptp(upright) > 0.5


@pytest.mark.parametrize("size", [0.2, 0.5, 1.5])
@pytest.mark.parametrize("at", [(0, 0), (-100.3, 40.6)])
def test_the_circle_follows_shift_and_size(size: float, at: tuple[float, float]) -> None:
    plain, moved = seen(20), seen(20, size=size, at=at)
    assert np.abs(moved.image - plain.image).mean() < 0.015
    middle, corner = geometry.apply(moved.frame, [[0, 0], [1, 1]])
    plain_middle, plain_corner = geometry.apply(plain.frame, [[0, 0], [1, 1]])
    assert corner - middle == pytest.approx((plain_corner - plain_middle) * size, rel=0.02)
    assert middle - (449.5, 349.5) == pytest.approx((plain_middle - (449.5, 349.5)) * size + at, abs=0.6)


def test_the_circle_holds_the_ink_within_its_margin() -> None:
    y, x = np.indices((40, 40)) - 19.5
    image = seen(30).image[0]
    share = image[np.hypot(x, y) < 20 * 0.8].sum() / image.sum()
    assert share == pytest.approx(0.99, abs=0.006)
    assert image.sum(axis=0) @ x[0] / image.sum() == pytest.approx(0, abs=0.05)
    assert image.sum(axis=1) @ y[:, 0] / image.sum() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize(
    "preprocessing", [CIRCLE, COLOURED, MASS, BOX, WHOLE, CIRCLE.model_copy(update={"margin": 0.4})]
)
def test_the_frame_says_where_a_pixel_of_the_input_comes_from(preprocessing: Preprocessing) -> None:
    """Centre and amount of the ink in the input are those in the picture, taken there by the frame."""
    picture = np.full((300, 420, 3), 255, np.uint8)
    picture[60:220, 100:180] = picture[180:220, 100:300] = 0
    rows, columns = np.nonzero(picture[..., 0] == 0)
    channels = 3 if preprocessing.polarity == "none" else 1
    spec = InputSpec(channels=channels, height=96, width=96)  # type: ignore[arg-type]
    prepared = prepare(picture, spec, preprocessing)
    ink = prepared.image[0] if preprocessing.polarity == "light" else 1 - prepared.image[0]
    to_picture = geometry.compose(prepared.frame, geometry.inverse(geometry.frame(0, 0, 96, 96)))
    y, x = np.indices(ink.shape)
    centre = geometry.apply(to_picture, [(ink * x).sum() / ink.sum(), (ink * y).sum() / ink.sum()])
    unit = to_picture[0, 0]
    assert centre == pytest.approx((columns.mean(), rows.mean()), abs=0.05 * unit + 0.1)
    assert ink.sum() * to_picture[0, 0] * to_picture[1, 1] == pytest.approx(len(rows), rel=0.02)


def test_a_picture_of_the_models_own_size_is_its_own_frame() -> None:
    prepared = prepare(noise(28, 28), SPEC, CIRCLE)
    np.testing.assert_array_equal(prepared.image[0], noise(28, 28).astype(np.float32) / np.float32(255))
    assert geometry.apply(prepared.frame, [[-1, -1], [1, 1]]).tolist() == [[-0.5, -0.5], [27.5, 27.5]]


def test_a_blank_picture_is_framed_whole() -> None:
    prepared = prepare(np.full((30, 60), 200, np.uint8), SPEC, CIRCLE)
    assert not prepared.has_content
    assert geometry.apply(prepared.frame, [[-1, -1], [1, 1]]).tolist() == [[-0.5, -15.5], [59.5, 44.5]]


def test_a_single_dot_of_ink() -> None:
    picture = np.zeros((40, 50), np.uint8)
    picture[12, 33] = 255
    prepared = prepare(picture, SPEC, CIRCLE)
    assert prepared.has_content and prepared.image.max() > 0.5
    assert geometry.apply(prepared.frame, [0, 0]) == pytest.approx((33, 12))
