"""Poses and upright pictures over a real socket, from a real graph whose answers are right, of turned pictures."""

import base64
import gc
import json
import runpy
import struct
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from contract import geometry
from contract.picture import Original
from service import schemas
from service.errors import Problem
from service.settings import Settings
from tests.server import running_server
from tests.service.conftest import MAX_PIXELS
from tests.service.tiny_pose import SIDE, pointer, write
from tests.service.uprights import INK, PAPER, ask, difference, encode, refused, turned, upright_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "upright.py"

# Which way it turns


@pytest.mark.parametrize("degrees", [0, 30, -60, 90, 145, -170])
def test_the_angle_is_that_of_the_picture_counter_clockwise(pose_client: httpx.Client, degrees: float) -> None:
    answer = ask(pose_client, turned(degrees), path="/transform")
    assert difference(answer["rotation_degrees"], degrees) < 1
    assert answer["matrix"][0][1] == pytest.approx(answer["scale"]["x"] * np.sin(np.radians(degrees)), abs=0.03)
    assert (answer["group"], answer["shear_degrees"]) == ("SIM2", pytest.approx(0, abs=1e-3))
    assert answer["uncertainty"]["rotation_degrees"] < 15


@pytest.mark.parametrize("degrees", [25, -50])
def test_a_picture_turned_by_scipy(pose_client: httpx.Client, degrees: float) -> None:
    """scipy.ndimage.rotate turns counter-clockwise as seen, too."""
    picture = ndimage.rotate(np.asarray(pointer()), degrees, reshape=True, order=3, mode="constant", cval=0)
    assert difference(ask(pose_client, Image.fromarray(picture), path="/transform")["rotation_degrees"], degrees) < 1


@pytest.mark.parametrize("side", [SIDE, 97, 240])
def test_the_upright_picture_is_upright(pose_client: httpx.Client, side: int) -> None:
    for degrees in (-130, 20, 65):
        picture = turned(degrees, side=side, mode="L", ink=255, paper=0)  # as the model's own size has to be
        again = ask(pose_client, upright_of(ask(pose_client, picture)), path="/transform")
        assert difference(again["rotation_degrees"], 0) < (3 if side == SIDE else 1)


def test_the_canonical_picture_is_upright_at_the_models_size(pose_client: httpx.Client) -> None:
    answer = ask(pose_client, turned(70))
    reference = ask(pose_client, turned(0))
    one, other = (
        np.asarray(Image.open(BytesIO(base64.b64decode(found["canonical"]["data"]))), float)
        for found in (answer, reference)
    )
    assert one.shape == other.shape == (SIDE, SIDE) == (answer["canonical"]["height"], answer["canonical"]["width"])
    assert np.abs(one - other).mean() < 3


# upright.matrix


def patterned(width: int, height: int, degrees: float) -> Image.Image:
    """A turned wedge with faint soft texture all over, so that every place can be told from every other."""
    picture = np.asarray(pointer(degrees, mode="RGB", ink=INK, paper=PAPER, side=200, size=(width, height)), float)
    texture = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=picture.shape), (4, 4, 0))
    return Image.fromarray(np.clip(picture + 3 * texture / texture.std(), 0, 255).astype(np.uint8))


@pytest.mark.parametrize("query", ["", "?expand=false", "?undo=all", "?undo=all&expand=false", "?resample=bilinear"])
def test_the_matrix_takes_the_upright_picture_back_over_the_original(pose_client: httpx.Client, query: str) -> None:
    original = patterned(330, 250, 37)
    answer = ask(pose_client, original, query)
    upright = np.asarray(upright_of(answer), float)
    y, x = np.indices((250, 330))
    places = geometry.apply(geometry.inverse(answer["upright"]["matrix"]), np.stack([x, y], -1))
    back = np.stack(
        [
            ndimage.map_coordinates(upright[..., c], [places[..., 1], places[..., 0]], order=1, cval=-1)
            for c in range(3)
        ],
        -1,
    )
    seen = (back >= 0).all(-1)
    seen[:2], seen[-2:], seen[:, :2], seen[:, -2:] = False, False, False, False
    assert seen.mean() > (0.9 if "expand" not in query else 0.5)
    assert np.abs(back - np.asarray(original, float))[seen].mean() < 2.5


