"""The warp against SciPy, and whatever does not fit into one call of OpenCV."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy import ndimage

from contract import geometry
from contract.geometry import Canvas
from contract.picture import Original
from contract.preprocess import find_filled_corners
from service import upright, warp
from service.errors import InternalError, TooManyPixels
from service.queries import UprightOptions
from service.routes import transform
from tests.contract.pictures import glyph
from tests.contract.plane import from_parts

random = np.random.default_rng(4)


def soft(*shape: int) -> npt.NDArray[np.uint8]:
    """A picture without edges finer than a few pixels."""
    blurred = ndimage.gaussian_filter(random.normal(size=shape), (3, 3, 0)[: len(shape)])
    return np.clip(128 + 60 * blurred / blurred.std(), 0, 255).astype(np.uint8)


def turned(degrees: float, width: int, height: int, *, expand: bool = True) -> Canvas:
    return warp.plan(geometry.rotation(degrees), geometry.frame(0, 0, width, height), width, height, expand=expand)


def by_scipy(samples: npt.NDArray[Any], canvas: Canvas, fill: float) -> npt.NDArray[np.float64]:
    y, x = np.indices((canvas.height, canvas.width))
    places = geometry.apply(canvas.matrix, np.stack([x, y], -1))
    return ndimage.map_coordinates(
        samples.astype(float), [places[..., 1], places[..., 0]], order=1, mode="grid-constant", cval=fill
    )


@pytest.mark.parametrize("degrees", [0, 23, -90, 171])
@pytest.mark.parametrize("expand", [True, False])
def test_bilinear_is_what_scipy_gives(degrees: float, expand: bool) -> None:
    samples = soft(60, 90)
    canvas = turned(degrees, 90, 60, expand=expand)
    drawn = warp.draw(samples, canvas, (77.0,), "bilinear")
    assert np.abs(drawn - by_scipy(samples, canvas, 77)).max() <= 1.5


@pytest.mark.parametrize("shape", [(70, 50), (70, 50, 2), (70, 50, 3), (70, 50, 4)])
@pytest.mark.parametrize("method", ["bicubic", "bilinear", "nearest", "lanczos"])
def test_tiles_make_no_difference(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], method: str) -> None:
    samples = soft(*shape)
    if samples.ndim == 3 and shape[2] != 3:
        samples[..., -1] |= 64  # colours of what cannot be seen are anything
    canvas = turned(33, 50, 70)
    fill = warp.fill_of(samples, "auto")
    whole = warp.draw(samples, canvas, fill, method).astype(int)
    monkeypatch.setattr(warp, "_TILE", 17)
    monkeypatch.setattr(warp, "_TILE_WITH_ALPHA", 17)
    difference = np.abs(warp.draw(samples, canvas, fill, method).astype(int) - whole)
    if method == "nearest":  # a place halfway between two pixels may go either way
        assert (difference > 0).mean() < 0.01
    else:
        coarse = method == "lanczos" or shape[2:] == (2,)  # there OpenCV's places are whole 1/32 of a pixel
        assert difference.max() <= (6 if coarse else 1)


@pytest.mark.parametrize("border", ["auto", "transparent", (9, 8, 7)])
@pytest.mark.parametrize("channels", [2, 4])
def test_a_picture_without_holes_is_drawn_as_any_other(
    monkeypatch: pytest.MonkeyPatch, border: Any, channels: int
) -> None:
    samples = soft(70, 50, channels)
    samples[..., -1] = 255
    fill = warp.fill_of(samples, border)
    short = warp.draw(samples, turned(33, 50, 70), fill, "bilinear").astype(int)
    monkeypatch.setattr(warp, "_alphas", lambda *_: (0, 255))
    general = warp.draw(samples, turned(33, 50, 70), fill, "bilinear").astype(int)
    visible = general[..., -1] > 30
    assert np.abs(short - general)[..., -1].max() <= 8  # 1/32 of a pixel at the edge
    assert np.abs(short - general)[visible].max() <= 8
    assert visible.mean() < 0.8 or border != "transparent"


@pytest.mark.parametrize("fill", [(0.0, 0.0, 0.0, 0.0), (9.0, 8.0, 7.0, 255.0)])
@pytest.mark.parametrize("method", ["bicubic", "lanczos"])
def test_only_edges_and_holes_are_weighted_by_opacity(
    monkeypatch: pytest.MonkeyPatch, fill: tuple[float, ...], method: str
) -> None:
    samples, canvas = soft(400, 600, 4), turned(33, 600, 400)
    samples[..., 3] = 255
    samples[100:160, 80:140] = (200, 10, 10, 0)
    samples[-90:, -90:, 3] = 120
    weighted, slowly = warp._warp_transparent, []

    def counted(*tile: Any) -> None:
        slowly.append(tile[-1][..., 0].size)
        weighted(*tile)

    monkeypatch.setattr(warp, "_warp_transparent", counted)
    monkeypatch.setattr(warp, "_TILE_WITH_ALPHA", 32)
    drawn = warp.draw(samples, canvas, fill, method).astype(int)
    assert 0 < sum(slowly) < 0.3 * canvas.width * canvas.height
    colours = warp.draw(np.ascontiguousarray(samples[..., :3]), canvas, fill[:3], method).astype(int)
    within = warp.draw(np.full((400, 600), 255, np.uint8), canvas, (0.0,), method) == 255
    monkeypatch.setattr(warp, "_alphas", lambda *_: (0, 255))
    general = warp.draw(samples, canvas, fill, method).astype(int)
    assert np.abs(drawn - general)[general[..., 3] > 30].max() <= 1
    assert (drawn[..., 3] == general[..., 3]).all()
    inside = ndimage.binary_erosion(within & (general[..., 3] == 255), iterations=8)
    assert inside.sum() > 200_000 and np.abs(drawn[..., :3] - colours)[inside].max() <= 2


@pytest.mark.parametrize("method", sorted(warp._METHODS))
def test_what_cannot_be_seen_is_black_everywhere(method: Any) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (60, 90, 4), np.uint8)
    samples[..., 3] *= samples[..., 3] > 128
    samples[:20] = 0
    drawn = warp.draw(samples, turned(45, 90, 60), warp.fill_of(samples, "auto"), method)
    hidden = drawn[..., 3] == 0
    assert hidden.sum() > 1000 and (drawn[hidden] == 0).all()


def test_sides_longer_than_opencv_takes() -> None:
    samples = np.zeros((8, 40_000), np.uint8)
    samples[:, 39_990:] = 255
    drawn = warp.draw(samples, turned(180, 40_000, 8), (0.0,), "bicubic")
    assert drawn.shape == (8, 40_000) and drawn[:, :10].min() == 255 and drawn[:, 10:].max() == 0


def test_a_picture_far_larger_than_its_canvas() -> None:
    samples = np.full((3000, 3000), 50, np.uint8)
    canvas = Canvas(4, 4, geometry.checked([[900, 0, 0], [0, 900, 0]]))
    assert (warp.draw(samples, canvas, (0.0,), "bilinear") == 50).all()


def test_a_canvas_beside_the_picture_is_filled() -> None:
    canvas = Canvas(5, 3, geometry.checked([[1, 0, 500], [0, 1, 500]]))
    assert (warp.draw(soft(20, 20), canvas, (9.0,), "bicubic") == 9).all()
    assert (warp.draw(soft(20, 20, 3), canvas, "transparent", "bicubic")[..., 3] == 0).all()


def test_the_fill_is_in_the_pictures_own_values() -> None:
    assert warp.fill_of(np.full((4, 4), 300, np.uint16), "auto") == (300.0,)
    assert warp.fill_of(np.zeros((4, 4), np.uint16), (255, 255, 255)) == pytest.approx((65535.0,))
    assert warp.fill_of(np.zeros((4, 4), np.uint8), (255, 0, 0)) == pytest.approx((76.245,))
    assert warp.fill_of(np.zeros((4, 4, 2), np.uint8), (255, 0, 0)) == pytest.approx((76.245, 255.0))
    assert warp.fill_of(np.zeros((4, 4, 4), np.uint8), (1, 2, 3)) == (1.0, 2.0, 3.0, 255.0)
    assert warp.fill_of(np.zeros((4, 4, 4), np.uint8), "auto") == (0.0, 0.0, 0.0, 0.0)


def test_a_transform_that_enlarges_is_held_to_the_limit() -> None:
    original = Original(soft(100, 100), None, None)
    frame, tiny = geometry.frame(0, 0, 100, 100), from_parts(scale=(0.01, 0.01))
    options = UprightOptions(undo="all")
    with pytest.raises(TooManyPixels, match="10000 x 10000"):
        upright.plan(original, frame, tiny, options, 1_000_000)
    assert upright.plan(original, frame, tiny, UprightOptions(undo="all", expand=False), 1_000_000)[:2] == (100, 100)


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.full((2, 3), np.nan)])
def test_a_model_that_gives_no_transform(matrix: npt.NDArray[np.float64]) -> None:
    one = matrix.astype(np.float32)[None]
    outputs = {"matrix": one, "modes": one[None], "weights": np.ones((1, 1), np.float32)}
    outputs["coefficients_std"] = np.ones((1, 1), np.float32)
    model = SimpleNamespace(manifest=SimpleNamespace(group="SO2"), name="odd")
    item = SimpleNamespace(frame=geometry.frame(0, 0, 9, 9), description={"has_content": True})
    with pytest.raises(InternalError, match="odd gave no transform"):
        transform.render(model, item, outputs, 0)  # type: ignore[arg-type]
    with pytest.raises(InternalError, match="gave no transform"):
        upright.plan(Original(soft(9, 9), None, None), item.frame, matrix, UprightOptions(), 1000)


def test_the_uncertainty_of_every_group() -> None:
    item = SimpleNamespace(frame=geometry.frame(0, 0, 9, 9), description={"has_content": True})
    fields = {
        "SO2": ["rotation_degrees"],
        "SE2": ["rotation_degrees", "translation"],
        "SIM2": ["rotation_degrees", "translation", "scale"],
        "AFF5": ["rotation_degrees", "translation", "scale"],
        "AFF6": ["rotation_degrees", "translation", "scale", "shear_degrees"],
    }
    for group, names in fields.items():
        count = len(geometry.COEFFICIENTS[group])  # type: ignore[index]
        outputs = {
            "matrix": geometry.rotation(10).astype(np.float32)[None],
            "modes": geometry.rotation(10).astype(np.float32)[None, None],
            "weights": np.ones((1, 1), np.float32),
            "coefficients_std": np.full((1, count), 0.1, np.float32),
        }
        model = SimpleNamespace(manifest=SimpleNamespace(group=group), name="m")
        answer = transform.render(model, item, outputs, 0)  # type: ignore[arg-type]
        assert list(answer["uncertainty"]) == names
        assert answer["uncertainty"]["rotation_degrees"] == pytest.approx(np.degrees(0.1))


def test_where_there_is_no_content_no_mode_needs_weight() -> None:
    item = SimpleNamespace(frame=geometry.frame(0, 0, 9, 9), description={"has_content": False})
    outputs = {"matrix": np.full((1, 2, 3), np.nan), "modes": np.zeros((1, 1, 2, 3)), "weights": np.zeros((1, 1))}
    outputs["coefficients_std"] = np.full((1, 1), 0.9, np.float32)
    model = SimpleNamespace(manifest=SimpleNamespace(group="SO2"), name="m")
    answer = transform.render(model, item, outputs, 0)  # type: ignore[arg-type]
    assert answer["rotation_degrees"] == 0 and len(answer["modes"]) == 1
    assert answer["uncertainty"]["rotation_degrees"] == pytest.approx(np.degrees(0.9))


def test_modes_of_next_to_no_weight_are_no_modes() -> None:
    matrices = np.stack([geometry.rotation(degrees).astype(np.float32) for degrees in (10, -170, 95)])
    outputs = {
        "matrix": matrices[:1],
        "modes": matrices[None],
        "weights": np.array([[0.9995, 0.0005, 1e-9]], np.float32),
        "coefficients_std": np.full((1, 1), 0.1, np.float32),
    }
    model = SimpleNamespace(manifest=SimpleNamespace(group="SO2"), name="m")
    item = SimpleNamespace(frame=geometry.frame(0, 0, 9, 9), description={"has_content": True})
    modes = transform.render(model, item, outputs, 0)["modes"]  # type: ignore[arg-type]
    assert [round(float(mode["rotation_degrees"])) for mode in modes] == [10, -170]


PAPER, FILLED = 230, 0


def page_turned_by_a_tool(degrees: float, expand: bool) -> Image.Image:
    """A page with a thick L, in grey, its corners black."""
    page = Image.new("L", (400, 300), PAPER)
    page.paste(40, (130, 80), Image.fromarray(glyph(140)))
    return page.rotate(degrees, Image.Resampling.BICUBIC, expand=expand, fillcolor=FILLED)


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize("degrees", [-50, -8, 25, 40])
@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "I;16"])
def test_corners_that_a_tool_has_filled_are_no_part_of_the_upright_picture(
    degrees: float, expand: bool, mode: str
) -> None:
    grey = page_turned_by_a_tool(degrees, expand)
    samples = np.asarray(grey, np.uint16) * 257 if mode == "I;16" else np.asarray(grey.convert(mode))
    filled = find_filled_corners(np.asarray(grey))
    assert len(filled) >= 3
    fill = warp.fill_of(samples, "auto", filled)
    frame = geometry.frame(0, 0, grey.width, grey.height)
    canvas = warp.plan(geometry.rotation(degrees), frame, grey.width, grey.height, filled=filled)
    if expand:
        assert np.abs(np.subtract(canvas[:2], (400, 300))).max() <= 12
    drawn = warp.draw(samples, canvas, fill, "bicubic", filled)
    level = drawn.reshape(*drawn.shape[:2], -1)[..., 0] // (257 if mode == "I;16" else 1)
    ink = level < PAPER - 30
    assert ink.sum() == pytest.approx(glyph(140).astype(bool).sum(), rel=0.1)
    clear = warp.draw(samples, canvas, "transparent", "bilinear", filled)
    seen = clear[..., 0][clear[..., -1] == 255]
    assert seen.size > 0.5 * 400 * 300 and (seen < 20).mean() < 0.005  # bicubic strokes overshoot


def test_a_picture_without_filled_corners_is_drawn_as_it_is() -> None:
    page = np.asarray(page_turned_by_a_tool(0, expand=True))
    assert find_filled_corners(page) == ()
