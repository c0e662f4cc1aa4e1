"""Pictures that a tool has turned, whose corners it has filled, and pictures that are cut to the ink."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from contract.manifest import InputSpec, Preprocessing
from contract.picture import open_picture
from contract.preprocess import prepare
from contract.turned import inset
from tests.contract.pictures import encode, glyph, noise, ring

SPEC = InputSpec(channels=1, height=28, width=28)
MASS = Preprocessing(polarity="light", fit="mass", margin=4 / 28)
FILLS = {"black": 0, "white": 255, "grey": 128, "as the paper": 205}


def written(height: int = 600, width: int = 800) -> npt.NDArray[np.float64]:
    """A glyph's strength [h,w] in 0..1, in the middle of a page."""
    ink = np.zeros((height, width))
    side = height // 2
    top, left = (height - side) // 2, (width - side) // 2
    ink[top : top + side, left : left + side] = np.asarray(Image.fromarray(glyph(280)).resize((side, side))) / 255
    return ink


def photograph(ink: npt.NDArray[np.float64], pen: float = 40) -> Image.Image:
    """Dark ink on paper in uneven light, with the grain of a camera."""
    height, width = ink.shape
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    light = 1 - 0.15 * x + 0.1 * y - 0.12 * (x**2 + y**2)
    page = (225 + (pen - 225) * ink) * light + np.random.default_rng(1).normal(0, 4, ink.shape)
    return Image.fromarray(np.clip(page, 0, 255).astype(np.uint8))


def turn(picture: Image.Image, degrees: float, fill: int, expand: bool) -> Image.Image:
    return picture.rotate(degrees, Image.Resampling.BICUBIC, expand=expand, fillcolor=fill)


@pytest.fixture(scope="module")
def ink() -> npt.NDArray[np.float64]:
    return written()


@pytest.fixture(scope="module")
def page(ink: npt.NDArray[np.float64]) -> Image.Image:
    return photograph(ink)


@pytest.mark.parametrize("name", ["PNG", "JPEG"])
@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("degrees", [-60, -35, -10, 5, 20, 45])
def test_filled_corners_are_neither_paper_nor_ink(
    ink: npt.NDArray[np.float64], page: Image.Image, degrees: float, fill: str, expand: bool, name: str
) -> None:
    picture = turn(page, degrees, FILLS[fill], expand)
    copy = open_picture(encode(picture, name)).pixels
    where = np.asarray(turn(Image.fromarray((255 * ink).astype(np.uint8)), degrees, 0, expand)) > 128
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    prepared = prepare(copy, SPEC, MASS)
    assert prepared.polarity == "dark"
    assert prepared.box == pytest.approx((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), abs=4)


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("degrees", [-60, -20, 3, 45])
def test_corners_that_a_turn_has_filled(degrees: float, expand: bool) -> None:
    """Found to a few pixels, those that the turn has mixed included."""
    page = photograph(written(300, 400))
    shown = np.asarray(turn(Image.new("L", page.size, 255), degrees, 0, expand)) == 255
    depth = inset(np.asarray(turn(page, degrees, 0, expand), np.float32))
    assert not (depth[~shown] > 0).any()
    assert (shown & (depth <= 0)).sum() < 5 * sum(page.size)
    assert depth.max() <= min(depth.shape) / 2


def test_what_is_no_turned_picture_has_no_filled_corners() -> None:
    stroke = Image.new("L", (200, 260), 250)
    ImageDraw.Draw(stroke).line((20, 240, 180, 20), fill=10, width=60)
    cut = stroke.crop(stroke.point(lambda value: 255 * (value < 128)).getbbox())  # type: ignore[arg-type, operator]
    ring = Image.new("L", (200, 200), 250)
    ImageDraw.Draw(ring).ellipse((0, 0, 199, 199), outline=10, width=50)
    others = cut, ring, photograph(written()), Image.fromarray(glyph(280)), Image.new("L", (90, 60), 7)
    for picture in (*map(np.asarray, others), noise(50, 70), noise(4, 400), noise(1, 1)):
        depth = inset(picture.astype(np.float32))
        assert depth.shape == picture.shape and depth.min() == 0.5


@pytest.mark.parametrize("side", [*range(18, 75, 3), 75, 80, 100, 160])
def test_the_corners_of_a_round_stroke_are_paper(side: int) -> None:
    for radius in np.linspace(0.3, 0.49, 8) * side:
        for width in np.array([0.05, 0.1, 0.2, 0.5]) * side:
            ink = 255 * ring(side, radius, width)
            for page in (255 - ink, ink):
                assert inset(page.astype(np.float32)).min() == 0.5


def cut_to_the_ink(digit: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Dark strokes, twice as wide as scikit-learn's, in a picture that ends where they do."""
    large = np.asarray(
        Image.fromarray((digit * 255 / 16).astype(np.uint8)).resize((240, 240), Image.Resampling.BICUBIC)
    )
    thick = np.clip(large.astype(np.float64) * 3 - 100, 0, 255)
    rows, columns = np.flatnonzero(thick.max(axis=1) > 128), np.flatnonzero(thick.max(axis=0) > 128)
    return (250 - thick[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] * (240 / 255)).astype(np.uint8)


@pytest.mark.parametrize("label", range(10))
def test_ink_that_fills_its_picture_is_not_taken_for_paper(label: int) -> None:
    digits = load_digits()
    for digit in digits.images[digits.target == label][:20]:
        picture = cut_to_the_ink(digit)
        for pixels, polarity in ((picture, "dark"), (255 - picture, "light")):
            prepared = prepare(pixels, SPEC, MASS)
            assert prepared.polarity == polarity
            assert prepared.box == pytest.approx((0, 0, picture.shape[1], picture.shape[0]), abs=4)