def test_every_pixel_lands_where_the_matrix_says(pose_client: httpx.Client) -> None:
    """Turned by a quarter, the warp is a permutation: nothing is interpolated."""
    original = pointer(90, side=101, size=(101, 101))
    answer = ask(pose_client, original, "?resample=nearest")
    matrix = np.array(answer["upright"]["matrix"])
    if abs(abs(answer["transform"]["rotation_degrees"]) - 90) < 1e-4:
        assert np.array_equal(np.asarray(upright_of(answer)), np.rot90(np.asarray(original), -1))
    upright = np.asarray(upright_of(answer))
    y, x = np.indices(upright.shape)
    sources = np.rint(geometry.apply(matrix, np.stack([x, y], -1))).astype(int)
    inside = ((sources >= 0) & (sources < 101)).all(-1)
    expected = np.asarray(original)[sources[..., 1].clip(0, 100), sources[..., 0].clip(0, 100)]
    assert (upright == expected)[inside].mean() > 0.999


def test_the_frame_takes_the_matrix_to_the_picture(pose_client: httpx.Client) -> None:
    """The canonical frame's middle is observed at the wedge's centre of mass, wherever that is."""
    picture = pointer(50, side=200, size=(400, 300), at=(0.3, 0.6))
    answer = ask(pose_client, picture, path="/transform")
    centre = geometry.apply(geometry.compose(answer["frame"], answer["matrix"]), (0, 0))
    assert centre == pytest.approx((0.3 * 400 - 0.5, 0.6 * 300 - 0.5), abs=2)


def test_rotation_alone_keeps_the_contents_centre_in_place(pose_client: httpx.Client) -> None:
    answer = ask(pose_client, pointer(50, side=200, size=(400, 300), at=(0.3, 0.6)), "?expand=false")
    assert geometry.apply(answer["upright"]["matrix"], (119.5, 179.5)) == pytest.approx((119.5, 179.5), abs=3)
    assert (answer["upright"]["width"], answer["upright"]["height"]) == (400, 300)
    upright = np.asarray(upright_of(answer), float)
    assert ndimage.center_of_mass(upright) == pytest.approx((179.5, 119.5), abs=3)


def test_the_whole_transform_undone_is_the_same_for_any_turn_and_shift(pose_client: httpx.Client) -> None:
    def drawn(degrees: float, at: tuple[float, float]) -> np.ndarray:
        answer = ask(pose_client, pointer(degrees, side=200, size=(400, 300), at=at), "?undo=all&expand=false")
        upright = np.asarray(upright_of(answer), float)
        y, x = ndimage.center_of_mass(upright)
        return ndimage.shift(upright, (150 - y, 200 - x), order=1)

    assert np.abs(drawn(0, (0.5, 0.5)) - drawn(100, (0.45, 0.6))).mean() < 2


def test_a_picture_and_its_turned_copy_become_the_same(pose_client: httpx.Client) -> None:
    original = patterned(480, 360, 0)
    copy = original.rotate(40, Image.Resampling.BICUBIC, fillcolor=PAPER)
    one, other = (upright_of(ask(pose_client, picture, "?expand=false")) for picture in (original, copy))
    assert one.mode == other.mode == "RGB" and one.size == other.size == (480, 360)
    middle = np.s_[90:-90, 120:-120]
    values = [np.asarray(picture, float)[middle].ravel() for picture in (one, other)]
    assert np.corrcoef(*values)[0, 1] > 0.97


