"""Variants and modes over a real socket, from a real graph whose answers NumPy knows."""

import base64
import json
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, ImageDraw

from contract import geometry
from service import schemas, upright
from service.settings import Settings
from tests.server import running_server
from tests.service import tiny, tiny_pose
from tests.service.tiny_pose import SAMPLES, SIDE, pointer

MAX_PIXELS = 250_000
PNG = {"content-type": "image/png"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    store = tmp_path_factory.mktemp("variants")
    tiny_pose.write(store, "drawer", augment=True)
    tiny_pose.write(store, "poser")
    tiny.write(store)
    with (
        running_server(Settings(model_store=store, max_pixels=MAX_PIXELS, max_images=8)) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=20) as opened,
    ):
        yield opened


def encode(picture: Image.Image, kind: str = "PNG", profile: bytes | None = None) -> bytes:
    file = BytesIO()
    picture.save(file, kind, icc_profile=profile)
    return file.getvalue()


def ask(client: httpx.Client, picture: bytes, query: str = "", path: str = "/augment") -> Any:
    response = client.post(f"{path}{query}", content=picture, headers=PNG)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: httpx.Client, query: str, path: str = "/augment", picture: bytes | None = None) -> Any:
    response = client.post(f"{path}{query}", content=picture or encode(pointer()), headers=PNG)
    problem = response.json()
    return response.status_code, problem["type"].rpartition(":")[2], problem


def decoded(variant: dict[str, Any]) -> Image.Image:
    picture = Image.open(BytesIO(base64.b64decode(variant["data"])))
    assert picture.size == (variant["width"], variant["height"])
    assert Image.MIME[picture.format or ""] == variant["media_type"]
    return picture


@pytest.mark.parametrize(("mode", "kind"), [("L", "PNG"), ("RGB", "JPEG"), ("RGBA", "PNG")])
def test_variants_are_the_picture_warped_by_their_matrices(client: httpx.Client, mode: str, kind: str) -> None:
    ink, paper = {"L": (255, 0), "RGB": ((250, 240, 255), (8, 4, 2)), "RGBA": ((255, 250, 250, 255), (0, 0, 0, 255))}[
        mode
    ]
    picture = pointer(20, mode=mode, ink=ink, paper=paper, size=(300, 240), at=(0.45, 0.5))
    answer = ask(client, encode(picture, kind), "?n=3&seed=3")
    assert (answer["model"], answer["seed"], len(answer["variants"])) == ("drawer", 3, 3)
    for variant in answer["variants"]:
        drawn = decoded(variant)
        assert (drawn.size, drawn.mode) == ((300, 240), mode)
        (a, b, x), (c, d, y) = geometry.compose(  # Pillow counts pixels from their corners
            [[1, 0, 0.5], [0, 1, 0.5]], variant["matrix"], [[1, 0, -0.5], [0, 1, -0.5]]
        )
        wanted = picture.transform(
            picture.size, Image.Transform.AFFINE, (a, b, x, c, d, y), Image.Resampling.BICUBIC, fillcolor=paper
        )
        gap = np.abs(np.asarray(drawn, float) - np.asarray(wanted, float))
        assert gap.mean() < (4 if kind == "JPEG" else 1)
    assert len({variant["data"] for variant in answer["variants"]}) == 3


def test_a_variant_is_where_the_graph_says(client: httpx.Client) -> None:
    """Of a picture of the model's own size pixels and model frame are one: the matrix is A(x) changed by the noise."""
    picture = pointer(30, side=SIDE)
    answer = ask(client, encode(picture), "?n=5&seed=11")
    frame = geometry.frame(0, 0, SIDE, SIDE)
    image = tiny_pose.as_input(picture)[None]
    found = tiny_pose.estimate(image)["matrix"][0]
    for variant in answer["variants"]:
        seen = geometry.compose(geometry.inverse(frame), variant["matrix"], frame)
        change = geometry.compose(geometry.inverse(found), seen)
        turn, x, y, scale = change[0, 1] / 0.3, change[0, 2] / 0.2, change[1, 2] / 0.2, (change[0, 0] - 1) / 0.1
        assert np.allclose(
            tiny_pose.variants(image, np.float32([[[turn, x, y, scale]] * SAMPLES]))[0, 0], seen, atol=1e-4
        )
        assert np.abs([turn, x, y, scale]).max() < 5  # standard normal


def test_a_seed_repeats_the_variants_and_none_draws_others(client: httpx.Client) -> None:
    file = encode(pointer(20))
    first = ask(client, file, "?seed=9223372036854775807")
    assert len(first["variants"]) == 4
    assert ask(client, file, "?seed=9223372036854775807") == first
    chance, other = ask(client, file), ask(client, file)
    assert chance["seed"] != other["seed"] and chance["variants"] != other["variants"]
    assert ask(client, file, f"?seed={chance['seed']}") == chance
    assert ask(client, file, f"?n=2&seed={chance['seed']}")["variants"] == chance["variants"][:2]


