"""Small real models, written as ONNX by hand, whose answers NumPy knows: 8x8 grey pictures, classes a, b and c."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from contract.manifest import GraphSpec, InputSpec, ModelCard, Preprocessing, TensorSpec, write_model_folder

SIDE, DIMENSIONS, LABELS = 8, 4, ("a", "b", "c")
_random = np.random.default_rng(7)
WEIGHT = _random.normal(0, 0.2, (SIDE * SIDE, DIMENSIONS)).astype(np.float32)
PROTOTYPES = _random.normal(0, 1, (len(LABELS), DIMENSIONS)).astype(np.float32)


def embed(images: np.ndarray) -> np.ndarray:
    """[N,1,8,8] -> [N,D]"""
    return images.reshape(len(images), -1) @ WEIGHT


def classify(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """[N,1,8,8] -> embedding, distances [N,K], probabilities [N,K], novelty [N]"""
    embedding = embed(images)
    distances = np.square(embedding[:, None] - PROTOTYPES).sum(2)
    scores = np.exp(-distances + distances.min(1, keepdims=True))
    nearest = distances.min(1)
    return embedding, distances, scores / scores.sum(1, keepdims=True), nearest / (1 + nearest)


def recombine(content: np.ndarray, style: np.ndarray) -> np.ndarray:
    return (0.75 * content + 0.25 * style).astype(np.float32)


def images(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [N,8,8]"""
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE), dtype=np.uint8)


def as_input(pixels: np.ndarray) -> np.ndarray:
    """uint8 [N,8,8] -> float32 [N,1,8,8]"""
    return (pixels[:, None] / 255).astype(np.float32)


def encode(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png(seed: int = 0) -> bytes:
    return encode(images(1, seed)[0])


def _graph(nodes: list[Any], inputs: list[str], outputs: dict[str, list[Any]], weights: dict[str, np.ndarray]) -> Any:
    return helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1, SIDE, SIDE]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )


def _model(graph: Any, opset: int = 18) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def embed_model(opset: int = 18) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "W"], ["embedding"]),
    ]
    return _model(_graph(nodes, ["image"], {"embedding": ["N", DIMENSIONS]}, {"W": WEIGHT}), opset)


def write_scaled(store: Path, factor: float, name: str = "tiny") -> Path:
    """The next version of a model that embeds only: `factor` times what `embed` says."""
    model = embed_model()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(factor) * WEIGHT, "W"))
    cases = {"embed/out/embedding": np.float32(factor) * embed(golden()["embed/in/image"])}
    return write(store, name, ("embed",), {"embed": model}, cases)


def embed_model_of_four() -> onnx.ModelProto:
    """The same, except that it fails on fewer than four pictures, which is the golden batch."""
    model = embed_model()
    model.graph.node[1].output[0] = "whole"
    model.graph.initializer.append(numpy_helper.from_array(np.array([3]), "fourth"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    model.graph.node.extend(
        [
            helper.make_node("Gather", ["whole", "fourth"], ["row"]),
            helper.make_node("Mul", ["row", "nothing"], ["zeros"]),
            helper.make_node("Add", ["whole", "zeros"], ["embedding"]),
        ]
    )
    return model


def classify_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("MatMul", ["flat", "W"], ["embedding"]),
        helper.make_node("Unsqueeze", ["embedding", "one"], ["column"]),
        helper.make_node("Sub", ["column", "P"], ["difference"]),
        helper.make_node("Mul", ["difference", "difference"], ["squared"]),
        helper.make_node("ReduceSum", ["squared", "two"], ["distances"], keepdims=0),
        helper.make_node("Neg", ["distances"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ReduceMin", ["distances", "one"], ["nearest"], keepdims=0),
        helper.make_node("Add", ["nearest", "unit"], ["more"]),
        helper.make_node("Div", ["nearest", "more"], ["novelty"]),
    ]
    weights = {
        "W": WEIGHT,
        "P": PROTOTYPES[None],
        "one": np.array([1]),
        "two": np.array([2]),
        "unit": np.array(1, np.float32),
    }
    outputs = {"embedding": ["N", DIMENSIONS], "distances": ["N", 3], "probabilities": ["N", 3], "novelty": ["N"]}
    return _model(_graph(nodes, ["image"], outputs, weights))


def recombine_model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Mul", ["content", "most"], ["a"]),
        helper.make_node("Mul", ["style", "rest"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["image"]),
    ]
    weights = {"most": np.array(0.75, np.float32), "rest": np.array(0.25, np.float32)}
    return _model(_graph(nodes, ["content", "style"], {"image": ["N", 1, SIDE, SIDE]}, weights))


def _spec(name: str, inputs: list[str], outputs: dict[str, tuple[int, ...]]) -> GraphSpec:
    return GraphSpec(
        file=f"{name}.onnx",
        inputs=tuple(TensorSpec(name=tensor, shape=("N", 1, SIDE, SIDE)) for tensor in inputs),
        outputs=tuple(TensorSpec(name=tensor, shape=("N", *shape)) for tensor, shape in outputs.items()),
    )


SPECS = {
    "embed": _spec("embed", ["image"], {"embedding": (DIMENSIONS,)}),
    "classify": _spec(
        "classify", ["image"], {"embedding": (DIMENSIONS,), "distances": (3,), "probabilities": (3,), "novelty": ()}
    ),
    "recombine": _spec("recombine", ["content", "style"], {"image": (1, SIDE, SIDE)}),
}


def golden() -> dict[str, np.ndarray]:
    """All golden cases, from NumPy."""
    image, style = as_input(images(4, 1)), as_input(images(4, 2))
    names = ("embedding", "distances", "probabilities", "novelty")
    return {
        "embed/in/image": image,
        "embed/out/embedding": embed(image),
        "classify/in/image": image,
        **{f"classify/out/{name}": array for name, array in zip(names, classify(image), strict=True)},
        "recombine/in/content": image,
        "recombine/in/style": style,
        "recombine/out/image": recombine(image, style),
    }


def write(
    store: Path,
    name: str = "tiny",
    capabilities: tuple[str, ...] = ("embed", "classify", "recombine"),
    graphs: dict[str, onnx.ModelProto] | None = None,
    cases: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write the next version of a tiny model; `graphs` and `cases` replace the good ones."""
    models = {"embed": embed_model, "classify": classify_model, "recombine": recombine_model}
    contents = {f"{capability}.onnx": models[capability]().SerializeToString() for capability in capabilities}
    contents |= {f"{capability}.onnx": model.SerializeToString() for capability, model in (graphs or {}).items()}
    file = BytesIO()
    np.savez(file, **(golden() | (cases or {})))
    contents["golden.npz"] = file.getvalue()
    card = ModelCard(
        name=name,
        kind="equivae",
        input=InputSpec(channels=1, height=SIDE, width=SIDE),
        preprocessing=Preprocessing(polarity="light", fit="box", margin=0.0),
        labels=LABELS,
        graphs={capability: SPECS[capability] for capability in capabilities},
        opset=18,
        parity={capability: 0.0 for capability in capabilities},
        training={},
        data={"name": "none"},
        metrics={"test_error_percent": 50.0},
        licence="CC0-1.0",
    )
    return write_model_folder(store, card, contents)
