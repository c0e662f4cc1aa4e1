"""Transforms of the plane: round trips over random matrices, and what cannot be a transform is refused by name."""

from itertools import product

import numpy as np
import pytest

from contract import geometry
from contract.geometry import GeometryError
from tests.contract.plane import from_parts

IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
random = np.random.default_rng(5)


def matrices(count: int) -> np.ndarray:
    """[count,2,3]: any rotation, some shift, unequal scales, shear."""
    return np.stack(
        [
            from_parts(
                random.uniform(-180, 180),
                (random.uniform(-1, 1), random.uniform(-1, 1)),
                (np.exp(random.normal()), np.exp(random.normal())),
                random.uniform(-60, 60),
            )
            for _ in range(count)
        ]
    )


def test_a_picture_turned_counter_clockwise_by_thirty_degrees() -> None:
    matrix = geometry.rotation(30)
    assert np.allclose(matrix, [[0.8660254, 0.5, 0], [-0.5, 0.8660254, 0]])
    # The point that was at the right is now at the upper right: y points down.
    assert np.allclose(geometry.apply(matrix, [1, 0]), [0.8660254, -0.5])


@pytest.mark.parametrize("degrees", [0, 90, 180, -90, 270, 360, -450])
def test_whole_quarters_are_exact(degrees: float) -> None:
    matrix = geometry.rotation(degrees)
    assert set(np.abs(matrix).ravel()) == {0.0, 1.0}
    assert (geometry.to_parts(matrix).rotation_degrees - degrees) % 360 == 0


def test_parts_make_the_matrix_they_come_from() -> None:
    for matrix in matrices(200):
        parts = geometry.to_parts(matrix)
        assert np.allclose(from_parts(*parts), matrix, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("degrees", "shift", "scale", "shear"),
    list(product([-179.5, -90, 0, 37.25, 180], [(0.0, 0.0), (0.25, -0.125)], [(1, 1), (0.5, 3)], [-40, 0, 12.5])),
)
def test_a_matrix_gives_the_parts_it_is_made_of(
    degrees: float, shift: tuple[float, float], scale: tuple[float, float], shear: float
) -> None:
    parts = geometry.to_parts(from_parts(degrees, shift, scale, shear))
    assert parts.rotation_degrees == pytest.approx(degrees)
    assert parts.translation == pytest.approx(shift)
    assert parts.scale == pytest.approx(scale)
    assert parts.shear_degrees == pytest.approx(shear, abs=1e-9)


def test_the_translation_is_a_fraction_of_the_width() -> None:
    assert geometry.to_parts([[1, 0, 0.5], [0, 1, -1]]).translation == (0.25, -0.5)


def test_a_mirror_shows_in_the_scale() -> None:
    assert geometry.to_parts([[1, 0, 0], [0, -1, 0]]) == (0.0, (0.0, 0.0), (1.0, -1.0), 0.0)


def test_the_angle_is_that_of_the_first_row_for_similarities() -> None:
    for degrees in random.uniform(-180, 180, 50):
        matrix = from_parts(degrees, (0.1, 0.2), (1.7, 1.7))
        assert np.degrees(np.arctan2(matrix[0, 1], matrix[0, 0])) == pytest.approx(degrees)


def test_a_matrix_and_its_inverse_are_the_identity_in_either_order() -> None:
    for one in matrices(12):
        for product_ in (geometry.compose(one, geometry.inverse(one)), geometry.compose(geometry.inverse(one), one)):
            assert product_.shape == one.shape
            assert np.allclose(product_, IDENTITY, atol=1e-9)


def test_composition_passes_coordinates_through_the_last_one_first() -> None:
    first, second, third = matrices(3)
    point = np.array([0.3, -0.7])
    step_by_step = geometry.apply(first, geometry.apply(second, geometry.apply(third, point)))
    assert np.allclose(geometry.apply(geometry.compose(first, second, third), point), step_by_step)


def test_a_frame_reaches_from_edge_to_edge() -> None:
    to_pixels = geometry.frame(0, 0, 28, 14)
    assert np.allclose(geometry.apply(to_pixels, [[-1, -1], [1, 1], [0, 0]]), [[-0.5, -0.5], [27.5, 13.5], [13.5, 6.5]])
    centres = geometry.apply(geometry.inverse(to_pixels), [[0, 0], [27, 13]])
    assert np.allclose(centres, [[-27 / 28, -13 / 14], [27 / 28, 13 / 14]])