def test_a_picture_has_the_same_variants_in_a_batch_and_a_bad_one_is_a_problem_in_its_place(
    client: httpx.Client,
) -> None:
    files = [encode(pointer(20)), b"hello", encode(pointer(-70)), encode(pointer(0, side=490))]
    body = {"images": [{"data": base64.b64encode(file).decode()} for file in files]}
    response = client.post("/augment?n=2&seed=5", json=body)
    results = response.json()["results"]
    schemas.Batch[schemas.AugmentAnswer].model_validate_json(response.content)
    slugs = [result["problem"]["type"].rpartition(":")[2] if "problem" in result else "" for result in results]
    assert slugs == ["", "not-an-image", "", "too-many-pixels"]
    for index in (0, 2):
        alone = ask(client, files[index], "?n=2&seed=5")
        assert np.allclose(
            [variant["matrix"] for variant in results[index]["variants"]],
            [variant["matrix"] for variant in alone["variants"]],
            atol=1e-2,
        )
    bad = client.post("/augment", files=[("images", b"x"), ("images", b"")]).json()["results"]
    assert [list(result) for result in bad] == [["problem"], ["problem"]]


def test_the_answer_is_what_the_schema_says(client: httpx.Client) -> None:
    answer = ask(client, encode(pointer(20)), "?n=1")
    assert schemas.AugmentAnswer.model_validate_json(json.dumps(answer)).model_dump(mode="json") == answer


@pytest.mark.parametrize(
    "query", ["n=0", "n=257", "n=-1", "n=two", "n=", "n=1.5", "seed=-1", "seed=9223372036854775808"]
)
def test_numbers_out_of_range(client: httpx.Client, query: str) -> None:
    status, slug, problem = refused(client, f"?{query}")
    assert (status, slug, problem["parameter"]) == (422, "invalid-parameter", query.split("=")[0])


