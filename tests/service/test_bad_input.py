"""Every bad input gets its own problem, and the service answers the next request."""

import base64
import gzip
import json
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.service import tiny
from tests.service.conftest import BODY_TIMEOUT_SECONDS, MAX_BODY_BYTES, MAX_IMAGES, MAX_PIXELS

PNG = {"content-type": "image/png"}
GOOD = {"data": base64.b64encode(tiny.png()).decode()}


@pytest.fixture(autouse=True)
def the_next_request_is_answered(client: httpx.Client) -> Iterator[None]:
    yield
    assert client.post("/classify", content=tiny.png(), headers=PNG).status_code == 200


def refused(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """Hold an answer to RFC 9457 and to what every answer carries."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert "total;dur=" in response.headers["server-timing"]
    problem: dict[str, Any] = response.json()
    assert problem["type"] == f"urn:equipoise:problem:{slug}", problem
    assert problem["status"] == status
    assert problem["title"] and problem["detail"]
    assert problem["instance"] == f"urn:request:{response.headers['x-request-id']}"
    return problem


def post(client: httpx.Client, body: bytes, path: str = "/classify") -> httpx.Response:
    return client.post(path, content=body, headers=PNG)


def post_json(client: httpx.Client, body: bytes | str, path: str = "/classify") -> httpx.Response:
    return client.post(path, content=body, headers={"content-type": "application/json"})


def png_header(width: int, height: int) -> bytes:
    """A PNG that says a size and holds almost nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# The body


@pytest.mark.parametrize("path", ["/classify", "/embed", "/recombine"])
@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data; boundary=x"])
def test_empty_body(client: httpx.Client, path: str, kind: str) -> None:
    refused(client.post(path, headers={"content-type": kind}), 400, "empty-body")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "video/mp4", "nonsense"])
def test_wrong_content_type(client: httpx.Client, kind: str) -> None:
    refused(client.post("/classify", content=tiny.png(), headers={"content-type": kind}), 415, "unsupported-media-type")


@pytest.mark.parametrize("path", ["/classify", "/embed", "/recombine"])
@pytest.mark.parametrize("kind", ["image/png", "application/json", "multipart/form-data; boundary=x"])
def test_a_compressed_body_is_refused_by_its_name(client: httpx.Client, path: str, kind: str) -> None:
    headers = {"content-type": kind, "content-encoding": "gzip"}
    response = client.post(path, content=gzip.compress(tiny.png()), headers=headers)
    assert "encoded as 'gzip'" in refused(response, 415, "unsupported-media-type")["detail"]
    assert response.headers["accept-encoding"] == "identity"


def test_a_body_that_is_said_to_be_plain(client: httpx.Client) -> None:
    response = client.post("/classify", content=tiny.png(), headers=PNG | {"content-encoding": "Identity"})
    assert response.status_code == 200


def test_recombine_takes_no_raw_body(client: httpx.Client) -> None:
    refused(post(client, tiny.png(), "/recombine"), 415, "unsupported-media-type")


def test_body_too_large_by_its_declared_length(client: httpx.Client) -> None:
    problem = refused(post(client, bytes(MAX_BODY_BYTES + 1)), 413, "body-too-large")
    assert problem["max_bytes"] == MAX_BODY_BYTES


