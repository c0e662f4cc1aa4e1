"""Every group by the same properties: identity, inverse, composition, the series, gradients, pictures."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from scipy import linalg, ndimage
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from contract import geometry
from contract.geometry import COEFFICIENTS, Group
from contract.manifest import InputSpec
from tests.contract.plane import from_parts
from training.graphs import export_graphs
from training.lie import DIMENSIONS, compose, exponential, generators, grid, inverse, resample
from training.models.base import Graph

GROUPS = list(DIMENSIONS)
LIMITS = {
    "SO2": [math.pi],
    "SE2": [math.pi, 0.5, 0.5],
    "SIM2": [math.pi, 0.5, 0.5, 0.7],
    "AFF5": [math.pi, 0.5, 0.5, 0.7, 0.7],
    "AFF6": [math.pi, 0.5, 0.5, 0.7, 0.7, 0.7],
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-6}

pytestmark = pytest.mark.parametrize("group", GROUPS)


def drawn(group: Group, count: int = 500, share: float = 1.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Coefficients [count,G] over `share` of the group's range, a fifth of them with one entry exactly 0."""
    generator = torch.Generator().manual_seed(3)
    unit = 2 * torch.rand((count, DIMENSIONS[group]), generator=generator, dtype=dtype) - 1
    coefficients = share * unit * torch.tensor(LIMITS[group], dtype=dtype)
    zero = torch.randint(DIMENSIONS[group], (count // 5,), generator=generator)
    coefficients[torch.arange(count // 5), zero] = 0
    return coefficients


def square(matrix: Tensor) -> Tensor:
    """[N,2,3] -> [N,3,3]"""
    return torch.cat([matrix, torch.tensor([0.0, 0, 1]).to(matrix).expand(len(matrix), 1, 3)], 1)


def logarithm_matrix(group: Group, coefficients: Tensor) -> Tensor:
    """sum_i c_i G_i as [N,3,3]"""
    upper = torch.einsum("ng,gij->nij", coefficients, generators(group).to(coefficients))
    return torch.cat([upper, torch.zeros_like(upper[:, :1])], 1)


def scaled_and_squared(matrices: Tensor, squarings: int = 12, terms: int = 8) -> Tensor:
    """exp by its Taylor series at 2^-squarings of the argument, squared back."""
    small = matrices / 2**squarings
    total = term = torch.eye(3, dtype=matrices.dtype).expand_as(matrices)
    for k in range(1, terms):
        term = term @ small / k
        total = total + term
    for _ in range(squarings):
        total = total @ total
    return total


def near_singular(group: Group) -> Tensor:
    """Coefficients where a quotient of the exponential has 0 or nearly 0 below it, and on either side of a switch."""
    rows = []
    for size in (0.0, 1e-30, 1e-12, 1e-6, 1e-3, 0.0999, 0.1001, 0.3161, 0.3163):
        row = [size] * DIMENSIONS[group]
        rows += [row, [-value for value in row], [size, *[0.3] * (DIMENSIONS[group] - 1)]]
    if group in ("AFF5", "AFF6"):
        shear = [0.0] if group == "AFF6" else []
        rows += [
            [0.0, 0.3, 0.4, 0.5, 0.0, *shear],  # one eigenvalue is 0
            [0.3, 0.3, 0.4, 0.3, -0.3, *shear],  # nilpotent: both are 0
            [0.3, 0.3, 0.4, 0.7, 0.1, *shear],  # a double one
        ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_of_zero_is_the_identity(group: Group, dtype: torch.dtype) -> None:
    matrix = exponential(group, torch.zeros(3, DIMENSIONS[group], dtype=dtype))
    assert matrix.dtype == dtype and torch.equal(matrix, torch.eye(2, 3, dtype=dtype).expand(3, 2, 3))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_inverse(group: Group, dtype: torch.dtype) -> None:
    coefficients = drawn(group, dtype=dtype)
    matrix = exponential(group, coefficients)
    identity = torch.eye(2, 3, dtype=dtype).expand_as(matrix)
    for undone in (inverse(matrix), exponential(group, -coefficients)):
        torch.testing.assert_close(compose(matrix, undone), identity, rtol=0, atol=10 * TOLERANCE[dtype])
        torch.testing.assert_close(compose(undone, matrix), identity, rtol=0, atol=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_agrees_with_scaling_and_squaring(group: Group, dtype: torch.dtype) -> None:
    for coefficients in (drawn(group), near_singular(group)):
        expected = scaled_and_squared(logarithm_matrix(group, coefficients))[:, :2]
        got = exponential(group, coefficients.to(dtype))
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gradients_near_the_removable_singularities(group: Group, dtype: torch.dtype) -> None:
    """The same as of the series, which has no singularities: finite, and right."""
    coefficients = torch.cat([near_singular(group), drawn(group, 50)])
    weights = torch.rand(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = coefficients.clone().requires_grad_()
    (scaled_and_squared(logarithm_matrix(group, exact))[:, :2] * weights).sum().backward()
    mine = coefficients.to(dtype).requires_grad_()
    (exponential(group, mine) * weights.to(dtype)).sum().backward()
    torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=0, atol=10 * TOLERANCE[dtype])


def test_second_derivatives_are_finite(group: Group) -> None:
    coefficients = near_singular(group).requires_grad_()
    (first,) = torch.autograd.grad(exponential(group, coefficients).sum(), coefficients, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), coefficients)
    assert bool(torch.isfinite(second).all())


def test_one_coefficient_alone_is_a_one_parameter_group(group: Group) -> None:
    for axis in range(DIMENSIONS[group]):
        twice = torch.zeros(1, DIMENSIONS[group], dtype=torch.float64)
        twice[0, axis] = 0.8
        half = exponential(group, twice / 2)
        torch.testing.assert_close(compose(half, half), exponential(group, twice), rtol=0, atol=1e-12)


def test_composition_is_the_product_and_associates(group: Group) -> None:
    a, b, c = (exponential(group, part) for part in drawn(group, 300).reshape(3, 100, -1))
    torch.testing.assert_close(square(compose(a, b)), square(a) @ square(b))
    torch.testing.assert_close(compose(compose(a, b), c), compose(a, compose(b, c)))


def test_closed_under_composition_except_aff5(group: Group) -> None:
    """The logarithm of a product lies in the span of the generators; AFF5's leaves it through its missing shear."""
    small = drawn(group, 40, share=0.2)
    product = square(compose(exponential(group, small[:20]), exponential(group, small[20:])))
    basis = generators(group).double().reshape(DIMENSIONS[group], 6)
    outside = 0.0
    for matrix in product:
        logarithm = torch.from_numpy(linalg.logm(matrix.numpy()).real)[:2].reshape(6)
        coefficients = torch.linalg.lstsq(basis.T, logarithm[:, None]).solution
        outside = max(outside, float((basis.T @ coefficients - logarithm[:, None]).abs().max()))
    assert outside > 1e-3 if group == "AFF5" else outside < 1e-9


def test_grid_is_that_of_torch(group: Group) -> None:
    matrix = exponential(group, drawn(group, 6, dtype=torch.float32))
    expected = F.affine_grid(matrix, [6, 1, 9, 9], align_corners=False)
    torch.testing.assert_close(grid(matrix, 9), expected, rtol=0, atol=1e-6)


# --- one convention with contract/geometry.py -----------------------------------------------------------------------


def test_coefficients_are_those_of_the_contract(group: Group) -> None:
    assert DIMENSIONS[group] == len(COEFFICIENTS[group]) == len(generators(group)) and set(GROUPS) == set(COEFFICIENTS)


def test_each_coefficient_alone_is_the_part_of_its_name(group: Group) -> None:
    for axis, name in enumerate(COEFFICIENTS[group]):
        for value in (-0.6, 0.4):
            coefficients = torch.zeros(1, DIMENSIONS[group], dtype=torch.float64)
            coefficients[0, axis] = value
            growth = math.exp(value)
            parts = {
                "rotation": {"rotation_degrees": math.degrees(value)},
                "x": {"translation": (value / 2, 0.0)},
                "y": {"translation": (0.0, value / 2)},
                "log_scale": {"scale": (growth, growth)},
                "log_scale_x": {"scale": (growth, 1.0)},
                "log_scale_y": {"scale": (1.0, growth)},
                "shear": {"shear_degrees": math.degrees(math.atan(value))},
            }[name]
            expected = from_parts(**parts)
            np.testing.assert_allclose(exponential(group, coefficients)[0].numpy(), expected, atol=1e-14)


def test_inverse_and_composition_are_those_of_the_contract(group: Group) -> None:
    a, b = exponential(group, drawn(group, 60)).chunk(2)
    composed = [geometry.compose(one, other) for one, other in zip(a.numpy(), b.numpy(), strict=True)]
    np.testing.assert_allclose(compose(a, b).numpy(), composed, atol=1e-12)
    np.testing.assert_allclose(inverse(a).numpy(), [geometry.inverse(one) for one in a.numpy()], atol=1e-12)


def test_grid_holds_the_points_of_the_contract(group: Group) -> None:
    """The pixel in row j and column i, its centre in normalised coordinates, through the matrix."""
    side = 5
    (matrix,) = exponential(group, drawn(group, 1))
    normalised = geometry.inverse(geometry.frame(0, 0, side, side))
    points = [[geometry.apply(normalised, (i, j)) for i in range(side)] for j in range(side)]
    expected = geometry.apply(matrix.numpy(), np.array(points))
    np.testing.assert_allclose(grid(matrix[None], side)[0].numpy(), expected, atol=1e-12)


# --- pictures -------------------------------------------------------------------------------------------------------


def smooth_digits(count: int = 12, side: int = 64) -> Tensor:
    """Scikit-learn's digits, large and smooth, with room around them: [count,1,side,side]"""
    digits = torch.from_numpy(load_digits().images[:count]).float()[:, None] / 16
    large = F.interpolate(digits, (side // 2, side // 2), mode="bicubic").clamp(0, 1)
    framed = F.pad(large, [side // 4] * 4)
    return torch.from_numpy(ndimage.gaussian_filter(framed.numpy(), (0, 0, 1.5, 1.5)))


def test_two_resamplings_are_one_with_the_product(group: Group) -> None:
    """First a, then b on what came out: sampled at a(b(p)), so a b, and not b a."""
    images = smooth_digits()
    a, b = exponential(group, drawn(group, 24, 0.3, torch.float32)).chunk(2)
    twice = resample(resample(images, a), b)
    error = (resample(images, compose(a, b)) - twice).abs().mean()
    assert error < 2e-3
    if group != "SO2":  # whose elements commute
        assert (resample(images, compose(b, a)) - twice).abs().mean() > 5 * error


def test_image_round_trip(group: Group) -> None:
    images = smooth_digits()
    matrix = exponential(group, drawn(group, 12, 0.3, torch.float32))
    back = resample(resample(images, inverse(matrix)), matrix)
    assert float((back - images).pow(2).mean()) < 1e-4 < float((resample(images, matrix) - images).pow(2).mean())


def test_a_positive_angle_is_counter_clockwise_as_seen(group: Group) -> None:
    """The observed picture of an upright one is what Pillow and SciPy turn by the same angle, both as a person sees."""
    upright = smooth_digits(4)
    coefficients = torch.zeros(4, DIMENSIONS[group])
    coefficients[:, 0] = math.radians(30)
    matrix = exponential(group, coefficients)
    expected = torch.tensor([[math.cos(math.pi / 6), 0.5, 0], [-0.5, math.cos(math.pi / 6), 0]])
    torch.testing.assert_close(matrix[0], expected)
    observed = resample(upright, inverse(matrix))
    for picture, turned in zip(upright[:, 0].numpy(), observed[:, 0].numpy(), strict=True):
        by_pillow = np.asarray(Image.fromarray(picture).rotate(30, Image.Resampling.BILINEAR))
        by_scipy = ndimage.rotate(picture, 30, reshape=False, order=1)
        assert np.abs(turned - by_pillow).max() < 0.02 and np.abs(turned - by_scipy).max() < 0.02
        assert np.abs(turned - ndimage.rotate(picture, -30, reshape=False, order=1)).max() > 0.2
    torch.testing.assert_close(resample(observed, matrix), upright, rtol=0, atol=0.06)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_positive_shift_moves_what_is_seen_right_or_down(group: Group, axis: int) -> None:
    if group == "SO2":
        pytest.skip("has no shifts")
    coefficients = torch.zeros(1, DIMENSIONS[group])
    coefficients[0, axis] = 2 * 4 / 64  # four of 64 pixels
    observed = resample(smooth_digits(1), inverse(exponential(group, coefficients)))
    expected = torch.roll(smooth_digits(1), 4, dims=3 if axis == 1 else 2)
    torch.testing.assert_close(observed, expected, rtol=0, atol=1e-5)


# --- export ---------------------------------------------------------------------------------------------------------


class Turns(Graph):
    """A picture under a transform of every group, whose coefficients stand in its first pixels, a row each."""

    outputs = tuple(f"{group}_turned" for group in GROUPS)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        rows = (image[:, 0, row, : DIMENSIONS[group]] for row, group in enumerate(GROUPS))
        return tuple(resample(image, exponential(group, each)) for group, each in zip(GROUPS, rows, strict=True))


@pytest.fixture(scope="module")
def exported() -> bytes:
    return export_graphs({"transform": Turns()}, InputSpec(channels=1, height=12, width=12)).contents["transform.onnx"]


def test_exports_without_a_subgraph_of_shapes_and_runs_at_any_batch(group: Group, exported: bytes) -> None:
    operators = {node.op_type for node in onnx.load_from_string(exported).graph.node}
    assert operators.isdisjoint({"Shape", "AffineGrid", "Loop", "Sinh", "Cosh"})
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    row = GROUPS.index(group)
    for count in (1, 7):
        images = torch.rand(count, 1, 12, 12)
        coefficients = near_singular(group)[-count:].float()
        images[:, 0, row, : DIMENSIONS[group]] = coefficients
        (got,) = session.run([f"{group}_turned"], {"image": images.numpy()})
        np.testing.assert_allclose(got, resample(images, exponential(group, coefficients)).numpy(), atol=1e-5)
