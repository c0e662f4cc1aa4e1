"""What a request holds: room for it in the budget, and what is said where there never is enough."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from service.settings import Settings
from tests.server import running_server
from tests.service import tiny_pose
from tests.service.tiny import encode

MAX_PIXELS = 250_000


def noise(side: int) -> bytes:
    """A file as long as its pixels are."""
    return encode(np.random.default_rng(0).integers(0, 256, (side, side), np.uint8))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service with 20 MB for everything."""
    store = tmp_path_factory.mktemp("memory")
    tiny_pose.write(store, augment=True)
    settings = Settings(model_store=store, max_pixels=MAX_PIXELS, max_body_bytes=8_000_000, queue_bytes=20_000_000)
    with (
        running_server(settings) as url,
        httpx.Client(base_url=url, trust_env=False, timeout=60) as opened,
    ):
        yield opened


def accepted_bytes(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("equipoise_accepted_bytes ")))


@pytest.mark.parametrize(
    ("path", "side", "count", "status"),
    [
        # Kept from decoding to drawing: 4 bytes a pixel of all but one, beside 3 of that one, and the body.
        ("/canonicalize?expand=false", 500, 15, 200),
        ("/canonicalize?expand=false", 500, 17, 413),
        # Drawn with transparency: 8 bytes a pixel of one and 4 of each other one, beside the pictures and the body.
        ("/canonicalize?expand=false&fill=transparent", 500, 12, 200),
        ("/canonicalize?expand=false&fill=transparent", 500, 13, 413),
        # Drawn: 4 bytes a pixel of one variant and 2 of each other one, beside the pictures and the body.
        ("/augment?n=4", 250, 31, 200),
        ("/augment?n=4", 250, 33, 413),
    ],
)
def test_what_never_fits_beside_its_own_body_is_refused_for_good(
    client: httpx.Client, path: str, side: int, count: int, status: int
) -> None:
    """429 would have clients come back for ever to a service that is idle."""
    answer = client.post(path, files=[("images", noise(side))] * count)
    assert answer.status_code == status, answer.text[:300]
    if status == 413:
        problem = answer.json()
        assert problem["type"] == "urn:equipoise:problem:too-many-pixels"
        assert "the limit is 20,000,000" in problem["detail"] and "send fewer pictures" in problem["detail"]
    assert accepted_bytes(client) == 0
