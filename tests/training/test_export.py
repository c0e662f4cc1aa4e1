"""Export: what lands in the model folder, its parity with torch, and that a bad graph leaves nothing."""

import hashlib
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from contract.manifest import InputSpec, read_manifest, verify
from training import export, graphs
from training.config import MnistData, TextData
from training.errors import ConfigError, RunError
from training.export import _metrics, _protocol, export_run
from training.graphs import ATOL, RTOL, ExportError, digit_pictures, export_graphs
from training.models import equivae_graphs
from training.models.base import Graph
from training.models.equivae import EquiVAE
from training.models.equivae_config import EquiVAEConfig
from training.models.registry import graphs as graphs_of
from training.run import load_run

TABLE = {
    "embed": (("image",), ("embedding",)),
    "classify": (("image",), ("embedding", "distances", "probabilities", "novelty")),
    "recombine": (("content", "style"), ("image",)),
}


@pytest.fixture(scope="module")
def folder(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_run(finished_run, tmp_path_factory.mktemp("store"), console=Console(file=io.StringIO()))


def test_folder_is_whole_and_has_the_graphs_of_the_table(folder: Path) -> None:
    manifest = verify(folder)
    named = {
        capability: (tuple(t.name for t in graph.inputs), tuple(t.name for t in graph.outputs))
        for capability, graph in manifest.graphs.items()
    }
    assert named == TABLE
    assert manifest.graphs["classify"].outputs[1].shape == ("N", 10)
    assert manifest.graphs["classify"].outputs[3].shape == ("N",)
    assert set(manifest.files) == {"embed.onnx", "classify.onnx", "recombine.onnx", "golden.npz"}


def test_graphs_are_plain_opset_18_and_tell_no_paths(folder: Path) -> None:
    for file in folder.glob("*.onnx"):
        proto = onnx.load(file)
        assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 18)]
        # Batch norm is folded into the convolutions.
        assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
        assert str(Path(graphs.__file__).parents[1]).encode() not in file.read_bytes()


