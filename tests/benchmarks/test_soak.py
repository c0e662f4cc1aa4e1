"""A few seconds of `python -m benchmarks.soak`, and proof that it would notice what grows."""

import threading
from contextlib import nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from re import fullmatch, sub
from types import SimpleNamespace

import httpx
import pytest

from benchmarks import soak
from benchmarks.soak import Sample, Soak, judge
from tests.service import tiny


def test_a_few_seconds_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("CYCLE_SECONDS", 4.0), ("SWAP_SECONDS", 0.5), ("SAMPLE_SECONDS", 0.3)):
        monkeypatch.setattr(soak, name, seconds)
    # With few samples, memory that the first overload has taken is still growth.
    monkeypatch.setattr(soak, "_quarter", lambda samples, number, *more: 1.0)
    found = soak.run(8 / 60)
    assert found["failed"] == []
    answers = found["answers"]
    assert answers["good"]["200"] > 20 and answers["leaving"]["left"] > 20 and answers["bad"]["400"] > 5
    # Each half has a whole cycle; a quarter may be overload and the answers it left behind.
    by_quarter = found["good_by_quarter"]
    assert sum(by_quarter) == sum(answers["good"].values()) and sum(by_quarter[:2]) > 0 and sum(by_quarter[2:]) > 0
    assert answers["overload"]["429"] > 5 and answers["overload"].get("200", 0) > 0
    assert found["swaps"] >= 3 and len(found["samples"]) >= 2 and answers["repository"]["200"] >= 2


def test_it_ends_where_the_service_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(traffic: soak.Traffic, sample: object) -> None:
        raise OSError("nobody answers")

    monkeypatch.setattr(soak, "SWAP_SECONDS", 0.1)
    monkeypatch.setattr(
        soak, "running", lambda *_: nullcontext(SimpleNamespace(port=1, server=SimpleNamespace(key="")))
    )
    monkeypatch.setattr(soak, "take_sample", lambda *_: SAME)
    monkeypatch.setattr(soak.Traffic, "run", failing)
    with pytest.raises(OSError, match="nobody answers"):
        soak.run(1)
    assert not [thread for thread in threading.enumerate() if "swap" in thread.name]


def test_every_endpoint_is_asked_in_every_form_of_body(client: httpx.Client) -> None:
    missing = {
        (method, path, form)
        for path, methods in client.get("/openapi.json").json()["paths"].items()
        for method, operation in methods.items()
        for form in operation.get("requestBody", {}).get("content", {"": {}})
        if "admin key" not in operation.get("description", "")  # the soak's client of the repository asks those
    }
    for request in soak.good_requests(tiny.png()):
        path, form = request.path.partition("?")[0], request.headers.get("Content-Type", "").partition(";")[0]
        missing -= {
            (method, asked, said)
            for method, asked, said in missing
            if method == request.method.lower()
            and fullmatch(sub(r"{\w+}", "[^/]+", asked), path)
            and fnmatch(form, said)
        }
    assert not missing


SAME = Sample(seconds=1.0, memory_mb=100.0, files=20, threads=5, tasks=4, series=500)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (SAME, ""),
        (replace(SAME, files=40), "files: 20 before, 40 after"),
        (replace(SAME, threads=9), "threads: 5 before, 9 after"),
        (replace(SAME, tasks=50), "tasks: 4 before, 50 after"),
    ],
)
def test_what_grows_is_named(after: Sample, said: str) -> None:
    assert judge(Soak(samples=[SAME] * 8), {"accepted_images": 0.0}, SAME, after) == ([said] if said else [])


def test_memory_and_what_is_still_held_are_judged() -> None:
    growing = [replace(SAME, memory_mb=100.0 + number) for number in range(40)]
    assert judge(Soak(samples=growing), {}, SAME, SAME) == ["memory_mb: 114 in the second quarter, 134 in the last"]
    more = [replace(SAME, series=500 + 10 * number + 148 * (number % 3)) for number in range(40)]
    assert judge(Soak(samples=more), {}, SAME, SAME) == ["series: 620 in the second quarter, 800 in the last"]
    assert judge(Soak(samples=[SAME] * 8), {"accepted_bytes": 5.0}, SAME, SAME) == ["accepted_bytes is 5 in the end"]
    assert judge(Soak(wrong=["good: 500"], samples=[SAME] * 8), {}, SAME, SAME) == ["1 wrong answers: good: 500"]