def test_a_turn_about_a_point_leaves_it_in_place() -> None:
    for matrix in matrices(20):
        turned = geometry.about(matrix, (12.5, -3))
        assert np.allclose(geometry.apply(turned, (12.5, -3)), (12.5, -3))
        assert np.array_equal(turned[:, :2], matrix[:, :2])


def test_a_grown_canvas_holds_the_whole_picture_and_not_a_pixel_more() -> None:
    for matrix in matrices(100):
        turn = geometry.about(matrix, random.uniform(-100, 100, 2))
        canvas = geometry.grown(turn, 30, 20)
        corners = geometry.apply(geometry.inverse(canvas.matrix), [(x, y) for x in (-0.5, 29.5) for y in (-0.5, 19.5)])
        assert (corners >= -0.5 - 1e-5).all() and (
            corners <= np.array([canvas.width, canvas.height]) - 0.5 + 1e-5
        ).all()
        assert (np.ptp(corners, axis=0) > np.array([canvas.width, canvas.height]) - 1).all()
        assert np.allclose(canvas.matrix[:, :2], matrix[:, :2])


@pytest.mark.parametrize(
    ("degrees", "size"),
    [(0, (30, 20)), (90, (20, 30)), (180, (30, 20)), (-90, (20, 30)), (1e-4, (30, 20)), (-0.3, (30, 20))]
    + [(89.8, (20, 30)), (-179.9, (30, 20))],
)
def test_a_canvas_turned_by_quarters_keeps_pixels_on_pixels(degrees: float, size: tuple[int, int]) -> None:
    turn = geometry.about(geometry.rotation(degrees), (13.37, 4.2))
    canvas = geometry.grown(turn, 30, 20)
    assert (canvas.width, canvas.height) == size
    assert np.array_equal(canvas.matrix, np.rint(canvas.matrix))
    back = geometry.apply(canvas.matrix, [(0, 0), (canvas.width - 1, canvas.height - 1)])
    assert {tuple(np.sort(pair)) for pair in back.T} == {(0, 29), (0, 19)}


def test_a_canvas_grows_for_a_turn_that_can_be_seen() -> None:
    for degrees, width, height in ((0.6, 30, 20), (0.01, 3000, 2000), (90.01, 3000, 2000)):
        canvas = geometry.grown(geometry.about(geometry.rotation(degrees), (13.37, 4.2)), width, height)
        assert canvas.width * canvas.height > width * height
        assert np.array_equal(canvas.matrix[:, :2], geometry.rotation(degrees)[:, :2])


@pytest.mark.parametrize(
    ("matrix", "reason"),
    [
        ([[1, 0], [0, 1]], r"shape \[2, 2\]"),
        (np.eye(3), r"shape \[3, 3\]"),
        ([], r"shape \[0\]"),
        (np.ones((4, 2, 3)), r"shape \[4, 2, 3\]"),
        ([[1, 0, 0], [0, np.nan, 0]], "not finite"),
        ([[1, 0, np.inf], [0, 1, 0]], "not finite"),
        ([[0, 0, 1], [0, 0, 1]], "cannot be inverted"),
        ([[1, 2, 0], [2, 4, 0]], "cannot be inverted"),
        ([[1, 0, 0], [0, 1e-12, 0]], "cannot be inverted"),
        ([[1e200, 1e200, 0], [1e200, 1e200, 0]], "cannot be inverted"),
        ([["a", 0, 0], [0, 1, 0]], "not a matrix of numbers"),
        ([[1, 0, 0], [0, 1]], "not a matrix of numbers"),
        (None, "shape|not a matrix"),
    ],
)
def test_what_is_no_transform_is_refused_by_name(matrix: object, reason: str) -> None:
    for function in (geometry.to_parts, geometry.inverse, geometry.compose):
        with pytest.raises(GeometryError, match=reason):
            function(matrix)  # type: ignore[operator]


def test_small_and_large_scales_are_no_degenerate_ones() -> None:
    for scale in (1e-6, 1e6):
        assert geometry.to_parts([[scale, 0, 0], [0, scale, 0]]).scale == pytest.approx((scale, scale))
