"""Rendered text: deterministic, turned by what it says, framed upright by its own angle, parts kept apart."""

import errno
import os
import re
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.manifest import InputSpec
from contract.preprocess import prepare
from training.config import TextData
from training.datasets import load
from training.datasets.storage import data_root
from training.datasets.text import PREPROCESSING, Fonts, crops, prepared
from training.datasets.text_crops import Look, draw_look, draw_mask, load_font, take_picture
from training.datasets.text_fonts import FAMILIES, SCRIPTS, find_fonts, packages
from training.datasets.text_vocabulary import FEWEST_LETTERS, MOST_LETTERS, names
from training.datasets.text_words import CASED, TEXTS, draw_text, vocabulary
from training.errors import DataError, RunError, RunFailed
from training.lie import exponential, resample

ROOT = Path(__file__).parents[2]
SYSTEM_FONTS = Path("/usr/share/fonts")
OWN: Fonts = {"latin": {"Aileron": (None,)}}  # Pillow's built-in font: on every machine
SPEC = InputSpec(channels=1, height=96, width=96)
PLAIN = Look(40, 1, 0.2, "left", (20, 20, 20), (230, 230, 230), 0.0, (1.0, 0.0), 0.0, 0.0, 0, 30)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def picture(text: str, degrees: float, look: Look = PLAIN) -> np.ndarray:
    return take_picture(draw_mask(text, "latin", load_font(None, look.size), look), look, degrees, rng())