def test_the_grown_canvas_holds_everything(pose_client: httpx.Client) -> None:
    picture = patterned(300, 120, 45)
    answer = ask(pose_client, picture)
    corners = geometry.apply(
        geometry.inverse(answer["upright"]["matrix"]), [(x, y) for x in (0, 299) for y in (0, 119)]
    )
    assert (corners > -1).all()
    assert (corners < [answer["upright"]["width"], answer["upright"]["height"]]).all()


def test_an_exif_orientation_is_undone_first_and_not_kept(pose_client: httpx.Client) -> None:
    stored = turned(-60).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # seen turned clockwise by a quarter
    answer = ask(pose_client, encode(stored, "JPEG", exif=exif, quality=95))
    assert answer["input"]["orientation_applied"] and difference(answer["transform"]["rotation_degrees"], -60) < 1
    assert upright_of(answer).getexif().get(0x0112, 1) == 1
    ignored = ask(pose_client, encode(stored, "JPEG", exif=exif, quality=95), "?exif=ignore")
    assert difference(ignored["transform"]["rotation_degrees"], 30) < 1


# Any picture


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (300, 200), (90, 120, 150)),
        Image.new("L", (4, 4), 255),
        Image.new("RGBA", (50, 60), (0, 0, 0, 0)),
        Image.new("L", (4, 400), 7),
        Image.new("RGB", (SIDE, SIDE)),
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 9, 3), dtype=np.uint8)),
    ],
    ids=["one colour", "tiny", "transparent", "narrow", "black at the model's size", "tiny noise"],
)
@pytest.mark.parametrize("query", ["", "?expand=false", "?undo=all", "?fill=transparent"])
def test_any_picture_is_answered(pose_client: httpx.Client, picture: Image.Image, query: str) -> None:
    answer = ask(pose_client, picture, query)
    schemas.CanonicalizeAnswer.model_validate_json(json.dumps(answer))
    upright_of(answer)


@pytest.mark.parametrize("kind", ["blank", "ring", "noise"])
def test_where_orientation_means_nothing_the_uncertainty_is_large(pose_client: httpx.Client, kind: str) -> None:
    y, x = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
    radius = np.hypot(x, y)
    pixels = {
        "blank": np.zeros((SIDE, SIDE)),
        "ring": 255.0 * ((radius > 8) & (radius < 12)),
        "noise": np.random.default_rng(1).uniform(0, 255, (SIDE, SIDE)),
    }[kind]
    answer = ask(pose_client, Image.fromarray(pixels.astype(np.uint8)), path="/transform")
    assert 90 < answer["uncertainty"]["rotation_degrees"] < 104
    assert answer["modes"][0]["weight"] < 0.6


@pytest.mark.parametrize("options", ["", "?undo=all", "?expand=false"])
def test_a_page_without_content_comes_back_as_it_is(pose_client: httpx.Client, options: str) -> None:
    page = Image.new("L", (90, 60), 200)
    answer = ask(pose_client, page, options)
    assert not answer["input"]["has_content"]
    upright = upright_of(answer)
    assert upright.size == page.size and upright.tobytes() == page.tobytes()
    assert answer["upright"]["matrix"] == [[1, 0, 0], [0, 1, 0]]
    transform = answer["transform"]
    assert (transform["rotation_degrees"], transform["matrix"]) == (0, [[1, 0, 0], [0, 1, 0]])
    assert [mode["weight"] for mode in transform["modes"]] == [1]
    assert transform["uncertainty"]["rotation_degrees"] > 90
    assert ask(pose_client, page, path="/transform")["rotation_degrees"] == 0


def test_among_others_and_as_a_picture_too(pose_client: httpx.Client) -> None:
    page, digit = encode(Image.new("L", (90, 60), 200)), encode(turned(70))
    pictures = [{"data": base64.b64encode(data).decode()} for data in (page, digit, page)]
    results = pose_client.post("/canonicalize", json={"images": pictures}).json()["results"]
    angles = [result["transform"]["rotation_degrees"] for result in results]
    assert angles[0] == angles[2] == 0 and difference(angles[1], 70) < 1
    answer = pose_client.post("/canonicalize", content=page, headers={"Accept": "image/png"})
    assert json.loads(answer.headers["x-transform"])["rotation_degrees"] == 0
    assert refused(pose_client, Image.new("L", (90, 60), 200), "?mode=1")[:2] == (422, "no-such-mode")


