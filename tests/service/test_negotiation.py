"""Accept headers."""

import pytest

from service.errors import NotAcceptable
from service.negotiation import choose

OFFERED = ("application/json", "image/png", "image/jpeg")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        (b"", "application/json"),
        (b"*/*", "application/json"),
        (b"image/png", "image/png"),
        (b"IMAGE/PNG", "image/png"),
        (b"image/*", "image/png"),
        (b"image/jpeg, */*;q=0.1", "image/jpeg"),
        (b"image/png;q=0.5, image/jpeg;q=0.9", "image/jpeg"),
        (b"image/*;q=0.5, application/json;q=0.4", "image/png"),
        (b"image/*, image/png;q=0", "image/jpeg"),
        (b"text/html, */*;q=0.8", "application/json"),
        (b"text/html,image/avif,image/webp,image/apng,*/*;q=0.8", "application/json"),
        (b"image/png, image/jpeg", "image/png"),
    ],
)
def test_choose(accept: bytes, chosen: str) -> None:
    assert choose(accept, OFFERED) == chosen


@pytest.mark.parametrize("accept", [b"text/html", b"*/*;q=0", b"image/gif", b";;;", b"image/png;q=x"])
def test_nothing_acceptable(accept: bytes) -> None:
    with pytest.raises(NotAcceptable):
        choose(accept, OFFERED)
