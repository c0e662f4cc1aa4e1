"""What the inference endpoints answer, against NumPy, over a real socket."""

import base64
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service import inference
from tests.service import tiny
from tests.service.conftest import MAX_IMAGES

PIXELS = tiny.images(6, 11)
PNG = {"content-type": "image/png"}


def post(client: httpx.Client, path: str, body: bytes) -> dict:
    response = client.post(path, content=body, headers=PNG)
    assert response.status_code == 200, response.text
    return response.json()


def encoded(pixels: np.ndarray) -> dict[str, str]:
    return {"data": base64.b64encode(tiny.encode(pixels)).decode()}


def test_embed(client: httpx.Client) -> None:
    answer = post(client, "/embed", tiny.encode(PIXELS[0]))
    np.testing.assert_allclose(answer["embedding"], tiny.embed(tiny.as_input(PIXELS[:1]))[0], rtol=1e-5, atol=1e-6)
    assert (answer["model"], answer["version"]) == ("tiny", 1)
    assert answer["input"] == {
        "format": "PNG",
        "width": 8,
        "height": 8,
        "orientation_applied": False,
        "frames": 1,
        "polarity": "none",
        "box": [0, 0, 8, 8],
        "has_content": True,
    }


def test_classify(client: httpx.Client) -> None:
    answer = post(client, "/classify", tiny.encode(PIXELS[1]))
    _, distances, probabilities, novelty = tiny.classify(tiny.as_input(PIXELS[1:2]))
    assert answer["label"] == tiny.LABELS[int(probabilities[0].argmax())]
    assert answer["probability"] == pytest.approx(probabilities[0].max(), rel=1e-4)
    assert list(answer["probabilities"]) == list(tiny.LABELS)
    np.testing.assert_allclose(list(answer["probabilities"].values()), probabilities[0], rtol=1e-4)
    np.testing.assert_allclose(list(answer["distances"].values()), distances[0], rtol=1e-4)
    assert answer["novelty"]["score"] == pytest.approx(novelty[0], rel=1e-4)
    assert answer["novelty"]["is_novel"] == (novelty[0] > 0.99)


def test_recombine_as_json_and_as_a_picture(client: httpx.Client) -> None:
    expected = tiny.recombine(tiny.as_input(PIXELS[:1]), tiny.as_input(PIXELS[1:2]))[0, 0]
    form = {"content": tiny.encode(PIXELS[0]), "style": tiny.encode(PIXELS[1])}
    answer = client.post("/recombine", files=form).json()
    assert set(answer["input"]) == {"content", "style"}
    assert {key: answer["image"][key] for key in ("media_type", "width", "height")} == {
        "media_type": "image/png",
        "width": 8,
        "height": 8,
    }
    file = base64.b64decode(answer["image"]["data"])
    np.testing.assert_allclose(np.asarray(Image.open(BytesIO(file))) / 255, expected, atol=0.51 / 255)
    for media_type, name in (("image/png", "PNG"), ("image/webp", "WEBP"), ("image/jpeg", "JPEG")):
        response = client.post("/recombine", files=form, headers={"accept": media_type})
        assert response.headers["content-type"] == media_type
        picture = Image.open(BytesIO(response.content))
        assert (picture.format, picture.size) == (name, (8, 8))


def test_recombine_takes_json(client: httpx.Client) -> None:
    body = {"content": encoded(PIXELS[0]), "style": encoded(PIXELS[1])}
    form = {"content": tiny.encode(PIXELS[0]), "style": tiny.encode(PIXELS[1])}
    assert client.post("/recombine", json=body).json() == client.post("/recombine", files=form).json()


@pytest.mark.parametrize("path", ["/embed", "/classify"])
def test_one_picture_answers_the_same_however_it_is_sent(client: httpx.Client, path: str) -> None:
    file = tiny.encode(PIXELS[2])
    raw = post(client, path, file)
    assert client.post(path, files={"image": file}).json() == raw
    assert client.post(path, content=file, headers={"content-type": "application/octet-stream"}).json() == raw
    assert client.post(path, content=file).json() == raw
    assert client.post(path, json={"images": [encoded(PIXELS[2])]}).json() == {"results": [raw]}
    assert client.post(path, files=[("images", file)]).json() == {"results": [raw]}


