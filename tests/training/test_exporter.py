"""The exporter as it is patched: the graphs are torch's own, and what the patches do not expect is left to torch."""

from collections import Counter
from contextlib import nullcontext
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from contract.manifest import InputSpec
from training import exporter
from training.graphs import export_graphs
from training.models.base import Graph

SPEC = InputSpec(channels=1, height=8, width=8)


class Pieces(Graph):
    """Operators that ONNX lacks, of one result and of several, types that differ, a picture that is sampled."""

    outputs = ("rectified", "embedding")

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        image = self.norm(image)
        one, other = torch.broadcast_tensors(1 - image.mean((2, 3)), torch.tensor([2.0, 3.0]))
        grid = (torch.eye(2) * one[:, None])[:, None].expand(-1, 4, 2, 2)
        sampled = functional.grid_sample(image, grid, mode="bicubic", align_corners=False)
        return sampled, sampled.flatten(1).mT.to(torch.float64).mT.float() * torch.arange(8) + other[:, :1]


class Changing(Graph):
    """A tensor that is changed in place through a view of it."""

    outputs = ("embedding",)

    def forward(self, image: Tensor) -> Tensor:
        found = image.flatten(1) * 2
        found[:, 3:5] += 1
        return found


def described() -> tuple[Any, ...]:
    proto = exporter.to_onnx(Pieces(), (torch.rand(3, 1, 8, 8),))
    operators = Counter(node.op_type for node in proto.graph.node)
    return operators, sorted((tensor.data_type, *tensor.dims) for tensor in proto.graph.initializer), proto.graph.output


def test_the_graph_is_the_one_of_torchs_own_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(exporter, "_decompose_all", None)  # which is not asked
        quick = described()
    replaced = exporter._replaced
    parsed_once = exporter.ONNXRegistry
    monkeypatch.setattr(exporter, "_replaced", lambda *of: replaced(*of) if of[0] is parsed_once else nullcontext())
    assert quick == described()


def test_what_another_onnxscript_no_longer_has_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporter, "rewriter", ModuleType("onnxscript.rewriter"))
    proto = exporter.to_onnx(Changing(), (torch.rand(3, 1, 8, 8),))
    assert [output.name for output in proto.graph.output] == ["embedding"]
    said = [record.getMessage() for record in caplog.records if record.name == exporter.__name__]
    assert said == ["onnxscript.rewriter._DEFAULT_REWRITE_RULES is not there: the export takes longer"]


@pytest.mark.parametrize("graph", [Changing, Pieces])
def test_torchs_own_pass_has_the_rest(graph: type[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    whole = exporter._decompose_all
    monkeypatch.setattr(exporter, "_decompose_all", lambda *of: asked.append(of) or whole(*of))
    if graph is Pieces:
        monkeypatch.setattr(exporter, "make_fx", None)  # as in another torch
    exported = export_graphs({"embed": graph()}, SPEC)  # held to torch at batches of 1, 7 and 32
    assert len(asked) == 1 and set(exported.graphs) == {"embed"}