def test_a_huge_picture_is_refused_by_its_header(pose_client: httpx.Client) -> None:
    assert refused(pose_client, Image.new("L", (600, 600)))[:2] == (413, "too-many-pixels")


def test_the_grown_canvas_counts_against_the_limit(pose_client: httpx.Client) -> None:
    picture = pointer(45, side=200, size=(490, 490))
    status, slug, detail = refused(pose_client, picture)
    assert (status, slug) == (413, "too-many-pixels") and "?expand=false" in detail
    assert upright_of(ask(pose_client, picture, "?expand=false")).size == (490, 490)


def test_a_batch_with_bad_pictures(pose_client: httpx.Client) -> None:
    large = encode(pointer(45, side=200, size=(490, 490)))
    bodies = [encode(turned(10)), b"hello", encode(turned(-80), "JPEG"), encode(turned(0))[:90], large, b""]
    answer = pose_client.post(
        "/canonicalize", json={"images": [{"data": base64.b64encode(b).decode()} for b in bodies]}
    )
    results = answer.json()["results"]
    schemas.Batch[schemas.CanonicalizeAnswer].model_validate_json(answer.content)
    slugs = [result["problem"]["type"].rpartition(":")[2] if "problem" in result else "" for result in results]
    assert slugs == ["", "not-an-image", "", "corrupt-image", "too-many-pixels", "empty-image"]
    assert difference(results[0]["transform"]["rotation_degrees"], 10) < 1
    assert difference(results[2]["transform"]["rotation_degrees"], -80) < 1
    assert upright_of(results[2]).format == "JPEG"
    bad = pose_client.post("/canonicalize", files=[("images", b"x"), ("images", b"")]).json()["results"]
    assert [list(result) for result in bad] == [["problem"], ["problem"]]


