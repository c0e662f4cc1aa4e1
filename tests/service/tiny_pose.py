"""A small real model that estimates a pose, written as ONNX by hand, whose answers NumPy knows: SIM2, 32x32.

Where the ink is, how far it spreads, and the direction in which the third moment of the ink points, give shift, scale
and angle. The third moment turns with the ink through all of the circle, so the answers are really right for whatever
has one heavy or long end; upright is what points upwards. Variants are the pose found, changed a little by the noise.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw
from scipy.ndimage import map_coordinates

from contract.manifest import GraphSpec, InputSpec, ModelCard, Preprocessing, TensorSpec, write_model_folder

SIDE = 32
SPREAD = 0.35  # root mean square distance of upright ink from its centre, normalised
PRIOR = 1e-3  # pixels of ink that say so of a blank
NOTHING = 1e-6  # of the third moment: a blank is upright
SURENESS = 3.0
UNKNOWN = np.float32(np.pi / np.sqrt(3))  # the deviation of an angle of which nothing is known
_centres = ((2 * np.arange(SIDE) + 1) / SIDE - 1).astype(np.float32)
_y, _x = (axis.ravel() for axis in np.meshgrid(_centres, _centres, indexing="ij"))
OUTPUTS = {
    "coefficients": (4,),
    "coefficients_std": (4,),
    "matrix": (2, 3),
    "modes": (2, 2, 3),
    "weights": (2,),
}
INPUTS = {"image": (1, SIDE, SIDE)}
SAMPLES = 3
NOISE = {"noise": (SAMPLES, 4)}
CHANGES = np.zeros((4, 3, 3), np.float32)  # of a variant's matrix by each number of noise: turn, shift, scale
CHANGES[0, 0, 1], CHANGES[0, 1, 0] = 0.3, -0.3
CHANGES[1, 0, 2] = CHANGES[2, 1, 2] = 0.2
CHANGES[3, 0, 0] = CHANGES[3, 1, 1] = 0.1
PICTURES = {"canonical": (1, SIDE, SIDE), "rectified": (1, SIDE, SIDE)}


def estimate(images: np.ndarray) -> dict[str, np.ndarray]:
    """[N,1,32,32] -> the graph's outputs."""
    ink = images.reshape(len(images), -1).astype(np.float64)
    mass = ink.sum(1, keepdims=True) + 1e-6
    x, y = (ink @ _x[:, None]) / mass, (ink @ _y[:, None]) / mass
    dx, dy = _x - x, _y - y
    squared = dx**2 + dy**2
    spread = ((ink * squared).sum(1, keepdims=True) + PRIOR * SPREAD**2) / (mass + PRIOR)
    scale = np.sqrt(spread) / SPREAD
    right, down = ((ink * squared * d).sum(1, keepdims=True) / mass for d in (dx, dy))
    down = down - NOTHING
    length = np.sqrt(right**2 + down**2)
    # Upright content points up, to (0, -1); turned by +90 degrees it points left, to (-1, 0).
    cos, sin = -down / length, -right / length
    angle = 2 * np.arctan(sin / (1 + cos + 1e-6))
    sure = np.clip(length / (spread * np.sqrt(spread)) * SURENESS, 0, 1)
    matrix = np.stack(
        [np.concatenate([scale * cos, scale * sin, x], 1), np.concatenate([-scale * sin, scale * cos, y], 1)], 1
    )
    flipped = matrix * np.array([[-1, -1, 1]])
    grid = np.einsum("pk,njk->npj", np.stack([_x, _y, np.ones_like(_x)], 1), matrix)
    rectified = np.stack(
        [
            map_coordinates(
                image[0].astype(np.float64),
                [((where[:, 1] + 1) * SIDE - 1) / 2, ((where[:, 0] + 1) * SIDE - 1) / 2],
                order=1,
                mode="grid-constant",
            ).reshape(1, SIDE, SIDE)
            for image, where in zip(images, grid, strict=True)
        ]
    )
    deviation = (1 - sure) * UNKNOWN
    found = {
        "coefficients": np.concatenate([angle, x, y, np.log(scale)], 1),
        "coefficients_std": np.concatenate([deviation, deviation * 0.1, deviation * 0.1, deviation * 0.1], 1),
        "matrix": matrix,
        "modes": np.stack([matrix, flipped], 1),
        "weights": np.concatenate([0.5 + sure / 2, 0.5 - sure / 2], 1),
        "canonical": rectified,
        "rectified": rectified,
    }
    return {name: array.astype(np.float32) for name, array in found.items()}


