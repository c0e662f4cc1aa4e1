"""Variants of pictures in Python, drawn by the model that is shipped: kinds, sizes, loaders, what is refused."""

import pickle
import re
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from training.datasets import digits as small_digits
from training.variants import DrawVariant, VariantsError

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "model_store" / "symmetry-mnist" / "1"


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return small_digits.load(0).validation.padded(12).images.float() / 255


def test_the_example_of_the_page_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "upright.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "DrawVariant" in block]
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(code, names)
    with Image.open(ROOT / "examples" / "turned-3.jpg") as picture:
        assert (names["variant"].mode, names["variant"].size) == (picture.mode, picture.size)
        assert names["variant"].tobytes() == DrawVariant(MODEL, seed=7)(picture).tobytes()


def test_a_variant_drops_into_a_pipeline(digits: torch.Tensor) -> None:
    """A picture or a tensor gives the same kind; with one seed both are the same variant."""
    array = (255 * digits[3, 0]).byte()
    picture = Image.fromarray(array.numpy())
    as_picture = DrawVariant(MODEL, seed=4)(picture)
    as_tensor, as_floats = (DrawVariant(MODEL, seed=4)(value) for value in (array[None], digits[3]))
    assert (as_picture.mode, as_picture.size) == ("L", picture.size)
    assert (as_tensor.dtype, as_tensor.shape) == (torch.uint8, (1, 12, 12))
    assert np.abs(np.asarray(as_picture, float) - as_tensor[0].numpy()).mean() < 8
    assert float((as_floats * 255 - as_tensor).abs().mean()) < 2
    draw = DrawVariant(MODEL, seed=5)
    assert not torch.equal(draw(digits[3]), draw(digits[3]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:This process .* is multi-threaded")
def test_workers_and_epochs_of_a_loader_draw_other_variants(digits: torch.Tensor) -> None:
    loader = DataLoader(
        [digits[3]] * 4, batch_size=None, num_workers=2, collate_fn=DrawVariant(MODEL), multiprocessing_context="fork"
    )
    drawn = [variant.numpy().tobytes() for _ in range(2) for variant in loader]
    assert len(drawn) == len(set(drawn)) == 8


def test_what_arrives_in_a_process_that_is_spawned_draws_the_same(digits: torch.Tensor) -> None:
    """Also once it has drawn, and has its session."""
    draw = DrawVariant(MODEL, seed=5)
    for _ in range(2):
        arrived = pickle.loads(ForkingPickler.dumps(draw))
        assert torch.equal(arrived(digits[3]), draw(digits[3]))


def test_a_variant_of_a_large_picture_keeps_its_size_and_mode(digits: torch.Tensor) -> None:
    small = Image.fromarray((255 * digits[3, 0]).byte().numpy())
    page = Image.new("RGB", (200, 150), (10, 10, 12))
    page.paste(small.resize((90, 90), Image.Resampling.BICUBIC).convert("RGB"), (70, 30))
    drawn = DrawVariant(MODEL, seed=1)(page)
    assert (drawn.mode, drawn.size) == ("RGB", (200, 150))
    ink = np.asarray(drawn, float).sum(2)
    rows, columns = np.indices(ink.shape)
    assert (ink * columns).sum() / ink.sum() == pytest.approx(114, abs=12)
    assert (ink * rows).sum() / ink.sum() == pytest.approx(75, abs=12)


@pytest.mark.parametrize(
    ("mode", "kind", "top"), [("I;16", np.uint16, 65535), ("I", np.int32, 65535), ("F", np.float32, 1.0)]
)
def test_a_variant_of_many_grey_levels_is_that_of_eight_bits(
    digits: torch.Tensor, mode: str, kind: type[np.generic], top: float
) -> None:
    shades = (50 + 200 * digits[3, 0].numpy()).astype(np.uint8)
    picture = Image.fromarray((shades * (top / 255)).astype(kind))
    assert picture.mode == mode
    drawn, plain = (DrawVariant(MODEL, seed=4)(given) for given in (picture, Image.fromarray(shades)))
    assert drawn.mode == mode
    grey = np.clip(np.asarray(drawn, float) / top, 0, 1) * 255  # 32 bits overshoot at an edge, 8 are cut
    assert np.abs(grey - np.asarray(plain, float)).max() < 2


@pytest.mark.parametrize(
    "wrong",
    [
        "text",
        torch.zeros(4, 4),
        torch.zeros(2, 4, 4, dtype=torch.uint8),
        torch.zeros(1, 4, 4, dtype=torch.int64),
        torch.full((1, 4, 4), 255.0),
        torch.full((1, 4, 4), -0.5),
        torch.full((1, 4, 4), torch.nan),
    ],
)
def test_what_is_no_picture_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="PIL"):
        DrawVariant(str(MODEL))(wrong)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        (ROOT / "model_store" / "equivae-digits" / "1", "draws no variants: it has embed, classify, recombine"),
        (ROOT / "model_store" / "symmetry-mnist", "is no version of a model: manifest.json cannot be read"),
        (ROOT / "nowhere", "is no version of a model: manifest.json cannot be read"),
    ],
)
def test_a_folder_without_variants_is_refused(folder: Path, reason: str) -> None:
    with pytest.raises(VariantsError, match=reason):
        DrawVariant(folder)
