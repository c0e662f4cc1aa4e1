"""The bulk example gives the service's answers; that Ray runs it, and recovers, is a command of docs/bulk.md."""

import json
import re
import shutil
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

from examples.bulk import SIDE, Classifier, draw, start_ray
from service.settings import Settings
from tests.server import running_server

ROOT = Path(__file__).parents[2]
MODEL = "equivae-mnist"
(VERSION,) = (ROOT / "model_store" / MODEL).iterdir()


def test_the_same_number_is_the_same_picture() -> None:
    rows = draw({"id": np.array([0, 1, 2000])})
    assert rows["data"] == draw({"id": np.array([0, 1, 2000])})["data"]
    assert len({*rows["data"]}) == 3
    assert [name.partition("-")[2] for name in rows["name"]] == ["0", "1", "2000"]
    for data in rows["data"]:
        picture = Image.open(BytesIO(data))
        assert picture.size == (SIDE, SIDE) and np.asarray(picture).max() > 128


def test_what_is_no_picture_has_its_problem_and_the_others_their_answers() -> None:
    classify = Classifier(VERSION)
    (good,) = draw({"id": np.array([3])})["data"]
    pictures = [b"", good, b"no picture", good[:100]]
    rows = classify({"name": np.arange(4), "data": pictures})
    alone = classify({"name": np.arange(1), "data": [good]})
    assert [bool(problem) for problem in rows["problem"]] == [True, False, True, True]
    assert rows["label"].tolist() == ["", alone["label"][0], "", ""]
    np.testing.assert_allclose(rows["embedding"][1], alone["embedding"][0], rtol=1e-4, atol=1e-4)
    for column in ("probability", "novelty", "embedding"):
        assert np.isnan(rows[column][[0, 2, 3]]).all() and not np.isnan(rows[column][1]).any()


@pytest.mark.parametrize("cluster", [False, True])
def test_a_cluster_is_told_of_no_cores(cluster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ray.init` raises where it joins one and has num_cpus."""
    told: dict[str, object] = {}
    context = SimpleNamespace(enable_progress_bars=True)
    data = SimpleNamespace(DataContext=SimpleNamespace(get_current=lambda: context))
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda **given: told.update(given), data=data))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if cluster:
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    start_ray(2)
    assert told.get("num_cpus") == (None if cluster else 3)


def test_its_answers_are_the_services(tmp_path: Path) -> None:
    folder = tmp_path / MODEL / VERSION.name
    shutil.copytree(VERSION, folder)
    drawn = draw({"id": np.arange(5)})
    pictures = [*drawn["data"], *((ROOT / "examples" / name).read_bytes() for name in ("page-3.jpg", "large-2.png"))]
    rows = Classifier(folder)({"name": np.arange(len(pictures)), "data": pictures})
    with (
        running_server(Settings(model_store=tmp_path)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=30) as client,
    ):
        for number, picture in enumerate(pictures):
            said = client.post("/classify", content=picture).raise_for_status().json()
            assert (rows["name"][number], rows["label"][number]) == (number, said["label"])
            assert rows["probability"][number] == pytest.approx(said["probability"], abs=1e-3)
            assert rows["novelty"][number] == pytest.approx(said["novelty"]["score"], abs=1e-3)
            embedding = client.post("/embed", content=picture).raise_for_status().json()["embedding"]
            np.testing.assert_allclose(rows["embedding"][number], embedding, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["bulk", "bulk-killed"])
def test_the_figures_are_of_the_shipped_model(name: str) -> None:
    found = json.loads((ROOT / "results" / f"{name}.json").read_text())
    assert (found["model"], str(found["version"])) == (MODEL, VERSION.name)


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "examples" / "bulk.txt").read_text().splitlines()
    assert lines and all(re.fullmatch(r"[\w.\[\]-]+==[\d.]+", line) for line in lines)