def variants(images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """[N,1,32,32], [N,3,4] -> [N,3,2,3]"""
    change = np.eye(3, dtype=np.float32) + np.einsum("nsg,gij->nsij", noise, CHANGES)
    return (estimate(images)["matrix"][:, None] @ change).astype(np.float32)


class _Nodes:
    """Nodes of a graph, written as expressions."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def __call__(self, operator: str, *inputs: Any, name: str | None = None, **attributes: Any) -> str:
        output = name or f"t{len(self.nodes)}"
        names = [given if isinstance(given, str) else self._constant(given) for given in inputs]
        self.nodes.append(helper.make_node(operator, names, [output], **attributes))
        return output

    def _constant(self, value: Any) -> str:
        array = np.asarray(value)
        name = f"c{len(self.weights)}"
        self.weights.append(
            numpy_helper.from_array(array if array.dtype == np.int64 else array.astype(np.float32), name)
        )
        return name


def model(capability: str) -> onnx.ModelProto:
    """`estimate` as a graph: transform or canonicalize; or `variants`."""
    o = _Nodes()
    ink = o("Flatten", "image")
    mass = o("Add", o("ReduceSum", ink, np.array([1])), 1e-6)

    def mean(values: str) -> str:
        return o("Div", o("ReduceSum", o("Mul", ink, values), np.array([1])), mass)

    x, y = mean(o("Identity", _x[None])), mean(o("Identity", _y[None]))
    dx, dy = o("Sub", _x[None], x), o("Sub", _y[None], y)
    squared = o("Add", o("Mul", dx, dx), o("Mul", dy, dy))
    total = o("ReduceSum", o("Mul", ink, squared), np.array([1]))
    spread = o("Div", o("Add", total, PRIOR * SPREAD**2), o("Add", mass, PRIOR))
    scale = o("Div", o("Sqrt", spread), SPREAD)
    right, down = mean(o("Mul", squared, dx)), o("Sub", mean(o("Mul", squared, dy)), NOTHING)
    length = o("Sqrt", o("Add", o("Mul", right, right), o("Mul", down, down)))
    cos, sin = o("Neg", o("Div", down, length)), o("Neg", o("Div", right, length))
    angle = o("Mul", o("Atan", o("Div", sin, o("Add", o("Add", cos, 1.0), 1e-6))), 2.0)
    size = o("Mul", spread, o("Sqrt", spread))
    sure = o("Clip", o("Mul", o("Div", length, size), SURENESS), 0.0, 1.0)
    c, s = o("Mul", scale, cos), o("Mul", scale, sin)
    flat = o("Concat", c, s, x, o("Neg", s), c, y, axis=1)
    o("Concat", angle, x, y, o("Log", scale), axis=1, name="coefficients")
    deviation = o("Mul", o("Sub", 1.0, sure), UNKNOWN)
    o("Mul", deviation, np.array([[1.0, 0.1, 0.1, 0.1]]), name="coefficients_std")
    o("Reshape", flat, np.array([-1, 2, 3]), name="matrix")
    flipped = o("Mul", "matrix", np.array([[[-1.0, -1.0, 1.0]]]))
    o("Concat", o("Unsqueeze", "matrix", np.array([1])), o("Unsqueeze", flipped, np.array([1])), axis=1, name="modes")
    half = o("Mul", sure, 0.5)
    o("Concat", o("Add", half, 0.5), o("Sub", 0.5, half), axis=1, name="weights")
    if capability == "canonicalize":
        base = np.stack([_x, _y, np.ones_like(_x)], 1)[None]
        where = o("MatMul", base, o("Transpose", "matrix", perm=[0, 2, 1]))
        grid = o("Reshape", where, np.array([-1, SIDE, SIDE, 2]))
        o("GridSample", "image", grid, name="rectified", mode="bilinear", padding_mode="zeros", align_corners=0)
        o("Identity", "rectified", name="canonical")
    inputs = INPUTS
    if capability == "augment":
        inputs = INPUTS | NOISE
        change = o("Add", o("MatMul", "noise", CHANGES.reshape(4, 9)), np.eye(3).ravel())
        change = o("Reshape", change, np.array([0, 0, 3, 3]))
        o("MatMul", o("Unsqueeze", "matrix", np.array([1])), change, name="matrices")
    outputs = _outputs(capability)
    graph = helper.make_graph(
        o.nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape]) for name, shape in outputs.items()],
        o.weights,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def _outputs(capability: str) -> dict[str, tuple[int, ...]]:
    return {"transform": OUTPUTS, "canonicalize": OUTPUTS | PICTURES, "augment": {"matrices": (SAMPLES, 2, 3)}}[
        capability
    ]


def write(store: Path, name: str = "tiny-pose", augment: bool = False, **preprocessing: Any) -> Path:
    """Write the next version; `augment`: it can do that, too."""
    image = np.stack([as_input(pointer(side=SIDE, degrees=degrees)) for degrees in (0, 40, -110, 170)])
    noise = np.random.default_rng(0).standard_normal((len(image), SAMPLES, 4), np.float32)
    found = estimate(image) | {"matrices": variants(image, noise)}
    capabilities = ("transform", "canonicalize", "augment") if augment else ("transform", "canonicalize")
    inputs: dict[str, dict[str, Any]] = dict.fromkeys(capabilities, INPUTS) | (
        {"augment": INPUTS | NOISE} if augment else {}
    )
    cases: dict[str, np.ndarray] = {}
    for capability in capabilities:
        cases |= {f"{capability}/in/{name}": {"image": image, "noise": noise}[name] for name in inputs[capability]}
        cases |= {f"{capability}/out/{name}": found[name] for name in _outputs(capability)}
    file = BytesIO()
    np.savez(file, **cases)
    contents = {f"{capability}.onnx": model(capability).SerializeToString() for capability in capabilities}

    def specs(tensors: dict[str, Any]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=tensor, shape=("N", *shape)) for tensor, shape in tensors.items())

    card = ModelCard(
        name=name,
        kind="symmetry" if augment else "mcevae",
        input=InputSpec(channels=1, height=SIDE, width=SIDE),
        preprocessing=Preprocessing(**({"polarity": "light", "fit": "circle", "margin": 0.1} | preprocessing)),
        group="SIM2",
        graphs={
            capability: GraphSpec(
                file=f"{capability}.onnx", inputs=specs(inputs[capability]), outputs=specs(_outputs(capability))
            )
            for capability in capabilities
        },
        opset=18,
        parity={},
        training={},
        data={"name": "none"},
        metrics={},
        licence="CC0-1.0",
    )
    return write_model_folder(store, card, {**contents, "golden.npz": file.getvalue()})


def pointer(
    degrees: float = 0.0,
    side: int = 240,
    at: tuple[float, float] = (0.5, 0.5),
    ink: Any = 255,
    paper: Any = 0,
    mode: str = "L",
    size: tuple[int, int] | None = None,
    length: float = 0.7,
) -> Image.Image:
    """A wedge that points up, `length` of the side long, turned counter-clockwise by `degrees` about its centre of
    mass, which lies `at` (shares of the picture's `size`); drawn at four times its resolution.
    """
    width, height = size or (side, side)
    shape = np.array([(0.0, -2 / 3), (0.28, 1 / 3), (-0.28, 1 / 3)]) * length * side
    turn = np.radians(degrees)
    rotated = shape @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    middle = np.array([at[0] * width, at[1] * height])
    large = Image.new(mode, (4 * width, 4 * height), paper)
    ImageDraw.Draw(large).polygon([(4 * x, 4 * y) for x, y in rotated + middle - 1 / 8], fill=ink)
    return large.reduce(4)


def as_input(picture: Image.Image) -> np.ndarray:
    """float32 [1,32,32]"""
    return np.asarray(picture, np.float32)[None] / np.float32(255)