def test_many_variants_are_planned_by_the_pool(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few on the event loop itself; a thousand pictures with 256 each would hold it for seconds."""
    threads: list[str] = []
    variant = upright.variant

    def noted(*given: Any) -> Any:
        threads.append(threading.current_thread().name)
        return variant(*given)

    monkeypatch.setattr(upright, "variant", noted)
    small = encode(pointer().resize((48, 48)))
    ask(client, small, "?n=4")
    few, threads = threads, []
    ask(client, small, "?n=100")
    assert len(few) == 4 and not any(name.startswith("pictures") for name in few)
    assert len(threads) == 100 and all(name.startswith("pictures") for name in threads)


def test_the_pixels_of_all_variants_count(client: httpx.Client) -> None:
    side = 160
    assert len(ask(client, encode(pointer(side=side)), f"?n={MAX_PIXELS // side**2}")["variants"]) == 9
    status, slug, problem = refused(client, "?n=10", picture=encode(pointer(side=side)))
    assert (status, slug) == (413, "too-many-pixels") and "256,000 pixels" in problem["detail"]


def test_the_colour_profiles_of_all_variants_count(client: httpx.Client) -> None:
    """60 KB of a file may hold one of 1 MiB, which every variant would have."""
    noise = np.random.default_rng(0).bytes(20_000)
    picture = encode(pointer(), profile=bytes(16) + b"GRAY" + noise + bytes(79_980))
    status, slug, problem = refused(client, "?n=3", picture=picture)
    assert (status, slug) == (413, "too-many-pixels") and "300,000 bytes of colour profiles" in problem["detail"]
    assert len(decoded(ask(client, picture, "?n=1")["variants"][0]).info["icc_profile"]) == 100_000


def test_a_model_that_cannot_is_named_with_those_that_can(client: httpx.Client) -> None:
    status, slug, problem = refused(client, "?model=poser")
    assert (status, slug, problem["models"]) == (404, "capability-not-found", ["drawer"])
    assert refused(client, "?model=nobody")[:2] == (404, "model-not-found")


@pytest.mark.parametrize(
    ("path", "query"), [("/augment", "?undo=all"), ("/canonicalize", "?n=3"), ("/transform", "?seed=1")]
)
def test_options_of_other_routes_are_unknown(client: httpx.Client, path: str, query: str) -> None:
    assert refused(client, query, path)[:2] == (422, "unknown-parameter")


def test_the_inference_protocol_takes_the_noise(client: httpx.Client) -> None:
    image = tiny_pose.as_input(pointer(30, side=SIDE))[None]
    noise = np.random.default_rng(1).standard_normal((1, SAMPLES, 4), np.float32)
    described = client.get("/v2/models/drawer.augment").json()
    assert [(tensor["name"], tensor["shape"]) for tensor in described["inputs"]] == [
        ("image", [-1, 1, SIDE, SIDE]),
        ("noise", [-1, SAMPLES, 4]),
    ]
    inputs = [
        {"name": name, "shape": list(value.shape), "datatype": "FP32", "data": value.ravel().tolist()}
        for name, value in (("image", image), ("noise", noise))
    ]
    (output,) = client.post("/v2/models/drawer.augment/infer", json={"inputs": inputs}).json()["outputs"]
    found = np.array(output["data"]).reshape(output["shape"])
    assert np.allclose(found, tiny_pose.variants(image, noise), atol=1e-4)
    image_as_file = {
        "name": "image",
        "shape": [1],
        "datatype": "BYTES",
        "data": [base64.b64encode(encode(pointer())).decode()],
    }
    assert (
        client.post("/v2/models/drawer.augment/infer", json={"inputs": [image_as_file, inputs[1]]}).status_code == 200
    )
    noise_as_file = image_as_file | {"name": "noise"}
    refusal = client.post("/v2/models/drawer.augment/infer", json={"inputs": [inputs[0], noise_as_file]})
    assert refusal.status_code == 400 and "noise" in refusal.json()["error"]


def test_another_mode_is_undone_where_it_is_asked_for(client: httpx.Client) -> None:
    """The second mode of the tiny model is the first upside down."""
    file = encode(pointer(30))
    best, second = (ask(client, file, f"?mode={mode}&model=drawer", "/canonicalize") for mode in (0, 1))
    assert best == ask(client, file, "?model=drawer", "/canonicalize")
    assert best["transform"] == second["transform"]
    upright, flipped = (
        np.asarray(Image.open(BytesIO(base64.b64decode(answer["upright"]["data"]))), float) for answer in (best, second)
    )
    height, width = (min(upright.shape[axis], flipped.shape[axis]) for axis in (0, 1))
    assert np.abs(upright[:height, :width] - flipped[::-1, ::-1][:height, :width]).mean() < 4
    assert np.abs(upright[:height, :width] - flipped[:height, :width]).mean() > 8
    parts = geometry.to_parts(second["upright"]["matrix"])
    assert abs(abs(parts.rotation_degrees - best["transform"]["rotation_degrees"]) - 180) < 1
    status, slug, problem = refused(client, "?mode=2&model=drawer", "/canonicalize")
    assert (status, slug) == (422, "invalid-parameter") and "gives 2 modes" in problem["detail"]
    assert refused(client, "?mode=best&model=drawer", "/canonicalize")[:2] == (422, "invalid-parameter")


def test_the_header_of_a_picture_tells_the_transform_that_was_undone(client: httpx.Client) -> None:
    file = encode(pointer(30))
    for mode in (0, 1):
        query = f"?mode={mode}&model=drawer"
        answer = ask(client, file, query, "/canonicalize")
        response = client.post(f"/canonicalize{query}", content=file, headers=PNG | {"accept": "image/png"})
        told = json.loads(response.headers["x-transform"])
        schemas.Transform.model_validate(told)
        undone = told["modes"][mode]
        assert told == answer["transform"] | {name: undone[name] for name in undone.keys() - {"weight"}}
        parts = geometry.to_parts(json.loads(response.headers["x-upright-matrix"]))
        assert abs(told["rotation_degrees"] - parts.rotation_degrees) < 0.1


def test_a_mode_that_a_picture_does_not_have_is_not_undone(client: httpx.Client) -> None:
    """Of a ball with a thin tail the tiny model is sure: its second mode has no weight."""
    tailed = Image.new("L", (240, 240))
    ImageDraw.Draw(tailed).ellipse((90, 140, 150, 200), fill=255)
    ImageDraw.Draw(tailed).rectangle((117, 40, 123, 140), fill=255)
    file, other = encode(tailed), encode(pointer(30))
    assert [mode["weight"] for mode in ask(client, file, "?model=drawer", "/transform")["modes"]] == [1]
    assert len(ask(client, other, "?model=drawer", "/transform")["modes"]) == 2
    status, slug, problem = refused(client, "?mode=1&model=drawer", "/canonicalize", file)
    assert (status, slug, problem["modes"]) == (422, "no-such-mode", 1)
    assert problem["detail"] == "mode is 1, counted from 0: this picture has one mode"
    body = {"images": [{"data": base64.b64encode(data).decode()} for data in (file, other)]}
    response = client.post("/canonicalize?mode=1&model=drawer", json=body)
    schemas.Batch[schemas.CanonicalizeAnswer].model_validate_json(response.content)
    bad, good = response.json()["results"]
    assert bad["problem"]["type"].endswith(":no-such-mode")
    assert good["upright"] == ask(client, other, "?mode=1&model=drawer", "/canonicalize")["upright"]
