"""API keys: who may use the service, and who may change what it serves.

The file has the SHA-256 of each key and never the key itself; keys are made by `python -m service key` from 32 random
bytes, so that a fast hash is no weakness. It is read anew when it changes, so that keys are rotated without a restart.
"""

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from starlette.types import ASGIApp, Receive, Scope, Send

from service.body import has_body
from service.call import CALL, Call
from service.errors import Forbidden, Unauthorized
from service.logs import say

Role = Literal["use", "admin"]

_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,64})\s+(?P<role>\w+)\s+sha256:(?P<digest>[0-9a-f]{64})")
_MOST_FILE_BYTES = 1024 * 1024
_LOOK_SECONDS = 1.0
_MOST_SHOWN, _LONGEST_SHOWN = 1024, 256
_CHALLENGE = {"WWW-Authenticate": "Bearer"}

Signature = tuple[int, int, int]


class KeyFileError(Exception):
    """A key file that cannot be used; the message is one line and has no digest."""


@dataclass(frozen=True, slots=True)
class Key:
    """name: for logs. digest: SHA-256 of the key. An admin key may do whatever others may."""

    name: str
    role: Role
    digest: bytes


def new_key() -> tuple[str, str]:
    """A new key, and its line for the file."""
    key = "eq_" + secrets.token_urlsafe(32)
    return key, f"key-{secrets.token_hex(3)} use sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def read_keys(path: Path) -> list[Key]:
    """The keys of a file: `<name> <role> sha256:<digest>` a line; empty lines and those that begin with # are skipped.

    Raises:
        KeyFileError: it cannot be read, a line is none of these, a name stands twice, or there is no key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_FILE_BYTES + 1)
        if len(data) > _MOST_FILE_BYTES:
            raise ValueError(f"it is larger than {_MOST_FILE_BYTES:,} bytes")
        text = data.decode()
    except (OSError, ValueError) as error:
        raise KeyFileError(f"the key file {path} cannot be read: {error}") from None
    keys: dict[str, Key] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None or found["role"] not in get_args(Role):
            raise KeyFileError(f"line {number} of {path} is not `<name> <use or admin> sha256:<64 hex digits>`")
        if found["name"] in keys:
            raise KeyFileError(f"line {number} of {path}: the name {found['name']} stands twice")
        keys[found["name"]] = Key(found["name"], cast(Role, found["role"]), bytes.fromhex(found["digest"]))
    if not keys:
        raise KeyFileError(f"the key file {path} has no key")
    return list(keys.values())


class Keys:
    """The keys of one file, or none: then anyone may use the service, and nobody may change what it serves."""

    def __init__(self, path: Path | None) -> None:
        """
        Raises:
            KeyFileError: see `read_keys`.
        """
        self._path = path
        self._signature = _sign(path) if path else None
        self._keys = read_keys(path) if path else []
        # Of headers that brought a good key. The time of a look-up tells nothing of them: Python hashes bytes with a
        # secret of the process.
        self._shown: dict[bytes, Key] = {}
        self._looked = time.monotonic()

    @property
    def needed(self) -> bool:
        """Whether every request has to bring a key."""
        return self._path is not None

    def check(self, headers: Mapping[bytes, bytes]) -> Key:
        """The key that a request brings.

        Raises:
            Unauthorized: none, or one that is not known.
        """
        self._look()
        shown = headers.get(b"authorization", b"")
        if (key := self._shown.get(shown)) is not None:
            return key
        scheme, _, token = shown.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Unauthorized("send a key: Authorization: Bearer <key>", headers=_CHALLENGE)
        digest = hashlib.sha256(token.strip()).digest()
        matching = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]  # all of them: equal time
        if not matching:
            raise Unauthorized("this key is not known", headers=_CHALLENGE)
        if len(shown) <= _LONGEST_SHOWN:  # one key may be shown with any number of blanks
            if len(self._shown) >= _MOST_SHOWN:
                self._shown.clear()
            self._shown[shown] = matching[0]
        return matching[0]

    def check_admin(self, headers: Mapping[bytes, bytes]) -> Key:
        """The admin key that a request brings.

        Raises:
            Forbidden: it is no admin key, or the file has none. Unauthorized: no key.
        """
        if self._path is None:
            raise Forbidden("this needs an admin key, and the service runs without keys")
        key = self.check(headers)
        if key.role != "admin":
            raise Forbidden("this needs an admin key")
        return key

    def _look(self) -> None:
        """Read the file anew where it has changed; a bad one changes nothing and is logged."""
        now = time.monotonic()
        if self._path is None or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        signature = _sign(self._path)
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._keys = read_keys(self._path)
            self._shown.clear()
            say(logging.INFO, "keys read anew", keys=len(self._keys))
        except KeyFileError as error:
            say(logging.ERROR, "the old keys stay in use", reason=str(error))


class KeyGate:
    """Lets nobody in without a key, except to `open_paths`."""

    def __init__(self, app: ASGIApp, keys: Keys, open_paths: frozenset[str]) -> None:
        self._app = app
        self._keys = keys
        self._open_paths = open_paths

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["path"] not in self._open_paths:
            call: Call = scope[CALL]
            try:
                call.key = self._keys.check(call.headers).name
            except Unauthorized:
                call.unread = has_body(call.headers)  # not a byte of it is read
                call.name_endpoint(scope["path"])
                raise
        return self._app(scope, receive, send)


def _sign(path: Path) -> Signature | None:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_mtime_ns, facts.st_size, facts.st_ino
