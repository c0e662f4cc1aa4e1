"""The comparison on text: its scores by hand, and each of the others on a line that it should read."""

import shutil
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from benchmarks.text_orientation import (
    angle_scores,
    answers,
    by_length,
    crossed,
    deskew_angle,
    quarter_in,
    quarter_scores,
    tesseract_quarter,
    wrapped,
)
from training.datasets.text import Crop, Fonts
from training.datasets.text_crops import Look, draw_mask, load_font, take_picture
from training.datasets.text_fonts import Part
from training.datasets.text_words import vocabulary

PAGE = Look(40, 1, 0.3, "left", (0, 0, 0), (255, 255, 255), 0.0, (1.0, 0.0), 0.0, 0.0, 0, 40)
TEXT = "Everyone has the right\nto freedom of thought,\nof opinion and religion,\nand to rest and leisure."


def page(degrees: float) -> Image.Image:
    mask = draw_mask(TEXT, "latin", load_font(None, PAGE.size), PAGE)
    return Image.fromarray(take_picture(mask, PAGE, degrees, np.random.default_rng(0)))


def test_angles_wrap_on_their_circle() -> None:
    assert wrapped([190.0, -190.0, 359.0]).tolist() == [-170.0, 170.0, -1.0]
    assert wrapped([50.0, 90.0, -46.0], 90).tolist() == [-40.0, 0.0, 44.0]


def test_scores_of_angles_count_refusals_as_the_worst_error() -> None:
    scores = angle_scores(np.array([11.0, -179.0, np.nan, 40.0]), np.array([10.0, 179.0, 0.0, 140.0]), 360)
    assert scores["mean_degrees"] == pytest.approx((1 + 2 + 180 + 100) / 4)
    assert scores["median_degrees"] == pytest.approx((2 + 100) / 2)
    assert scores["over_90_percent"] == 50 and scores["refused_percent"] == 25 and scores["within_2_percent"] == 50
    modulo = angle_scores(np.array([11.0, np.nan]), np.array([-80.0, 0.0]), 90)
    assert modulo["mean_degrees"] == pytest.approx((1 + 45) / 2) and "over_90_percent" not in modulo


def test_scores_of_quarters_take_the_nearest_and_count_refusals() -> None:
    scores = quarter_scores(np.array([93.0, -91.0, 180.0, np.nan]), np.array([90.0, 270.0, 0.0, 0.0]))
    assert scores["right_percent"] == 50 and scores["refused_percent"] == 25
    assert scores["right_of_answered_percent"] == pytest.approx(200 / 3)


def test_no_answer_is_a_refusal() -> None:
    assert np.isnan(answers([None, 3.0])).tolist() == [True, False]
    assert quarter_in("Page number: 0\nOrientation in degrees: 270\nRotate: 90\n") == 90.0
    assert quarter_in("") is None and quarter_in("Rotate: 45\n") is None


def test_fonts_and_words_are_told_apart() -> None:
    known = set(vocabulary("latin", "test"))

    class Wrong:
        """Upside down where a real word of the test stands."""

        def angle(self, crop: Crop) -> float:
            return crop.degrees + 180 * bool(known & set(crop.text.lower().split()))

    fonts: dict[Part, Fonts] = {"validation": {"latin": {"Pillow": (None,)}}}
    found = crossed(Wrong(), fonts, "latin", 3, 0)["validation, Pillow"]  # type: ignore[arg-type]
    assert [found[words]["over_90_percent"] for words in ("train", "validation", "made up")] == [0, 0, 0]
    assert found["test"]["over_90_percent"] > 50


def test_lines_have_the_length_that_is_asked_for() -> None:
    seen: list[str] = []

    class Short:
        """Right of lines of up to a dozen letters, upside down of all others."""

        def angle(self, crop: Crop) -> float:
            seen.append(crop.text)
            return crop.degrees + 180 * (len(crop.text) > 12)

    found = by_length(Short(), "test", {"latin": {"Pillow": (None,)}}, [12, 30], 3, 0)  # type: ignore[arg-type]
    assert {name: scores["over_90_percent"] for name, scores in found.items()} == {
        "12 letters": 0,
        "30 letters": 100,
        "numbers": 0,
    }
    assert [len(text) for text in seen[3:6]] == pytest.approx([30] * 3, abs=1)
    assert all(text.isdigit() and len(text) == 8 for text in seen[6:])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_tesseract_finds_the_quarter_of_a_clean_page(degrees: int) -> None:
    if shutil.which("tesseract") is None:
        pytest.skip("needs tesseract-ocr and tesseract-ocr-osd")
    assert tesseract_quarter(page(degrees)) == degrees


@pytest.mark.parametrize("degrees", [-10.0, 0.0, 25.0])
def test_deskew_finds_the_slant_of_a_clean_page(degrees: float) -> None:
    if find_spec("deskew") is None:
        pytest.skip("needs deskew")
    found = deskew_angle(page(degrees))
    assert found is not None and abs(float(wrapped(found - degrees, 90))) < 3
