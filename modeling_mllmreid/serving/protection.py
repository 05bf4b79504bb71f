"""Who may use the server: passwords and tokens, the sizes of requests, and pages of other sites."""

import asyncio
import base64
import contextlib
import hmac
import json
import math
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..utils.errors import TooLarge, UserError
from .failures import Failures
from .uploads import FileSizes

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
# Status, message, and headers of the answer.
Refusal = tuple[int, str, dict[str, str]]

# Largest body without files.
TEXT_BYTES = 16 * 2**20
# Seconds after SIGTERM in which the rest of a body has to arrive.
UPLOAD_SECONDS = 5
ENDING: Refusal = 503, "the server ends: send the request again later", {"connection": "close"}


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
            except ValueError:  # no Base64, or no UTF-8 in it
                return None
            # Both are compared, so that the time does not depend on which one is wrong.
            same = (_equal(user, self.user), _equal(password, self.password))
            return user if all(same) else None
        return None


class Protection:
    """Checks each request before the application sees it, and its body while it arrives.

    Args:
        app (`Callable`): The application.
        access ([`Access`]): Who may use it.
        host (`str`): The address that the server listens on.
        most_bytes (`int`): Largest body of a request, with all files.
        file_bytes (`int`): Largest file in it.
        ending (`Callable`, *optional*): Returns whether the server ends, so that streams without an end are closed.
        frames (`str`): Sites that may show the page in a frame.
        clock (`Callable`): Returns the time in seconds.
    """

    def __init__(
        self,
        app: App,
        access: Access,
        host: str,
        most_bytes: int,
        file_bytes: int,
        ending: Callable[[], bool] = lambda: False,
        frames: str = NO_FRAMES,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.app, self.access, self.ending, self.clock = app, access, ending, clock
        self.most_bytes, self.file_bytes = most_bytes, file_bytes
        self.failures = Failures(clock)
        self.unfinished, self._ending_since = 0, math.inf
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
        # Of a header that comes twice, the application too takes the first one.
        pairs = reversed(list(scope["headers"]))
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}
        body = _Body(headers, self.most_bytes, self.file_bytes)
        refusal = self._refusal(scope, headers) or body.refusal
        if refusal is not None:
            await _answer(scope, send, refusal, self.headers)
            return
        started = False

        async def checked() -> MutableMapping[str, Any]:
            message = await (receive() if body.complete else self._before_the_end(receive, body))
            body.add(message)
            if body.refusal is not None:
                raise _Refused
            return message

        async def unless_refused(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if body.refusal is None:
                started = True
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", ()), *self.headers]
                await send(message)

        try:
            served = self.app(scope, checked if scope["type"] == "http" else receive, unless_refused)
            await (self._until_the_end(served) if HEARTBEAT in scope["path"] else served)
        except _Refused:
            pass
        except asyncio.CancelledError:
            # It has run longer than a request may after SIGTERM.
            if not self.ending():
                raise
            body.refusal = ENDING
        if body.refusal is not None and not started:
            await _answer(scope, send, body.refusal, self.headers)

    async def _before_the_end(self, receive: Receive, body: "_Body") -> MutableMapping[str, Any]:
        """Returns the next part of a body, or refuses it if the server ends and the rest does not arrive."""
        task = asyncio.ensure_future(receive())
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=0.2)
                if self.ending():
                    self._ending_since = min(self._ending_since, self.clock())
                    if not task.done() and self.clock() - self._ending_since > UPLOAD_SECONDS:
                        self.unfinished += 1
                        body.refusal = ENDING
                        raise _Refused
            return task.result()
        finally:
            task.cancel()

    async def _until_the_end(self, served: Awaitable[None]) -> None:
        """Serves a stream that has no end of its own until the server ends."""
        task = asyncio.ensure_future(served)
        while not (self.ending() or task.done()):
            await asyncio.wait({task}, timeout=0.2)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> Refusal | None:
        """Returns why a request is refused before its body is read, None if it is not."""
        host = headers.get("host", "")
        if self.hosts is not None and _split(f"//{host}")[1] not in self.hosts:
            return 403, f"host {host[:60]!r}: is not this machine: use 127.0.0.1 or localhost", {}
        origin = headers.get("origin")
        if origin is not None and _split(origin)[0] != host:
            return 403, f"origin {origin[:60]!r}: pages of other sites may not use this server", {}
        if self.access and scope.get("path") not in OPEN_PATHS:
            return self._login(scope, headers.get("authorization"))
        return None

    def _login(self, scope: Scope, header: str | None) -> Refusal | None:
        """Notes the user of a request. Returns the refusal of a wrong or missing password."""
        address = (scope.get("client") or [""])[0]
        if wait := self.failures.wait(address):
            return 429, f"too many wrong passwords from {address}: try again in {wait} s", {"retry-after": str(wait)}
        user = self.access.user_of(header or "")
        if user is None:
            if header is not None:
                self.failures.add(address)
            hint = {"www-authenticate": 'Basic realm="gallery"'}
            return 401, "user and password or token are missing or wrong", hint
        scope.setdefault("state", {})["user"] = user
        return None


class _Body:
    """The body of a request while it arrives: how much of it there is, and why it is refused."""

    def __init__(self, headers: dict[str, str], most_bytes: int, file_bytes: int):
        self.files = FileSizes(headers.get("content-type", ""), file_bytes)
        # Without files it is in memory as a whole.
        self.most = most_bytes if self.files.is_form else min(most_bytes, TEXT_BYTES)
        self.count, self.complete = 0, False
        self.refusal: Refusal | None = None
        length = headers.get("content-length", "0")
        self._check(int(length) if length.isdecimal() else 0)

    def add(self, message: MutableMapping[str, Any]) -> None:
        """Counts the next part."""
        content = message.get("body", b"")
        self.count += len(content)
        self.complete = not message.get("more_body", False)
        self._check(self.count)
        try:
            self.files.add(content)
        except TooLarge as error:
            self.refusal = 413, str(error), {"connection": "close"}

    def _check(self, count: int) -> None:
        """Refuses a body that is too large."""
        if count > self.most:
            advice = "send crops of one person" if self.files.is_form else "send less at one time"
            message = f"the request has more than {self.most // 2**20} MiB: {advice}"
            self.refusal = 413, message, {"connection": "close"}


class _Refused(Exception):
    """The body of a request is refused."""


async def _answer(scope: Scope, send: Send, refusal: Refusal, fixed: Sequence[tuple[bytes, bytes]]) -> None:
    """Answers with an error as JSON."""
    status, message, own = refusal
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": message})
        return
    body = json.dumps({"error": message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *fixed]
    headers += [(name.encode(), value.encode()) for name, value in own.items()]
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
