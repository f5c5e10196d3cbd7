"""Extract an adapter from the difference between a fine-tuned model and its base.

gralora extract tuned.safetensors base.safetensors my_style.safetensors --rank 64
gralora extract tuned base my_style.safetensors --rank 64 --method gralora --k 4 --to native

TUNED, BASE: a folder in diffusers layout, a .safetensors checkpoint, or a hub id.
"""

import argparse
from pathlib import Path

from gralora_diffusion.cli.convert import add_output_options, check_output, print_converted
from gralora_diffusion.command_line import Parser, path_text
from gralora_diffusion.console import counted, fail
from gralora_diffusion.formats.writers import WRITERS
from gralora_diffusion.options import ConfigError


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)

    from gralora_diffusion.formats.extract import extract

    try:
        found = extract(args.tuned, args.base, args.rank, args.k)
        WRITERS[args.to].write(args.output, found.adapter, args.dtype)
    except (ConfigError, ValueError, OSError) as error:
        fail(str(error))
    print_converted(found)
    count = sum(map(len, found.adapter.layers.values()))
    print(f"{args.output}: {counted(count, 'layer')} of {', '.join(found.adapter.layers)} for {args.to}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(usage="%(prog)s [options] TUNED BASE OUT", description=__doc__)
    parser.add_argument("tuned", metavar="TUNED", type=path_text, help="the fine-tuned model")
    parser.add_argument("base", metavar="BASE", type=path_text, help="the model that it was fine-tuned from")
    parser.add_argument("output", metavar="OUT", type=Path, help="the file to write; for peft a new folder")
    kinds = [name for name, writer in WRITERS.items() if not writer.needs_base]
    about = "format to write (default: comfyui, or native for a GraLoRA)"
    parser.add_argument("--to", choices=kinds, help=about)
    parser.add_argument("--rank", type=int, default=64, help="rank of each layer (default: 64)")
    add_output_options(parser)
    args = parser.parse_args(argv)
    if args.to is None:
        args.to = "comfyui" if args.k is None else "native"
    check_output(parser, args, [args.tuned, args.base])
    return args
