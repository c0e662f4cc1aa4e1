"""The benchmark compares like with like: the servers beside ours give the same answer to the same picture."""

import asyncio
import importlib
import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from benchmarks import beside, contenders, hotspots, nodes, serving
from benchmarks.load import ROOT, Cores, Sample, Server, parts, running
from contract.manifest import verify
from service.devices import CPU


@pytest.mark.parametrize(
    ("module", "decoder"),
    [("benchmarks.plain_fastapi", ""), ("benchmarks.peers.raw_asgi", "pillow")],
)
def test_the_same_answer(
    tiny_store: Path, client: httpx.Client, monkeypatch: pytest.MonkeyPatch, module: str, decoder: str
) -> None:
    folder = tiny_store / "tiny" / "1"
    body, headers = serving.picture(folder), {"content-type": "image/png"}
    monkeypatch.setenv("MODEL", str(folder))
    monkeypatch.setenv("DECODER", decoder)
    other = importlib.import_module(module)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(other.app), base_url="http://other") as direct:
            return await direct.post("/classify", content=body, headers=headers)

    theirs = asyncio.run(ask()).json()
    ours = client.post("/classify", content=body, headers=headers).json()
    assert theirs["label"] == ours["label"]
    assert theirs["novelty"]["is_novel"] == ours["novelty"]["is_novel"]
    for name in ("probabilities", "distances"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4)


@pytest.mark.parametrize("with_key", [False, True])
def test_our_server_answers_the_harness(
    tiny_store: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, with_key: bool
) -> None:
    monkeypatch.setattr(contenders, "ENVIRONMENTS", tmp_path)
    folder = tiny_store / "tiny" / "1"
    with running(contenders.ours(folder, with_key), Cores(), serving.picture(folder)) as target:
        answer = target.first_answer()
    assert target.process.returncode is not None
    assert answer["model"] == "tiny"
    assert f"Equipoise: {answer['label']} with probability" in capfd.readouterr().out


def test_a_server_that_ends_is_named(tiny_store: Path) -> None:
    server = Server("a broken one", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit, match="a broken one ended with status 3"), running(server, Cores(), b""):
        pass


@pytest.mark.parametrize("peer", ["litserve", "bentoml", "mlserver", "ray"])
def test_every_peer_runs_the_pinned_runtime(peer: str) -> None:
    """The peers get the ONNX Runtime and the Pillow that ours has."""
    lines = (contenders.PEERS / f"{peer}.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    ours = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    for package in ("onnxruntime", "pillow", "uvicorn"):
        assert pins[package] == ours[package]


def test_requests_carry_the_same_picture() -> None:
    picture = b"\x89PNG picture"
    assert picture in contenders._multipart(picture)
    for encode in (contenders._json_base64, contenders._v2_bytes):
        assert b"iVBORyBwaWN0dXJl" not in picture and b"iVBORyBwaWN0dXJl" in encode(picture)
        json.loads(encode(picture))


def test_the_table_gives_medians_and_the_ratio() -> None:
    def runs(*rates: float) -> list[Sample]:
        return [Sample(rate, 1e6 / rate, 1.0, 2.0, 0, 50.0, 1) for rate in rates]

    samples = {("Equipoise", 8): runs(300, 200, 400), ("other", 8): runs(100, 100, 100)}
    assert "| Equipoise | 300 | 200 to 400 |" in serving.table(samples, [8])
    assert "Equipoise / other at 8: 3.00 requests/s (2.00 to 4.00)" in serving.ratios(samples, [8])
    figures = serving.by_server(samples)
    assert (figures["Equipoise"]["8"]["rate"], figures["other"]["8"]["ratio"]) == (300, 3.0)
    assert (figures["other"]["8"]["least_rate"], len(figures["other"]["8"]["runs"])) == (100, 3)


def test_copies_of_a_version_are_models_that_can_be_loaded(tiny_store: Path, tmp_path: Path) -> None:
    folder = tiny_store / "tiny" / "1"
    assert serving.store_of([folder, folder, folder], tmp_path) == tmp_path / "tiny" / "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "tiny-2", "tiny-3"]
    assert [verify(path / "1").name for path in sorted(tmp_path.iterdir())] == ["tiny", "tiny-2", "tiny-3"]


def test_a_batch_says_where_its_time_goes(tiny_store: Path, tmp_path: Path) -> None:
    options = Namespace(model_store=tiny_store, model="tiny", seconds=0.2, repeats=1)
    (row,) = beside.batch(beside.Bench(options, tmp_path))
    told = sum(row[f"{stage}, us a picture"] for stage in ("decode", "queue", "infer", "encode"))
    assert 0 < told <= row["total, us a picture"]
    assert row["pictures/s"] > 0
    assert beside.table([row]).count("\n") == 2


def test_the_service_says_where_the_time_of_a_picture_goes(tiny_store: Path) -> None:
    folder = tiny_store / "tiny" / "1"
    with running(contenders.ours(folder), Cores(), serving.picture(folder)) as target:
        before = target.metrics()
        for _ in range(3):
            target.first_answer()
        row = parts(before, target.metrics())
    assert row["pictures a batch"] == 1 and row["warp, us"] == 0
    assert all(0 < row[f"{stage}, us"] < 1e6 for stage in ("decode", "encode", "graph"))


def test_a_graphs_time_by_node_is_all_of_it(tiny_store: Path) -> None:
    """A product of [2,I] with [I,O] takes 2 I O multiplications, and what is small is told together."""
    found = nodes.profile(tiny_store / "tiny" / "1", "classify", CPU, batch=2)
    assert {node.provider for node in found} == {"CPU"} and all(node.microseconds >= 0 for node in found)
    products = [node for node in found if node.operator.endswith(("MatMul", "Gemm"))]
    assert products and all(node.macs % (2 * node.shape[-1]) == 0 and node.macs for node in products)
    slow, quick = (replace(products[0], microseconds=us) for us in (99.5, 0.5))
    slow = replace(slow, macs=9950)
    told = nodes.figures([slow, replace(quick, operator="Add", macs=0)], batch=2)
    assert (told["us"], told["fastest_gmacs"], told["least_us"]) == (50.0, 0.1, pytest.approx(49.75, abs=0.06))
    assert [row["share"] for row in told["rows"]] == [99.5] and told["others"] == {"nodes": 1, "share": 0.5}


def test_a_profile_is_shared_out_by_whose_code_is_innermost() -> None:
    modules, functions = hotspots.shares(
        [
            "main (service/__main__.py:5);Session.run (onnxruntime/capi/onnxruntime_inference_collection.py:270) 6",
            "main (service/__main__.py:5);decode (contract/picture_png.py:9) 1",
            "main (service/__main__.py:5);decode (contract/picture_png.py:12) 2",
            "main (service/__main__.py:5);load (<string>:1) 1",
            "run (threading.py:9);_worker (concurrent/futures/thread.py:81) 10",
        ]
    )
    assert modules == {"onnxruntime": 0.6, "contract/picture_png.py": 0.3, "<string>": 0.1}
    assert functions["contract/picture_png.py: decode"] == 0.3