def framed(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(prepare(pixels, SPEC, PREPROCESSING, fit="content").image)[None]


def test_a_crop_follows_from_seed_part_and_number_alone() -> None:
    five = list(crops(OWN, "train", 5, seed=3))
    (third,) = crops(OWN, "train", 1, seed=3, first=2)
    assert np.array_equal(third.pixels, five[2].pixels) and third.degrees == five[2].degrees
    (other_part,) = crops(OWN, "test", 1, seed=3, first=2)
    (other_seed,) = crops(OWN, "train", 1, seed=4, first=2)
    assert other_part.text != third.text and other_seed.text != third.text


def test_angles_can_be_given_and_are_taken_in_turn() -> None:
    assert [crop.degrees for crop in crops(OWN, "train", 5, 0, degrees=(0, 90))] == [0, 90, 0, 90, 0]


def test_a_positive_angle_turns_counter_clockwise() -> None:
    assert np.array_equal(picture("Gyp", 90), np.rot90(picture("Gyp", 0)))


@pytest.mark.parametrize("degrees", [-150.0, -30.0, 37.0, 90.0, 178.0])
def test_sampling_the_framed_crop_with_its_angle_gives_the_upright_one(degrees: float) -> None:
    turn = torch.tensor([[np.radians(degrees)]], dtype=torch.float32)
    upright = resample(framed(picture("Equipoise", degrees)), exponential("SO2", turn))
    wanted = framed(picture("Equipoise", 0))
    alike = torch.corrcoef(torch.stack([upright.flatten(), wanted.flatten()]))[0, 1]
    upside_down = torch.corrcoef(torch.stack([upright.flatten(), wanted.flip(2, 3).flatten()]))[0, 1]
    assert alike > 0.95 and upside_down < 0.8


def test_ink_is_light_in_the_frame_whatever_it_was() -> None:
    dark, light = PLAIN, replace(PLAIN, ink=PLAIN.paper, paper=PLAIN.ink)
    one, other = framed(picture("Text", 20, dark)), framed(picture("Text", 20, light))
    assert one.mean() < 0.5 and one.max() > 0.9
    assert (one - other).abs().mean() < 0.02


def test_colours_shade_noise_blur_and_compression_all_change_the_picture() -> None:
    clean = picture("Text", 10)
    changes: list[dict[str, Any]] = [
        {"shade": 0.3},
        {"noise": 5.0},
        {"blur": 1.5},
        {"quality": 40},
        {"ink": (90.0, 20.0, 10.0)},
    ]
    for change in changes:
        changed = picture("Text", 10, replace(PLAIN, **change))
        assert changed.dtype == np.uint8 and changed.shape[:2] == clean.shape
        grey = changed if changed.ndim == 2 else changed.mean(2)
        assert np.abs(grey - clean.astype(float)).max() > 5, change


def test_looks_keep_ink_and_paper_apart() -> None:
    source = rng()
    for _ in range(300):
        look = draw_look(source)
        assert abs(np.mean(look.ink) - np.mean(look.paper)) > 55
        assert 12 <= look.size <= 48 and look.margin > 0


def test_prepared_crops_are_what_the_service_shows_the_model() -> None:
    data = prepared(crops(OWN, "train", 3, 0), 3, SPEC)
    assert data.images.shape == (3, 1, 96, 96) and data.turns is not None
    for index, crop in enumerate(crops(OWN, "train", 3, 0)):
        seen = prepare(crop.pixels, SPEC, PREPROCESSING, fit="content").image
        assert np.abs(data.images[index].numpy() / 255 - seen).max() < 0.5 / 255 + 1e-6
        assert data.turns[index] == pytest.approx(np.radians(crop.degrees))


def test_no_word_stands_in_two_parts() -> None:
    for script in TEXTS:
        parts = [set(vocabulary(script, part)) for part in ("train", "validation", "test")]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert len(parts[0]) > 1000 and len(parts[1]) > 200


@pytest.mark.parametrize("script", TEXTS)
def test_words_of_names_are_short_and_of_their_script(script: Any) -> None:
    words = names(script)
    assert len(words) > 1500 and len(set(words)) == len(words)
    for word in words:
        assert FEWEST_LETTERS <= len(word) <= MOST_LETTERS and word == unicodedata.normalize("NFC", word).lower()
        assert all(unicodedata.name(letter).startswith(script.upper()) for letter in word)


@pytest.mark.parametrize(
    ("script", "lines"),
    [
        ("latin", ["security", "btosorosos", "GHECHANGERNETE"]),
        ("greek", ["την φύλο", "Ε ΜΑΛΕΣ", "συνείδηση,"]),
        ("cyrillic", ["РАЖДАТ ВЕКИ", "СТВАШЕНИ", "Олюдодавем"]),
        ("hebrew", ["לפיכך ניה אישי ל", "אוהכא", "צבע בערכם"]),
        ("arabic", ["فرد والحريات", "إنسان اء شخردو", "كالتمييز"]),
        ("devanagari", ["समाज आजने", "हक बर्ताव किसी", "और क्र्त"]),
    ],
)
def test_the_test_says_what_it_said_before_there_were_names(script: Any, lines: list[str]) -> None:
    """So that the figures of all versions of a model are of the same crops."""
    source = np.random.default_rng(7)
    assert [draw_text(script, "test", source) for _ in lines] == lines
    assert set(vocabulary(script, "test")) <= set(re.findall(r"[^\s.,;:!?।،]+", TEXTS[script].lower()))


def test_without_babel_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(DataError, match=r"Babel.*\[training\]"):
        names.__wrapped__("hebrew")
    assert next(crops(OWN, "test", 1, 0)).text


@pytest.mark.parametrize("script", SCRIPTS)
def test_lines_are_short_and_of_their_script(script: Any) -> None:
    source = rng()
    lines = [draw_text(script, "train", source) for _ in range(200)]
    assert all(2 <= len(line) <= MOST_LETTERS + 6 for line in lines)
    assert len(set(lines)) > 150
    if script in CASED:
        assert any(line.isupper() for line in lines) and any(line.islower() for line in lines)


def test_every_script_has_fonts_in_every_part_and_no_family_two_parts() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for part in ("train", "validation", "test"):
        assert {script for family in FAMILIES if family.part == part for script in family.scripts} == set(SCRIPTS)


def test_every_package_is_documented_with_its_licence() -> None:
    rows = (ROOT / "docs" / "fonts.md").read_text().splitlines()
    for package in packages():
        (row,) = [row for row in rows if row.startswith(f"| {package} |")]
        families = [family for family in FAMILIES if family.package == package]
        assert all(family.name in row and family.part in row for family in families)
        assert row.split("|")[4].strip()


@pytest.mark.parametrize("folder", ["empty", "absent"])
def test_missing_fonts_name_the_packages(folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"apt-get install .*fonts-nakula"):
        find_fonts(tmp_path / folder, "test", SCRIPTS)
    with pytest.raises(DataError, match="apt-get install"):
        load(TextData(source="text", path=tmp_path / folder, train=8, validation=8, test=8))


def test_fonts_may_lie_in_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"text: {tmp_path}/fonts lacks the fonts"):
        load(TextData(source="text", path=Path("~/fonts"), train=8, validation=8, test=8))