def test_body_too_large_without_a_declared_length(client: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MAX_BODY_BYTES // 10_000 + 2):
            yield bytes(10_000)

    refused(client.post("/classify", content=chunks(), headers=PNG), 413, "body-too-large")


def test_a_huge_declared_length_is_refused_before_it_is_sent(url: str) -> None:
    head = raw_head("/classify", f"Content-Length: {10**12}")
    assert b" 413 " in exchange(url, head).split(b"\r\n", 1)[0]


def test_a_body_without_a_declared_length_is_fine_below_the_limit(client: httpx.Client) -> None:
    response = client.post("/classify", content=iter([tiny.png()[:50], tiny.png()[50:]]), headers=PNG)
    assert response.status_code == 200


def test_slow_client(url: str) -> None:
    start = time.monotonic()
    answer = exchange(url, raw_head("/classify", "Content-Length: 1000") + b"\x89PNG")
    assert b" 408 " in answer.split(b"\r\n", 1)[0] and b"body-timeout" in answer
    assert BODY_TIMEOUT_SECONDS <= time.monotonic() - start < BODY_TIMEOUT_SECONDS + 5


def test_a_client_that_drips_bytes_gains_no_time(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(raw_head("/classify", "Content-Length: 1000"))
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(BODY_TIMEOUT_SECONDS / 10):
                try:
                    connection.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        answer = connection.recv(65536)
        stop.set()
        thread.join()
    assert b" 408 " in answer.split(b"\r\n", 1)[0]


def test_client_that_leaves_in_the_middle_of_its_body(url: str, client: httpx.Client) -> None:
    for _ in range(20):
        with connect(url) as connection:
            connection.sendall(raw_head("/classify", "Content-Length: 1000") + b"\x89PNG")
    deadline = time.monotonic() + 5
    while 'endpoint="classify",status="499"} 20.0' not in client.get("/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Pictures


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_truncated_and_corrupted_files(client: httpx.Client, kind: str) -> None:
    whole = tiny.encode(np.random.default_rng(1).integers(0, 256, (40, 40), dtype=np.uint8), kind)
    for share in (0.3, 0.6, 0.9):
        refused(post(client, whole[: int(len(whole) * share)]), 400, "corrupt-image")
    # A flipped byte may still give a picture; what it never gives is a failure of the service.
    for place in range(8, len(whole), max(1, len(whole) // 40)):
        damaged = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
        assert post(client, damaged).status_code in (200, 400, 413, 415, 422)


@pytest.mark.parametrize("text", [b"hello", b"<html></html>", b"{}"])
def test_text_called_png(client: httpx.Client, text: bytes) -> None:
    refused(post(client, text), 400, "not-an-image")


@pytest.mark.parametrize(
    "head", [b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7"]
)
def test_formats_that_are_not_read_get_a_hint(client: httpx.Client, head: bytes) -> None:
    assert "send" in refused(post(client, head + bytes(100)), 415, "unsupported-image")["detail"]


def test_decompression_bomb_is_refused_by_its_header(client: httpx.Client) -> None:
    start = time.monotonic()
    refused(post(client, png_header(60_000, 60_000)), 413, "too-many-pixels")
    assert time.monotonic() - start < 1


def test_decompression_bomb_of_fewer_pixels_than_the_data_inflates_to(client: httpx.Client) -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    header = png_header(8, 8)
    start, end = header.index(b"IDAT") - 4, header.index(b"IEND") - 4
    data = struct.pack(">I", len(bomb)) + b"IDAT" + bomb + struct.pack(">I", zlib.crc32(b"IDAT" + bomb))
    assert post(client, header[:start] + data + header[end:]).status_code in (200, 400)


def test_decompression_bomb_in_a_frame_of_a_small_picture(client: httpx.Client) -> None:
    small = tiny.encode(np.zeros((8, 8), np.uint8), "GIF")
    frame = small.index(b"," + struct.pack("<HHHH", 0, 0, 8, 8)) + 5
    bomb = small[:frame] + struct.pack("<HH", 60_000, 60_000) + small[frame + 4 :]
    assert "a frame of the GIF file" in refused(post(client, bomb), 413, "too-many-pixels")["detail"]


@pytest.mark.parametrize("size", [(1, 1), (1, 100_000), (3, 8)])
def test_a_side_too_small(client: httpx.Client, size: tuple[int, int]) -> None:
    refused(post(client, tiny.encode(np.zeros(size, np.uint8))), 422, "image-too-small")


@pytest.mark.parametrize("size", [(20, 2001), (2001, 20)])
def test_a_side_too_many_times_the_other(client: httpx.Client, size: tuple[int, int]) -> None:
    problem = refused(post(client, tiny.encode(np.zeros(size, np.uint8))), 422, "image-too-narrow")
    assert "100 times the shorter" in problem["detail"]


def test_too_many_pixels(client: httpx.Client) -> None:
    side = int(MAX_PIXELS**0.5) + 1
    refused(post(client, tiny.encode(np.zeros((side, side), np.uint8))), 413, "too-many-pixels")


def test_no_content_where_content_is_asked_for(client: httpx.Client) -> None:
    blank = tiny.encode(np.full((60, 60), 255, np.uint8))
    refused(post(client, blank, "/classify?fit=content"), 422, "no-content")


# JSON


def test_too_many_images(client: httpx.Client) -> None:
    body = json.dumps({"images": [GOOD] * (MAX_IMAGES + 1)})
    assert refused(post_json(client, body), 413, "too-many-images")["max_images"] == MAX_IMAGES
    form = [("images", tiny.png())] * (MAX_IMAGES + 1)
    refused(client.post("/classify", files=form), 413, "too-many-images")


@pytest.mark.parametrize(
    ("body", "status", "slug"),
    [
        (b"{", 400, "invalid-json"),
        (b"\xff\xfe", 400, "invalid-json"),
        (b"[" * 100_000, 400, "json-too-deep"),
        (b'{"a":' * 5_000 + b"1" + b"}" * 5_000, 400, "json-too-deep"),
        (b'{"images": [{"data": NaN}]}', 400, "non-finite-number"),
        (b'{"images": [{"data": -Infinity}]}', 400, "non-finite-number"),
        (b'{"images": [{"data": 1e999}]}', 400, "non-finite-number"),
        (b'{"images": [], "image": 1}', 422, "unknown-field"),
        (json.dumps({"images": [GOOD | {"label": "a"}]}).encode(), 422, "unknown-field"),
        (json.dumps(dict.fromkeys(map(str, range(10_000)))).encode(), 422, "unknown-field"),
        (json.dumps({"images": [GOOD | dict.fromkeys("abcdefgh")]}).encode(), 422, "unknown-field"),
        (b"{}", 422, "invalid-request"),
        (b"null", 422, "invalid-request"),
        (b'{"images": []}', 422, "invalid-request"),
        (b'{"images": [{"data": 5}]}', 422, "invalid-request"),
        (b'{"images": {"data": "AAAA"}}', 422, "invalid-request"),
    ],
)
def test_bad_json(client: httpx.Client, body: bytes, status: int, slug: str) -> None:
    refused(post_json(client, body), status, slug)


@pytest.mark.parametrize("path", ["/classify", "/recombine"])
def test_json_in_another_charset_than_utf_8(client: httpx.Client, path: str) -> None:
    for charset, text in (("utf-16", "{}"), ("UTF-16LE", "{}"), ("latin-1", '{"\u00e4": 1}')):
        kind = f"application/json; charset={charset}"
        response = client.post(path, content=text.encode(charset), headers={"content-type": kind})
        assert refused(response, 415, "unsupported-media-type")["detail"] == (
            f"the JSON is declared as {charset!r}; send it as UTF-8"
        )
    assert "not UTF-8" in refused(post_json(client, "{}".encode("utf-16"), path), 400, "invalid-json")["detail"]
    kind = {"content-type": "application/json; charset=latin-1"}
    refused(client.post(path, content=b'{"images": [', headers=kind), 400, "invalid-json")


def test_a_charset_that_changes_nothing(client: httpx.Client) -> None:
    for charset in ("utf-8", "UTF-8", "latin-1"):
        headers = {"content-type": f"application/json; charset={charset}"}
        assert client.post("/classify", content=json.dumps({"images": [GOOD]}), headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("document", "pointer", "said"),
    [
        ([], "", "the body: Input should be a JSON object"),
        ({"images": GOOD}, "/images", "/images: Input should be a JSON array"),
        ({"images": [1]}, "/images/0", "/images/0: Input should be a JSON object"),
        ({"images": [{"data": 1}]}, "/images/0/data", "/images/0/data: Input should be a JSON string"),
    ],
)
def test_a_shape_error_speaks_of_json(client: httpx.Client, document: object, pointer: str, said: str) -> None:
    problem = refused(post_json(client, json.dumps(document)), 422, "invalid-request")
    assert (problem["errors"][0]["pointer"], problem["detail"]) == (pointer, said)


def test_a_shape_error_points_at_its_place(client: httpx.Client) -> None:
    problem = refused(post_json(client, json.dumps({"images": [GOOD, {}]})), 422, "invalid-request")
    assert [error["pointer"] for error in problem["errors"]] == ["/images/1/data"]


@pytest.mark.parametrize("text", ["%%%", "AAA", "data:image/png;base64,AAAA", "AAAA\nAAAA", "\u00e4AAA"])
def test_bad_base64(client: httpx.Client, text: str) -> None:
    response = post_json(client, json.dumps({"images": [{"data": text}]}))
    assert response.json()["results"][0]["problem"]["type"] == "urn:equipoise:problem:invalid-base64"
    pair = json.dumps({"content": {"data": text}, "style": GOOD})
    assert refused(post_json(client, pair, "/recombine"), 400, "invalid-base64")["detail"].startswith("content: ")


# Forms


@pytest.mark.parametrize(
    "parts", [["picture"], ["image", "image"], ["image", "images"], ["images", "content"], ["content", "style"]]
)
def test_wrong_part_names(client: httpx.Client, parts: list[str]) -> None:
    form = [(name, tiny.png()) for name in parts]
    refused(client.post("/classify", files=form), 422, "unexpected-part")


@pytest.mark.parametrize(
    "parts",
    [
        ["image"],
        ["content", "content"],
        ["content", "image"],
        ["content", "style", "label"],
        ["content", "style", "style"],
        ["content", "style", *"abcdefghij"],
    ],
)
def test_wrong_part_names_for_recombine(client: httpx.Client, parts: list[str]) -> None:
    form = [(name, tiny.png()) for name in parts]
    refused(client.post("/recombine", files=form), 422, "unexpected-part")


@pytest.mark.parametrize("given", ["content", "style"])
def test_missing_style_or_content(client: httpx.Client, given: str) -> None:
    missing = "style" if given == "content" else "content"
    for response in (
        client.post("/recombine", files={given: tiny.png()}),
        post_json(client, json.dumps({given: GOOD}), "/recombine"),
    ):
        assert missing in refused(response, 422, "missing-part")["detail"]


@pytest.mark.parametrize("bad", ["content", "style"])
def test_recombine_says_which_picture_is_bad(client: httpx.Client, bad: str) -> None:
    files = {"content": tiny.png(), "style": tiny.png(), bad: tiny.png()[:30]}
    encoded = {name: {"data": base64.b64encode(data).decode()} for name, data in files.items()}
    for response in (client.post("/recombine", files=files), post_json(client, json.dumps(encoded), "/recombine")):
        assert refused(response, 400, "corrupt-image")["detail"].startswith(f"{bad}: ")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("multipart/form-data", b"--x\r\n\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"no boundary in here"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc'),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Type: image/png\r\n\r\nabc\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nnot a header\r\n\r\nabc\r\n--x--\r\n"),
    ],
)
def test_malformed_forms(client: httpx.Client, kind: str, body: bytes) -> None:
    refused(client.post("/classify", content=body, headers={"content-type": kind}), 400, "invalid-multipart")


# What is asked for


def test_unknown_model_and_version(client: httpx.Client) -> None:
    assert refused(post(client, tiny.png(), "/classify?model=nope"), 404, "model-not-found")["models"] == ["tiny"]
    assert refused(post(client, tiny.png(), "/classify?version=9"), 404, "version-not-found")["versions"] == [1]


@pytest.mark.parametrize("query", ["label=7", "modle=tiny"])
def test_unknown_parameter(client: httpx.Client, query: str) -> None:
    refused(post(client, tiny.png(), f"/classify?{query}"), 422, "unknown-parameter")


@pytest.mark.parametrize(
    "query", ["polarity=purple", "fit=", "exif=maybe", "version=0", "version=x", "fit=image&fit=image", "x" * 4000]
)
def test_invalid_parameter(client: httpx.Client, query: str) -> None:
    refused(post(client, tiny.png(), f"/classify?{query}"), 422, "invalid-parameter")


def test_nothing_acceptable(client: httpx.Client) -> None:
    form = {"content": tiny.png(), "style": tiny.png()}
    refused(client.post("/recombine", files=form, headers={"accept": "text/html"}), 406, "not-acceptable")


@pytest.mark.parametrize("capability", ["transform", "canonicalize"])
def test_a_capability_that_no_model_has(client: httpx.Client, capability: str) -> None:
    problem = refused(post(client, tiny.png(), f"/{capability}"), 404, "capability-not-found")
    assert (problem["capability"], problem["models"]) == (capability, [])


def test_unknown_path_and_method(client: httpx.Client) -> None:
    refused(client.get("/nothing"), 404, "not-found")
    refused(client.post("/classify/", content=tiny.png()), 404, "not-found")
    response = client.get("/classify")
    refused(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"
    refused(client.delete("/models"), 405, "method-not-allowed")


@pytest.mark.parametrize(
    ("path", "endpoint"),
    [("/classify", "classify"), ("/v2/models/tiny/infer", "v2_infer"), ("/nothing", "other"), ("/classify/", "other")],
)
def test_what_is_refused_by_its_head_is_counted_under_its_endpoint(
    client: httpx.Client, path: str, endpoint: str
) -> None:
    def counted() -> list[float]:
        text = client.get("/metrics").text
        return [
            sum(
                map(
                    float,
                    re.findall(rf'^equipoise_requests_total{{endpoint="{name}",status="{status}"}} (\S+)', text, re.M),
                )
            )
            for name in (endpoint, "other")
            for status in (405, 404, 413)
        ]

    wanted = [0, 1, 1, 0, 1, 1] if endpoint == "other" else [1, 0, 1, 0, 0, 0]
    before = counted()
    assert client.delete(path).status_code == (404 if endpoint == "other" else 405)
    assert client.post(path, content=bytes(MAX_BODY_BYTES + 1)).status_code == 413
    end = time.monotonic() + 10  # a refused body's request goes on for a while after its answer
    found: list[float] = []
    while found != wanted and time.monotonic() < end:
        found = [after - earlier for after, earlier in zip(counted(), before, strict=True)]
    assert found == wanted


# Raw sockets


def raw_head(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", "Content-Type: image/png", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def connect(url: str) -> socket.socket:
    return socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10)


def exchange(url: str, request: bytes) -> bytes:
    """Send, and read until the server closes."""
    with connect(url) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer


@pytest.mark.parametrize("filling", [b"[],", b"0,", b'{"a":[[]]},'])
def test_json_that_would_fill_the_memory_is_refused_unread(
    tiny_store: Path, serve: Callable[..., str], filling: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = serve(tiny_store)
    monkeypatch.setattr("service.payloads.orjson.loads", None)
    body = b'{"images":[' + filling * (2_000_000 // len(filling)) + b"0]}"
    for path in ("/classify", "/recombine"):
        response = httpx.post(
            url + path, content=body, headers={"content-type": "application/json"}, trust_env=False, timeout=20
        )
        assert "far more values" in refused(response, 400, "invalid-json")["detail"]
