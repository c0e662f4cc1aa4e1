"""The benchmark compares like with like: both servers give the same answer to the same picture."""

import asyncio
import importlib
from pathlib import Path

import httpx
import pytest

from benchmarks import serving


def test_plain_fastapi_gives_the_same_answer(
    tiny_store: Path, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_store / "tiny" / "1"
    body, headers = serving.picture(folder), {"content-type": "image/png"}
    monkeypatch.setenv("MODEL", str(folder))
    plain = importlib.import_module("benchmarks.plain_fastapi")

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(plain.app), base_url="http://plain") as direct:
            return await direct.post("/classify", content=body, headers=headers)

    theirs = asyncio.run(ask()).json()
    ours = client.post("/classify", content=body, headers=headers).json()
    assert theirs["label"] == ours["label"]
    assert theirs["novelty"]["is_novel"] == ours["novelty"]["is_novel"]
    for name in ("probabilities", "distances"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4)
