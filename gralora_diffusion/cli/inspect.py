"""Show what an adapter file contains: kind, base, ranks, norms, trigger words and header.

gralora inspect my_dog.safetensors              a summary
gralora inspect runs/my_dog --json              the same, and the whole header, as JSON
"""

import argparse
import json

from gralora_diffusion.command_line import Parser, path_text
from gralora_diffusion.console import fail
from gralora_diffusion.options import ConfigError


def main(argv: list[str] | None = None) -> None:
    parser = Parser(usage="%(prog)s [options] IN", description=__doc__)
    about = "adapter file from any tool, run folder, or PEFT folder"
    parser.add_argument("adapter", metavar="IN", type=path_text, help=about)
    parser.add_argument("--header", action="store_true", help="print the whole header too")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    args = parser.parse_args(argv)

    from gralora_diffusion.formats.inspection import inspect_adapter

    try:
        found = inspect_adapter(args.adapter)
    except (ConfigError, OSError) as error:
        fail(str(error))
    print_inspection(found, args)


def print_inspection(found, args: argparse.Namespace) -> None:
    if args.json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
        return
    print(found.text())
    if args.header:
        print(f"\nheader\n{found.header_text()}")
