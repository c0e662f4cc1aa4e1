"""Every graph of every shipped model through the inference protocol, by Triton's own client, equal to REST."""

import base64
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from contract import geometry
from contract.manifest import GOLDEN_FILE, Manifest, read_manifest, versions
from contract.picture import open_picture
from service.images import write_picture
from service.routes.transform import LEAST_WEIGHT

STORE = Path(__file__).parents[2] / "model_store"
MODELS = {folder.name: read_manifest(folder / str(versions(folder)[-1])) for folder in sorted(STORE.iterdir())}
GRAPHS = [(name, graph) for name, manifest in MODELS.items() for graph in manifest.graphs]
ROWS = 2


@pytest.fixture(scope="module")
def rest(shipped: httpx.Client) -> httpx.Client:
    return shipped


@pytest.fixture(scope="module")
def client(served: tuple[str, float]) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served[0]) as opened:
        yield opened


def golden(manifest: Manifest, graph: str, side: str) -> dict[str, np.ndarray]:
    """The golden tensors of a graph by name, float32 [n, ...]."""
    prefix = f"{graph}/{side}/"
    with np.load(STORE / manifest.name / str(manifest.version) / GOLDEN_FILE) as archive:
        return {key.removeprefix(prefix): archive[key] for key in archive.files if key.startswith(prefix)}


def test_every_shipped_model_is_listed_and_all_three_kinds(rest: httpx.Client) -> None:
    listed = rest.get("/models").json()["models"]
    assert {model["name"] for model in listed} == MODELS.keys()
    assert {model["kind"] for model in listed} == {"equivae", "mcevae", "symmetry"}


@pytest.mark.parametrize(("model", "graph"), GRAPHS)
@pytest.mark.parametrize("binary", [True, False])
def test_tensors_give_the_golden_answers(
    client: triton.InferenceServerClient, model: str, graph: str, binary: bool
) -> None:
    manifest = MODELS[model]
    inputs = []
    for name, array in golden(manifest, graph, "in").items():
        tensor = triton.InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy(array, binary_data=binary)
        inputs.append(tensor)
    wanted = golden(manifest, graph, "out")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in wanted]
    result = client.infer(f"{model}.{graph}", inputs, str(manifest.version), outputs)
    for name, array in wanted.items():
        np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-3, atol=1e-4, err_msg=name)
    described = client.get_model_metadata(f"{model}.{graph}")
    assert [output["name"] for output in described["outputs"]] == [spec.name for spec in manifest.graphs[graph].outputs]


def of_rest(graph: str, answer: dict[str, Any], labels: list[str]) -> dict[str, Any]:
    """The tensors of one row, as far as the REST answer has them at model size."""
    if graph == "embed":
        return {"embedding": answer["embedding"]}
    if graph == "classify":
        values = {name: [answer[name][label] for label in labels] for name in ("probabilities", "distances")}
        return values | {"novelty": answer["novelty"]["score"]}
    if graph == "transform":
        return _pose(answer)
    if graph == "canonicalize":
        return _pose(answer["transform"]) | {"canonical": _picture(answer["canonical"]["data"])}
    return {"image": _picture(answer["image"]["data"])}


def _pose(answer: dict[str, Any]) -> dict[str, Any]:
    modes = answer["modes"]
    return {
        "matrix": answer["matrix"],
        "modes": [mode["matrix"] for mode in modes],
        "weights": [mode["weight"] for mode in modes],
    }


def _picture(data: str) -> np.ndarray:
    """[C,H,W]"""
    return np.moveaxis(np.atleast_3d(open_picture(base64.b64decode(data)).pixels), 2, 0) / 255


