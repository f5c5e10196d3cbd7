"""Open a page to train, watch, sample, compare and export in a browser.

Only this computer can open it. --listen ADDRESS or --share opens it to others and needs --auth NAME:PASSWORD
(or the environment variable GRALORA_AUTH). Runs, datasets, base models and added adapters are kept in the
folders runs, images, models and adapters of --home.
"""

import errno
import os
import socket
from pathlib import Path

from gralora_diffusion.command_line import Parser
from gralora_diffusion.console import fail

TELEMETRY_OFF = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
EXAMPLE = """example:
  gralora ui --home studio --port 8000
"""


def main(argv: list[str] | None = None) -> None:
    parser = parser_of_ui()
    args = parser.parse_args(argv)
    if (args.listen or args.share) and not args.auth:
        parser.error("--listen and --share open the page to others: give --auth NAME:PASSWORD with them")
    if args.auth and not all(args.auth.partition(":")[::2]):
        parser.error("--auth must be NAME:PASSWORD")
    if not 0 <= args.port < 65536:
        parser.error(f"--port is {args.port}; it must be from 0 to 65535")
    check_address(args.listen or "127.0.0.1", args.port)

    os.environ |= TELEMETRY_OFF  # read when gradio and huggingface_hub are imported
    from gralora_diffusion.ui.server import serve  # imports them, only after --help and mistakes

    serve(args.home, args.port, args.listen, args.share, args.auth)


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
        "--listen", metavar="ADDRESS", help="also listen on this address, such as 0.0.0.0; needs --auth"
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