def test_an_unknown_script_is_named() -> None:
    with pytest.raises(DataError, match="klingon"):
        load(TextData(source="text", more={"klingon": 2.0}))


def test_training_can_draw_a_script_more_often_and_make_up_its_words() -> None:
    fonts: Fonts = {"latin": {"Aileron": (None,)}, "greek": {"Aileron": (None,)}}
    scripts = [crop.script for crop in crops(fonts, "train", 60, 0, more={"greek": 1000.0})]
    assert scripts.count("greek") > 55
    real = set(vocabulary("latin", "train"))
    words = [word.lower() for crop in crops(OWN, "train", 40, 0, made_up=1.0) for word in crop.text.split()]
    assert sum(word in real for word in words) < 0.2 * len(words)


@pytest.mark.parametrize("content", [b"", b"not a font", b"\x00\x01\x00\x00" + bytes(200)])
def test_a_broken_font_is_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "broken.ttf"
    file.write_bytes(content)
    with pytest.raises(DataError, match="broken.ttf"):
        load_font(file, 20)


@pytest.fixture
def small_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextData:
    """A small data set from the system's fonts, kept in a folder of this test."""
    try:
        for part in ("train", "validation", "test"):
            find_fonts(SYSTEM_FONTS, part, SCRIPTS)
    except DataError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("EQUIPOISE_TRAINING_DATA", str(tmp_path))
    return TextData(source="text", train=24, validation=8, test=8, seed=1)


def test_all_scripts_from_the_systems_fonts_once_drawn_and_then_read(small_text: TextData, tmp_path: Path) -> None:
    drawn = load(small_text)
    assert {name: len(part) for name, part in drawn.parts.items()} == {"train": 24, "validation": 8, "test": 8}
    assert drawn.preprocessing.fit == "circle"
    files = sorted((tmp_path / "text").iterdir())
    assert len(files) == 3
    assert load(small_text).digest == drawn.digest
    assert load(small_text.model_copy(update={"seed": 2})).digest != drawn.digest


def test_other_names_are_drawn_anew_but_for_the_test(
    small_text: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(small_text)
    before = set((tmp_path / "text").iterdir())
    monkeypatch.setattr("training.datasets.text.vocabulary", lambda script, part: ("word",))
    load(small_text)
    added = {path.name.split("-")[0] for path in set((tmp_path / "text").iterdir()) - before}
    assert added == {"train", "validation"}


@pytest.fixture
def latin_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextData:
    """The same in Pillow's own font alone."""
    monkeypatch.setattr("training.datasets.text.find_fonts", lambda *_: OWN)
    monkeypatch.setenv("EQUIPOISE_TRAINING_DATA", str(tmp_path))
    return TextData(source="text", train=8, validation=8, test=8, seed=1)


def test_what_cannot_be_kept_is_said_and_nothing_is_left_behind(
    latin_text: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunFailed, match=r"text/train-.* written: the disk is full"):
        patch.setattr(os, "fsync", full)
        load(latin_text)
    assert list((tmp_path / "text").iterdir()) == []
    (tmp_path / "text").rmdir()
    (tmp_path / "text").touch()
    with pytest.raises(RunError, match="text cannot be used as a folder"):
        load(latin_text)


def test_two_processes_of_one_number_draw_the_same(latin_text: TextData, monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers every process has number 1: each writes aside under a name of its own."""
    aside: list[Path] = []
    genuine = Path.rename

    def rename(self: Path, target: Path) -> Path:
        aside.append(self)
        return genuine(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    drawn = load(latin_text)
    for path in (data_root() / "text").iterdir():
        path.unlink()
    assert load(latin_text).digest == drawn.digest and len(set(aside)) == 6


def test_a_damaged_file_of_drawn_crops_is_named(small_text: TextData, tmp_path: Path) -> None:
    load(small_text)
    (file,) = (tmp_path / "text").glob("train-*.npz")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="damaged"):
        load(small_text)
