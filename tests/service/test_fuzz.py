"""A short, seeded run of `python -m benchmarks.fuzz`, and proof that it would notice."""

import asyncio
import time
from collections import Counter
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from benchmarks.fuzz.asking import Findings, ask_all
from benchmarks.fuzz.folders import FolderFindings, damaged_folder, try_folders
from benchmarks.fuzz.pieces import FORMATS
from benchmarks.fuzz.requests import MAKERS, PICTURES, make
from contract.picture import open_picture
from service.errors import CorruptImage
from tests.service import tiny

SEED = 20


def ask(url: str, numbers: dict[str, range]) -> Findings:
    findings = Findings()
    asyncio.run(ask_all(urlsplit(url).port or 0, numbers, SEED, 4, findings, time.process_time))
    return findings


def test_no_damaged_request_gets_more_than_a_documented_4xx(able_url: str) -> None:
    findings = ask(able_url, {kind: range(400 if kind == "picture" else 100) for kind in MAKERS})
    assert findings.wrong == [] and findings.slow() == []
    assert findings.count() == 800
    statuses = Counter[int]()
    for found in findings.statuses.values():
        statuses += found
    assert statuses[200] > 50 and statuses[400] > 200 and statuses[422] > 50  # damage of every depth
    assert len(findings.types) > 12
    assert httpx.post(f"{able_url}/classify", content=tiny.png(), trust_env=False, timeout=10).status_code == 200


def test_a_picture_without_its_palette_is_a_corrupt_one(client: httpx.Client) -> None:
    split, join = FORMATS["PNG"]
    pieces = split(PICTURES["PNG"][3])
    assert [piece[:4] for piece in pieces].count(b"PLTE") == 1
    response = client.post("/classify", content=join([piece for piece in pieces if piece[:4] != b"PLTE"]))
    assert response.status_code == 400 and response.json()["type"] == "urn:equipoise:problem:corrupt-image"


def test_a_failure_would_be_noticed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.inference.images.accept", lambda picture, limits: 1 / 0)
    findings = ask(url, {"picture": range(20)})
    assert len(findings.wrong) >= 10 and "internal-error" in findings.wrong[0][2]


def test_an_answer_with_a_path_or_a_stack_trace_would_be_noticed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for said in (__file__, pytest.__file__, "Traceback (most recent call last)"):

        def tell(*given: object, said: str = said) -> None:
            raise CorruptImage(said)

        monkeypatch.setattr("service.inference.images.accept", tell)
        findings = ask(url, {"picture": range(5)})
        assert findings.wrong and all("400 that tells" in complaint for _, _, complaint in findings.wrong)


def test_a_late_answer_is_named_with_the_time_that_its_request_takes_alone(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.fuzz.asking.SLOW_SECONDS", 0.0)
    clock = count(step=2)  # seconds of CPU time, looked at before and after a request
    findings = Findings()
    asyncio.run(ask_all(urlsplit(url).port or 0, {"json": range(5)}, SEED, 2, findings, lambda: float(next(clock))))
    assert sorted(late[:2] for late in findings.late) == [("json", number) for number in range(5)]
    assert {late.cpu_seconds for late in findings.late} == {2.0} and findings.slow() == findings.late
    monkeypatch.setattr("benchmarks.fuzz.asking.SLOW_SECONDS", 2.0)
    assert findings.slow() == []


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_picture_in_pieces_is_put_together_again(name: str) -> None:
    form = FORMATS[name]
    for data in PICTURES[name]:
        pieces = form.split(data)
        assert len(pieces) >= (1 if name == "WEBP" else 3)
        again = form.join(pieces)
        assert (open_picture(again).pixels == open_picture(data).pixels).all()


def test_a_request_can_be_made_again() -> None:
    for kind in MAKERS:
        assert make(kind, 3, 7) == make(kind, 3, 7) != make(kind, 3, 8)


def test_damaged_model_folders_are_refused_or_served(tiny_store: Path) -> None:
    findings = FolderFindings()
    try_folders(tiny_store / "tiny" / "1", 150, SEED, findings)
    assert not findings.bad(), findings
    assert findings.outcomes["ManifestError"] > 30 and findings.outcomes["EngineError"] > 5
    assert sum(findings.outcomes.values()) == 150


def test_a_slow_folder_is_named(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.fuzz.folders.SLOW_SECONDS", 0.0)
    findings = FolderFindings()
    try_folders(tiny_store / "tiny" / "1", 3, SEED, findings)
    assert [number for number, _ in findings.slow] == [0, 1, 2] and findings.bad()


def test_damage_to_a_folder_is_the_same_again(tiny_store: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        damaged_folder(tiny_store / "tiny" / "1", tmp_path / name, SEED, 5)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.is_file()} for name in ("a", "b")
    )
    assert first == second