def test_a_refused_picture_keeps_no_other_of_its_request_alive(pose_client: httpx.Client) -> None:
    """The frames of its error hold them all, and it stands among them: a circle until the garbage collector comes."""
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in ((256, 8), (257, 8), (258, 3)))
    tiff = b"II*\0" + struct.pack("<IH", 8, 3) + entries + bytes(4)  # of a mode that Pillow does not know
    large = encode(pointer(45, side=200, size=(490, 490)))  # upright past the limit of pixels
    batch = {"images": [{"data": base64.b64encode(body).decode()} for body in (encode(turned(10)), tiff, large)]}

    def alive() -> int:
        return sum(issubclass(type(thing), (Problem, Original)) for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()
        results = pose_client.post("/canonicalize", json=batch).json()["results"]
        assert ["problem" in result for result in results] == [False, True, True]
        deadline = time.monotonic() + 5
        while alive() > before and time.monotonic() < deadline:
            time.sleep(0.05)  # the request ends a moment after its answer
        assert alive() <= before
    finally:
        gc.enable()


@pytest.mark.parametrize("path", ["/transform", "/canonicalize"])
def test_one_picture_answers_the_same_however_it_is_sent(pose_client: httpx.Client, path: str) -> None:
    file = encode(turned(33))
    raw = ask(pose_client, file, path=path)
    assert pose_client.post(path, files={"image": file}).json() == raw
    batch = {"images": [{"data": base64.b64encode(file).decode()}] * 6}
    results = pose_client.post(path, json=batch).json()["results"]
    assert len(results) == 6
    for result in results:
        found = result if path == "/transform" else result["transform"]
        reference = raw if path == "/transform" else raw["transform"]
        assert found["rotation_degrees"] == pytest.approx(reference["rotation_degrees"], abs=1e-3)


@pytest.mark.parametrize(
    ("path", "schema"),
    [("/transform", schemas.TransformAnswer), ("/canonicalize", schemas.CanonicalizeAnswer)],
)
def test_real_answers_are_what_the_schemas_say(pose_client: httpx.Client, path: str, schema: Any) -> None:
    answer = ask(pose_client, turned(33), path=path)
    assert schema.model_validate_json(json.dumps(answer)).model_dump(mode="json", exclude_none=True) == answer


def test_the_stages_stand_in_the_answer(pose_client: httpx.Client) -> None:
    response = pose_client.post("/canonicalize", content=encode(turned(33)), headers={"content-type": "image/png"})
    stages = [entry.split(";")[0].strip() for entry in response.headers["server-timing"].split(",")]
    assert stages == ["decode", "queue", "infer", "warp", "encode", "total"]


# Which model


def test_a_new_model_does_not_become_the_default(tmp_path: Path) -> None:
    write(tmp_path, "another")
    write(tmp_path, "mcevae-mnist-se2")
    with running_server(Settings(model_store=tmp_path)) as url, httpx.Client(base_url=url, trust_env=False) as client:
        defaults = client.get("/models").json()["defaults"]
        assert (defaults["transform"], defaults["canonicalize"]) == ("mcevae-mnist-se2",) * 2
        assert ask(client, turned(5))["model"] == "mcevae-mnist-se2"


def test_where_the_default_is_not_there_one_of_several_has_to_be_chosen(tmp_path: Path) -> None:
    write(tmp_path, "one")
    write(tmp_path, "two")
    with running_server(Settings(model_store=tmp_path)) as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert refused(client, turned(0))[:2] == (404, "model-not-found")
        assert ask(client, turned(0), "?model=two")["model"] == "two"
    settings = Settings(model_store=tmp_path, default_canonicalize="one")
    with running_server(settings) as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert ask(client, turned(0))["model"] == "one"


def test_what_could_never_be_held_at_once_is_refused_for_good(tmp_path: Path) -> None:
    """Pictures of a batch are kept until they are drawn: many large ones compress to a small body."""
    write(tmp_path)
    settings = Settings(
        model_store=tmp_path, max_pixels=MAX_PIXELS, max_body_bytes=500_000, queue_bytes=5_000_000, max_images=64
    )
    large = encode(Image.new("L", (500, 500), 200))
    with running_server(settings) as url, httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        answer = client.post("/canonicalize", files=[("images", large)] * 30)
        assert answer.status_code == 413 and "send fewer pictures" in answer.json()["detail"]
        assert client.post("/transform", files=[("images", large)] * 30).status_code == 200
        few = client.post("/canonicalize?expand=false", files=[("images", large)] * 2)
        assert [list(result) for result in few.json()["results"]] == [
            ["model", "version", "input", "transform", "canonical", "upright"]
        ] * 2


# The example that draws an answer


@pytest.mark.parametrize("address", ["{netloc}", "http://{netloc}", "http://{netloc}/"])
def test_the_example_draws_a_figure(
    pose_client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    (tmp_path / "turned.png").write_bytes(encode(turned(20)))
    given = address.format(netloc=pose_client.base_url.netloc.decode())
    arguments = [str(tmp_path / "turned.png"), str(tmp_path / "figure.png"), "--address", given]
    monkeypatch.setattr(sys, "argv", ["upright.py", *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert Image.open(BytesIO((tmp_path / "figure.png").read_bytes())).height > 450


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("https://host", "neither host:port nor"),
        ("http://", "neither"),
        ("127.0.0.1:abc", "neither"),
        ("me:it@host", "neither"),
        ("127.0.0.1:1", "127.0.0.1:1 does not answer"),
    ],
)
def test_the_example_says_what_is_wrong_with_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str, says: str
) -> None:
    (tmp_path / "turned.png").write_bytes(encode(turned(20)))
    monkeypatch.setattr(sys, "argv", ["upright.py", str(tmp_path / "turned.png"), "figure.png", "--address", address])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert says in f"{caught.value}{capsys.readouterr().err}"
