"""Which requests the server accepts, and what a browser may do with the page."""

import ipaddress
import re
import socket
from pathlib import Path
from urllib.parse import unquote

import psutil
from gradio.brotli_middleware import BrotliMiddleware
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse, RedirectResponse

from gralora_diffusion.ui.access import Access
from gralora_diffusion.ui.kept_downloads import KeptDownloads
from gralora_diffusion.ui.logins import Logins

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
LOGIN = ("/login", "/login/")  # the paths at which Gradio takes a password
COOKIE = b"access-token-"  # how the name of the cookie begins that a good password gets
COMPRESSED = ("", "/", "/config", "/gradio_api/run/predict")  # the page, and answers that are no streams
HEADERS = {
    "content-security-policy": "; ".join(CONTENT_SECURITY_POLICY),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def middleware(access: Access, known: Path | None = None, served: Path | None = None) -> list[Middleware]:
    """known: the file that keeps the addresses which have logged in; served: the folder of served files."""
    names = allowed_hosts(access)
    downloads = [Middleware(KeptDownloads, served=served)] if served else []
    return [
        Middleware(TrustedHostMiddleware, allowed_hosts=names, www_redirect=False),
        Middleware(Guard, access=access, names=names, known=known),
        Middleware(CompressedPage),
        *downloads,
    ]


def allowed_hosts(access: Access) -> list[str]:
    """The host names that are accepted: a foreign one that leads here (DNS rebinding) is refused."""
    names = {"127.0.0.1", "localhost", *access.names()}
    if access.listen:
        names.add(access.listen)
        if ipaddress.ip_address(socket.gethostbyname(access.listen)).is_unspecified:
            names |= {socket.gethostname(), *own_addresses()}
    if access.share:
        names.add("*.gradio.live")
    return sorted(names)


def own_addresses() -> set[str]:
    """This machine's IPv4 addresses."""
    found = set()
    for addresses in psutil.net_if_addrs().values():
        found |= {address.address for address in addresses if address.family == socket.AF_INET}
    return found


class CompressedPage(BrotliMiddleware):
    """Compresses the page to a fifteenth, and values; Gradio does so with its scripts and styles alone."""

    def __init__(self, app):
        super().__init__(app, quality=5)

    def _is_compressible_file_type(self, scope) -> bool:
        return scope["path"] in COMPRESSED


class Guard:
    """Refuses requests of other sites' pages, slows down guesses of the password, and adds HEADERS.

    A path that begins with access.root_path is taken without it, so that a proxy may leave it in or not.
    """

    def __init__(self, app, access: Access, names: list[str], known: Path | None):
        self.app = app
        self.root_path = access.root_path
        self.own = {host.lower() for host in access.hosts}
        self.names = names
        self.logins = Logins(known)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin1").lower(): value.decode("latin1") for name, value in scope["headers"]}
        if self.root_path and scope["path"] == self.root_path:
            return await RedirectResponse(f"{self.root_path}/")(scope, receive, send)
        scope = without_prefix(scope, self.root_path)
        if self.root_path and f"{scope['path']}/".startswith(f"{self.root_path}/"):
            # the application would take the prefix off once more, so that is_login were of another path
            return await PlainTextResponse("Not Found", 404)(scope, receive, send)
        client = scope["client"][0] if scope.get("client") else ""
        is_login = scope["method"] == "POST" and scope["path"] in LOGIN
        if scope["method"] == "POST" and not is_login and resembles_login(scope["path"]):
            return await PlainTextResponse("Not Found", 404)(scope, receive, send)
        refusal = self.refusal(scope["method"], headers)
        if refusal is None and is_login and (wait := self.logins.begin(client)) > 0:
            text = f"too many wrong passwords: wait {wait:.0f} s"
            refusal = PlainTextResponse(text, 429, headers={"retry-after": f"{wait:.0f}"})
        if refusal is not None:
            return await refusal(scope, receive, send)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                if is_login:
                    self.logins.end(client, is_logged_in(message))
                message["headers"] += missing_headers(message["headers"])
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def refusal(self, method: str, headers: dict[str, str]) -> PlainTextResponse | None:
        """The answer to a request that is not of this page; None for one that is."""
        forwarded = headers.get("x-forwarded-host", "").split(",")[0].strip().partition(":")[0].lower()
        if forwarded and not self.is_known(forwarded):
            return PlainTextResponse("Invalid host header", 400)  # as TrustedHostMiddleware has it
        if "x-gradio-server" in headers:  # by which Gradio would take another address for its own
            return PlainTextResponse("Invalid host header", 400)
        if method not in ("GET", "HEAD", "OPTIONS") and is_foreign(headers, self.own):
            return PlainTextResponse("this page accepts only its own requests", 403)
        return None

    def is_known(self, host: str) -> bool:
        return host in self.names or ("*.gradio.live" in self.names and host.endswith(".gradio.live"))


def without_prefix(scope: dict, prefix: str) -> dict:
    """The request with its path as this server has it."""
    if not prefix or not scope["path"].startswith(f"{prefix}/"):
        return scope
    path = scope["path"][len(prefix) :]
    return dict(scope, path=path, raw_path=path.encode())


def resembles_login(path: str) -> bool:
    """Whether it is the log-in's path but for slashes, dots, encodings, line ends and what is before it.

    The application may take such a path for the log-in: Starlette ignores a line end after a path.
    """
    return re.sub("[^a-z]", "", unquote(path).lower()).endswith("login")


def is_logged_in(message: dict) -> bool:
    """Whether the start of an answer to a log-in says that the password was right."""
    cookies = [value for name, value in message["headers"] if name.lower() == b"set-cookie"]
    return message["status"] == 200 and any(cookie.startswith(COOKIE) for cookie in cookies)


def missing_headers(given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Those of HEADERS that an answer does not have."""
    names = {name.lower() for name, _ in given}
    encoded = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    return [(name, value) for name, value in encoded if name not in names]


def is_foreign(headers: dict[str, str], own: set[str] = frozenset()) -> bool:
    """Whether a page of another site sent this request; own: hosts that a proxy has for this page."""
    origin = headers.get("origin")
    if origin is not None:
        host = origin.partition("://")[2].lower()
        return host not in own and host != headers.get("host", "").lower()
    return headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