@pytest.mark.parametrize(("model", "graph"), [pair for pair in GRAPHS if pair[1] != "augment"])
def test_pictures_and_tensors_equal_rest(
    client: triton.InferenceServerClient, rest: httpx.Client, model: str, graph: str
) -> None:
    manifest = MODELS[model]
    files = [path.read_bytes() for path in sorted((STORE.parent / "examples").glob("*.png"))[:ROWS]]
    names = [tensor.name for tensor in manifest.graphs[graph].inputs]
    given = []
    for name in names:
        tensor = triton.InferInput(name, [len(files)], "BYTES")
        tensor.set_data_from_numpy(np.array(files, dtype=object))
        given.append(tensor)
    result = client.infer(f"{model}.{graph}", given)
    hold_to_rest(rest, model, graph, [dict.fromkeys(names, file) for file in files], result)


def hold_to_rest(
    rest: httpx.Client, model: str, graph: str, forms: list[dict[str, bytes]], result: triton.InferResult
) -> None:
    """The protocol's answer, row by row, against REST's answers to these forms."""
    for row, form in enumerate(forms):
        answer = rest.post(f"/{graph}?model={model}", files=form)
        for name, value in of_rest(graph, answer.json(), list(MODELS[model].labels)).items():
            got, tolerance = result.as_numpy(name)[row], 1e-4
            if name in ("image", "canonical"):  # REST's picture has 8 bits
                got, tolerance = np.clip(got, 0, 1), 0.51 / 255
            if name in ("modes", "weights"):  # REST leaves out those of next to no weight, which are the last
                assert (result.as_numpy("weights")[row][len(value) :] < LEAST_WEIGHT).all()
                got = got[: len(value)]
            np.testing.assert_allclose(got, value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(("model", "graph"), [pair for pair in GRAPHS if pair[1] != "augment"])
def test_tensors_equal_rest(client: triton.InferenceServerClient, rest: httpx.Client, model: str, graph: str) -> None:
    """A picture of the model's own size as a file to REST, its pixels as FP32 to the protocol."""
    manifest = MODELS[model]
    pixels = {name: np.rint(array[:ROWS] * 255) for name, array in golden(manifest, graph, "in").items()}
    given = []
    for name, array in pixels.items():
        tensor = triton.InferInput(name, list(array.shape), "FP32")
        tensor.set_data_from_numpy((array / 255).astype(np.float32))
        given.append(tensor)
    result = client.infer(f"{model}.{graph}", given)
    forms = [
        {name: write_picture((array[row] / 255).astype(np.float32)) for name, array in pixels.items()}
        for row in range(ROWS)
    ]
    hold_to_rest(rest, model, graph, forms, result)


@pytest.mark.parametrize("model", [model for model, graph in GRAPHS if graph == "augment"])
def test_variants_equal_rest(client: triton.InferenceServerClient, rest: httpx.Client, model: str) -> None:
    """REST draws its noise from the seed and the picture; the protocol gets the same noise as a tensor."""
    manifest, seed = MODELS[model], 7
    pixels = np.rint(golden(manifest, "augment", "in")["image"][0] * 255)
    image = (pixels / 255).astype(np.float32)
    _, samples, dimensions = manifest.graphs["augment"].inputs[1].shape
    source = np.random.default_rng((seed, zlib.crc32(image.tobytes())))
    noise = source.standard_normal((1, samples, dimensions), np.float32)
    given = []
    for name, array in (("image", image[None]), ("noise", noise)):
        given.append(triton.InferInput(name, list(array.shape), "FP32"))
        given[-1].set_data_from_numpy(array)
    matrices = client.infer(f"{model}.augment", given).as_numpy("matrices")[0]
    answer = rest.post(f"/augment?model={model}&seed={seed}&n={samples}", content=write_picture(image)).json()
    frame = geometry.frame(0, 0, *image.shape[:0:-1])  # REST's matrices are of pixels
    variants = [variant["matrix"] for variant in answer["variants"]]
    got = [geometry.compose(geometry.inverse(frame), matrix, frame) for matrix in variants]
    np.testing.assert_allclose(got, matrices, rtol=0, atol=1e-4)
