"""Headers as they are read: ids of requests, lists in several lines, those that would take long to take apart."""

import re

import httpx
import pytest

from service.headers import MOST_PARSED_BYTES
from tests.service import tiny
from tests.service.conftest import MAX_BODY_BYTES

PNG = {"content-type": "image/png"}


@pytest.mark.parametrize("given", ["abc", "A.b-c_9", "x" * 128])
def test_a_good_request_id_is_taken_over(client: httpx.Client, given: str) -> None:
    assert client.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "a\u00e4".encode(), "<script>", "a/b"])
def test_a_bad_request_id_is_replaced(client: httpx.Client, given: str | bytes) -> None:
    got = client.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"]
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", got)


def test_request_ids_are_unique(client: httpx.Client) -> None:
    assert len({client.get("/healthz").headers["x-request-id"] for _ in range(50)}) == 50


def test_lines_of_one_list_are_one_list(client: httpx.Client) -> None:
    form = {"content": tiny.png(), "style": tiny.png(1)}
    accepted = [("accept", "image/jpeg"), ("accept", "application/json;q=0.1")]
    for lines in (accepted, accepted[::-1]):
        assert client.post("/recombine", files=form, headers=lines).headers["content-type"] == "image/jpeg"
    encoded = [*PNG.items(), ("content-encoding", "gzip"), ("content-encoding", "identity")]
    assert client.post("/classify", content=tiny.png(), headers=encoded).status_code == 415
    typed = [("content-type", "text/plain"), *PNG.items()]  # no list
    assert client.post("/classify", content=tiny.png(), headers=typed).status_code == 200


LONG = [
    [("accept", "a," * 512 + "*/*")],
    [("accept", "image/png;q=0." + "0" * 100)] * 10,
    [("content-type", 'multipart/form-data; x="' + ";" * 1024)],
]


@pytest.mark.parametrize("lines", LONG, ids=["accept", "lines", "content-type"])
@pytest.mark.parametrize("path", ["/classify", "/recombine", "/v2/models/tiny/infer"])
def test_a_header_that_would_take_long_to_take_apart_is_refused(
    client: httpx.Client, lines: list[tuple[str, str]], path: str
) -> None:
    """A head of 64 KiB held the event loop for a tenth of a second."""
    name = {"accept": "Accept", "content-type": "Content-Type"}[lines[0][0]]
    for size in (4, 2 * MAX_BODY_BYTES):  # the body is not looked at, and the client hears so whatever its size
        answer = client.post(path, content=bytes(size), headers=lines)
        problem = answer.json()
        assert answer.status_code == 400
        if path.startswith("/v2"):
            assert re.fullmatch(rf"{name} has 1,\d+ bytes, at most 1,024 are read", problem["error"])
        else:
            assert (problem["type"], problem["header"]) == ("urn:equipoise:problem:invalid-header", name)
    counted = client.get("/metrics").text
    endpoint = {"/v2/models/tiny/infer": "v2_infer"}.get(path, path[1:])
    assert f'equipoise_requests_total{{endpoint="{endpoint}",status="400"}}' in counted


def test_a_header_of_the_greatest_length_is_read(client: httpx.Client) -> None:
    accept = "*/*;q=0." + "1" * (MOST_PARSED_BYTES - 8)
    boundary = "multipart/form-data; boundary=x; y=" + "z" * (MOST_PARSED_BYTES - 35)
    form = b'--x\r\ncontent-disposition: form-data; name="%b"\r\n\r\n' + tiny.png() + b"\r\n"
    body = form % b"content" + form % b"style" + b"--x--"
    assert len(accept) == len(boundary) == MOST_PARSED_BYTES
    headers = {"accept": accept, "content-type": boundary}
    assert client.post("/recombine", content=body, headers=headers).status_code == 200