def test_golden_cases_and_any_batch_match_torch(folder: Path, finished_run: Path) -> None:
    model = load_run(finished_run).model
    golden = np.load(folder / "golden.npz")
    for capability, (inputs, outputs) in TABLE.items():
        session = onnxruntime.InferenceSession(folder / f"{capability}.onnx", providers=["CPUExecutionProvider"])
        got = session.run(outputs, {name: golden[f"{capability}/in/{name}"] for name in inputs})
        for name, value in zip(outputs, got, strict=True):
            np.testing.assert_allclose(value, golden[f"{capability}/out/{name}"], RTOL, ATOL)
    pictures = torch.rand((6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    content, style = pictures[:3], pictures[3:]
    with torch.no_grad():
        expected = model.recombine(content, style)
    (image,) = session.run(["image"], {"content": content.numpy(), "style": style.numpy()})
    np.testing.assert_allclose(image, expected.numpy(), RTOL, ATOL)


class Spread(Graph):
    """Tensors that are brought to the batch's shape, and a convolution of which the weight is reshaped."""

    outputs = ("embedding",)

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Conv1d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, image: Tensor) -> Tensor:
        lines = self.norm(functional.conv2d(image, self.line.weight[:, :, None], padding=(0, 1)))
        found = lines.mean((2, 3))
        copies = torch.stack([found, 2 * found]).unsqueeze(1).expand(2, 3, -1, -1)
        chosen = copies.gather(3, (copies[..., :1] > 0).long())
        base = torch.arange(4.0).expand(image.shape[0], 4)
        return found + torch.zeros_like(found) + base + chosen.sum((0, 1))


def test_no_shape_is_computed_in_a_graph_and_weights_are_worked_out() -> None:
    spec = InputSpec(channels=1, height=8, width=8)
    exported = export_graphs({"embed": Spread()}, spec)  # held to torch at batches of 1, 7 and 32
    operators = {node.op_type for node in onnx.load_from_string(exported.contents["embed.onnx"]).graph.node}
    assert "Expand" in operators
    assert not operators & {"Shape", "BatchNormalization"}


def test_manifest_says_where_the_model_comes_from(folder: Path, finished_run: Path) -> None:
    manifest = read_manifest(folder)
    run = load_run(finished_run)
    assert manifest.labels == tuple("0123456789")
    assert manifest.data["digest"] == run.splits().digest
    assert manifest.training["seed"] == run.config.fit.seed
    assert manifest.training["config"]["model"]["r_dim"] == 4
    assert manifest.training["precision"] == run.precision == "32-true"
    assert manifest.metrics["validation"]["error"] == run.metrics["error"]
    assert manifest.metrics["validation"]["protocol"] == (
        "error (%) by distance to the class means of all training images; reconstruction and kl in nats an image, "
        "v = mu; validation split of digits, 216 images, split seed 0"
    )
    assert manifest.licence == "Apache-2.0"
    assert all(0 <= error <= ATOL for error in manifest.parity.values())


def test_what_is_left_out_is_not_served(finished_run: Path, tmp_path: Path) -> None:
    for wrong in (["transform"], ["embed", "classify", "recombine"]):
        with pytest.raises(ConfigError, match="has embed, classify, recombine, and some must stay"):
            export_run(finished_run, tmp_path, without=wrong)
    assert not list(tmp_path.iterdir())
    folder = export_run(finished_run, tmp_path, without=["classify", "recombine"], console=Console(quiet=True))
    manifest = read_manifest(folder)
    assert set(manifest.graphs) == {"embed"} and not manifest.labels
    assert {path.name for path in folder.iterdir()} == {"embed.onnx", "golden.npz", "manifest.json"}


def test_next_version_takes_the_figures_of_its_own_weights_only(
    folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_manifest(folder)
    contents = {name: (folder / name).read_bytes() for name in first.files}
    again = graphs.Exported(graphs=first.graphs, parity=first.parity, contents=contents)
    monkeypatch.setattr(export, "export_graphs", lambda *_: again)  # which takes seconds
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    figure = {"name": "ece", "value": 0.004, "unit": "", "split": "test", "n": 7, "seed": 0, "how": "15 bins"}
    digest = graphs_digest(run / "model.pt")
    for split, sha256 in (("test", digest), ("validation", "of other weights")):
        report = {"model": {"sha256": sha256}, "figures": [figure]}
        (run / f"evaluation-{split}.json").write_text(json.dumps(report))
    said = io.StringIO()
    store = folder.parents[1]
    manifest = read_manifest(export_run(run, store, console=Console(file=said)))
    assert manifest.version == 2
    metrics = manifest.metrics
    assert metrics["evaluation-test"]["ece"] == {key: value for key, value in figure.items() if key != "name"}
    assert "evaluation-validation" not in metrics
    assert f"python -m service --model-store {store}" in said.getvalue()


def test_the_protocol_says_which_split_and_whether_it_chose_the_weights(finished_run: Path) -> None:
    run = load_run(finished_run)
    fit = run.config.fit.model_copy(update={"keep": "best", "select": "elbo", "seed": 7})
    data = MnistData(source="mnist")
    protocol = _protocol(replace(run, config=run.config.model_copy(update={"fit": fit, "data": data})))
    assert "the last of the training file" in protocol and "seed" not in protocol
    drawn = TextData(source="text", seed=5)
    assert "images, drawn with seed 5" in _protocol(replace(run, config=run.config.model_copy(update={"data": drawn})))
    assert protocol.endswith("the weights were selected by elbo on this split, so these figures are optimistic")


@pytest.mark.parametrize("content", ["{", "[]", '{"model": {}}', "\xff"])
def test_a_damaged_evaluation_is_named(finished_run: Path, tmp_path: Path, content: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "evaluation-test.json").write_text(content, encoding="latin-1")
    with pytest.raises(RunError, match="evaluation-test.json is damaged"):
        _metrics(load_run(run))


def graphs_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_kind_of_layer_exports() -> None:
    spec = InputSpec(channels=3, height=32, width=32)
    encoder = {"filters": (8, 8, 8), "strides": (1, 2, 1), "kernel": 3, "norm": True, "pool": "depthwise"}
    encoder |= {"unpadded": 1}
    config = EquiVAEConfig(kind="equivae", likelihood="gaussian", encoder=encoder)
    exported = export_graphs(graphs_of("equivae", EquiVAE(config, spec, 4)), spec)
    assert set(exported.parity) == set(TABLE)
    assert exported.graphs["recombine"].outputs[0].shape == ("N", 3, 32, 32)
    for capability in TABLE:
        proto = onnx.load_from_string(exported.contents[f"{capability}.onnx"])
        operators = {node.op_type for node in proto.graph.node}
        assert "BatchNormalization" not in operators
        # What a residual convolution adds is in its kernel.
        assert capability != "embed" or not operators & {"Add", "Slice"}


def test_a_graph_that_differs_from_torch_leaves_nothing(
    folder: Path, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skewed(graph: graphs.Graph, spec: InputSpec) -> onnx.ModelProto:
        proto = onnx.load(folder / "embed.onnx")  # as it was exported before
        bias = next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("bias"))
        values = onnx.numpy_helper.to_array(bias) + 0.1
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        return proto

    monkeypatch.setattr(graphs, "_to_onnx", skewed)
    with pytest.raises(ExportError, match="embed: embedding differs from torch at batch 1 by"):
        export_run(finished_run, tmp_path / "store", console=Console(file=io.StringIO()))
    assert not (tmp_path / "store").exists()


def hand_made(operator: str, opset: int = 18, batch: int | str = "N") -> bytes:
    """image [N,4] -> embedding [N,4] through one node."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 4]) for name in ("image", "embedding")]
    node = helper.make_node(operator, ["image"], ["embedding"])
    graph = helper.make_graph([node], "graph", tensors[:1], tensors[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (hand_made("RandomNormalLike"), "random nodes"),
        (hand_made("Relu", opset=20), "operator sets"),
        (hand_made("Relu", batch=3), "batch axis"),
    ],
)
def test_graphs_that_may_not_be_served_are_refused(data: bytes, reason: str, finished_run: Path) -> None:
    graph = equivae_graphs.Embed(load_run(finished_run).equivae())
    graphs._check_graph("embed", hand_made("Relu"), graph)
    with pytest.raises(ExportError, match=reason):
        graphs._check_graph("embed", data, graph)


def test_other_names_are_refused(finished_run: Path) -> None:
    graph = equivae_graphs.Classify(load_run(finished_run).equivae())
    with pytest.raises(ExportError, match="inputs and outputs"):
        graphs._check_graph("classify", hand_made("Relu"), graph)


def test_golden_pictures_are_digits_at_the_models_size() -> None:
    pictures = digit_pictures(InputSpec(channels=3, height=28, width=28), 5)
    assert pictures.shape == (5, 3, 28, 28)
    assert 0 <= float(pictures.min()) < 0.1 and 0.9 < float(pictures.max()) <= 1


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist"):
        export_run(tmp_path / "nothing", tmp_path / "store")
