"""Who may use the server: passwords and tokens, the sizes of requests, and pages of other sites."""

import asyncio
import base64
import binascii
import contextlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..utils.errors import UserError

LOCAL = ("127.0.0.1", "localhost", "::1")
PASSWORD, TOKEN = "MLLMREID_PASSWORD", "MLLMREID_TOKEN"
# A short one can be guessed.
SHORTEST_SECRET = 8
OPEN_PATHS = ("/health",)
# The page of a browser is open as long as this stream.
HEARTBEAT = "/heartbeat/"

# Sites that may show the page in a frame, where a click could be led to "Erase".
NO_FRAMES = "'none'"

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Access:
    """Who may use the server.

    Args:
        user (`str`, *optional*): Name for the password.
        password (`str`, *optional*): Password of the user (HTTP Basic).
        token (`str`, *optional*): Token of programs (`Authorization: Bearer`).
    """

    user: str | None = None
    password: str | None = None
    token: str | None = None

    def __bool__(self) -> bool:
        return self.password is not None or self.token is not None

    @classmethod
    def of(cls, host: str, user: str | None) -> "Access":
        """Returns the access that the environment sets.

        Args:
            host (`str`): The address that the server listens on.
            user (`str`, *optional*): Name for the password.

        Raises:
            UserError: The address can be reached from other machines and there is neither a password nor a token, or
                one is incomplete.
        """
        password, token = os.environ.get(PASSWORD), os.environ.get(TOKEN)
        for name, secret in ((PASSWORD, password), (TOKEN, token)):
            if secret is not None and len(secret) < SHORTEST_SECRET:
                raise UserError(f"{name}: has fewer than {SHORTEST_SECRET} characters: set a longer one")
        if (user is None) != (password is None):
            given, missing = ("--user", PASSWORD) if password is None else (PASSWORD, "--user")
            raise UserError(f"{given} is given without {missing}: give both")
        if host not in LOCAL and password is None and token is None:
            raise UserError(
                f"host {host}: other machines can reach it: set {PASSWORD} and --user, or {TOKEN}, or leave host out"
            )
        return cls(user, password, token)

    def user_of(self, header: str) -> str | None:
        """Returns the user of an `Authorization` header, None if it is not valid."""
        kind, _, value = header.partition(" ")
        if kind.lower() == "bearer" and self.token is not None:
            return "token" if _equal(value.strip(), self.token) else None
        if kind.lower() == "basic" and self.password is not None and self.user is not None:
            try:
                user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                return None
            # Both are compared, so that the time does not depend on which one is wrong.
            same = (_equal(user, self.user), _equal(password, self.password))
            return user if all(same) else None
        return None


class Protection:
    """Checks each request before the application sees it.

    Args:
        app (`Callable`): The application.
        access ([`Access`]): Who may use it.
        host (`str`): The address that the server listens on.
        most_bytes (`int`): Largest body of a request.
        ending (`Callable`, *optional*): Returns whether the server ends, so that streams without an end are closed.
        frames (`str`): Sites that may show the page in a frame.
    """

    def __init__(
        self,
        app: App,
        access: Access,
        host: str,
        most_bytes: int,
        ending: Callable[[], bool] = lambda: False,
        frames: str = NO_FRAMES,
    ):
        self.app, self.access, self.most_bytes, self.ending = app, access, most_bytes, ending
        self.headers = [
            (b"content-security-policy", f"frame-ancestors {frames}".encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
        ]
        self.headers += [(b"x-frame-options", b"DENY")] if frames == NO_FRAMES else []
        # A page of another site may give its own name this machine's address. Its requests name that site as host.
        self.hosts = None if access or host not in LOCAL else set(LOCAL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with an error of one line."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(scope, send, *refusal, self.headers)
            return
        count, too_large = 0, False

        async def counted() -> MutableMapping[str, Any]:
            nonlocal count, too_large
            message = await receive()
            count += len(message.get("body", b""))
            if count > self.most_bytes:
                too_large = True
                raise _TooLarge
            return message

        async def unless_too_large(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self.headers]
            if not too_large:
                await send(message)

        with contextlib.suppress(_TooLarge):
            served = self.app(scope, counted if scope["type"] == "http" else receive, unless_too_large)
            await (self._until_the_end(served) if HEARTBEAT in scope["path"] else served)
        if too_large:
            await _answer(scope, send, 413, self._too_large(), self.headers)

    async def _until_the_end(self, served: Awaitable[None]) -> None:
        """Serves a stream that has no end of its own until the server ends."""
        task = asyncio.ensure_future(served)
        while not (self.ending() or task.done()):
            await asyncio.wait({task}, timeout=0.2)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Returns the status and the message with which a request is refused, None if it is not."""
        host = headers.get("host", "")
        if self.hosts is not None and _split(f"//{host}")[1] not in self.hosts:
            return 403, f"host {host[:60]!r}: is not this machine: use 127.0.0.1 or localhost"
        origin = headers.get("origin")
        if origin is not None and _split(origin)[0] != host:
            return 403, f"origin {origin[:60]!r}: pages of other sites may not use this server"
        if self.access and scope.get("path") not in OPEN_PATHS:
            user = self.access.user_of(headers.get("authorization", ""))
            if user is None:
                return 401, "user and password or token are missing or wrong"
            scope.setdefault("state", {})["user"] = user
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.most_bytes:
            return 413, self._too_large()
        return None

    def _too_large(self) -> str:
        """Returns the message for a body that is too large."""
        return f"the request has more than {self.most_bytes // 2**20} MiB: send crops of one person"


class _TooLarge(Exception):
    """The body of a request is larger than the limit."""


async def _answer(scope: Scope, send: Send, status: int, message: str, fixed: Sequence[tuple[bytes, bytes]]) -> None:
    """Answers with an error as JSON."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": message})
        return
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *fixed]
    headers += [(b"www-authenticate", b'Basic realm="gallery"')] if status == 401 else []
    headers += [(b"connection", b"close")] if status == 413 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _split(address: str) -> tuple[str | None, str | None]:
    """Returns the host of an address with its port, and without; None if it is not valid or names a user."""
    try:
        parts = urlsplit(address)
        return (None, None) if "@" in parts.netloc else (parts.netloc, parts.hostname)
    except ValueError:
        return None, None


def _equal(given: str, own: str) -> bool:
    """Compares two secrets in a time that does not depend on how much of them is equal."""
    return hmac.compare_digest(given.encode(), own.encode())
