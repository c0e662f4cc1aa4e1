"""A sheet of paper on a desk, a board on a wall, a printed box: what is written there is the content."""

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from contract.manifest import InputSpec, Preprocessing
from contract.preprocess import Prepared, prepare
from tests.contract.pictures import glyph, ring

SPEC = InputSpec(channels=1, height=28, width=28)
MASS = Preprocessing(polarity="light", fit="mass", margin=4 / 28)
DESKS = (20, 90)
LEFT, TOP, SIDE = 150, 90, 120  # where the glyph is written on the sheet

Pixels = npt.NDArray[np.uint8]


def sheet(height: int = 300, width: int = 400, paper: int = 230, pen: int = 40) -> Image.Image:
    page = Image.new("L", (width, height), paper)
    page.paste(pen, (LEFT, TOP), Image.fromarray(glyph(SIDE)))
    return page


def seen(picture: Image.Image, noise: float = 3.0) -> Pixels:
    """As a camera sees it: with grain."""
    grain = np.random.default_rng(0).normal(0, noise, (picture.height, picture.width))
    return np.asarray(np.clip(np.asarray(picture) + grain, 0, 255), np.uint8)


def read(pixels: Pixels, **options: str) -> Prepared:
    return prepare(pixels, SPEC, MASS, **options)  # type: ignore[arg-type]


def alike(found: Prepared, expected: Prepared) -> float:
    return float(np.corrcoef(found.image.ravel(), expected.image.ravel())[0, 1])


PLAIN = read(seen(sheet()))


@pytest.mark.parametrize("desk", DESKS)
@pytest.mark.parametrize("degrees", [-6, 0, 4])
def test_a_sheet_on_a_desk(desk: int, degrees: float) -> None:
    page = sheet().rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=desk)
    scene = Image.new("L", (640, 480), desk)
    scene.paste(page, (90, 60))
    found = read(seen(scene))
    assert found.polarity == "dark" and found.has_content
    turned = sheet().rotate(degrees, Image.Resampling.BICUBIC, expand=True, fillcolor=230)
    assert alike(found, read(seen(turned))) > 0.95


def test_the_frame_leads_to_the_picture_that_was_sent() -> None:
    scene = Image.new("L", (640, 480), 60)
    scene.paste(sheet(), (90, 60))
    found = read(seen(scene))
    assert np.abs(np.subtract(found.box, PLAIN.box) - (90, 60, 90, 60)).max() <= 4
    np.testing.assert_allclose(found.frame - PLAIN.frame, [[0, 0, 90], [0, 0, 60]], atol=6)


@pytest.mark.parametrize("desk", DESKS)
@pytest.mark.parametrize("strips", [(60, 0, 0, 0), (0, 45, 0, 0), (0, 0, 90, 0), (50, 0, 0, 70), (40, 40, 40, 0)])
def test_a_desk_along_the_edges_of_the_picture(desk: int, strips: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = strips
    scene = Image.new("L", (400 + left + right, 300 + top + bottom), desk)
    scene.paste(sheet(), (left, top))
    assert alike(read(seen(scene)), PLAIN) > 0.95


@pytest.mark.parametrize("width", [2, 8])
def test_a_printed_box(width: int) -> None:
    page = sheet()
    ImageDraw.Draw(page).rectangle((LEFT - 20, TOP - 25, LEFT + SIDE + 20, TOP + SIDE + 20), outline=30, width=width)
    assert alike(read(seen(page)), PLAIN) > 0.95


def test_a_box_on_a_sheet_on_a_desk() -> None:
    page = sheet()
    ImageDraw.Draw(page).rectangle((LEFT - 20, TOP - 25, LEFT + SIDE + 20, TOP + SIDE + 20), outline=30, width=4)
    scene = Image.new("L", (640, 480), 60)
    scene.paste(page, (120, 100))
    assert alike(read(seen(scene)), PLAIN) > 0.95


def test_a_dark_board_on_a_light_wall() -> None:
    scene = Image.new("L", (640, 480), 220)
    scene.paste(sheet(paper=40, pen=210), (90, 60))
    found = read(seen(scene))
    assert found.polarity == "light"
    assert alike(found, PLAIN) > 0.95


@pytest.mark.parametrize("polarity", ["dark", "auto"])
def test_the_polarity_of_the_writing_may_be_stated(polarity: str) -> None:
    scene = Image.new("L", (640, 480), 60)
    scene.paste(sheet(), (90, 60))
    assert alike(read(seen(scene), polarity=polarity), PLAIN) > 0.95


def test_an_empty_sheet_and_an_empty_box_are_content_themselves() -> None:
    scene = Image.new("L", (640, 480), 60)
    scene.paste(230, (90, 60, 490, 360))
    assert np.abs(np.subtract(read(seen(scene)).box, (90, 60, 490, 360))).max() <= 4
    page = Image.new("L", (400, 300), 230)
    ImageDraw.Draw(page).rectangle((100, 80, 250, 220), outline=30, width=5)
    assert np.abs(np.subtract(read(seen(page)).box, (100, 80, 251, 221))).max() <= 4


def test_what_lies_within_a_round_thing_is_part_of_it() -> None:
    """A ring within a ring is no page with a ring on it, and a dot in a 0 not what is written."""
    page = Image.fromarray((255 - 255 * ring(300, 90, 16)).astype(np.uint8))
    dotted = page.copy()
    ImageDraw.Draw(dotted).ellipse((135, 135, 165, 165), fill=0)
    assert read(seen(dotted)).box == read(seen(page)).box
