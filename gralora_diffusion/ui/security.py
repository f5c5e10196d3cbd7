"""Who may speak to the server, and what a browser may do with what it gets."""

import ipaddress
import socket
import time

import psutil
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

CSP = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "connect-src 'self'; worker-src 'self' blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; frame-ancestors 'none'; "
    "form-action 'self'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
FREE_TRIES, WAIT, MEMORY = (
    5,
    2.0,
    300.0,
)  # wrong passwords before one waits; seconds for each more, up to a minute; seconds until they are forgotten


def middleware(listen: str | None, share: bool) -> list[Middleware]:
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts(listen, share), www_redirect=False),
        Middleware(Guard),
    ]


def hosts(listen: str | None, share: bool) -> list[str]:
    """The names that a browser may call this server by; a foreign name that leads here (DNS rebinding) is none of them."""
    names = {"127.0.0.1", "localhost"}
    if listen:
        own = {
            a.address
            for addresses in psutil.net_if_addrs().values()
            for a in addresses
            if a.family == socket.AF_INET
        }
        names |= (
            {listen, socket.gethostname(), *own}
            if ipaddress.ip_address(socket.gethostbyname(listen)).is_unspecified
            else {listen}
        )
    return sorted(names | ({"*.gradio.live"} if share else set()))


class Guard:
    """Refuses requests that another site's page sends, slows down guessing of passwords, and adds the headers."""

    def __init__(self, app):
        self.app, self.failures = app, {}

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and foreign(headers):
            return await PlainTextResponse("this page takes requests from itself only", 403)(
                scope, receive, send
            )
        login = scope["path"].rstrip("/") == "/login" and scope["method"] == "POST"
        who = scope["client"][0] if scope.get("client") else ""
        if login and (wait := self.wait(who)) > 0:
            answer = PlainTextResponse(
                f"too many wrong passwords: wait {wait:.0f} s", 429, headers={"retry-after": f"{wait:.0f}"}
            )
            return await answer(scope, receive, send)

        async def sending(message):
            if message["type"] == "http.response.start":
                if login:
                    self.note(who, message["status"] < 400)
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [
                    (n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in given
                ]
            await send(message)

        await self.app(scope, receive, sending)

    def wait(self, who: str) -> float:
        tries, last = self.failures.get(who, (0, 0.0))
        return (
            max(0.0, last + min(60.0, WAIT * (tries - FREE_TRIES + 1)) - time.monotonic())
            if tries >= FREE_TRIES
            else 0.0
        )

    def note(self, who: str, good: bool) -> None:
        now = time.monotonic()
        self.failures = {
            name: (n, last)
            for name, (n, last) in self.failures.items()
            if now - last < MEMORY and not (good and name == who)
        }
        if not good:
            self.failures[who] = self.failures.get(who, (0, 0.0))[0] + 1, now


def foreign(headers: dict[str, str]) -> bool:
    """Whether a page of another site sent this request."""
    origin = headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2].lower() != headers.get("host", "").lower()
    return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
