"""The page: train, watch, sample, compare and export in a browser.

    gralora ui --port 7860

It is open to this computer alone.  --listen ADDRESS or --share opens it to others, and needs --auth NAME:PASSWORD (or the environment's
GRALORA_AUTH).  Runs, image sets, bases and added adapters are in the folders runs, images, models and adapters of --home.
"""

import os
import threading
from pathlib import Path

os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def main(argv: list[str] | None = None) -> None:
    from gralora_diffusion.command_line import Parser
    from gralora_diffusion.console import fail

    parser = Parser(description=__doc__)
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument(
        "--home", type=Path, default=Path(), help="the folder to work in; by default the one you are in"
    )
    parser.add_argument(
        "--listen", metavar="ADDRESS", help="listen here too, for instance 0.0.0.0; needs --auth"
    )
    parser.add_argument(
        "--share", action="store_true", help="open the page to the internet by Gradio's tunnel; needs --auth"
    )
    parser.add_argument(
        "--auth", metavar="NAME:PASSWORD", default=os.environ.get("GRALORA_AUTH"), help="who may come in"
    )
    args = parser.parse_args(argv)
    if (args.listen or args.share) and not args.auth:
        parser.error("--listen and --share open the page to others: give --auth NAME:PASSWORD with them")
    if args.auth and not all(args.auth.partition(":")[::2]):
        parser.error("--auth must be NAME:PASSWORD")
    if not 0 <= args.port < 65536:
        parser.error(f"--port is {args.port}; it must be from 0 to 65535")

    from filelock import FileLock, Timeout

    from gralora_diffusion.ui.workspace import Workspace

    home = Workspace(args.home)
    (home.root / ".page").mkdir(exist_ok=True)
    lock = FileLock(home.root / ".page" / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        fail(f"a page is open on {home.root} already: use that one, or give another --home")
    home.forget_served()
    nowhere = home.root / ".page" / "nowhere"  # Gradio would hand out files of the folder that it runs in
    nowhere.mkdir(exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(home.served)
    os.chdir(nowhere)
    serve(home, args)


def serve(home, args) -> None:
    from gralora_diffusion.ui.drawing import Sampler
    from gralora_diffusion.ui.forecasts import warm_up
    from gralora_diffusion.ui.image_sets import MOST_BYTES
    from gralora_diffusion.ui.page import build
    from gralora_diffusion.ui.run_queue import RunQueue
    from gralora_diffusion.ui.security import middleware
    from gralora_diffusion.ui.theme import CSS, HEAD, theme

    studio = Sampler(home)
    work = RunQueue(home, before_start=studio.rest)
    page = build(home, work, studio)
    page.queue(max_size=32, default_concurrency_limit=4)
    for task in (work.watch, warm_up):
        threading.Thread(target=task, daemon=True).start()
    auth = tuple(args.auth.split(":", 1)) if args.auth else None
    page.launch(
        server_name=args.listen or "127.0.0.1", server_port=args.port or None, share=args.share, auth=auth, show_error=False,
        max_file_size=MOST_BYTES,
        theme=theme(), css=CSS, head=HEAD,
        footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, mcp_server=False, pwa=False, quiet=True,
        prevent_thread_lock=True,
        app_kwargs=dict(openapi_url=None, docs_url=None, redoc_url=None, middleware=middleware(args.listen, args.share)),
    )  # fmt: skip
    print(
        f"the page is at {page.local_url}{f' and {page.share_url}' if args.share else ''}, its folders are in {home.root}",
        flush=True,
    )
    page.block_thread()