@pytest.mark.parametrize("count", [1, 3, MAX_IMAGES])
def test_a_batch_is_answered_in_order(client: httpx.Client, count: int) -> None:
    pixels = tiny.images(count, 5)
    results = client.post("/embed", json={"images": [encoded(image) for image in pixels]}).json()["results"]
    got = [result["embedding"] for result in results]
    np.testing.assert_allclose(got, tiny.embed(tiny.as_input(pixels)), rtol=1e-4, atol=1e-5)


def test_a_batch_with_bad_pictures_answers_the_good_ones_in_order(client: httpx.Client) -> None:
    good = [encoded(image) for image in PIXELS[:3]]
    truncated = {"data": base64.b64encode(tiny.encode(PIXELS[0])[:60]).decode()}
    bodies = [good[0], {"data": "not base64!"}, good[1], truncated, {"data": ""}, good[2], {"data": "aGVsbG8="}]
    response = client.post("/embed", json={"images": bodies})
    assert response.status_code == 200
    results = response.json()["results"]
    got = [results[place]["embedding"] for place in (0, 2, 5)]
    np.testing.assert_allclose(got, tiny.embed(tiny.as_input(PIXELS[:3])), rtol=1e-4, atol=1e-5)
    slugs = [results[place]["problem"]["type"].rpartition(":")[2] for place in (1, 3, 4, 6)]
    assert slugs == ["invalid-base64", "corrupt-image", "empty-image", "not-an-image"]
    instance = f"urn:request:{response.headers['x-request-id']}"
    assert all(results[place]["problem"]["instance"] == instance for place in (1, 3, 4, 6))


def test_a_batch_of_bad_pictures_alone_is_answered(client: httpx.Client) -> None:
    results = client.post("/classify", files=[("images", b"x"), ("images", b"")]).json()["results"]
    assert [list(result) for result in results] == [["problem"], ["problem"]]


def test_the_model_can_be_named(client: httpx.Client) -> None:
    plain = post(client, "/classify", tiny.encode(PIXELS[0]))
    assert post(client, "/classify?model=tiny&version=1", tiny.encode(PIXELS[0])) == plain


def test_a_picture_of_another_size_is_fitted_and_says_so(client: httpx.Client) -> None:
    page = np.full((60, 80), 250, np.uint8)
    page[20:40, 30:40] = 10
    answer = post(client, "/classify", tiny.encode(page))
    assert answer["input"]["polarity"] == "dark"
    assert (answer["input"]["width"], answer["input"]["height"]) == (80, 60)
    assert post(client, "/classify?fit=image", tiny.encode(page))["input"]["box"] == [0, 0, 80, 60]
    assert post(client, "/classify?polarity=light", tiny.encode(page))["input"]["polarity"] == "light"


def test_an_exif_orientation_is_applied_unless_it_is_to_be_ignored(client: httpx.Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = tiny.encode(np.zeros((20, 40), np.uint8), "JPEG", exif=exif)
    upright = post(client, "/embed", picture)["input"]
    assert (upright["width"], upright["height"], upright["orientation_applied"]) == (20, 40, True)
    stored = post(client, "/embed?exif=ignore", picture)["input"]
    assert (stored["width"], stored["height"], stored["orientation_applied"]) == (40, 20, False)


def test_others_are_answered_while_a_large_answer_is_written(
    serve: Callable[..., str], tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    begun = threading.Event()
    head = inference.head

    def slow_head(*arguments: Any) -> dict[str, Any]:
        nonlocal written
        written += 1
        if written == 100:
            begun.set()
        time.sleep(0.001)
        return head(*arguments)

    monkeypatch.setattr(inference, "head", slow_head)
    count = 800
    body = {"images": [encoded(PIXELS[0])] * count}
    with (
        httpx.Client(base_url=serve(tiny_store), trust_env=False, timeout=30) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        large = pool.submit(client.post, "/embed", json=body)
        assert begun.wait(20)
        assert client.get("/healthz").status_code == 200
        assert written < count
        assert len(large.result().json()["results"]) == count
