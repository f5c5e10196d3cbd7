"""Which requests the server accepts, and what a browser may do with the page."""

import ipaddress
import socket
import time

import psutil
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

CONTENT_SECURITY_POLICY = (
    "default-src 'self'",
    "img-src 'self' data: blob:",
    "style-src 'self' 'unsafe-inline'",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
    "connect-src 'self'",
    "worker-src 'self' blob:",
    "font-src 'self' data:",
    "object-src 'none'",
    "base-uri 'self'",
    "frame-ancestors 'none'",
    "form-action 'self'",
)
HEADERS = {
    "content-security-policy": "; ".join(CONTENT_SECURITY_POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
FREE_TRIES = 5  # wrong passwords before one has to wait
WAIT = 2.0  # seconds, and as many more for each further one
MAX_WAIT = 60.0
FORGET_AFTER = 300.0  # seconds since the last wrong password


def middleware(listen: str | None, share: bool) -> list[Middleware]:
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(listen, share), www_redirect=False),
        Middleware(Guard),
    ]


def allowed_hosts(listen: str | None, share: bool) -> list[str]:
    """The host names that are accepted: a foreign one that leads here (DNS rebinding) is refused."""
    names = {"127.0.0.1", "localhost"}
    if listen:
        names.add(listen)
        if ipaddress.ip_address(socket.gethostbyname(listen)).is_unspecified:
            names |= {socket.gethostname(), *own_addresses()}
    if share:
        names.add("*.gradio.live")
    return sorted(names)


def own_addresses() -> set[str]:
    """This machine's IPv4 addresses."""
    found = set()
    for addresses in psutil.net_if_addrs().values():
        found |= {address.address for address in addresses if address.family == socket.AF_INET}
    return found


class Guard:
    """Refuses requests of other sites' pages, slows down guesses of the password, and adds HEADERS."""

    def __init__(self, app):
        self.app = app
        self.logins = Logins()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and is_foreign(headers):
            refusal = PlainTextResponse("this page takes requests from itself only", 403)
            return await refusal(scope, receive, send)
        is_login = scope["path"].rstrip("/") == "/login" and scope["method"] == "POST"
        client = scope["client"][0] if scope.get("client") else ""
        wait = self.logins.wait(client) if is_login else 0
        if wait > 0:
            text = f"too many wrong passwords: wait {wait:.0f} s"
            refusal = PlainTextResponse(text, 429, headers={"retry-after": f"{wait:.0f}"})
            return await refusal(scope, receive, send)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                if is_login:
                    self.logins.note(client, message["status"] < 400)
                message["headers"] += missing_headers(message["headers"])
            await send(message)

        await self.app(scope, receive, send_with_headers)


def missing_headers(given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Those of HEADERS that an answer does not have."""
    names = {name.lower() for name, _ in given}
    encoded = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    return [(name, value) for name, value in encoded if name not in names]


class Logins:
    """Wrong passwords by client: (how many, when the last)."""

    def __init__(self):
        self.failures: dict[str, tuple[int, float]] = {}

    def wait(self, client: str) -> float:
        """Seconds until the client may try again."""
        tries, last = self.failures.get(client, (0, 0.0))
        if tries < FREE_TRIES:
            return 0.0
        pause = min(MAX_WAIT, WAIT * (tries - FREE_TRIES + 1))
        return max(0.0, last + pause - time.monotonic())

    def note(self, client: str, good: bool) -> None:
        """Count a wrong password, or forget those of a client that has logged in; forget old ones."""
        now = time.monotonic()
        self.failures = {c: (n, last) for c, (n, last) in self.failures.items() if now - last < FORGET_AFTER}
        tries, _ = self.failures.pop(client, (0, now))
        if not good:
            self.failures[client] = tries + 1, now


def is_foreign(headers: dict[str, str]) -> bool:
    """Whether a page of another site sent this request."""
    origin = headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2].lower() != headers.get("host", "").lower()
    return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
