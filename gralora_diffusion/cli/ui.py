"""Serve a page to train, watch, sample, compare and export in a browser.

Only this computer can open it. --listen ADDRESS, --share or --allow_host NAME opens it to others and needs
--auth NAME:PASSWORD (or the environment variable GRALORA_AUTH). Runs, datasets, base models and added
adapters are kept in the folders runs, images, models and adapters of --home.
"""

import errno
import os
import socket
from pathlib import Path

from gralora_diffusion.command_line import Parser
from gralora_diffusion.console import fail
from gralora_diffusion.files import resolved
from gralora_diffusion.ui.access import Access

TELEMETRY_OFF = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
EXAMPLE = """example:
  gralora ui --home studio --port 8000
"""


def main(argv: list[str] | None = None) -> None:
    parser = parser_of_ui()
    args = parser.parse_args(argv)
    access = Access(args.listen, args.share, args.auth, tuple(args.allow_host), args.root_path)
    if problem := access.problem():
        parser.error(problem)
    if not 0 <= args.port < 65536:
        parser.error(f"--port is {args.port}; it must be from 0 to 65535")
    other_tools = {"ComfyUI": args.comfyui, "A1111": args.a1111}
    other_tools = {name: resolved(folder) for name, folder in other_tools.items() if folder}
    for name, folder in other_tools.items():
        if not folder.is_dir():
            parser.error(f"--{name.lower()} is {folder}, which is not a folder")
    check_address(args.listen or "127.0.0.1", args.port)

    print("starting the page ...", flush=True)  # the imports take seconds
    os.environ |= TELEMETRY_OFF  # read when gradio and huggingface_hub are imported
    from gralora_diffusion.ui.server import serve  # imports them, only after --help and mistakes

    serve(args.home, args.port, access, other_tools)


def parser_of_ui() -> Parser:
    parser = Parser(description=__doc__, epilog=EXAMPLE)
    parser.add_argument(
        "--port", type=int, default=7860, help="port of the page; 0 selects a free one (default: 7860)"
    )
    parser.add_argument(
        "--home",
        metavar="FOLDER",
        type=Path,
        default=Path(),
        help="folder to work in (default: the current one)",
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        help="listen on this address instead of 127.0.0.1; 0.0.0.0 is every address; needs --auth",
    )
    parser.add_argument(
        "--share",
        action="store_true",
        help="open the page to the internet with Gradio's tunnel; needs --auth",
    )
    parser.add_argument(
        "--auth",
        metavar="NAME:PASSWORD",
        default=os.environ.get("GRALORA_AUTH"),
        help="who may log in (default: $GRALORA_AUTH)",
    )
    parser.add_argument(
        "--allow_host",
        metavar="NAME",
        action="append",
        default=[],
        help="the page's name behind a proxy, such as photos.example.com or NAME:PORT; needs --auth",
    )
    parser.add_argument(
        "--root_path",
        metavar="PATH",
        default="",
        help="the page's path behind a proxy, such as /studio",
    )
    for name, example in (("ComfyUI", "ComfyUI/models/loras"), ("A1111", "models/Lora")):
        parser.add_argument(
            f"--{name.lower()}",
            metavar="FOLDER",
            type=Path,
            help=f"{name}'s folder of LoRAs, such as {example}, to which Export can copy adapters",
        )
    return parser


def check_address(host: str, port: int) -> None:
    """Exit with one sentence where the server could not listen here."""
    with socket.socket() as server:
        if os.name == "posix":  # a port whose last connections are closing is free
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
            server.listen()
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                fail(f"port {port} is in use: give another --port, or --port 0 for a free one")
            fail(f"port {port} of {host} cannot be opened: {error.strerror}")
