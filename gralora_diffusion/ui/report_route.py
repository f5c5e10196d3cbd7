"""A run's report.html in a browser: from its folder, and in a sandbox, since anybody may have written it."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.run_view import sample_files
from gralora_diffusion.ui.workspace import Workspace, real_file

MAX_BYTES = 2**26
# without allow-scripts nothing of it runs, is sent, or leads away by itself; it has an origin of its own
POLICY = (
    "sandbox",
    "default-src 'none'",
    "img-src data:",
    "style-src 'unsafe-inline'",
    "frame-ancestors 'none'",
)
HEADERS = {"content-security-policy": "; ".join(POLICY), "cache-control": "no-store"}


def report_routes(workspace: Workspace) -> list[Route]:
    """GET /report/RUN/ is report.html of a run, and .../samples/STEP/NAME an image that it links to."""

    def report(request: Request) -> Response:
        run = run_of(workspace, request)
        if run is None:
            return missing("there is no such run")
        path = run / "report.html"
        if not real_file(path) or path.stat().st_size > MAX_BYTES:
            return missing("this run has no report: it is written when the run ends")
        return HTMLResponse(path.read_text(errors="replace"), headers=HEADERS)

    def sample(request: Request) -> Response:
        run = run_of(workspace, request)
        wanted = request.path_params["step"], request.path_params["name"]
        for _, files in sample_files(run) if run else []:
            for path in files:
                if (path.parent.name, path.name) == wanted:
                    return FileResponse(path, media_type="image/png", headers=HEADERS)
        return missing("there is no such image")

    return [Route("/report/{run}/", report), Route("/report/{run}/samples/{step}/{name}", sample)]


def run_of(workspace: Workspace, request: Request) -> Path | None:
    """The run that is asked for by somebody who may."""
    if not is_logged_in(request):
        return None
    try:
        return workspace.run(request.path_params["run"])
    except ConfigError:
        return None


def is_logged_in(request: Request) -> bool:
    """Whether Gradio's page would be shown to whoever sends this request."""
    app = request.app
    if app.auth is None:
        return True
    names = (f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}")
    return any(app.tokens.get(request.cookies.get(name)) is not None for name in names)


def missing(text: str) -> Response:
    return PlainTextResponse(text, 404)
