"""The server of the page."""

import os
import threading
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from gralora_diffusion.console import fail
from gralora_diffusion.options import ConfigError
from gralora_diffusion.ui.access import Access
from gralora_diffusion.ui.workspace import Workspace

KNOWN = "logged-in.json"  # addresses that have logged in
API_DOCS_OFF = dict(openapi_url=None, docs_url=None, redoc_url=None)


def serve(root: Path, port: int, access: Access, other_tools: dict[str, Path]) -> None:
    """Serve the page of a HOME until the process ends.

    other_tools: {name: the folder of LoRAs of this tool}, to which adapters may be copied.
    """
    try:
        workspace = Workspace(root, other_tools)
    except ConfigError as error:
        fail(str(error))
    lock = FileLock(workspace.scratch / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        fail(f"a page is already open on {workspace.root}: use that one, or give another --home")
    workspace.delete_served()
    empty = workspace.scratch / "nowhere"  # Gradio serves files of its working directory
    empty.mkdir(exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(workspace.served)
    os.chdir(empty)
    launch(workspace, port, access)


def launch(workspace: Workspace, port: int, access: Access) -> None:
    """Build the page and serve it; Gradio is imported here, when its environment is set."""
    from gralora_diffusion.ui.card import find_device
    from gralora_diffusion.ui.forecasts import warm_up
    from gralora_diffusion.ui.housekeeping import keep_tidy
    from gralora_diffusion.ui.image_sets import delete_unfinished_copies
    from gralora_diffusion.ui.image_uploads import MAX_BYTES
    from gralora_diffusion.ui.page import build
    from gralora_diffusion.ui.report_route import report_routes
    from gralora_diffusion.ui.run_queue import RunQueue
    from gralora_diffusion.ui.sampler import Sampler
    from gralora_diffusion.ui.security import middleware
    from gralora_diffusion.ui.theme import CSS, HEAD, theme, words_for_gradio

    delete_unfinished_copies(workspace)  # before anybody can copy
    sampler = Sampler(workspace)
    queue = RunQueue(workspace, before_start=sampler.unload_if_idle)
    page = build(workspace, queue, sampler)
    page.queue(max_size=32, default_concurrency_limit=4)
    page.launch(
        server_name=access.listen or "127.0.0.1",
        server_port=port or None,
        root_path=access.root_path,
        share=access.share,
        auth=tuple(access.auth.split(":", 1)) if access.auth else None,
        show_error=False,
        max_file_size=MAX_BYTES,
        theme=theme(),
        css=CSS,
        head=HEAD,
        footer_links=[],
        i18n=words_for_gradio(),
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        quiet=True,
        prevent_thread_lock=True,
        _frontend=False,  # else Gradio asks for the page, and ends where a busy machine takes over 3 s
        app_kwargs=dict(
            middleware=middleware(access, workspace.scratch / KNOWN, workspace.served),
            routes=report_routes(workspace),
            **API_DOCS_OFF,
        ),
    )
    tasks = (queue.watch, warm_up, find_device, partial(keep_tidy, workspace))
    for task in tasks:  # once the server answers, which launch() waits for
        threading.Thread(target=task, daemon=True).start()
    urls = f"{page.local_url} and {page.share_url}" if access.share else page.local_url
    print(f"the page is at {urls}; its folders are in {workspace.root}", flush=True)
    page.block_thread()
